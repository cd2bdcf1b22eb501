"""What workers write: handed on as it comes, and kept for a while so that a call's own lines can be asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiocluster.core.calls import Call
from aiocluster.wire.messages import FlushOutput, Output

if TYPE_CHECKING:
    from aiocluster.runtime.manager import Manager

__all__ = ["Logbook"]

FLUSH_TIMEOUT_S = 5.0
"""A node that does not answer in so long is about to be declared lost: what is known is given."""


class Logbook:
    """The last lines of all workers, each with the call that wrote it."""

    def __init__(self, manager: Manager, write: Callable[[int, int, list[str]], None]) -> None:
        self._manager = manager
        self._write = write
        self._lines: deque[tuple[int, str]] = deque(maxlen=manager.settings.output_lines)
        self._flushes: dict[int, tuple[str, asyncio.Future[None]]] = {}
        """Who waits for which node to have sent everything."""
        self._next = 1

    def received(self, message: Output) -> None:
        """Lines of a worker have arrived."""
        self._lines.extend((call, line) for call, line in zip(message.calls, message.lines, strict=True) if call)
        self._write(message.worker_id, message.stream, message.lines)

    def flushed(self, request: int) -> None:
        _node, flush = self._flushes.pop(request, ("", None))
        if flush is not None and not flush.done():
            flush.set_result(None)

    def node_gone(self, name: str) -> None:
        """The node says nothing more: what is known is all there is."""
        for request, (node, _flush) in list(self._flushes.items()):
            if node == name:
                self.flushed(request)

    async def lines_of(self, call: Call) -> list[str]:
        """All lines of the call that are still kept, after asking its worker's agent for what is on its way."""
        if call.lane is not None:
            await self._flush(call.lane.place.id)
        return [line for id, line in self._lines if id == call.id]

    async def _flush(self, worker_id: int) -> None:
        record = self._manager.core.roster.workers.get(worker_id)
        if record is None:
            return
        link = self._manager.node_links.get(record.node.name)
        if link is None:
            return
        request = self._next
        self._next += 1
        flush: asyncio.Future[None] = self._manager.loop.create_future()
        self._flushes[request] = record.node.name, flush
        link.send(FlushOutput(request, worker_id))
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await flush
        except TimeoutError:
            return
        finally:
            self._flushes.pop(request, None)
