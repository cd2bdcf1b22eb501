"""`map`: order, streams, limits, errors, and what becomes of a chunk whose worker dies."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster import CallTimeout, Cluster, WorkerLost, get_cluster
from aiocluster.maps import MapRun

from . import work
from .conftest import Fifos, lines_of, numbers_in


async def test_results_come_in_the_order_of_the_items(cluster: Cluster) -> None:
    assert await cluster.map(work.square, range(10_000)) == [n * n for n in range(10_000)]
    assert await cluster.map(work.async_square, range(100)) == [n * n for n in range(100)]
    assert await cluster.map(work.square, []) == []


async def test_unordered_results_are_all_there(cluster: Cluster) -> None:
    assert sorted(await cluster.map(work.square, range(1000), ordered=False)) == [n * n for n in range(1000)]
    assert sorted([n async for n in cluster.map(work.square, range(1000), ordered=False)]) == [n * n for n in range(1000)]


async def test_several_iterables_go_side_by_side_to_the_end_of_the_shortest(cluster: Cluster) -> None:
    assert await cluster.map(work.add, [1, 2, 3], [10, 20]) == [11, 22]
    assert await cluster.map(work.add, itertools.count(), range(500)) == [2 * n for n in range(500)]


async def test_async_iterables_are_pulled(cluster: Cluster) -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(300):
            await asyncio.sleep(0)
            yield n

    assert await cluster.map(work.square, numbers()) == [n * n for n in range(300)]
    assert await cluster.map(work.add, numbers(), range(1000)) == [2 * n for n in range(300)]
    assert [n async for n in cluster.map(work.square, numbers())] == [n * n for n in range(300)]


@pytest.mark.parametrize("chunk_size", ["auto", 1, 7])
async def test_no_more_than_the_limit_is_pulled_ahead(cluster: Cluster, chunk_size: object) -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        for n in itertools.count():
            pulled += 1
            yield n

    taken = 0
    async for value in cluster.map(work.square, endless(), limit=20, chunk_size=chunk_size):  # type: ignore[call-overload]
        assert value == taken * taken
        taken += 1
        assert pulled <= taken + 20
        if taken == 500:
            break
    assert pulled <= 521


async def test_an_endless_async_source_is_limited_as_well(cluster: Cluster) -> None:
    pulled = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal pulled
        for n in itertools.count():
            pulled += 1
            yield n

    taken = 0
    async for _value in cluster.map(work.square, endless(), limit=20):
        taken += 1
        assert pulled <= taken + 20
        if taken == 300:
            break


async def test_the_first_error_ends_it(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="1 is odd"):
        await cluster.map(work.fail_on_odd, [0, 2, 1, 4], chunk_size=1)
    with pytest.raises(ValueError, match="is odd"):
        await cluster.map(work.fail_on_odd, range(1000))
    seen = []
    with pytest.raises(ValueError, match="7 is odd"):  # noqa: PT012  # the loop is what raises
        async for value in cluster.map(work.fail_on_odd, [0, 2, 4, 7, 8], chunk_size=5):
            seen.append(value)
    assert seen == [0, 2, 4]


async def test_exceptions_are_returned_in_their_places(cluster: Cluster) -> None:
    results = await cluster.map(work.fail_on_odd, range(100), return_exceptions=True, chunk_size=10)
    assert results[::2] == list(range(0, 100, 2))
    assert all(isinstance(error, ValueError) and str(error) == f"{n} is odd" for n, error in enumerate(results) if n % 2)


async def test_one_item_that_cannot_travel_costs_only_its_own_place(cluster: Cluster) -> None:
    import threading

    results = await cluster.map(work.echo, [1, threading.Lock(), 3], return_exceptions=True, chunk_size=3)
    assert results[0] == 1
    assert isinstance(results[1], TypeError)
    assert results[2] == 3

    def lock_for_two(n: int) -> object:
        return threading.Lock() if n == 2 else n

    results = await cluster.map(lock_for_two, [1, 2, 3], return_exceptions=True, chunk_size=3)
    assert results[0] == 1
    assert isinstance(results[1], TypeError)
    assert results[2] == 3


async def test_an_error_of_the_source_is_the_maps_error(cluster: Cluster) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        await cluster.map(work.square, broken())

    async def async_broken() -> AsyncIterator[int]:
        yield 1
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        await cluster.map(work.square, async_broken())


async def test_leaving_the_loop_withdraws_the_rest(cluster: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()

    def first_then_sleep(n: int) -> int:
        if n:
            work.announce_and_sleep(begun)
        return n

    async for value in cluster.map(first_then_sleep, range(2), chunk_size=1):
        assert value == 0
        await fifos.read(begun)
        break
    assert await cluster.map(work.square, range(100)) == [n * n for n in range(100)]  # no slot is held


async def test_cancelling_the_awaiting_task_withdraws_the_rest(cluster: Cluster, fifos: Fifos) -> None:
    paths = [fifos.new(), fifos.new()]
    task = asyncio.ensure_future(_collect(cluster, paths))
    for path in paths:
        await fifos.read(path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await cluster.map(work.square, range(100)) == [n * n for n in range(100)]


async def _collect(cluster: Cluster, paths: list[str]) -> None:
    await cluster.map(work.announce_and_sleep, paths, chunk_size=1)


async def test_a_deadline_holds_for_the_whole_map(cluster: Cluster) -> None:
    import time

    with pytest.raises(CallTimeout):
        await cluster.options(timeout=0.3).map(time.sleep, [3600] * 10)
    assert await cluster.submit(work.square, 2) == 4


async def test_a_deadline_holds_also_while_the_source_is_silent(cluster: Cluster) -> None:
    async def silent() -> AsyncIterator[int]:
        yield 3
        await asyncio.Event().wait()

    with pytest.raises(CallTimeout):
        await cluster.options(timeout=0.2).map(work.square, silent())
    with pytest.raises(CallTimeout):  # noqa: PT012  # the loop is what raises
        async for value in cluster.options(timeout=0.2).map(work.square, silent()):
            assert value == 9


async def test_no_further_item_of_a_cancelled_chunk_runs_though_one_has_caught_the_interrupt(
    single: Cluster, fifos: Fifos, tmp_path: Path
) -> None:
    begun, log = fifos.new(), str(tmp_path / "log")

    def run(n: int) -> None:
        try:
            work.append(log, str(n))
            if n == 0:
                work.announce_and_sleep(begun)
        except asyncio.CancelledError:
            work.append(log, "caught")

    task = asyncio.ensure_future(_list(single.map(run, range(3), chunk_size=3)))
    await fifos.read(begun)
    task.cancel()
    await asyncio.wait([task])
    assert await single.submit(work.square, 2) == 4
    assert lines_of(log) == ["0", "caught"]


async def test_items_that_never_started_move_when_a_worker_dies(cluster: Cluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def run(n: int) -> int:
        work.append(log, str(n))
        if n == 13:
            os._exit(1)
        return n

    results = await cluster.map(run, range(40), chunk_size=20, return_exceptions=True)
    starts = Counter(numbers_in(log))
    assert all(count == 1 for count in starts.values()), "an item ran twice unasked"
    for n, result in enumerate(results):
        if isinstance(result, WorkerLost):
            assert result.maybe_executed
            assert n <= 13
        else:
            assert result == n
    assert isinstance(results[13], WorkerLost)


async def _list(run: MapRun[Any]) -> list[Any]:
    return await run


async def test_items_of_a_chunk_do_not_run_twice_when_another_one_kills_its_worker_beside_it(
    single: Cluster, fifos: Fifos, tmp_path: Path
) -> None:
    waits, go_on, begun = fifos.new(), fifos.new(), fifos.new()
    log = str(tmp_path / "log")

    async def leave_the_place() -> None:
        await asyncio.to_thread(work.announce_and_wait, waits, go_on)

    def kill_after_a_wait(n: int) -> None:
        if n == 1:
            os._exit(1)
        get_cluster().submit(leave_the_place).result()

    def run(n: int) -> None:
        work.append(log, str(n))
        if n == 4 and len(work.read_lines(log)) == 5:
            work.announce_and_sleep(begun)

    killer = asyncio.ensure_future(_list(single.map(kill_after_a_wait, range(2), chunk_size=2, return_exceptions=True)))
    await fifos.read(waits)
    beside = asyncio.ensure_future(_list(single.map(run, range(8), chunk_size=8, return_exceptions=True)))
    await fifos.read(begun)
    fifos.release(go_on)
    assert [type(error) for error in await beside] == [WorkerLost] * 8
    assert [type(error) for error in await killer] == [WorkerLost] * 2
    assert numbers_in(log) == [0, 1, 2, 3, 4]


async def test_an_item_that_kills_three_workers_is_blamed_alone(cluster: Cluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def run(n: int) -> int:
        if n == 13:
            work.append(log, "killed")
            os._exit(1)
        return n

    results = await cluster.options(idempotent=True).map(run, range(40), chunk_size=20, return_exceptions=True)
    assert [n for n, result in enumerate(results) if isinstance(result, WorkerLost)] == [13]
    assert "blamed" in str(results[13])
    assert lines_of(log) == ["killed"] * 3


@pytest.mark.parametrize("chunk_size", [1, 2, 20])
async def test_one_of_the_items_side_by_side_that_kills_three_workers_is_blamed_alone(
    cluster: Cluster, tmp_path: Path, chunk_size: int
) -> None:
    log = str(tmp_path / "log")

    async def run(n: int) -> int:
        for _ in range(3):
            await asyncio.sleep(0)
        if n == 13:
            work.append(log, "killed")
            os._exit(1)
        return n

    view = cluster.options(idempotent=True)
    results = await view.map(run, range(40), chunk_size=chunk_size, return_exceptions=True)
    assert [n for n, result in enumerate(results) if isinstance(result, WorkerLost)] == [13]
    assert "killed 3 workers and is blamed" in str(results[13])
    assert lines_of(log) == ["killed"] * 3
    assert [result for n, result in enumerate(results) if n != 13] == [n for n in range(40) if n != 13]


async def test_several_killers_in_a_stream_are_found(cluster: Cluster) -> None:
    async def run(n: int) -> int:
        await asyncio.sleep(0)
        if n % 50 == 13:
            os._exit(1)
        return n

    async def source() -> AsyncIterator[int]:
        for n in range(150):
            yield n

    view = cluster.options(idempotent=True)
    results = [result async for result in view.map(run, source(), chunk_size=9, limit=60, return_exceptions=True)]
    assert [n for n, result in enumerate(results) if result != n] == [13, 63, 113]


async def test_an_item_that_cannot_be_loaded_without_a_death_is_blamed_alone(cluster: Cluster) -> None:
    results = await cluster.map(work.echo, [1, 2, work.Bomb(), 4, 5], chunk_size=5, return_exceptions=True)
    assert [type(result) for result in results] == [int, int, WorkerLost, int, int]
    assert "blamed" in str(results[2])


async def test_items_that_may_have_run_on_the_one_worker_that_may_run_them_are_said_so(cluster: Cluster) -> None:
    def run(n: int) -> int:
        if n == 1:
            os._exit(1)
        return n

    view = cluster.options(idempotent=True, workers=[1])
    results = await view.map(run, range(3), chunk_size=3, return_exceptions=True)
    assert [isinstance(result, WorkerLost) and result.maybe_executed for result in results] == [True, True, False]


async def test_a_map_runs_once(cluster: Cluster) -> None:
    run = cluster.map(work.square, [1])
    assert await run == [1]
    with pytest.raises(RuntimeError, match="runs once"):
        await run


async def test_what_makes_no_sense_is_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(TypeError):
        cluster.map(work.square)
    with pytest.raises(ValueError, match="limit"):
        cluster.map(work.square, [1], limit=0)
    with pytest.raises(ValueError, match="chunk_size"):
        cluster.map(work.square, [1], chunk_size=0)


async def test_progress_is_reported_as_plain_lines_without_a_terminal(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    await cluster.map(work.square, range(1000), progress=True)
    assert "1000" in capsys.readouterr().err.replace(",", "")
