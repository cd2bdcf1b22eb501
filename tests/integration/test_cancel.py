"""Cancelling is real: queued, running sync, running async, forced; and deadlines cancel."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from aiocluster import CallTimeout, Cluster, WorkerLost

from . import work
from .conftest import Fifos, lines_of, numbers_in


async def test_a_queued_call_is_withdrawn_and_never_runs(single: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, go_on = fifos.new(), fifos.new()
    log = str(tmp_path / "log")
    running = single.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    queued = [single.submit(work.log_call, log, n) for n in range(3)]
    assert queued[1].cancel()
    assert not queued[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued[1]
    fifos.release(go_on)
    assert await running == 1
    assert await asyncio.gather(*queued[::2]) == [0, 2]
    assert numbers_in(log) == [0, 2]


@pytest.mark.parametrize("function", [work.announce_and_sleep, work.announce_and_spin], ids=["in C", "in Python"])
async def test_a_running_sync_call_is_interrupted(single: Cluster, fifos: Fifos, function: object) -> None:
    begun = fifos.new()
    future = single.submit(function, begun)  # type: ignore[call-overload]
    await fifos.read(begun)
    assert future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    assert await single.submit(work.own_id) == 1  # same worker, free again


async def test_a_running_async_call_gets_cancelled_error(single: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, log = fifos.new(), tmp_path / "log"
    future = single.submit(work.async_announce_and_note_cancel, begun, str(log))
    await fifos.read(begun)
    future.cancel()
    assert await single.submit(work.own_id) == 1
    while not log.exists():
        await single.submit(work.async_square, 1)  # the loop of the worker turns
    assert log.read_text() == "cancelled\n"


async def test_the_slot_is_free_only_when_the_worker_says_so(single: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, clean, go_on, log = fifos.new(), fifos.new(), fifos.new(), str(tmp_path / "log")

    def stubborn() -> None:
        try:
            work.announce_and_sleep(begun)
        except asyncio.CancelledError:
            work.announce(clean)
            with open(go_on) as fifo:  # until the test lets it go
                fifo.read()
            work.append(log, "cleaned up")

    future = single.submit(stubborn)
    await fifos.read(begun)
    future.cancel()
    await fifos.read(clean)
    after = single.submit(work.log_call, log, 2)
    assert single.status().running + single.status().waiting == 2
    fifos.release(go_on)
    assert await after == 2
    assert lines_of(log) == ["cleaned up", "2"]


async def test_force_kills_the_worker_and_moves_what_had_not_started(single: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    future = single.submit(work.hold_the_interpreter, begun, 3600)
    await fifos.read(begun)
    waiting = [single.submit(work.square, n) for n in range(20)]
    assert future.cancel(force=True)
    with pytest.raises(asyncio.CancelledError):
        await future
    assert await asyncio.gather(*waiting) == [n * n for n in range(20)]
    assert list(single.workers) == [2]


async def test_a_call_that_was_cancelled_in_vain_can_still_be_forced(single: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    future = single.submit(work.hold_the_interpreter, begun, 3600)
    await fifos.read(begun)
    future.cancel()
    future.cancel(force=True)
    assert await single.submit(work.own_id) == 2


async def test_asyncio_timeout_and_task_cancel_reach_the_call(single: Cluster, fifos: Fifos) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await single.submit(time.sleep, 3600)
    begun = fifos.new()

    async def caller() -> None:
        await single.submit(work.announce_and_sleep, begun)

    task = asyncio.create_task(caller())
    await fifos.read(begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await single.submit(work.own_id) == 1


async def test_a_deadline_ends_queued_and_running_calls(single: Cluster) -> None:
    limited = single.options(timeout=0.3, name="limited")
    running, queued = limited.submit(time.sleep, 3600), limited.submit(work.square, 2)
    for future in (running, queued):
        with pytest.raises(CallTimeout, match=r"limited did not finish within 0\.3 s") as caught:
            await future
        assert isinstance(caught.value, TimeoutError)
    assert await single.submit(work.own_id) == 1


@pytest.mark.parametrize("depth", [1, 5])
async def test_one_deadline_holds_through_nested_calls(cluster: Cluster, depth: int) -> None:
    with pytest.raises(CallTimeout):
        await cluster.options(timeout=0.3).submit(work.nested_sleep, depth)
    while cluster.status().running:
        await cluster.submit(work.async_square, 1)
    assert cluster.status().waiting == 0


@pytest.mark.parametrize("parent", [work.parent_of, work.sync_parent_of], ids=["async", "sync"])
async def test_cancelling_a_call_cancels_what_it_waits_for(
    cluster: Cluster, fifos: Fifos, tmp_path: Path, parent: object
) -> None:
    begun, log = fifos.new(), tmp_path / "log"
    future = cluster.submit(parent, begun, str(log))  # type: ignore[call-overload]
    await fifos.read(begun)
    future.cancel()
    while cluster.status().running:
        await cluster.submit(work.async_square, 1)
    assert log.read_text() == "cancelled\n"


async def test_cancel_after_the_end_changes_nothing(cluster: Cluster) -> None:
    future = cluster.submit(work.square, 3)
    assert await future == 9
    assert not future.cancel()
    assert not future.cancel(force=True)
    assert future.result() == 9
    lost = cluster.submit(work.log_and_exit, "/dev/null")
    with pytest.raises(WorkerLost):
        await lost
    assert not lost.cancel(force=True)
