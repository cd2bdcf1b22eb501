"""The limit really echoes: through another process, decoded and encoded, and nothing changed."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

import psutil
import pytest
import uvloop

from bench.frames import ARRAY, CALL, FrameProtocol, add_frame, array_frame
from bench.limit import Limit, WrongEcho, open_limit


class Recorder(FrameProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def call_received(self, message: list[Any]) -> None:
        self.heard.append(message)

    def array_received(self, slot: int, body: memoryview) -> None:
        self.heard.append((slot, bytes(body)))

    def read_done(self) -> None:
        pass

    def feed(self, data: bytes, piece: int) -> None:
        for start in range(0, len(data), piece):
            left = memoryview(data)[start : start + piece]
            while left:
                room = self.get_buffer(-1)
                taken = min(len(room), len(left))
                room[:taken] = left[:taken]
                self.buffer_updated(taken)
                left = left[taken:]


@pytest.mark.parametrize("piece", [1, 3, 7, 1000, 10**6])
def test_frames_are_the_same_however_they_arrive(piece: int) -> None:
    pieces: list[bytes] = []
    add_frame(pieces, [CALL, 1, 10, []])
    pieces += [array_frame(0, 5), b"hello"]
    add_frame(pieces, [CALL, 2, "x" * 300, []])
    pieces += [array_frame(1, 300_000), bytes(300_000)]
    add_frame(pieces, [CALL, 3, 30, []])
    recorder = Recorder()
    recorder.feed(b"".join(pieces), piece)
    assert recorder.heard == [
        [CALL, 1, 10, []],
        (0, b"hello"),
        [CALL, 2, "x" * 300, []],
        (1, bytes(300_000)),
        [CALL, 3, 30, []],
    ]


def test_a_frame_is_a_length_and_a_msgpack_array() -> None:
    assert array_frame(3, 5) == b"\x00\x00\x00\x05" + bytes([0x93, ARRAY, 3, 0x91, 5])


async def _use(limit: Limit) -> None:
    bodies = [bytearray(os.urandom(size)) for size in (100_000, 8, 1_000_000)]
    assert await limit.round_trips(10) > 0
    assert await limit.pipelined(2_000) > 0
    assert await limit.arrays(bodies) > 0
    assert await limit.arrays(bodies[::-1]) > 0


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_everything_comes_back_and_the_other_process_ends(kind: Literal["unix", "tcp"]) -> None:
    async def main() -> None:
        before = set(psutil.Process().children())
        async with open_limit(kind) as limit:
            (peer,) = set(psutil.Process().children()) - before
            await _use(limit)
        assert not peer.is_running()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_an_echo_that_is_changed_is_noticed() -> None:
    with pytest.raises(WrongEcho, match="add up to 44, not to 45"):
        Limit._check(44, 10)
