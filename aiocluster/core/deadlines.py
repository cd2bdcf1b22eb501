"""When calls run out of time: the earliest first, at a cost that calls which end in time do not leave behind."""

from __future__ import annotations

import heapq

from aiocluster.core.calls import Call, CallState

__all__ = ["Deadlines"]


class Deadlines:
    """The deadlines of calls. One that has ended stays as a dead entry until it is reached, or until those are the most."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call]] = []
        self.dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, call: Call) -> None:
        """The call has a deadline."""
        assert call.deadline is not None
        heapq.heappush(self._heap, (call.deadline, call.id, call))

    def ended(self) -> None:
        """A call with a deadline has ended."""
        self.dead += 1

    def expire(self, now: float) -> list[Call]:
        """Take the calls whose deadline has passed and whose caller still waits."""
        heap = self._heap
        expired: list[Call] = []
        while heap and heap[0][0] <= now:
            call = heapq.heappop(heap)[2]
            if call.state is CallState.ENDED:
                self.dead -= 1
                continue
            if call.state is CallState.WAITING:
                call.deadline = None
            else:  # it keeps its deadline for calls that it makes before it hears of this; it is not in the heap any more
                self.dead -= 1
            if call.state is not CallState.ABANDONED:
                expired.append(call)
        return expired

    @property
    def due(self) -> float | None:
        """When the next one passes."""
        heap = self._heap
        if self.dead > 64 and self.dead * 2 > len(heap):
            heap[:] = [entry for entry in heap if entry[2].state is not CallState.ENDED]
            heapq.heapify(heap)
            self.dead = 0
        return heap[0][0] if heap else None
