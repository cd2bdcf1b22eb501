"""How many items of a map share a call: as many as take about a millisecond, by what has been measured so far."""

from __future__ import annotations

__all__ = ["ChunkSizes"]

CHUNK_S = 0.001
"""Seconds of work in a chunk: a thousand times what a chunk costs to send is too long to wait for, a tenth of it too dear."""
CHUNK_ITEMS = 8192
GROWTH = 4
"""How much longer a chunk may be than one that has been measured: one odd item must not send a minute's work to one worker."""


class ChunkSizes:
    """The sizes of one map's chunks.

    Args:
        fixed: the size of all; None measures.
        total: how many items there will be, if that is known.
    """

    def __init__(self, fixed: int | None, total: int | None) -> None:
        self._fixed = fixed
        self._total = total
        self._mean_s: float | None = None
        self._longest = 1
        """Items of the longest chunk that has been measured."""

    def learn(self, ns: int, count: int) -> None:
        """A chunk of so many items took so long."""
        mean_s = ns * 1e-9 / count if count else 0.0
        self._mean_s = mean_s if self._mean_s is None else (self._mean_s + mean_s) / 2
        self._longest = max(self._longest, count)

    def next(self, pulled: int, workers: int, known_s: float | None) -> int:
        """Items of the next chunk, 1 or more.

        Args:
            pulled: how many items are in chunks already.
            known_s: how long one takes, as far as that was known before this map.
        """
        if self._fixed is not None:
            return self._fixed
        mean_s = known_s if self._mean_s is None else self._mean_s
        if mean_s is None:
            return 1
        items = min(CHUNK_ITEMS, self._longest * GROWTH)
        if mean_s > 0:
            items = min(items, int(CHUNK_S / mean_s))
        if self._total is not None:  # towards the end everybody shall have something left
            items = min(items, (self._total - pulled) // (2 * workers))
        return max(1, items)
