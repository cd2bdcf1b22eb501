"""Places where calls run: what each worker has in flight, and how much more it may be sent.

A worker has three lanes. Sync calls run one at a time, so the lane holds as much measured work as hides a round trip, and no
more: tiny calls pipeline by the thousand, a long one has nothing queued behind it. `async def` calls run side by side, so the
lane holds a number of them. Nested `async def` calls have a lane without bound: what waits for them holds a slot already, and
a bound would let callers and called wait for each other forever.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiocluster.config import Settings
from aiocluster.core.calls import Call

if TYPE_CHECKING:
    from aiocluster.core.pools import OwnPool, Pool

__all__ = ["CLOSED", "Lane", "LaneKind", "Placement", "WorkerPlace"]

CLOSED = -1
"""The level of a lane that takes no more calls for now."""

LEVELS = 48
"""Levels are powers of two of microseconds of load: enough for three days."""

UNKNOWN_S = 60.0
"""What a call is expected to take that nobody has measured: nothing is queued behind it."""

NEXT_S = 0.010
"""A worker that has but one call gets the next one ahead of time if its work is less than this: the round trip that it would
wait for otherwise costs more than a few percent. A longer call has nothing queued behind it."""

ASYNC_WEIGHT_S = 1e-6
"""An async call counts as one unit of load, so that one formula serves all lanes."""


class LaneKind(enum.IntEnum):
    SYNC = 0
    ASYNC = 1
    NESTED = 2

    @staticmethod
    def of(call: Call) -> LaneKind:
        if not call.function.is_async:
            return LaneKind.SYNC
        return LaneKind.NESTED if call.origin else LaneKind.ASYNC


SYNC = LaneKind.SYNC


class Lane:
    """One way of running calls on one worker. Its level says how loaded it is; lower levels are filled first."""

    __slots__ = ("count", "kind", "level", "limit", "load", "place", "pools", "window_s", "yielded")

    def __init__(self, place: WorkerPlace, kind: LaneKind, window_s: float, limit: float) -> None:
        self.place = place
        self.kind = kind
        self.window_s = window_s
        self.limit = limit
        self.count = 0
        self.yielded = 0
        self.load = 0.0
        self.level = CLOSED
        self.pools: list[Pool | OwnPool] = []

    @property
    def computing(self) -> int:
        """Calls that hold a slot: those in flight, less those that wait for another call."""
        return self.count - self.yielded

    def weight_of(self, call: Call) -> float:
        """The load of a call: its expected seconds; a sync call never measured is taken for a long one."""
        if self.kind is not LaneKind.SYNC:
            return ASYNC_WEIGHT_S
        estimate = call.function.estimate_s
        return UNKNOWN_S if estimate is None else estimate * call.items

    def update(self) -> None:
        """Recompute the level after count, load or the place's state changed, and tell the pools if it moved."""
        place = self.place
        if not place.accepting:
            level = CLOSED
        elif self.count == self.yielded:
            self.load = 0.0  # also forgets what rounding has left
            level = 0
        elif self._is_full():
            level = CLOSED
        else:
            level = min(1 + int(self.load * 1e6).bit_length(), LEVELS - 1)
        if self.kind is SYNC and (self.count - self.yielded >= 2) is not place.is_stacked:
            place.note_stacked(not place.is_stacked)
        if level != self.level:
            self.level = level
            for pool in self.pools:
                pool.refresh(self)

    def _is_full(self) -> bool:
        """True if the calls in flight are enough: in number, in bytes of arguments, or in work."""
        place = self.place
        if self.count >= self.limit or (place.bytes >= place.window_bytes and self.kind is not LaneKind.NESTED):
            return True
        return self.load >= self.window_s and (self.load >= NEXT_S or self.count - self.yielded > 1)

    def ceiling(self) -> float:
        """The load at which this lane leaves its level; 0 where one call is enough."""
        return 0.0 if self.level <= 0 else (1 << (self.level - 1)) * 1e-6


