"""The other process of the limit: receives frames, decodes them, encodes the same again and sends it back.

Run as `python -m bench.peer unix:PATH` or `python -m bench.peer tcp`; prints the address on which it listens as one
line and ends when its standard input does, so it cannot outlive the program that started it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import uvloop

from bench.frames import FrameProtocol, add_frame, array_frame

__all__ = ["EchoProtocol"]


class EchoProtocol(FrameProtocol):
    """Sends back everything: all tiny messages of one read in one write, an array when the whole of it has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        set_no_delay(transport)

    def call_received(self, message: list[Any]) -> None:
        add_frame(self._pieces, message)

    def read_done(self) -> None:
        if self._pieces:
            self.transport.write(b"".join(self._pieces))
            self._pieces.clear()

    def array_received(self, slot: int, body: memoryview) -> None:
        self.transport.writelines([array_frame(slot, len(body)), body])


def set_no_delay(transport: asyncio.BaseTransport) -> None:
    """Switch off Nagle's algorithm where there is one."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _serve(address: str) -> None:
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        server = await loop.create_unix_server(EchoProtocol, address.removeprefix("unix:"))
        said = address
    else:
        server = await loop.create_server(EchoProtocol, "127.0.0.1", 0)
        said = f"tcp:{server.sockets[0].getsockname()[1]}"
    gone = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: gone.set() if not os.read(sys.stdin.fileno(), 4096) else None)
    print(said, flush=True)
    try:
        await gone.wait()
    finally:
        server.close()


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
