"""Calls that make calls cannot deadlock, however deep, on however few workers."""

from __future__ import annotations

import time

import pytest

from aiocluster import Cluster, RemoteError, get_cluster, get_worker

from . import work
from .conftest import Fifos


async def test_async_calls_nest_deeper_than_there_are_workers(single: Cluster) -> None:
    assert await single.submit(work.nested_sum, 6) == 64


async def test_sync_calls_nest_deeper_than_there_are_workers(single: Cluster) -> None:
    assert await single.submit(work.sync_nested_sum, 6) == 64


async def test_both_kinds_nest_on_several_workers(cluster: Cluster) -> None:
    assert await cluster.submit(work.nested_sum, 8) == 256
    assert await cluster.submit(work.sync_nested_sum, 8) == 256


async def test_maps_nest(cluster: Cluster) -> None:
    expected = [n * n for n in range(200)]
    assert await cluster.submit(work.nested_map, 200) == expected
    assert await cluster.submit(work.async_nested_map, 200) == expected
    assert await cluster.map(work.nested_map, [3] * 10) == [[0, 1, 4]] * 10


async def test_a_nested_map_has_enough_under_way_for_all_workers(fifos: Fifos) -> None:
    """Three for each worker, and one: like a map of the manager's program."""
    begun = fifos.new()

    def item(number: int) -> None:
        if number == 0:
            work.announce(begun)
        time.sleep(3600)

    async def parent() -> None:
        await get_cluster().map(item, range(100), chunk_size=1)

    async with Cluster.local(n=3, output="quiet") as three:
        three.submit(parent)
        await fifos.read(begun)
        status = three.status()
        assert status.waiting + status.running == 1 + 3 * 3 + 1


async def test_everywhere_and_workers_are_known_inside_calls(cluster: Cluster) -> None:
    async def look() -> tuple[set[int], dict[int, int]]:
        inner = get_cluster()
        return set(await inner.workers()), await inner.everywhere(work.own_id)

    ids, results = await cluster.submit(look)
    assert ids == set(cluster.workers)
    assert (ids, results) == await look(), "outside of calls it is the same"
    assert results == {id: id for id in cluster.workers}


async def test_errors_of_nested_calls_arrive_as_themselves(cluster: Cluster) -> None:
    async def outer() -> str:
        try:
            await get_cluster().submit(work.fail_on_odd, 3)
        except ValueError as error:
            return str(error)
        return "no error"

    def sync_outer() -> str:
        try:
            get_cluster().submit(work.fail_on_odd, 3).result()
        except ValueError as error:
            return str(error)
        return "no error"

    assert await cluster.submit(outer) == "3 is odd"
    assert await cluster.submit(sync_outer) == "3 is odd"


async def test_a_nested_result_can_be_waited_for_with_a_timeout(single: Cluster) -> None:
    def outer() -> int:
        import time

        future = get_cluster().submit(time.sleep, 3600)
        try:
            future.result(timeout=0.1)  # type: ignore[call-arg]
        except TimeoutError:
            future.cancel()
            return 1
        return 0

    assert await single.submit(outer) == 1


async def test_a_call_knows_its_worker(cluster: Cluster) -> None:
    def who() -> tuple[int, int, str, str]:
        worker = get_worker()
        return worker.id, worker.pid, worker.node, worker.cluster_id

    for id, worker in cluster.workers.items():
        assert await worker.submit(who) == (id, worker.pid, worker.node, cluster.id)


async def test_outside_of_calls_there_is_no_worker(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="no worker"):
        get_worker()
    assert get_cluster() is cluster


async def test_large_arrays_pass_through_nested_calls(cluster: Cluster) -> None:
    import numpy as np

    async def outer(array: object) -> object:
        return await get_cluster().submit(work.echo, array)

    array = np.arange(1_000_000)
    result = await cluster.submit(outer, array)
    assert (result == array).all()
    assert not isinstance(result, RemoteError)
