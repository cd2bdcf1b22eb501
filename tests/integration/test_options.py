"""`options`: each one does what it says, views stack, and nothing that makes no sense gets through."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster import CallTimeout, Cluster, Unschedulable, WorkerLost

from . import work
from .conftest import Fifos, event_of


@pytest.fixture
async def equipped() -> AsyncIterator[Cluster]:
    async with Cluster.local(n=2, resources={"gpu": 1}, output="quiet") as cluster:
        yield cluster


# --- retries, idempotent -------------------------------------------------------------------------------------------------


async def test_a_retry_lets_a_call_survive_its_worker(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert await cluster.options(retries=1).submit(work.die_at_first, str(log), 1) == "survived"
    assert len(set(log.read_text().split())) == 2


async def test_no_more_retries_than_allowed(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(WorkerLost) as caught:
        await cluster.options(retries=1).submit(work.log_and_exit, str(log))
    assert caught.value.maybe_executed
    assert len(log.read_text().split()) == 2


async def test_idempotent_survives_two_deaths(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert await cluster.options(idempotent=True).submit(work.die_at_first, str(log), 2) == "survived"
    assert len(log.read_text().split()) == 3


async def test_an_exception_of_the_function_is_not_retried(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def fail() -> None:
        work.append(str(log), "ran")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await cluster.options(retries=5, idempotent=True).submit(fail)
    assert log.read_text().split() == ["ran"]


# --- workers -------------------------------------------------------------------------------------------------------------


async def test_calls_run_only_where_they_may(cluster: Cluster) -> None:
    for workers in (2, [2], {2}, cluster.workers[2], [cluster.workers[2]]):
        futures = [cluster.options(workers=workers).submit(work.own_id) for _ in range(50)]
        assert set(await asyncio.gather(*futures)) == {2}
    assert set(await cluster.options(workers=1).map(work.identify, range(200))) == {1}
    assert set(await cluster.options(workers=[1, 2]).map(work.identify, range(200), chunk_size=1)) <= {1, 2}
    assert await cluster.options(workers=2).everywhere(work.own_id) == {2: 2}


async def test_a_worker_that_never_was_is_unschedulable(cluster: Cluster) -> None:
    with pytest.raises(Unschedulable):
        await cluster.options(workers=77, name="nowhere").submit(work.square, 2)


async def test_a_call_for_a_worker_that_is_gone_ends_at_once_and_has_not_run(cluster: Cluster) -> None:
    os.kill(cluster.workers[1].pid, signal.SIGKILL)
    await event_of(cluster, lambda event: event.kind == "worker_lost" and event.worker_id == 1)
    with pytest.raises((Unschedulable, WorkerLost)) as caught:
        await cluster.options(workers=1).submit(work.square, 2)
    assert not getattr(caught.value, "maybe_executed", False)


async def test_a_call_that_waits_for_a_worker_ends_when_that_dies(cluster: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    only = cluster.options(workers=1)
    running = only.submit(work.announce_and_sleep, begun)
    waiting = [only.submit(work.square, n) for n in range(5)]
    await fifos.read(begun)
    os.kill(cluster.workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        await running
    for future in waiting:
        with pytest.raises((Unschedulable, WorkerLost)) as caught:
            await future
        assert not getattr(caught.value, "maybe_executed", False)


# --- resources -----------------------------------------------------------------------------------------------------------


async def test_a_resource_is_never_given_twice(equipped: Cluster) -> None:
    gpu = equipped.options(resources={"gpu": 1})
    most = await asyncio.gather(*[gpu.submit(work.crowd) for _ in range(40)])
    assert set(most) == {1}, "two calls held one worker's only gpu at a time"


async def test_parts_of_a_resource_are_shared(equipped: Cluster) -> None:
    half = equipped.options(resources={"gpu": 0.5}, workers=1)
    async with asyncio.timeout(60):  # each waits for the other: they run side by side or not at all
        assert sorted(await asyncio.gather(half.submit(work.meet, 2), half.submit(work.meet, 2))) == [1, 2]


async def test_calls_that_need_nothing_pass_those_that_wait_for_a_resource(equipped: Cluster, fifos: Fifos) -> None:
    begun = [fifos.new(), fifos.new()]
    gpu = equipped.options(resources={"gpu": 1})
    holders = [gpu.submit(work.async_announce_and_sleep, path) for path in begun]
    for path in begun:
        await fifos.read(path)
    waiting = gpu.submit(work.own_id)
    assert await equipped.submit(work.square, 3) == 9
    assert not waiting.done()
    holders[0].cancel()
    assert await waiting in (1, 2)
    holders[1].cancel()


async def test_a_resource_is_free_again_whatever_the_call_came_to(equipped: Cluster) -> None:
    gpu = equipped.options(resources={"gpu": 1}, workers=1)
    with pytest.raises(ValueError, match="odd"):
        await gpu.submit(work.fail_on_odd, 3)
    with pytest.raises(CallTimeout):
        await gpu.options(timeout=0.1).submit(work.async_sleep)
    assert await gpu.submit(work.square, 3) == 9
    with pytest.raises(WorkerLost):
        await gpu.submit(os._exit, 1)
    await equipped.wait_for_workers(2)
    assert await equipped.options(resources={"gpu": 1}).submit(work.square, 3) == 9


@pytest.mark.parametrize("resources", [{"gpu": 2}, {"licence": 1}, {"gpu": 1, "licence": 1}])
async def test_what_no_worker_has_is_unschedulable(equipped: Cluster, resources: dict[str, float]) -> None:
    with pytest.raises(Unschedulable):
        await equipped.options(resources=resources).submit(work.square, 2)
    assert await equipped.submit(work.square, 2) == 4


# --- priority, name ------------------------------------------------------------------------------------------------------


async def test_waiting_calls_of_a_higher_priority_go_first(single: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, go_on, log = fifos.new(), fifos.new(), tmp_path / "log"
    running = single.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    futures = []
    for number in range(30):
        priority = number % 3 - 1
        futures.append(single.options(priority=priority).submit(work.log_call, str(log), number))
    fifos.release(go_on)
    await asyncio.gather(running, *futures)
    ran = [int(number) for number in log.read_text().split()]
    assert ran == [*range(2, 30, 3), *range(1, 30, 3), *range(0, 30, 3)]


async def test_errors_call_it_by_its_name(cluster: Cluster) -> None:
    named = cluster.options(name="the grand tour")
    with pytest.raises(CallTimeout, match="the grand tour"):
        await named.options(timeout=0.05).submit(work.async_sleep)
    with pytest.raises(WorkerLost, match="the grand tour"):
        await named.submit(os._exit, 1)
    with pytest.raises(Unschedulable, match="the grand tour"):
        await named.options(workers=99).submit(work.square, 1)


# --- views ---------------------------------------------------------------------------------------------------------------


async def test_a_view_changes_nothing_but_itself(cluster: Cluster) -> None:
    first = cluster.options(workers=1)
    both = first.options(timeout=60, name="both")
    other = first.options(workers=2)
    assert await first.submit(work.own_id) == 1
    assert await both.submit(work.own_id) == 1
    assert await other.submit(work.own_id) == 2
    assert set(await cluster.map(work.identify, range(400), chunk_size=1)) == {1, 2}


async def test_a_workers_own_view_takes_options_as_well(cluster: Cluster) -> None:
    worker = cluster.workers[2]
    assert await worker.options(timeout=60).submit(work.own_id) == 2
    assert await worker.submit(work.own_id) == 2
    assert await worker.map(work.identify, range(20)) == [2] * 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": -1},
        {"timeout": float("nan")},
        {"retries": -1},
        {"workers": []},
        {"workers": 0},
        {"workers": [1, -2]},
        {"resources": {"gpu": 0}},
        {"resources": {"gpu": -1}},
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_sent(cluster: Cluster, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        cluster.options(**wrong).submit(work.square, 2)
    assert cluster.status().waiting == cluster.status().running == 0


async def test_a_deadline_that_has_passed_already_runs_nothing(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(CallTimeout):
        await cluster.options(timeout=0).submit(work.log_call, str(log), 1)
    assert await cluster.everywhere(work.square, 2) == {1: 4, 2: 4}
    assert not log.exists()
