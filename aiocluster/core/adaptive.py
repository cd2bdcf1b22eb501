"""How many workers the work asks for: grows when calls wait, shrinks when workers have had nothing to do for a while."""

from __future__ import annotations

__all__ = ["Adaptive"]


class Adaptive:
    """The policy of `Cluster.adapt`.

    Args:
        minimum: never fewer.
        maximum: never more.
        idle_s: how long there must have been less work than workers before some are retired.
    """

    def __init__(self, minimum: int, maximum: int, *, idle_s: float) -> None:
        whole = isinstance(minimum, int) and isinstance(maximum, int)
        if not whole or not 0 <= minimum <= maximum or maximum < 1:
            raise ValueError(
                f"adapt needs whole numbers, 0 <= minimum <= maximum and a maximum of 1 or more, not {minimum!r} and {maximum!r}"
            )
        self.minimum = minimum
        self.maximum = maximum
        self._idle_s = idle_s
        self._waited_before = False
        self._most_needed = 0
        self._idle_since: float | None = None

    def target(self, *, waiting: int, running: int, wanted: int, now: float) -> int:
        """How many workers there should be now.

        It grows only if calls waited at the last look as well: a burst that is gone by then needed nobody. It shrinks to the
        most that were needed at once during the idle time.
        """
        needed = min(self.maximum, max(self.minimum, waiting + running))
        waited_before, self._waited_before = self._waited_before, waiting > 0
        if wanted < self.minimum:
            return self.minimum
        if wanted > self.maximum:
            return self.maximum
        if waiting and (waited_before or wanted == 0):
            self._idle_since = None
            return max(wanted, needed)
        if needed >= wanted:
            self._idle_since = None
            return wanted
        if self._idle_since is None:
            self._idle_since, self._most_needed = now, needed
        self._most_needed = max(self._most_needed, needed)
        if now - self._idle_since < self._idle_s:
            return wanted
        self._idle_since = None
        return self._most_needed
