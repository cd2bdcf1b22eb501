"""Functions that calls use: one entry for each content hash, with a short id and a measured duration.

The table is bounded: entries that no call uses any more are forgotten, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["FunctionEntry", "FunctionTable"]


class FunctionEntry:
    """One function: its bytes, the id that stands for it on every link, and how long it takes."""

    __slots__ = ("estimate_s", "hash", "id", "is_async", "name", "payload", "uses")

    def __init__(self, id: int, hash: bytes, payload: bytes, name: str, is_async: bool) -> None:
        self.id = id
        self.hash = hash
        self.payload = payload
        self.name = name
        self.is_async = is_async
        self.estimate_s: float | None = None
        """Seconds of one call (of one item of a chunk); None until the first has been measured."""
        self.uses = 0
        """Calls that wait or run."""

    def observe(self, count: int, total_s: float) -> None:
        """Learn from `count` executions that took `total_s` together.

        A moving average over executions: a frame of many tiny calls says more than one call does, and a function that
        becomes slow is believed within a few of them.
        """
        mean = total_s / count
        if self.estimate_s is None:
            self.estimate_s = mean
        else:
            self.estimate_s += (mean - self.estimate_s) * (count / (count + 7))


class FunctionTable:
    """Every function of a cluster by hash and by id; at most `limit` that nobody uses are kept."""

    def __init__(self, *, limit: int = 4096, limit_bytes: int = 256 * 2**20) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._by_hash: OrderedDict[bytes, FunctionEntry] = OrderedDict()
        self._by_id: dict[int, FunctionEntry] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._by_hash)

    def intern(self, hash: bytes, payload: bytes, name: str, is_async: bool) -> FunctionEntry:
        """The entry of this content; a new one if it was never seen, or has been forgotten."""
        entry = self._by_hash.get(hash)
        if entry is None:
            entry = FunctionEntry(self._next_id, hash, payload, name, is_async)
            self._next_id += 1
            self._by_hash[hash] = self._by_id[entry.id] = entry
            self._bytes += len(payload)
        else:
            self._by_hash.move_to_end(hash)
        return entry

    def get(self, id: int) -> FunctionEntry | None:
        return self._by_id.get(id)

    def observe(self, id: int, count: int, total_s: float) -> None:
        """Record a measurement; an id that is unknown or a count of 0 is ignored: a figure is no promise."""
        entry = self._by_id.get(id)
        if entry is not None and count > 0:
            entry.observe(count, total_s)

    def evict(self) -> list[int]:
        """Forget what is over the limits and unused; the ids, for those who were told them."""
        gone: list[int] = []
        if len(self._by_hash) <= self._limit and self._bytes <= self._limit_bytes:
            return gone
        for entry in list(self._by_hash.values()):
            if len(self._by_hash) <= self._limit and self._bytes <= self._limit_bytes:
                break
            if entry.uses == 0:
                del self._by_hash[entry.hash], self._by_id[entry.id]
                self._bytes -= len(entry.payload)
                gone.append(entry.id)
        return gone
