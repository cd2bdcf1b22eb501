"""From a worker's pipes to messages: in batches and in time, and nothing is lost while the link takes no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from aiocluster.runtime import pump as pump_module
from aiocluster.runtime.pump import OutputPump
from aiocluster.wire.messages import Output
from tests.unit.net.harness import on_both_loops

LONG_S = 3600.0
"""Longer than any test: what waits for this never comes."""


class Pipes:
    """A worker's ends of its pipes."""

    def __init__(self) -> None:
        self.stdout_read, self.stdout = os.pipe()
        self.stderr_read, self.stderr = os.pipe()
        for descriptor in (self.stdout_read, self.stderr_read, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)

    def pump(self, *, flowing: bool = True) -> tuple[OutputPump, asyncio.Queue[Output]]:
        sent: asyncio.Queue[Output] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        return OutputPump(loop, 7, self.stdout_read, self.stderr_read, sent.put_nowait, flowing=flowing), sent


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    for descriptor in (pipes.stdout, pipes.stderr):
        try:
            os.close(descriptor)
        except OSError:
            pass  # closed by the test


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@on_both_loops
async def test_lines_are_sent_with_their_stream_and_call(pipes: Pipes) -> None:
    pump, sent = pipes.pump()
    os.write(pipes.stdout, b"\x1b]aioc;9\x07one\ntwo\n")
    assert await sent.get() == Output(7, 1, [9, 9], ["one", "two"])
    os.write(pipes.stderr, b"three\n")
    assert await sent.get() == Output(7, 2, [0], ["three"])
    assert list(pump.last_lines) == ["one", "two", "three"]
    pump.close()


@on_both_loops
async def test_who_prints_line_by_line_is_read_in_batches(pipes: Pipes) -> None:
    pump, sent = pipes.pump()
    os.write(pipes.stdout, b"first\n")
    assert (await sent.get()).lines == ["first"]
    for number in range(100):
        os.write(pipes.stdout, b"line %d\n" % number)
        await asyncio.sleep(0)
    lines: list[str] = []
    messages = 0
    while len(lines) < 100:
        lines += (await sent.get()).lines
        messages += 1
    assert lines == [f"line {number}" for number in range(100)]
    assert messages < 100
    pump.close()


@on_both_loops
async def test_who_fills_the_pipe_is_not_kept_waiting(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "PAUSE_S", LONG_S)
    pump, sent = pipes.pump()
    for _ in range(3):
        assert os.write(pipes.stdout, b"x\n" * 65536) == 65536
        assert len((await sent.get()).lines) == 32768
    pump.close()


@on_both_loops
async def test_an_unfinished_line_is_sent_when_nothing_follows(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "QUIET_S", 0.0)
    pump, sent = pipes.pump()
    os.write(pipes.stdout, b"Continue? ")
    assert (await sent.get()).lines == ["Continue? "]
    os.write(pipes.stdout, b"yes\n")
    assert (await sent.get()).lines == ["yes"]
    pump.close()


@on_both_loops
async def test_a_line_that_is_finished_in_time_is_sent_whole(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "QUIET_S", LONG_S)
    pump, sent = pipes.pump()
    os.write(pipes.stdout, b"head\nhalf a ")
    assert (await sent.get()).lines == ["head"]
    os.write(pipes.stdout, b"line\n")
    assert (await sent.get()).lines == ["half a line"]
    pump.close()


@on_both_loops
async def test_while_nothing_may_flow_output_waits_in_the_pipe(pipes: Pipes) -> None:
    pump, sent = pipes.pump(flowing=False)
    os.write(pipes.stdout, b"one\n")
    await turn()
    assert sent.empty()
    pump.set_flowing(True)
    assert (await sent.get()).lines == ["one"]
    pump.set_flowing(False)
    os.write(pipes.stdout, b"two\n")
    await turn()
    assert sent.empty()
    pump.set_flowing(True)
    assert (await sent.get()).lines == ["two"]
    pump.close()


@on_both_loops
async def test_a_link_that_takes_no_more_within_a_message_stops_the_flow(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "PAUSE_S", 0.0)
    sent: list[Output] = []
    taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(message: Output) -> None:
        sent.append(message)
        pump.set_flowing(False)
        taken.set_result(None)

    pump = OutputPump(asyncio.get_running_loop(), 7, pipes.stdout_read, pipes.stderr_read, send)
    os.write(pipes.stdout, b"one\n")
    await taken
    os.write(pipes.stdout, b"two\n")
    await turn()
    assert len(sent) == 1
    taken = asyncio.get_running_loop().create_future()
    pump.set_flowing(True)
    await taken
    assert sent[1].lines == ["two"]
    pump.close()


@on_both_loops
async def test_a_flush_sends_what_was_written_even_if_nothing_may_flow(pipes: Pipes) -> None:
    pump, sent = pipes.pump(flowing=False)
    os.write(pipes.stdout, b"one\nand a half")
    os.write(pipes.stderr, b"beside\n")
    pump.flush()
    assert [sent.get_nowait().lines, sent.get_nowait().lines] == [["one", "and a half"], ["beside"]]
    pump.close()
    assert sent.empty()


@on_both_loops
async def test_the_end_of_a_pipe_is_seen_once(pipes: Pipes) -> None:
    loop = asyncio.get_running_loop()
    pump, sent = pipes.pump()
    os.write(pipes.stdout, b"last words")
    os.close(pipes.stdout)
    assert (await sent.get()).lines == ["last words"]
    assert not loop.remove_reader(pipes.stdout_read)
    pump.set_flowing(False)
    pump.set_flowing(True)
    assert not loop.remove_reader(pipes.stdout_read)
    os.close(pipes.stderr)
    pump.flush()
    assert not loop.remove_reader(pipes.stderr_read)
    pump.close()


@on_both_loops
async def test_the_rest_is_sent_at_the_end_though_somebody_holds_the_pipe_open(pipes: Pipes) -> None:
    pump, sent = pipes.pump()
    os.write(pipes.stdout, b"one\ntwo")
    pump.close()
    assert sent.get_nowait().lines == ["one", "two"]
    with pytest.raises(OSError, match="Broken pipe"):
        os.write(pipes.stdout, b"three")
    await turn()
    assert sent.empty()
