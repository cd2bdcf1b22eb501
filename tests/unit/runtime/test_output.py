"""Output of calls: nothing is torn, lost or changed on its way, and each line says whose it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from aiocluster.runtime.output import MAX_LINE_BYTES, CallStreams, OutputReader


class Worker:
    """The streams of a worker on a pipe, read by what its agent has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            monkeypatch.setattr(sys, name, getattr(sys, name))
        monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
        read, self.fd = os.pipe()
        os.set_blocking(read, False)
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(self.fd if fd == 1 else fd, data))
        self.call = 0
        self.streams = CallStreams(lambda: self.call)
        self.out = sys.stdout  # pytest puts its own in its place
        self.reader = OutputReader(read, 1, 1)

    def print(self, *values: object, end: str = "\n", flush: bool = False) -> None:
        print(*values, end=end, file=self.out, flush=flush)

    def lines(self, *, partial: bool = False) -> list[tuple[int, str]]:
        self.reader.read()
        return self.reader.take(partial=partial)

    def raw(self) -> bytes:
        try:
            return os.read(self.reader.fd, 65536)
        except BlockingIOError:
            return b""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(monkeypatch)
    yield made
    made.reader.close()
    os.close(made.fd)


def test_each_line_says_its_call(worker: Worker) -> None:
    worker.print("before")
    worker.call = 7
    worker.print("a", "b")
    worker.print("c")
    worker.call = 0
    worker.streams.call_ended(7)
    worker.print("after")
    assert worker.lines() == [(0, "before"), (7, "a b"), (7, "c"), (0, "after")]


def test_marker_is_written_only_when_the_call_changes(worker: Worker) -> None:
    worker.call = 7
    worker.print("a")
    worker.print("b")
    worker.streams.call_ended(7)
    assert worker.raw() == b"\x1b]aioc;7\x07a\nb\n\x1b]aioc;0\x07"


def test_call_that_printed_nothing_writes_nothing_at_its_end(worker: Worker) -> None:
    worker.streams.call_ended(7)
    assert worker.raw() == b""


def test_lines_of_concurrent_calls_are_not_torn(worker: Worker) -> None:
    worker.call = 1
    worker.print("one ", end="")
    worker.out.flush()
    worker.call = 2
    worker.print("two ", end="")
    worker.call = 1
    worker.print("is whole")
    worker.call = 2
    worker.print("too")
    assert worker.lines() == [(1, "one is whole"), (2, "two too")]


def test_unfinished_line_is_sent_when_its_call_ends(worker: Worker) -> None:
    worker.call = 1
    worker.print("flushed", end="", flush=True)
    worker.streams.call_ended(1)
    worker.call = 2
    worker.print("buffered", end="")
    worker.streams.call_ended(2)
    assert worker.lines() == [(1, "flushed"), (2, "buffered")]


def test_bytes_keep_their_order_with_text(worker: Worker) -> None:
    worker.call = 3
    worker.print("text ", end="")
    assert worker.out.buffer.write(b"bytes ") == 6
    worker.print("text")
    assert worker.lines() == [(3, "text bytes text")]


def test_flush_sends_what_all_calls_have_buffered(worker: Worker) -> None:
    for worker.call in (1, 2):
        worker.print("x", end="")
    worker.streams.flush()
    assert worker.lines(partial=True) == [(1, "x"), (2, "x")]


def test_what_a_cancel_kept_from_being_written_comes_first_the_next_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def interrupted(_fd: int, _data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.print("first")
    monkeypatch.setattr(os, "write", real)
    worker.print("second")
    assert worker.lines() == [(0, "first"), (0, "second")]


def test_streams_are_what_programs_expect(worker: Worker) -> None:
    stream = worker.out
    assert (stream.fileno(), stream.isatty(), stream.writable(), stream.encoding) == (1, False, True, "utf-8")
    worker.print("\udcff ü")
    stream.close()
    worker.print("still open")
    assert worker.lines() == [(0, "\\udcff ü"), (0, "still open")]
    with pytest.raises(TypeError):
        stream.write(b"bytes")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_reader_says_the_same_however_the_stream_is_cut(size: int) -> None:
    stream = "\x1b]aioc;12\x07grün \x1b[31mrot\x1b[0m\n\x1b]aioc;0\x07\x1b]0;title\x07x\r\nend".encode()
    reader = OutputReader(-1, 1, 1)
    for at in range(0, len(stream), size):
        reader.feed(stream[at : at + size])
    assert reader.take() == [(12, "grün \x1b[31mrot\x1b[0m"), (0, "\x1b]0;title\x07x")]
    assert reader.pending_bytes == 3
    assert reader.take(partial=True) == [(0, "end")]
    assert reader.pending_bytes == 0


def test_end_of_the_stream_gives_up_what_might_have_been_a_marker() -> None:
    read, write = os.pipe()
    os.write(write, b"x\x1b]aio")
    os.close(write)
    reader = OutputReader(read, 1, 1)
    while reader.read():
        pass
    assert reader.take(partial=True) == [(0, "x\x1b]aio")]
    reader.close()
    reader.close()


def test_reader_does_not_block_on_an_empty_pipe() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    reader = OutputReader(read, 1, 1)
    assert reader.read()
    assert reader.take() == []
    reader.close()
    os.close(write)


def test_long_line_comes_in_pieces_of_whole_characters() -> None:
    reader = OutputReader(-1, 1, 1)
    text = "x" + "ü" * MAX_LINE_BYTES
    reader.feed(text.encode() + b"\n")
    pieces = [line for _call, line in reader.take()]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= MAX_LINE_BYTES


def test_invalid_bytes_are_replaced() -> None:
    reader = OutputReader(-1, 1, 1)
    reader.feed(b"\xff\n")
    assert reader.take() == [(0, "\ufffd")]


def test_unfinished_lines_of_very_many_calls_are_bounded() -> None:
    reader = OutputReader(-1, 1, 1)
    for call in range(1, 1000):
        reader.feed(b"\x1b]aioc;%d\x07x" % call)
    assert len(reader.take()) == 999 - 256
