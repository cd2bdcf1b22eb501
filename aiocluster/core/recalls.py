"""Recalls: calls that wait behind a slow one are asked back when another worker has nothing to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from aiocluster.core.calls import Call
from aiocluster.core.places import LaneKind, WorkerPlace
from aiocluster.core.pools import Pool

__all__ = ["Recalls"]

RECALL_LOAD_S = 0.0003
"""Work worth calling back: less is done before the question has gone there and back."""
RECALL_AFTER_S = 0.001
"""A worker that has finished nothing for so long may sit on a call far longer than its estimate."""
RECALL_AGAIN_S = 1.0
"""A worker whose calls nobody else could take is asked again after twice as long each time, up to this."""


class _Vain(NamedTuple):
    """A recall that moved nothing. With a delay of 0 the worker had nothing to give back, up to that serial."""

    until: float
    delay_s: float
    serial: int


class Recalls:
    """Whom to ask, when, and who was asked in vain."""

    def __init__(self) -> None:
        self.due: float | None = None
        """When it is worth to look again; None if only an event can change anything."""
        self.vain: dict[WorkerPlace, _Vain] = {}
        """Workers whose last recall moved nothing."""
        self.asked: dict[WorkerPlace, int] = {}
        """The next serial of workers when they were asked to give calls back."""

    def choose(self, stacked: Iterable[WorkerPlace], idle: int, now: float) -> list[tuple[WorkerPlace, int]]:
        """Of the workers that hold calls behind another one, those to ask now for so many, as long as others are idle."""
        self.due = None
        chosen: list[tuple[WorkerPlace, int]] = []
        for place in stacked:
            if place.recalling:
                idle -= 1
            else:
                lane = place.lanes[LaneKind.SYNC]
                due = place.progress_at + RECALL_AFTER_S
                vain = self.vain.get(place)
                if vain is not None:
                    if vain.delay_s == 0.0 and vain.serial == place.next_serial:
                        continue  # it has nothing to give back, and was sent nothing since
                    due = max(due, vain.until)
                if now >= due or (vain is None and lane.load >= RECALL_LOAD_S):
                    place.recalling = True
                    self.asked[place] = place.next_serial
                    chosen.append((place, max(1, lane.computing // 2)))
                    idle -= 1
                elif self.due is None or due < self.due:
                    self.due = due
            if idle <= 0:
                break
        return chosen

    def answered(self, place: WorkerPlace, back: list[Call], now: float) -> None:
        """Remember whether asking the worker was any use: else it would be asked again at once, and for ever."""
        place.recalling = False
        asked = self.asked.pop(place, place.next_serial)
        if not back:
            self.vain[place] = _Vain(now, 0.0, asked)
            return
        for call in back:
            pool = call.pool
            if isinstance(pool, Pool) and pool.placement.idle:
                self.vain.pop(place, None)
                return
        before = self.vain.get(place)
        delay_s = min(max(RECALL_AFTER_S, 2 * before.delay_s if before is not None else 0.0), RECALL_AGAIN_S)
        self.vain[place] = _Vain(now + delay_s, delay_s, 0)

    def forget(self, place: WorkerPlace) -> None:
        """The worker is gone."""
        self.vain.pop(place, None)
        self.asked.pop(place, None)
