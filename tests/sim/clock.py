"""Virtual time: events in order of their time, each on behalf of a process that may be frozen or dead by then.

Nothing here, or above, knows a wall clock. All randomness of a run comes from the one `random.Random` in `World`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

__all__ = ["Clock", "Process", "Timer", "Violation", "World"]


class Violation(Exception):
    """A promise of the design was broken. `promise` is its number in the list of semantics, or a word."""

    def __init__(self, promise: int | str, text: str) -> None:
        super().__init__(promise, text)
        self.promise = promise
        self.text = text

    def __str__(self) -> str:
        return f"promise {self.promise}: {self.text}"


class Process:
    """Whatever can die or be stopped as one: what happens to it while it is frozen, happens when it thaws."""

    __slots__ = ("alive", "deferred", "frozen", "name", "shuffles")

    def __init__(self, name: str, *, shuffles: bool = False) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.deferred: list[Timer] = []
        self.shuffles = shuffles
        """Timers and sockets are served in any order after a thaw, as event loops differ in that."""


class Timer:
    """One event to come."""

    __slots__ = ("action", "args", "process")

    def __init__(self, process: Process, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.process = process
        self.action: Callable[..., None] | None = action
        self.args = args

    def cancel(self) -> None:
        self.action = None


class Clock:
    """The events of a run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self.events = 0

    def at(self, when: float, process: Process, action: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(process, action, args)
        self._push(max(when, self.now), timer)
        return timer

    def _push(self, when: float, timer: Timer) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, timer))

    def freeze(self, process: Process) -> None:
        process.frozen = True

    def thaw(self, process: Process, rng: random.Random) -> None:
        process.frozen = False
        deferred, process.deferred = process.deferred, []
        if process.shuffles:
            rng.shuffle(deferred)
        for timer in deferred:
            self._push(self.now, timer)

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._heap:
            return False
        self.now, _, timer = heapq.heappop(self._heap)
        process, action = timer.process, timer.action
        if action is None or not process.alive:
            return True
        if process.frozen:
            process.deferred.append(timer)
            return True
        self.events += 1
        action(*timer.args)
        return True


class World:
    """What every part of a simulated cluster shares: the clock, the dice, the trace."""

    def __init__(self, seed: int, write: Callable[[str], None] | None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.write = write
        self.tracing = write is not None
        self.outside = Process("outside")
        """Who is never frozen and never dies: the fault injector, launchers, cables."""
        self.longest_delay_s = 0.0
        """Of one frame under way without a fault."""
        self.encoded = False
        """Frames travel as bytes."""

    @property
    def now(self) -> float:
        return self.clock.now

    def at(self, when: float, process: Process, action: Callable[..., None], *args: Any) -> Timer:
        return self.clock.at(when, process, action, *args)

    def after(self, seconds: float, process: Process, action: Callable[..., None], *args: Any) -> Timer:
        return self.clock.at(self.clock.now + seconds, process, action, *args)

    def say(self, who: str, text: str) -> None:
        """One line of the trace; callers ask `tracing` first where making the text costs."""
        if self.write is not None:
            self.write(f"{self.clock.now:12.6f}  {who:<10}  {text}")
