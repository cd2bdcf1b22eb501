"""A `map` that is streamed: early results come early, sources are let go, several run side by side, deaths cost little."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aiocluster import Cluster, ClusterClosed

from . import work
from .conftest import Fifos, numbers_in


async def test_unordered_results_do_not_wait_for_a_slow_first_item(cluster: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()

    def run(number: int) -> int:
        if number == 0:
            work.announce_and_wait(begun, go_on)
        return number

    seen = []
    async for value in cluster.map(run, range(50), ordered=False, chunk_size=1):
        seen.append(value)
        if len(seen) == 1:
            await fifos.read(begun)
        if len(seen) == 49:
            assert 0 not in seen
            fifos.release(go_on)
    assert seen[-1] == 0
    assert sorted(seen) == list(range(50))


async def test_ordered_results_wait_for_it_and_pull_no_more_than_the_limit(cluster: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        for number in range(200):
            pulled += 1
            yield number

    def run(number: int) -> int:
        if number == 0:
            work.announce_and_wait(begun, go_on)
        return number

    values = aiter(cluster.map(run, source(), limit=10, chunk_size=1))
    first = asyncio.ensure_future(anext(values))
    await fifos.read(begun)
    await cluster.map(work.square, range(100))  # time for more to be pulled, if anything did
    assert pulled <= 10
    assert not first.done()
    fifos.release(go_on)
    assert await first == 0
    assert [value async for value in values] == list(range(1, 200))


async def test_a_consumer_that_does_nothing_holds_back_the_source(cluster: Cluster) -> None:
    pulled = 0

    async def source() -> AsyncIterator[int]:
        nonlocal pulled
        for number in itertools.count():
            pulled += 1
            yield number

    values = aiter(cluster.map(work.square, source(), limit=16))
    assert await anext(values) == 0
    for _ in range(20):
        await cluster.map(work.square, range(50))
    assert pulled <= 17
    assert await anext(values) == 1
    await values.aclose()  # type: ignore[attr-defined]


async def test_a_source_is_let_go_when_its_map_is_left(cluster: Cluster) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.set()

    values = aiter(cluster.map(work.square, source(), limit=8))
    assert await anext(values) == 0
    await values.aclose()  # type: ignore[attr-defined]
    del values
    await cluster.everywhere(work.own_id)  # what has to end with the map has had its turns
    gc.collect()  # nobody holds the source any more
    async with asyncio.timeout(60):
        await closed.wait()


async def test_several_maps_side_by_side_keep_their_results_apart(cluster: Cluster) -> None:
    async def run(factor: int) -> list[int]:
        return [value async for value in cluster.map(lambda number: number * factor, range(500), chunk_size=3)]

    results = await asyncio.gather(*[run(factor) for factor in range(10)])
    assert results == [[number * factor for number in range(500)] for factor in range(10)]


async def test_a_long_map_does_not_starve_single_calls(cluster: Cluster) -> None:
    values = aiter(cluster.map(work.spin_and_square, itertools.count()))
    for number in range(50):
        assert await anext(values) == number * number
        assert await cluster.submit(work.square, number) == number * number
    await values.aclose()  # type: ignore[attr-defined]


async def test_single_items_and_large_ones_work(cluster: Cluster) -> None:
    import numpy as np

    assert await cluster.map(work.square, [7]) == [49]
    arrays = [np.full(300_000, number) for number in range(20)]
    results = await cluster.map(work.echo, arrays)
    assert all((result == array).all() for result, array in zip(results, arrays, strict=True))
    results[0][0] = 5  # each is its receiver's own


async def test_an_idempotent_map_survives_deaths_and_gives_every_result(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run(number: int) -> int:
        if number in (7, 30):
            work.die_at_first(f"{log}-{number}", 1)
        return number

    assert await cluster.options(idempotent=True).map(run, range(60), chunk_size=10) == list(range(60))
    assert len(numbers_in(f"{log}-7")) == 2
    assert len(numbers_in(f"{log}-30")) == 2


async def test_retries_count_for_each_item(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run(number: int) -> int:
        if number % 10 == 3:
            work.die_at_first(f"{log}-{number}", 1)
        return number

    assert await cluster.options(retries=1).map(run, range(30), chunk_size=1) == list(range(30))


async def test_an_error_withdraws_the_items_that_have_not_run(cluster: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def run(number: int) -> int:
        work.append(log, str(number))
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        await cluster.map(run, range(100_000), chunk_size=1)
    await cluster.everywhere(work.own_id)
    ran = len(numbers_in(log))
    await cluster.everywhere(work.own_id)
    assert ran == len(numbers_in(log)) < 100_000
    status = cluster.status()
    assert (status.waiting, status.running) == (0, 0)


async def test_a_stream_ends_when_its_cluster_closes(cluster: Cluster) -> None:
    values = aiter(cluster.map(work.square, itertools.count(), limit=10))
    assert await anext(values) == 0
    await cluster.close()

    async def rest() -> None:
        async for _value in values:
            pass

    with pytest.raises(ClusterClosed):
        await rest()


async def test_progress_says_how_far_it_is(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    async for _value in cluster.map(work.square, iter(range(300)), progress=True):
        pass
    assert "300" in capsys.readouterr().err
    with pytest.raises(ValueError, match="odd"):
        await cluster.map(work.fail_on_odd, range(10), progress=True)
    capsys.readouterr()
    assert await cluster.map(work.square, [], progress=True) == []
