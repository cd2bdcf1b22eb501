"""Calls within calls when something goes wrong: depth, deaths, deadlines and cancels at any level."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from aiocluster import CallTimeout, Cluster, RemoteError, Unschedulable, WorkerLost, get_cluster, get_worker

from . import work
from .conftest import Fifos, event_of, lines_of


async def descend(depth: int) -> int:
    return 0 if depth == 0 else 1 + await get_cluster().submit(descend, depth - 1)


def sync_descend(depth: int) -> int:
    return 0 if depth == 0 else 1 + get_cluster().submit(sync_descend, depth - 1).result()


def zigzag(depth: int) -> int:
    """Sync and async in turns."""
    return 0 if depth == 0 else 1 + get_cluster().submit(async_zigzag, depth - 1).result()


async def async_zigzag(depth: int) -> int:
    return 0 if depth == 0 else 1 + await get_cluster().submit(zigzag, depth - 1)


@pytest.mark.parametrize(
    ("function", "depth"), [(descend, 200), (sync_descend, 60), (zigzag, 60)], ids=["async", "sync", "in turns"]
)
async def test_a_deep_chain_on_one_worker_comes_back(single: Cluster, function: Any, depth: int) -> None:
    assert await single.submit(function, depth) == depth
    assert await asyncio.gather(*[single.submit(function, 5) for _ in range(20)]) == [5] * 20


async def test_many_sync_parents_at_once_on_one_worker(single: Cluster) -> None:
    def parent(number: int) -> int:
        children = [get_cluster().submit(work.square, number + index) for index in range(5)]
        return sum(child.result() for child in children)

    futures = [single.submit(parent, number) for number in range(60)]
    assert await asyncio.gather(*futures) == [sum((n + i) ** 2 for i in range(5)) for n in range(60)]


async def test_results_of_children_may_be_taken_in_any_order(single: Cluster) -> None:
    def parent() -> list[int]:
        children = [get_cluster().submit(work.square, number) for number in range(10)]
        return [child.result() for child in reversed(children)]

    async def async_parent() -> list[int]:
        children = [get_cluster().submit(work.square, number) for number in range(10)]
        return [await child for child in reversed(children)]

    expected = [number * number for number in reversed(range(10))]
    assert await single.submit(parent) == expected
    assert await single.submit(async_parent) == expected


async def test_the_futures_of_an_async_call_work_with_asyncio(cluster: Cluster) -> None:
    async def parent() -> tuple[list[int], int, bool]:
        inner = get_cluster()
        all_of_them = await asyncio.gather(*[inner.submit(work.square, number) for number in range(20)])
        done, _pending = await asyncio.wait([inner.submit(work.square, 2)])
        try:
            async with asyncio.timeout(0.05):
                await inner.submit(work.async_sleep)
        except TimeoutError:
            timed_out = True
        else:
            timed_out = False
        return all_of_them, next(iter(done)).result(), timed_out

    assert await cluster.submit(parent) == ([number * number for number in range(20)], 4, True)
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}


async def test_the_death_of_a_childs_worker_reaches_the_parent_as_itself(cluster: Cluster) -> None:
    async def parent(sync: bool) -> tuple[str, bool]:
        other = 3 - get_worker().id
        try:
            await get_cluster().options(workers=other).submit(os._exit, 3)
        except WorkerLost as error:
            return error.cause, error.maybe_executed
        return "", False

    cause, maybe = await cluster.options(workers=1).submit(parent, False)
    assert "exited with code 3" in cause
    assert maybe


async def test_a_child_that_kills_the_worker_of_its_parent_ends_both(single: Cluster) -> None:
    def parent() -> None:
        get_cluster().submit(os._exit, 3).result()

    with pytest.raises(WorkerLost) as caught:
        await single.submit(parent)
    assert caught.value.maybe_executed
    assert await single.submit(work.square, 3) == 9
    status = single.status()
    assert (status.waiting, status.running) == (0, 0)


async def test_children_of_a_call_that_died_are_not_run_for_nobody(cluster: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    """What was submitted by a worker that is gone is withdrawn, running children are cancelled."""
    begun, log = fifos.new(), tmp_path / "log"

    def parent() -> None:
        get_cluster().options(workers=2).submit(work.announce_and_note_cancel, begun, str(log))
        time.sleep(3600)

    future = cluster.workers[1].submit(parent)
    await fifos.read(begun)
    os.kill(cluster.workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        await future
    assert await cluster.workers[2].submit(work.own_id) == 2  # its place is free
    assert lines_of(log) == ["cancelled"]


@pytest.mark.parametrize("levels", [1, 3])
async def test_a_childs_own_timeout_is_the_parents_to_handle(cluster: Cluster, levels: int) -> None:
    async def parent(level: int) -> str:
        if level > 1:
            return await get_cluster().submit(parent, level - 1)
        try:
            await get_cluster().options(timeout=0.05).submit(time.sleep, 3600)
        except CallTimeout:
            return "handled"
        return "no timeout"

    assert await cluster.options(timeout=60).submit(parent, levels) == "handled"


async def test_a_child_cannot_outlive_the_deadline_of_its_parent(cluster: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    """Even with a longer timeout of its own."""
    begun, log = fifos.new(), tmp_path / "log"

    async def parent() -> None:
        await get_cluster().options(timeout=3600).submit(work.announce_and_note_cancel, begun, str(log))

    future = cluster.options(timeout=0.5).submit(parent)
    await fifos.read(begun)
    with pytest.raises(CallTimeout):
        await future
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}  # nobody is busy with it
    assert lines_of(log) == ["cancelled"]


async def test_a_sync_parent_that_waits_can_be_cancelled_and_its_child_with_it(
    single: Cluster, fifos: Fifos, tmp_path: Path
) -> None:
    begun, log = fifos.new(), tmp_path / "log"

    def parent() -> None:
        get_cluster().submit(work.spin_and_note_cancel, begun, str(log)).result()

    future = single.submit(parent)
    await fifos.read(begun)
    future.cancel()
    assert await single.submit(work.own_id) == 1
    assert lines_of(log) == ["cancelled"]


async def test_force_ends_a_waiting_parent_with_a_child_that_cannot_be_interrupted(single: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()

    def parent() -> None:
        get_cluster().submit(work.announce_and_sleep, begun).result()

    future = single.submit(parent)
    await fifos.read(begun)
    future.cancel(force=True)
    assert await single.submit(work.own_id) == 2


async def test_a_parent_may_cancel_a_child(cluster: Cluster) -> None:
    async def parent() -> tuple[bool, bool]:
        child = get_cluster().submit(work.async_sleep)
        await asyncio.sleep(0)
        cancelled = child.cancel()
        try:
            await child
        except asyncio.CancelledError:
            return cancelled, child.cancelled()
        return False, False

    assert await cluster.submit(parent) == (True, True)


async def test_options_of_children_hold(cluster: Cluster) -> None:
    async def parent() -> tuple[int, int, str]:
        inner = get_cluster()
        one = await inner.options(workers=1).submit(work.own_id)
        two = await inner.options(workers=2).submit(work.own_id)
        try:
            await inner.options(workers=99).submit(work.own_id)
        except Unschedulable as error:
            return one, two, type(error).__name__
        return one, two, ""

    assert await cluster.submit(parent) == (1, 2, "Unschedulable")


async def test_nested_maps_stream_and_fail_like_any(cluster: Cluster) -> None:
    async def parent() -> tuple[list[int], str]:
        inner = get_cluster()
        streamed = [value async for value in inner.map(work.square, range(50), chunk_size=7)]
        try:
            await inner.map(work.fail_on_odd, range(10))
        except ValueError as error:
            return streamed, str(error)
        return streamed, ""

    streamed, error = await cluster.submit(parent)
    assert streamed == [number * number for number in range(50)]
    assert "is odd" in error


async def test_what_would_steer_the_parent_arrives_as_a_remote_error(single: Cluster) -> None:
    def parent() -> str:
        try:
            get_cluster().submit(work.exit_politely).result()
        except RemoteError as error:
            return error.type_name
        return ""

    assert "SystemExit" in await single.submit(parent)


async def test_children_submitted_and_left_alone_do_not_disturb(single: Cluster) -> None:
    async def parent() -> int:
        for number in range(50):
            get_cluster().submit(work.square, number)
        return 1

    assert await asyncio.gather(*[single.submit(parent) for _ in range(5)]) == [1] * 5
    assert await single.submit(work.square, 3) == 9


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_child_that_was_cancelled_in_vain_can_still_be_forced(cluster: Cluster, fifos: Fifos, kind: str) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def parent() -> tuple[bool, bool, bool]:
        child = get_cluster().options(workers=2).submit(work.announce_and_ignore_cancel, begun)
        with open(go_on) as fifo:
            fifo.read()
        withdrawn = child.cancel()
        get_cluster().options(workers=1).submit(work.async_square, 2).result()  # the loop has turned
        return withdrawn, child.cancelled(), child.cancel(force=True)

    async def async_parent() -> tuple[bool, bool, bool]:
        child = get_cluster().options(workers=2).submit(work.announce_and_ignore_cancel, begun)
        await asyncio.to_thread(Path(go_on).read_text)
        withdrawn = child.cancel()
        await get_cluster().options(workers=1).submit(work.async_square, 2)
        return withdrawn, child.cancelled(), child.cancel(force=True)

    future = cluster.options(workers=1).submit(parent if kind == "sync" else async_parent)
    await fifos.read(begun)
    await asyncio.to_thread(fifos.release, go_on)
    assert await future == (True, True, False)
    lost = await event_of(cluster, lambda event: event.kind == "worker_lost")
    assert lost.worker_id == 2
    assert "cancelled with force" in lost.text
    assert await cluster.options(workers=1).submit(work.own_id) == 1
