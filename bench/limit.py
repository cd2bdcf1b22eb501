"""The near process of the limit: sends frames to `bench.peer`, checks what comes back, and times it.

Everything here is what a runtime cannot do without (encode, send, receive, decode); nothing is what a runtime adds.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from bench.children import ChildFailed, child
from bench.frames import CALL, FrameProtocol, add_frame, array_frame
from bench.peer import set_no_delay

__all__ = ["Limit", "WrongEcho", "open_limit"]

_stamp = struct.Struct("=Q")
_BATCH = 512
"""Messages in one write when they are pipelined: enough to make system calls cheap, few enough to busy both ends."""


class WrongEcho(RuntimeError):
    """What came back is not what was sent."""


class _Client(FrameProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.done: asyncio.Future[None] | None = None
        self.expected = 0
        self.received = 0
        self.total = 0
        self.bodies: list[memoryview] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        set_no_delay(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(exc or ConnectionError("the limit's other process closed the connection"))

    def expect(self, count: int) -> asyncio.Future[None]:
        self.expected, self.received, self.total = count, 0, 0
        self.bodies = []
        self.done = asyncio.get_running_loop().create_future()
        return self.done

    def call_received(self, message: list[Any]) -> None:
        self.total += message[2]
        self.received += 1

    def array_received(self, slot: int, body: memoryview) -> None:
        self.bodies.append(body)
        self.received += 1
        self.read_done()

    def read_done(self) -> None:
        if self.received >= self.expected and self.done is not None and not self.done.done():
            self.done.set_result(None)


class Limit:
    """One connection to an echo process. Not for use by two tasks at once."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    async def round_trips(self, count: int) -> float:
        """Seconds for `count` echoes, one at a time."""
        client = self._client
        pieces: list[bytes] = []
        total = 0
        started = time.perf_counter()
        for number in range(count):
            done = client.expect(1)
            add_frame(pieces, [CALL, number, number, []])
            client.transport.write(b"".join(pieces))
            pieces.clear()
            await done
            total += client.total
        took = time.perf_counter() - started
        self._check(total, count)
        return took

    async def pipelined(self, count: int) -> float:
        """Seconds for `count` echoes, sent without waiting for any."""
        client = self._client
        pieces: list[bytes] = []
        started = time.perf_counter()
        done = client.expect(count)
        for first in range(0, count, _BATCH):
            for number in range(first, min(first + _BATCH, count)):
                add_frame(pieces, [CALL, number, number, []])
            client.transport.write(b"".join(pieces))
            pieces.clear()
            await asyncio.sleep(0)
        await done
        took = time.perf_counter() - started
        self._check(client.total, count)
        return took

    async def arrays(self, bodies: list[bytearray]) -> float:
        """Seconds for all these buffers there and back, sent without waiting for any; each comes back when it is whole.

        The first bytes of each are changed, so that what the last round left behind cannot pass for an answer.
        """
        client = self._client
        for body in bodies:
            _stamp.pack_into(body, 0, time.perf_counter_ns())
        started = time.perf_counter()
        done = client.expect(len(bodies))
        for slot, body in enumerate(bodies):
            client.transport.writelines([array_frame(slot, len(body)), memoryview(body)])
        await done
        took = time.perf_counter() - started
        # As bytearrays they are compared at memory speed; memoryviews compare item by item.
        if [body.obj for body in client.bodies] != bodies:
            raise WrongEcho("the limit's arrays came back changed")
        return took

    @staticmethod
    def _check(total: int, count: int) -> None:
        if total != count * (count - 1) // 2:
            raise WrongEcho(f"the numbers that came back add up to {total}, not to {count * (count - 1) // 2}")


@contextlib.asynccontextmanager
async def open_limit(kind: Literal["unix", "tcp"]) -> AsyncIterator[Limit]:
    """An echo process and a connection to it; both are gone when the block ends."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        address = f"unix:{Path(folder) / 'echo'}" if kind == "unix" else "tcp"
        async with child(["-m", "bench.peer", address]) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = (await process.stdout.readline()).decode().strip()
            if not said:
                raise ChildFailed(f"the limit's echo process did not start: {(await process.stderr.read()).decode()}")
            if kind == "unix":
                transport, client = await loop.create_unix_connection(_Client, said.removeprefix("unix:"))
            else:
                transport, client = await loop.create_connection(_Client, "127.0.0.1", int(said.removeprefix("tcp:")))
            try:
                yield Limit(client)
            finally:
                transport.abort()
