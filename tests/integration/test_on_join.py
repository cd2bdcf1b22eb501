"""What must run on each new worker runs before it takes calls, and a worker on which it fails takes none."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiocluster import Cluster, ClusterClosed, LaunchError, WorkerLost, get_cluster, get_worker

from . import work
from .conftest import SAFETY_S, Fifos, event_of
from .processes import send


def fail_on_later(first: int) -> int:
    """Prepare the workers up to this id; fail on all others."""
    if get_worker().id > first:
        raise LookupError(f"worker {get_worker().id} is not welcome")
    return get_worker().id


async def test_calls_wait_until_a_new_worker_is_prepared(single: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def prepare() -> None:
        if get_worker().id > 1:
            work.announce_and_wait(begun, go_on)
        work.remember("prepared")

    await single.everywhere(prepare, on_join=True)
    scaled = asyncio.ensure_future(single.scale(2))
    await fifos.read(begun)
    calls = [single.submit(work.recall) for _ in range(200)]
    assert set(await asyncio.gather(*calls)) == {"prepared"}
    assert {call.worker_id for call in calls} == {1}
    assert not scaled.done()
    fifos.release(go_on)
    await scaled
    assert await single.everywhere(work.recall) == {1: "prepared", 2: "prepared"}


async def test_a_worker_that_cannot_be_prepared_takes_no_call_and_fails_the_scaling(
    single: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    assert await single.everywhere(fail_on_later, 1, on_join=True) == {1: 1}
    with pytest.raises(LaunchError) as caught:
        async with asyncio.timeout(SAFETY_S):
            await single.scale(3)
    assert "is not welcome" in str(caught.value)
    await event_of(single, lambda event: event.kind == "worker_retired" and event.worker_id == 2)
    await event_of(single, lambda event: event.kind == "worker_retired" and event.worker_id == 3)
    assert any("is not used" in record.getMessage() for record in caplog.records)
    assert set(await single.map(work.identify, range(200))) == {1}
    assert set(single.workers) == {1}
    assert single.status().wanted == 1


async def test_a_replacement_that_cannot_be_prepared_leaves_no_call_waiting(cluster: Cluster) -> None:
    await cluster.everywhere(fail_on_later, 2, on_join=True)
    send(signal.SIGKILL, cluster.workers[1].pid)
    await event_of(cluster, lambda event: event.kind == "worker_retired" and event.worker_id == 3)
    assert set(await cluster.map(work.identify, range(200))) == {2}
    send(signal.SIGKILL, cluster.workers[2].pid)
    with pytest.raises(Exception, match=r"cannot be placed|never started"):
        async with asyncio.timeout(SAFETY_S):
            await cluster.submit(work.square, 3)


async def test_a_cluster_that_closes_while_a_worker_is_prepared_complains_of_nothing(
    single: Cluster, fifos: Fifos, caplog: pytest.LogCaptureFixture
) -> None:
    begun = fifos.new()

    def prepare() -> None:
        if get_worker().id > 1:
            work.announce_and_sleep(begun)

    await single.everywhere(prepare, on_join=True)
    scaled = asyncio.ensure_future(single.scale(2))
    await fifos.read(begun)
    await single.close()
    with pytest.raises((ClusterClosed, LaunchError)):
        async with asyncio.timeout(SAFETY_S):
            await scaled
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_worker_that_dies_while_it_is_prepared_is_replaced(single: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def prepare() -> None:
        work.append(str(log), str(get_worker().id))
        if get_worker().id == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    await single.everywhere(prepare, on_join=True)
    await single.scale(2)
    assert set(single.workers) == {1, 3}
    assert log.read_text().split() == ["1", "2", "3"]


async def test_workers_that_die_of_their_preparation_again_and_again_are_given_up(single: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def prepare() -> None:
        if get_worker().id > 1:
            work.append(str(log), str(get_worker().id))
            os.kill(os.getpid(), signal.SIGKILL)

    await single.everywhere(prepare, on_join=True)
    with pytest.raises(LaunchError, match=r"5 workers in a row ended while .* the last one killed by signal 9"):
        async with asyncio.timeout(SAFETY_S):
            await single.scale(2)
    assert log.read_text().split() == ["2", "3", "4", "5", "6"]
    assert set(single.workers) == {1}


async def test_a_preparation_that_fails_on_a_worker_that_is_here_is_not_kept_for_later_ones(cluster: Cluster) -> None:
    await cluster.everywhere(work.remember, "prepared", on_join=True)
    with pytest.raises(ExceptionGroup) as caught:
        await cluster.everywhere(fail_on_later, 1, on_join=True)
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    assert any("not kept" in note for note in caught.value.__notes__)
    await cluster.scale(4)
    assert await cluster.everywhere(work.recall) == dict.fromkeys((1, 2, 3, 4), "prepared")


async def test_a_preparation_that_kills_a_worker_that_is_here_is_not_kept_for_its_replacement(
    single: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(ExceptionGroup) as caught:
        await single.everywhere(work.die_at_first, str(log), 1000, on_join=True)
    assert isinstance(caught.value.exceptions[0], WorkerLost)
    await single.wait_for_workers(1, timeout=SAFETY_S)
    assert set(single.workers) == {2}
    assert len(log.read_text().split()) == 1


async def test_a_preparation_that_is_cancelled_is_not_kept(single: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    everywhere = asyncio.ensure_future(single.everywhere(work.announce_and_sleep, begun, on_join=True))
    await fifos.read(begun)
    everywhere.cancel()
    with pytest.raises(asyncio.CancelledError):
        await everywhere
    await single.scale(2)
    assert set(single.workers) == {1, 2}


async def test_a_worker_that_joins_while_a_preparation_is_tried_makes_it_too(single: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def prepare() -> None:
        if get_worker().id == 1:
            work.announce_and_wait(begun, go_on)
        work.remember("prepared")

    everywhere = asyncio.ensure_future(single.everywhere(prepare, on_join=True))
    await fifos.read(begun)
    await single.scale(2)
    assert await single.options(workers=2).submit(work.recall) == "prepared"
    fifos.release(go_on)
    assert await everywhere == {1: None}
    await single.scale(3)
    assert await single.everywhere(work.recall) == dict.fromkeys((1, 2, 3), "prepared")


async def test_a_preparation_that_fails_on_a_worker_that_joins_meanwhile_fails_and_costs_no_worker(
    single: Cluster, fifos: Fifos
) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def prepare() -> None:
        if get_worker().id == 1:
            work.announce_and_wait(begun, go_on)
        fail_on_later(1)

    everywhere = asyncio.ensure_future(single.everywhere(prepare, on_join=True))
    await fifos.read(begun)
    await single.scale(2)
    fifos.release(go_on)
    with pytest.raises(ExceptionGroup, match="joined meanwhile") as caught:
        await everywhere
    assert [str(error) for error in caught.value.exceptions] == ["worker 2 is not welcome"]
    assert caught.value.exceptions[0].__notes__[-1] == "on worker 2"
    await single.scale(3)
    assert set(single.workers) == {1, 2, 3}


@pytest.mark.parametrize("nested_sum", [work.nested_sum, work.sync_nested_sum], ids=["async", "sync"])
@pytest.mark.parametrize("depth", [1, 3])
async def test_a_preparation_that_waits_for_calls_is_served_when_no_other_worker_is_there(
    single: Cluster, nested_sum: Callable[[int], int], depth: int
) -> None:
    assert await single.everywhere(nested_sum, depth, on_join=True) == {1: 2**depth}
    send(signal.SIGKILL, single.workers[1].pid)
    await event_of(single, lambda event: event.kind == "worker_joined" and event.worker_id == 2)
    async with asyncio.timeout(SAFETY_S):
        assert await single.submit(work.own_id) == 2


async def test_workers_whose_preparation_waits_for_calls_join_side_by_side(single: Cluster) -> None:
    assert await single.everywhere(work.nested_map, 20, on_join=True) == {1: [x * x for x in range(20)]}
    await single.scale(3)
    send(signal.SIGKILL, single.workers[1].pid)
    send(signal.SIGKILL, single.workers[2].pid)
    send(signal.SIGKILL, single.workers[3].pid)
    await single.wait_for_workers(3, timeout=SAFETY_S)


async def test_a_preparation_that_waits_for_another_worker_that_joins_fails_and_does_not_hang(single: Cluster) -> None:
    async def lean_on_the_next() -> None:
        if (id := get_worker().id) > 1:
            await get_cluster().options(workers=id + 1).submit(work.own_id)

    await single.everywhere(lean_on_the_next, on_join=True)
    with pytest.raises(LaunchError, match="waits for no other"):
        async with asyncio.timeout(SAFETY_S):
            await single.scale(3)


async def test_calls_for_a_worker_wait_until_it_is_prepared(single: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def prepare() -> None:
        if get_worker().id > 1:
            work.announce_and_wait(begun, go_on)
        work.remember("prepared")

    await single.everywhere(prepare, on_join=True)
    scaled = asyncio.ensure_future(single.scale(2))
    await fifos.read(begun)
    call = single.options(workers=2).submit(work.recall)
    other = single.options(workers=2).submit(_recall_at_once)
    fifos.release(go_on)
    assert [await call, await other] == ["prepared", "prepared"]
    await scaled


async def _recall_at_once() -> Any:
    return work.recall()
