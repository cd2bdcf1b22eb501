"""How the jobs or tasks of a launcher are watched: all of them by one poller, in as few requests as the API allows.

`Pace` decides, and has no clock and no randomness of its own; `Poller` asks when it is told to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import random as _random
from typing import Generic, TypeVar

from aiocluster.launch.aws import AwsError, Fault

__all__ = ["Figures", "Pace", "Poller"]

S = TypeVar("S")

logger = logging.getLogger("aiocluster")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """How often to look.

    Args:
        quick_s: seconds from one round to the next while something is new.
        slow_s: the same when nothing has changed for long.
        growth: each round without a change, the time to the next one is so many times longer.
        troubled_s: the longest time to the next round after errors.
        at_once: ids in one request: 100 for DescribeJobs and for DescribeTasks.
    """

    quick_s: float = 1.0
    slow_s: float = 12.0
    growth: float = 1.5
    troubled_s: float = 60.0
    at_once: int = 100


class Pace(Generic[S]):
    """What is watched, what is known of it, and when to look again.

    Args:
        random: numbers from 0 to 1, by which rounds of many pollers do not fall together.
    """

    def __init__(self, figures: Figures, random: Callable[[], float]) -> None:
        self._figures = figures
        self._random = random
        self._known: dict[str, S | None] = {}
        self._interval_s = figures.quick_s
        self._due = float("inf")

    def __len__(self) -> int:
        return len(self._known)

    def add(self, ids: Iterable[str], *, now: float) -> None:
        """Watch these from now on; the next round is soon."""
        new = [id for id in ids if id not in self._known]
        if new:
            self._known.update(dict.fromkeys(new))
            self.hurry(now=now)

    def drop(self, ids: Iterable[str]) -> None:
        """Watch these no more."""
        for id in ids:
            self._known.pop(id, None)

    def hurry(self, *, now: float) -> None:
        """Something is going on: look quickly again, though not faster than ever."""
        self._interval_s = self._figures.quick_s
        self._due = min(self._due, self._after(now))

    def due(self, now: float) -> float:
        """Seconds until the next round: 0 if it is due, infinity if there is nothing to watch."""
        return max(0.0, self._due - now) if self._known else float("inf")

    def requests(self) -> list[tuple[str, ...]]:
        """The ids to ask for in one round, request by request; those whose states are the oldest first."""
        ids, at_once = list(self._known), self._figures.at_once
        return [tuple(ids[i : i + at_once]) for i in range(0, len(ids), at_once)]

    def seen(self, asked: Iterable[str], states: Mapping[str, S]) -> dict[str, S]:
        """Those of an answer that are watched and have changed; from now on this is what is known of them."""
        for id in asked:  # to the end: a round that is broken off does not begin with them again
            if id in self._known:
                self._known[id] = self._known.pop(id)
        changes = {id: state for id, state in states.items() if id in self._known and self._known[id] != state}
        self._known.update(changes)
        return changes

    def untold(self, id: str) -> None:
        """What was seen of it has not been told: the next round sees it as a change once more."""
        if id in self._known:
            self._known[id] = None

    def rested(self, *, changed: bool, now: float) -> None:
        """A round is over: the next one is soon if anything has changed, and later and later if not."""
        figures = self._figures
        self._interval_s = figures.quick_s if changed else min(self._interval_s * figures.growth, figures.slow_s)
        self._due = self._after(now)

    def failed(self, *, now: float) -> None:
        """A round has met an error: the time to the next one doubles, each time."""
        self._interval_s = min(self._interval_s * 2, self._figures.troubled_s)
        self._due = self._after(now)

    def _after(self, now: float) -> float:
        return now + self._interval_s * (0.75 + 0.5 * self._random())


class Poller(Generic[S]):
    """Watches ids until it is closed, and tells what changes. It outlives every error, those of `ask` and `changed` as well.

    Args:
        ask: the states of so many ids, `Figures.at_once` at most. Ids that are not in its answer are as they were.
        changed: called with an id and its new state.
        name: of its task.
        figures: how often to look.
        clock: seconds, as those of the loop.
        random: numbers from 0 to 1.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Awaitable[Mapping[str, S]]],
        changed: Callable[[str, S], None],
        *,
        name: str,
        figures: Figures | None = None,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        self._ask = ask
        self._changed = changed
        self._name = name
        self._pace: Pace[S] = Pace(figures or Figures(), random)
        self._clock = clock
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._asking = asyncio.Lock()
        """One request at a time: no older answer is taken for the newer one."""

    def watch(self, ids: Iterable[str]) -> None:
        """Tell what becomes of these. The first call starts the poller's task, which ends with `close`."""
        self._pace.add(ids, now=self._now())
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._name)

    def forget(self, ids: Iterable[str]) -> None:
        """Tell no more of these."""
        self._pace.drop(ids)

    def hurry(self) -> None:
        """Look quickly again: something is expected to change."""
        self._pace.hurry(now=self._now())
        self._news.set()

    async def look(self, ids: Iterable[str]) -> None:
        """Ask for these now.

        Raises:
            AwsError: AWS does not tell.

        What `changed` raises is raised once all other changes have been told.
        """
        wanted = set(ids)
        for request in self._pace.requests():
            if some := [id for id in request if id in wanted]:
                await self._request(some)

    async def close(self) -> None:
        """Tell nothing more; the task has ended. It can be used again afterwards."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            due_s = self._pace.due(self._now())
            if due_s:
                try:
                    async with asyncio.timeout(None if due_s == float("inf") else due_s):
                        await self._news.wait()
                except TimeoutError:
                    pass
                continue
            await self._round()

    async def _round(self) -> None:
        changed = False
        try:
            for request in self._pace.requests():
                changed |= await self._request(request)
        except AwsError as error:
            self._pace.failed(now=self._now())
            if error.fault is not Fault.THROTTLED and self._is_news(error.reason):
                logger.warning("%s cannot look after its nodes, and tries again: %s", self._name, error.reason)
        except Exception as error:  # a defect, or an answer of a form that nobody knows: nodes must be looked after all the same
            self._pace.failed(now=self._now())
            if self._is_news(repr(error)):
                logger.exception("%s has met an error that it does not know, and tries again", self._name)
        else:
            self._trouble = ""
            self._pace.rested(changed=changed, now=self._now())

    def _is_news(self, trouble: str) -> bool:
        """What goes wrong in the same way with every round is said once."""
        before, self._trouble = self._trouble, trouble
        return trouble != before

    async def _request(self, ids: Sequence[str]) -> bool:
        async with self._asking:
            changes = self._pace.seen(ids, await self._ask(ids))
        failed: Exception | None = None
        for id, state in changes.items():
            try:
                self._changed(id, state)
            except Exception as error:  # the others must be told all the same
                self._pace.untold(id)
                failed = error
        if failed is not None:
            raise failed
        return bool(changes)
