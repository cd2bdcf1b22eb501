"""A worker's calls that have arrived: which wait, which run, which were cancelled or given back.

The loop's thread receives, recalls and cancels; the executing thread takes. Both may do so at the same moment: every step is
one atomic operation on a deque, or a flag that each side sets before it looks at the other's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from aiocluster.wire.messages import Calls, Mode

__all__ = ["ArrivedCall", "Inbox"]

ASYNC, ORDERED = Mode.ASYNC, Mode.ORDERED


class ArrivedCall:
    """One call on its worker."""

    __slots__ = (
        "after",
        "begun",
        "buffers",
        "cancelled",
        "entered",
        "function",
        "id",
        "mode",
        "name",
        "payload",
        "runner",
        "serial",
        "started",
    )

    def __init__(self, id: int, serial: int, function: int, mode: int, payload: bytes) -> None:
        self.id = id
        self.serial = serial
        self.function = function
        self.mode = mode
        self.payload = payload
        self.buffers: Sequence[Any] = ()
        self.name: str | None = None
        self.started = False
        """It is out of the line: it runs, or is about to."""
        self.entered = False
        """Its task runs: it can be cancelled by the loop. For `async def` calls."""
        self.begun = False
        """Its code has run up to its first wait. For ordered `async def` calls."""
        self.after: ArrivedCall | None = None
        """The ordered `async def` call before it: it must have begun first."""
        self.cancelled = False
        self.runner: Any = None
        """What executes it: the shell's own."""


class Inbox:
    """The calls that a worker holds, from arrival to their end."""

    def __init__(self) -> None:
        self.waiting: deque[ArrivedCall] = deque()
        """Calls for the executing thread, in the order in which they start."""
        self.held: dict[int, ArrivedCall] = {}
        self._last_ordered: ArrivedCall | None = None

    def receive(self, message: Calls, buffers: Sequence[Any]) -> list[ArrivedCall]:
        """Take in a frame of calls. Returns the `async def` calls to start now; sync ones wait for the executing thread.

        An ordered async call that follows sync calls which have not started waits with them.
        """
        held, waiting = self.held, self.waiting
        start_now: list[ArrivedCall] = []
        serial = message.first_serial
        rows = zip(message.ids, message.functions, message.modes, message.payloads, strict=True)
        if message.buffers or message.names:
            arrived = []
            for id, function, mode, payload in rows:
                arrived.append(ArrivedCall(id, serial, function, mode, payload))
                serial += 1
            _attach(arrived, message, buffers)
        else:
            arrived = [
                ArrivedCall(id, serial + n, function, mode, payload) for n, (id, function, mode, payload) in enumerate(rows)
            ]
        for call in arrived:
            held[call.id] = call
            previous = None
            if call.mode & ORDERED:
                previous, self._last_ordered = self._last_ordered, call
            if call.mode & ASYNC and not (call.mode & ORDERED and waiting):
                start_now.append(call)
                continue
            if previous is not None and previous.mode & ASYNC and not previous.begun:
                call.after = previous
            waiting.append(call)
        return start_now

    def take(self) -> ArrivedCall | None:
        """The next call for the executing thread, marked as started; None if there is none. See `ArrivedCall.cancelled`."""
        try:
            call = self.waiting.popleft()
        except IndexError:
            return None
        call.started = True
        return call

    def recall(self, count: int) -> list[int]:
        """Give back up to `count` calls that have not started, the latest first; ordered ones stay, whatever is before them."""
        ids: list[int] = []
        keep: list[ArrivedCall] = []
        while len(ids) < count:
            try:
                call = self.waiting.pop()
            except IndexError:
                break
            if call.mode & ORDERED or call.cancelled:
                keep.append(call)
                continue
            del self.held[call.id]
            ids.append(call.id)
        self.waiting.extend(reversed(keep))
        return ids

    def cancel(self, id: int) -> ArrivedCall | None:
        """Mark the call as cancelled. Returns it if it has started, so that it must be interrupted; None else.

        The executing thread reports a call as cancelled that it finds marked when it takes it.
        """
        call = self.held.get(id)
        if call is None:
            return None
        call.cancelled = True
        return call if call.started else None

    def finish(self, call: ArrivedCall) -> None:
        """The call has ended here."""
        self.held.pop(call.id, None)


def _attach(arrived: list[ArrivedCall], message: Calls, buffers: Sequence[Any]) -> None:
    start = 0
    for index, count in message.buffers:
        arrived[index].buffers = buffers[start : start + count]
        start += count
    for index, name in message.names:
        arrived[index].name = name
