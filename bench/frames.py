"""The limit's frames: `u32 length | msgpack array [tag, *fields, sizes] | buffers`, with nothing around them.

This is what both processes of the limit share. It is written to be as fast as Python allows: one receive buffer, one
pass over what has arrived, no message kept (the garbage collector would count them), large buffers received straight
into memory that exists already. It must never be made slower to flatter a ratio, nor skip the decoding that a real
system cannot skip.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]

__all__ = ["ARRAY", "CALL", "FrameProtocol", "Slots", "add_frame", "array_frame"]

CALL = 1
"""`[CALL, number, argument, sizes]`: the echo of one tiny call."""
ARRAY = 2
"""`[ARRAY, slot, sizes]`: one buffer follows; it is received into, and sent back from, the memory of its slot."""

_RECEIVE_BYTES = 256 * 1024
_length = struct.Struct("!I")
_unpack = msgpack.unpackb


class Slots:
    """Memory for buffers that is made once and used again: fresh pages would cost more than the transfer."""

    def __init__(self) -> None:
        self._slots: dict[int, bytearray] = {}

    def get(self, slot: int, size: int) -> memoryview:
        """The slot's memory, of exactly this size; whoever sends must not have a frame of this slot under way."""
        memory = self._slots.get(slot)
        if memory is None or len(memory) != size:
            memory = self._slots[slot] = bytearray(size)
        return memoryview(memory)


class FrameProtocol(asyncio.BufferedProtocol):
    """Receives frames: `call_received` gets a tiny one, `array_received` one with a buffer, `read_done` ends a read."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.slots = Slots()
        self._memory = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._memory)
        self._filled = 0
        self._body: memoryview | None = None
        self._body_filled = 0
        self._slot = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses
        self.transport.set_write_buffer_limits(high=2**30)

    def call_received(self, message: list[Any]) -> None:
        raise NotImplementedError

    def read_done(self) -> None:
        raise NotImplementedError

    def array_received(self, slot: int, body: memoryview) -> None:
        raise NotImplementedError

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._body_filled :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            self._filled += nbytes
            self._parse()
            return
        self._body_filled += nbytes
        if self._body_filled == len(self._body):
            self._finish_body(self._body)

    def _finish_body(self, body: memoryview) -> None:
        self._body = None
        self.array_received(self._slot, body)

    def _parse(self) -> None:
        memory, view, end = self._memory, self._view, self._filled
        unpack, length_at, call_received = _unpack, _length.unpack_from, self.call_received
        start = 0
        while start + 4 <= end:
            first = start + 4
            last = first + length_at(memory, start)[0]
            if last > end:
                break
            message = unpack(view[first:last])
            start = last
            if not message[-1]:
                call_received(message)
                continue
            start += self._begin_body(message[1], message[-1][0], start, end)
            if self._body is not None:
                break
        left = end - start
        if left:
            memory[:left] = memory[start:end]
        self._filled = left
        self.read_done()

    def _begin_body(self, slot: int, size: int, start: int, end: int) -> int:
        """Take what has arrived of the body already, and return how much; the rest is received in its place."""
        here = min(size, end - start)
        self._slot, self._body = slot, self.slots.get(slot, size)
        self._body[:here] = self._view[start : start + here]
        self._body_filled = here
        if here == size:
            self._finish_body(self._body)
        return here


_pack = msgpack.Packer(autoreset=True).pack
_PREFIXES = [_length.pack(size) for size in range(256)]


def add_frame(pieces: list[bytes], message: list[Any]) -> None:
    """Append the message's frame to what is to be written."""
    header = _pack(message)
    size = len(header)
    pieces.append(_PREFIXES[size] if size < 256 else _length.pack(size))
    pieces.append(header)


def array_frame(slot: int, size: int) -> bytes:
    """What goes before a buffer of `size` bytes."""
    header: bytes = _pack([ARRAY, slot, [size]])
    return _length.pack(len(header)) + header