class WorkerPlace:
    """One worker as dispatch sees it."""

    __slots__ = (
        "accepting",
        "bytes",
        "ending",
        "free",
        "id",
        "inflight",
        "is_stacked",
        "known",
        "lanes",
        "next_serial",
        "outbox",
        "own",
        "own_nested",
        "preparing",
        "progress_at",
        "recalling",
        "resources",
        "stacked",
        "window_bytes",
    )

    def __init__(
        self, id: int, resources: Mapping[str, float], settings: Settings, stacked: dict[WorkerPlace, None], now: float
    ) -> None:
        self.id = id
        self.resources = dict(resources)
        self.free = dict(resources)
        self.lanes = (
            Lane(self, LaneKind.SYNC, settings.window_s, settings.window_calls),
            Lane(self, LaneKind.ASYNC, float("inf"), settings.async_calls),
            Lane(self, LaneKind.NESTED, float("inf"), float("inf")),
        )
        self.window_bytes = settings.window_bytes
        self.bytes = 0
        self.inflight: dict[int, Call] = {}
        """By call id, in the order sent."""
        self.next_serial = 1
        self.outbox: list[Call] = []
        self.known: set[int] = set()
        """Ids of the functions it has been sent."""
        self.own: OwnPool
        self.own_nested: OwnPool | None = None
        """Calls that other calls wait for are not held up behind those of the manager's program."""
        self.preparing: OwnPool | None
        """What runs before the worker is open, and nothing else until then; None from then on."""
        self.ending = False
        """It takes no more calls, ever."""
        self.accepting = False
        self.recalling = False
        self.progress_at = now
        """When it last finished a call, or was given one while it had none."""
        self.stacked = stacked
        self.is_stacked = False

    def note_stacked(self, stacked: bool) -> None:
        """Keep the register of workers that hold sync calls behind another one."""
        self.is_stacked = stacked
        if stacked:
            self.stacked[self] = None
        else:
            self.stacked.pop(self, None)

    def can_ever_fit(self, demand: tuple[tuple[str, float], ...]) -> bool:
        return all(self.resources.get(name, 0.0) >= amount for name, amount in demand)

    def fits_now(self, demand: tuple[tuple[str, float], ...]) -> bool:
        return all(self.free.get(name, 0.0) >= amount for name, amount in demand)

    def reserve(self, call: Call, sign: int) -> None:
        """Take (1) or give back (-1) what the call asks for, and tell the pools that depend on it."""
        for name, amount in call.options.resources.items():
            # Rounded: what is taken and given back in another order must come out whole.
            self.free[name] = min(self.resources.get(name, 0.0), round(self.free.get(name, 0.0) - sign * amount, 9))
        for lane in self.lanes:
            for pool in lane.pools:
                if pool.demand:
                    pool.refresh(lane)
        if sign < 0:
            for pool in self.own_pools():
                pool.wake()

    def own_pools(self) -> list[OwnPool]:
        """All queues of calls for this worker alone."""
        return [pool for pool in (self.preparing, self.own, self.own_nested) if pool is not None]

    def update(self) -> None:
        for lane in self.lanes:
            lane.update()


class Placement:
    """Open lanes by level: the least loaded one in constant time, however many there are."""

    __slots__ = ("_levels", "_mask", "_where")

    def __init__(self) -> None:
        self._levels: list[dict[Lane, None]] = [{} for _ in range(LEVELS)]
        self._mask = 0
        self._where: dict[Lane, int] = {}

    def put(self, lane: Lane, level: int) -> None:
        """Record the lane's level; `CLOSED` takes it out."""
        old = self._where.get(lane, CLOSED)
        if old == level:
            return
        if old >= 0:
            held = self._levels[old]
            del held[lane]
            if not held:
                self._mask &= ~(1 << old)
        if level >= 0:
            self._levels[level][lane] = None
            self._mask |= 1 << level
            self._where[lane] = level
        else:
            del self._where[lane]

    def least(self) -> Lane | None:
        """An open lane of the lowest level, the one that has been there longest; None if all are closed."""
        mask = self._mask
        if not mask:
            return None
        return next(iter(self._levels[(mask & -mask).bit_length() - 1]))

    @property
    def idle(self) -> int:
        """How many open lanes have nothing to do."""
        return len(self._levels[0])
