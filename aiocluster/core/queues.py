"""A queue of calls: by priority, then in the order of arrival, with withdrawal at no cost to the others.

Within a priority nested calls go first: a call that has begun, and waits for them, should end before others begin.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable

from aiocluster.core.calls import DEFAULT_OPTIONS, Call, CallState

__all__ = ["CallQueue", "rank_of"]

WAITING = CallState.WAITING


def rank_of(call: Call) -> int:
    """Calls of a higher rank go first."""
    return 2 * call.options.priority + (1 if call.origin else 0)


class CallQueue:
    """Calls that wait. A withdrawn call stays as a mark and is dropped when it is reached, or when marks outnumber calls."""

    __slots__ = ("_first", "_length", "_lines", "_marks", "_order")

    def __init__(self) -> None:
        self._lines: dict[int, deque[Call]] = {}
        self._order: list[int] = []
        self._first: deque[Call] | None = None
        self._length = 0
        self._marks = 0

    def __len__(self) -> int:
        return self._length

    def append(self, call: Call) -> None:
        rank = 0 if call.options is DEFAULT_OPTIONS and not call.origin else rank_of(call)
        line = self._lines.get(rank)
        if line is None:
            line = self._line(rank)
        line.append(call)
        self._length += 1

    def append_left(self, call: Call) -> None:
        """Put back a call that came from the head."""
        self._line(rank_of(call)).appendleft(call)
        self._length += 1

    def _line(self, rank: int) -> deque[Call]:
        line = self._lines.get(rank)
        if line is None:
            line = self._lines[rank] = deque()
            insort(self._order, -rank)
            self._first = self._lines[-self._order[0]]
        return line

    def head(self) -> Call | None:
        """The next call, or None; it stays in the queue."""
        while True:
            line = self._first
            if line is None:
                return None
            while line:
                call = line[0]
                if call.state is WAITING:
                    return call
                line.popleft()
                self._marks -= 1
            del self._lines[-self._order.pop(0)]
            self._first = self._lines[-self._order[0]] if self._order else None

    def pop(self) -> Call | None:
        """Take the next call, or None."""
        line = self._first
        if line:  # the common case: a live call at the head of the first line
            call: Call | None = line[0]
            if call is not None and call.state is WAITING:
                line.popleft()
                self._length -= 1
                return call
        call = self.head()
        if call is not None and self._first is not None:
            self._first.popleft()
            self._length -= 1
        return call

    def withdrew(self, call: Call) -> None:
        """A waiting call of this queue has just ended: its place in line is a mark now."""
        self._length -= 1
        self._marks += 1
        if self._marks > 64 and self._marks > self._length:
            for rank, line in self._lines.items():
                self._lines[rank] = deque(one for one in line if one.state is WAITING)
            self._first = self._lines[-self._order[0]] if self._order else None
            self._marks = 0

    def take_nested(self, wanted: Callable[[Call], bool]) -> list[Call]:
        """Take the nested calls of which this is true, in order within their priority."""
        taken: list[Call] = []
        for rank, line in self._lines.items():
            if rank & 1:
                for _ in range(len(line)):
                    call = line.popleft()
                    (taken if call.state is WAITING and wanted(call) else line).append(call)
        self._length -= len(taken)
        return taken

    def drain(self) -> list[Call]:
        """Take every call, in order."""
        calls: list[Call] = []
        while (call := self.pop()) is not None:
            calls.append(call)
        return calls
