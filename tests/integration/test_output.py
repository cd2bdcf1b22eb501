"""What workers write arrives line by line, whoever writes it and however, and each call's own lines can be asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from aiocluster import Cluster, WorkerLost
from aiocluster.config import Settings

from . import work
from .conftest import SAFETY_S, Fifos, event_of
from .processes import send


class Lines:
    """Collects what `output=` is called with, and waits for more."""

    def __init__(self) -> None:
        self.all: list[tuple[int, str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, worker_id: int, stream: str, line: str) -> None:
        self.all.append((worker_id, stream, line))
        self._more.set()

    async def until(self, line: str) -> list[tuple[int, str, str]]:
        """All of them, when this one is among them."""
        async with asyncio.timeout(SAFETY_S):
            while line not in self.texts():
                await self.more()
        return self.all

    async def more(self) -> None:
        self._more.clear()
        await self._more.wait()

    def texts(self, worker_id: int | None = None, stream: str | None = None) -> list[str]:
        return [text for id, name, text in self.all if worker_id in (None, id) and stream in (None, name)]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
async def loud(lines: Lines) -> AsyncIterator[Cluster]:
    async with Cluster.local(n=2, output=lines) as cluster:
        yield cluster


def write_descriptor(data: bytes, descriptor: int = 1) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


# --- from wherever it comes ----------------------------------------------------------------------------------------------


async def test_lines_of_python_c_and_descriptors_all_arrive(loud: Cluster, lines: Lines) -> None:
    worker = loud.workers[2]
    await worker.submit(work.print_lines, "from Python", "again")
    await worker.submit(work.print_lines, "to stderr", stderr=True)
    await worker.submit(work.print_from_c, "from C")
    await worker.submit(write_descriptor, b"by descriptor\n")
    await worker.submit(write_descriptor, b"by descriptor 2\n", 2)
    await worker.submit(os.system, "echo from a child")
    for text in ("again", "to stderr", "from C", "by descriptor", "by descriptor 2", "from a child"):
        await lines.until(text)
    assert {id for id, _stream, _line in lines.all} == {2}
    assert set(lines.texts(stream="stderr")) == {"to stderr", "by descriptor 2"}
    assert set(lines.texts(stream="stdout")) == {"from Python", "again", "from C", "by descriptor", "from a child"}


async def test_each_worker_has_its_own_lines(loud: Cluster, lines: Lines) -> None:
    await loud.everywhere(work.print_lines, "here")
    async with asyncio.timeout(SAFETY_S):
        while len(lines.all) < 2:
            await lines.more()
    assert sorted(lines.all) == [(1, "stdout", "here"), (2, "stdout", "here")]


TEXTS = {
    "empty": "",
    "unicode": "grüße, 世界 🌍",
    "control characters": "a\tb\x1b[31mred\x1b[0m\x00\x07",
    "a carriage return": "10 %\r20 %",
    "markup": "[bold]not interpreted[/bold]",
    "long": "x" * 20_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_line_arrives_as_it_was_written(loud: Cluster, lines: Lines, text: str) -> None:
    await loud.submit(work.print_lines, text, "end")
    await lines.until("end")
    assert "\n".join(lines.texts()) == f"{text}\nend"


async def test_a_line_of_a_mebibyte_costs_nothing_but_itself(loud: Cluster, lines: Lines) -> None:
    await loud.submit(work.print_lines, "y" * 2**20, "end")
    await lines.until("end")
    parts = lines.texts()[:-1]
    assert set("".join(parts)) == {"y"}
    assert len("".join(parts)) == 2**20


async def test_bytes_that_are_no_text_do_not_stop_it(loud: Cluster, lines: Lines) -> None:
    await loud.submit(write_descriptor, b"\xff\xfe broken \xc3\nend\n")
    await lines.until("end")
    assert any("broken" in line for line in lines.texts())


async def test_a_line_without_an_end_arrives(loud: Cluster, lines: Lines) -> None:
    await loud.submit(write_descriptor, b"no newline")
    await lines.until("no newline")


async def test_a_line_without_an_end_arrives_when_its_worker_dies(loud: Cluster, lines: Lines) -> None:
    def last_words() -> None:
        write_descriptor(b"last words")
        os._exit(1)

    with pytest.raises(WorkerLost):
        await loud.submit(last_words)
    await lines.until("last words")


async def test_100_000_lines_lose_none(loud: Cluster, lines: Lines) -> None:
    def many() -> None:
        for number in range(100_000):
            print(number)

    await loud.submit(many)
    await lines.until("99999")
    assert lines.texts() == [str(number) for number in range(100_000)]


async def test_calls_go_on_while_a_worker_prints_without_end(loud: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()

    def print_forever() -> None:
        work.announce(begun)
        while True:
            print("and on")

    forever = loud.workers[1].submit(print_forever)
    await fifos.read(begun)
    assert await loud.workers[2].map(work.square, range(1000)) == [n * n for n in range(1000)]
    forever.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forever
    assert await loud.workers[1].submit(work.own_id) == 1


# --- where it goes -------------------------------------------------------------------------------------------------------


async def printed(cluster: Cluster) -> None:
    """Both streams of both workers, and all of it has arrived."""
    for worker in cluster.workers.values():
        for stderr in (False, True):
            future = worker.submit(work.print_lines, f"line of {worker.id}", stderr=stderr)
            await future
            await future.logs()


async def test_lines_are_forwarded_with_the_workers_id(capfd: pytest.CaptureFixture[str]) -> None:
    async with Cluster.local(n=2) as cluster:
        await printed(cluster)
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[1] line of 1", "[2] line of 2"]
    assert sorted(line for line in err.splitlines() if line.startswith("[")) == ["[1] line of 1", "[2] line of 2"]


async def test_quiet_lines_go_nowhere_but_are_kept_for_their_call(capfd: pytest.CaptureFixture[str]) -> None:
    async with Cluster.local(n=2, output="quiet") as cluster:
        await printed(cluster)
        future = cluster.submit(work.print_lines, "kept")
        await future
        assert await future.logs() == ["kept"]
    assert "line of" not in "".join(capfd.readouterr())


async def test_lines_go_to_the_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG, logger="aiocluster.worker")
    async with Cluster.local(n=2, output="log") as cluster:
        await printed(cluster)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("aiocluster.worker")]
    assert len([message for message in messages if "line of 1" in message]) == 2
    assert len([message for message in messages if "line of 2" in message]) == 2
    assert "line of" not in capfd.readouterr().out


async def test_an_output_function_that_raises_hurts_no_call(caplog: pytest.LogCaptureFixture) -> None:
    def fail(worker_id: int, stream: str, line: str) -> None:
        raise LookupError("mine")

    async with Cluster.local(n=1, output=fail) as cluster:
        future = cluster.submit(work.print_lines, "one", "two")
        await future
        assert await future.logs() == ["one", "two"]
        assert await cluster.submit(work.square, 2) == 4
    assert len([record for record in caplog.records if "output=" in record.getMessage()]) == 1


async def test_an_output_that_makes_no_sense_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="output"):
        Cluster.local(n=1, output="loud")


# --- whose it is ---------------------------------------------------------------------------------------------------------


async def test_sync_calls_have_their_own_lines(single: Cluster) -> None:
    futures = [single.submit(work.print_lines, f"line {n}", f"again {n}") for n in range(50)]
    await asyncio.gather(*futures)
    assert [await future.logs() for future in futures] == [[f"line {n}", f"again {n}"] for n in range(50)]


async def test_async_calls_side_by_side_have_their_own_lines(single: Cluster) -> None:
    futures = [single.submit(work.print_slowly, f"call {n}", 20) for n in range(20)]
    await asyncio.gather(*futures)
    for n, future in enumerate(futures):
        assert await future.logs() == [f"call {n} {number}" for number in range(20)]


async def test_both_streams_of_a_call_are_its_own(single: Cluster) -> None:
    def both() -> None:
        print("out")
        print("err", file=sys.stderr)

    future = single.submit(both)
    await future
    assert sorted(await future.logs()) == ["err", "out"]


async def test_lines_of_a_running_call_can_be_read(single: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def talk() -> None:
        print("before")
        work.announce_and_wait(begun, go_on)
        print("after")

    future = single.submit(talk)
    await fifos.read(begun)
    assert await future.logs() == ["before"]
    fifos.release(go_on)
    await future
    assert await future.logs() == ["before", "after"]


async def test_a_call_that_failed_or_died_has_its_lines(single: Cluster) -> None:
    def fail() -> None:
        print("about to fail")
        raise ValueError

    def die() -> None:
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    failed = single.submit(fail)
    with pytest.raises(ValueError):
        await failed
    assert await failed.logs() == ["about to fail"]
    dead = single.submit(die)
    with pytest.raises(WorkerLost):
        await dead
    assert await single.submit(work.own_id) == 2
    assert await dead.logs() == ["about to die"]


async def test_a_call_that_wrote_nothing_or_never_ran_has_no_lines(single: Cluster, fifos: Fifos) -> None:
    silent = single.submit(work.square, 2)
    await silent
    assert await silent.logs() == []
    begun, go_on = fifos.new(), fifos.new()
    running = single.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    queued = single.submit(work.print_lines, "never")
    assert await queued.logs() == []
    queued.cancel()
    assert await queued.logs() == []
    fifos.release(go_on)
    await running


async def test_lines_are_kept_within_a_bound() -> None:
    async with Cluster.local(n=1, output="quiet", settings=Settings(output_lines=10)) as cluster:
        future = cluster.submit(work.print_lines, *map(str, range(100)))
        await future
        assert await future.logs() == [str(n) for n in range(90, 100)]


async def test_logs_can_be_read_after_the_cluster_has_closed() -> None:
    async with Cluster.local(n=1, output="quiet") as cluster:
        future = cluster.submit(work.print_lines, "kept")
        await future
        assert await future.logs() == ["kept"]
    assert await future.logs() == ["kept"]


async def test_logs_do_not_hang_when_the_node_dies(single: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    future = single.submit(work.announce_and_sleep, begun)
    await fifos.read(begun)
    agent = single._owner.manager.core.roster.nodes["local-1"].pid
    send(signal.SIGKILL, agent)
    assert await future.logs() == []
    with pytest.raises(WorkerLost):
        await future
    await event_of(single, lambda event: event.kind == "node_lost")
    assert await future.logs() == []
