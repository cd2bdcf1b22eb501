"""`@remote`: one name for the function here and on the cluster that this program, or this call, belongs to."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import time

import pytest

import aiocluster
from aiocluster import CallTimeout, Cluster, get_cluster

from . import work


@aiocluster.remote
def pid() -> int:
    return os.getpid()


@aiocluster.remote(name="snail", timeout=0.2)
def slow() -> None:
    time.sleep(3600)


def call_square(x: int) -> int:
    result: int = work.remote_square(x)
    return result + 1


def call_remote_square(x: int) -> int:
    return work.remote_square.remote(x).result() + 1


async def await_remote_cube(x: int) -> int:
    return await work.remote_cube.remote(x)


async def test_it_stays_a_function_here() -> None:
    assert work.remote_square(3) == 9
    assert await work.remote_cube(3) == 27
    assert pid() == os.getpid()
    assert pid.__name__ == "pid"
    assert "pid" in repr(pid)


async def test_remote_runs_it_on_a_worker(cluster: Cluster) -> None:
    assert await work.remote_square.remote(3) == 9
    assert await work.remote_cube.remote(3) == 27
    assert await pid.remote() in {worker.pid for worker in cluster.workers.values()}
    future = work.remote_square.remote(x=4)
    assert await future == 16
    assert future.worker_id in cluster.workers


async def test_map_runs_it_with_each_item(cluster: Cluster) -> None:
    assert await work.remote_square.map(range(100)) == [n * n for n in range(100)]
    assert await work.remote_cube.map([1, 2, 3]) == [1, 8, 27]
    assert sorted([value async for value in work.remote_square.map(range(10), ordered=False)]) == [n * n for n in range(10)]


async def test_its_options_hold_for_every_remote_call(cluster: Cluster) -> None:
    with pytest.raises(CallTimeout, match=r"snail did not finish within 0\.2 s"):
        await slow.remote()
    with pytest.raises(CallTimeout, match=r"snail did not finish within 0\.1 s"):
        await slow.options(timeout=0.1).remote()
    assert await pid.options(workers=2).remote() == cluster.workers[2].pid
    assert await pid.remote() in {worker.pid for worker in cluster.workers.values()}


@pytest.mark.parametrize("options", [{"timeout": -1}, {"retries": -1}, {"workers": []}, {"resources": {"gpu": 0}}])
def test_options_that_make_no_sense_are_refused_where_they_are_written(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        aiocluster.remote(**options)(work.square)


def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="patience"):
        aiocluster.remote(patience=3)


async def test_it_can_be_submitted_passed_and_returned_like_any_function(cluster: Cluster) -> None:
    assert await cluster.submit(work.remote_square, 3) == 9
    assert await cluster.submit(work.remote_cube, 3) == 27
    assert await cluster.map(work.remote_square, [1, 2]) == [1, 4]
    assert await cluster.submit(work.echo, work.remote_square) is work.remote_square
    assert pickle.loads(pickle.dumps(work.remote_square)) is work.remote_square


async def test_one_that_no_module_knows_travels_with_its_code(cluster: Cluster) -> None:
    by = 5

    @aiocluster.remote(name="local")
    def add(x: int) -> int:
        return x + by

    @aiocluster.remote
    async def async_add(x: int) -> int:
        await asyncio.sleep(0)
        return x + by

    assert await add.remote(1) == 6
    assert await async_add.remote(1) == 6
    back = await cluster.submit(work.echo, add)
    assert back(2) == 7
    assert await back.remote(3) == 8


async def test_on_a_worker_it_is_the_same_function(cluster: Cluster) -> None:
    assert await cluster.submit(call_square, 3) == 10


async def test_inside_a_call_remote_is_a_nested_call(single: Cluster) -> None:
    assert await single.submit(call_remote_square, 3) == 10
    assert await single.submit(await_remote_cube, 3) == 27


async def test_exceptions_arrive_as_themselves(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="3 is odd"):
        await aiocluster.remote(work.fail_on_odd).remote(3)


# --- which cluster ---------------------------------------------------------------------------------------------------------


async def test_without_a_cluster_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="no cluster is open"):
        work.remote_square.remote(3)


async def test_the_cluster_of_this_context_is_meant() -> None:
    async with Cluster.local(n=1, output="quiet") as outer:
        assert get_cluster() is outer

        async def other() -> int:
            async with Cluster.local(n=1, output="quiet") as inner:
                assert get_cluster() is inner
                return await pid.remote()

        there = await asyncio.create_task(other())
        assert get_cluster() is outer
        assert await pid.remote() == outer.workers[1].pid != there


async def test_with_two_open_and_neither_of_this_context_it_says_so() -> None:
    async def nobody() -> None:
        with pytest.raises(RuntimeError, match="2 clusters are open: call the methods of the one that you mean"):
            work.remote_square.remote(3)

    empty = contextvars.copy_context()
    async with Cluster.local(n=1, output="quiet"), Cluster.local(n=1, output="quiet"):
        await asyncio.create_task(nobody(), context=empty)


async def test_after_it_has_closed_there_is_none() -> None:
    async with Cluster.local(n=0):
        pass
    with pytest.raises(RuntimeError, match="no cluster is open"):
        work.remote_square.remote(3)
