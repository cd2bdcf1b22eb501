"""What may wait is bounded: more than that is `Overloaded`, at once, and the rest goes on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from aiocluster import Cluster, Overloaded, Settings, get_cluster

from . import work
from .conftest import Fifos


@pytest.fixture
async def narrow() -> AsyncIterator[Cluster]:
    """Ten calls, or a megabyte, may wait or run."""
    settings = Settings(max_pending_calls=10, max_pending_bytes=1_000_000)
    async with Cluster.local(n=1, output="quiet", settings=settings) as cluster:
        yield cluster


async def test_one_call_too_many_is_refused_and_those_before_it_are_not_hurt(narrow: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    running = narrow.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    waiting = [narrow.submit(work.square, number) for number in range(9)]
    refused = [narrow.submit(work.square, number) for number in range(5)]
    for future in refused:
        assert future.done(), "it is refused at once"
        with pytest.raises(Overloaded):
            await future
    fifos.release(go_on)
    assert await running == 1
    assert await asyncio.gather(*waiting) == [number * number for number in range(9)]
    assert await asyncio.gather(*[narrow.submit(work.square, 2) for _ in range(10)]) == [4] * 10


async def test_a_place_that_is_given_up_can_be_taken(narrow: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    running = narrow.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    waiting = [narrow.submit(work.square, number) for number in range(9)]
    waiting.pop().cancel()
    waiting.append(narrow.submit(work.square, 8))
    fifos.release(go_on)
    assert await asyncio.gather(*waiting) == [number * number for number in range(9)]
    await running


async def test_bytes_are_bounded_as_well(narrow: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    running = narrow.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    large = narrow.submit(len, bytes(700_000))
    with pytest.raises(Overloaded):
        await narrow.submit(len, bytes(700_000))
    small = narrow.submit(len, bytes(1000))
    fifos.release(go_on)
    assert await running == 1
    assert await large == 700_000
    assert await small == 1000
    assert await narrow.submit(len, bytes(700_000)) == 700_000


async def test_a_map_keeps_itself_within_the_limits(narrow: Cluster) -> None:
    assert await narrow.map(work.square, range(500), chunk_size=1) == [number * number for number in range(500)]
    values = narrow.map(work.square, itertools.count(), chunk_size=1)
    taken = 0
    async for value in values:
        assert value == taken * taken
        taken += 1
        if taken == 200:
            break


async def test_a_nested_call_too_many_is_refused_like_any(narrow: Cluster) -> None:
    async def flood() -> tuple[int, int]:
        futures = [get_cluster().submit(work.async_square, number) for number in range(50)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        refused = sum(isinstance(outcome, Overloaded) for outcome in outcomes)
        return len(outcomes), refused

    total, refused = await narrow.submit(flood)
    assert total == 50
    assert 0 < refused <= 41
    assert await narrow.submit(work.square, 3) == 9


async def test_a_source_that_is_larger_than_memory_streams(cluster: Cluster) -> None:
    """A hundred times 4 MB, of which few exist at a time."""
    alive = 0
    most = 0

    class Block(bytearray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def blocks() -> Iterator[bytes]:
        nonlocal alive, most
        for _ in range(100):
            alive += 1
            most = max(most, alive)
            block = Block(4_000_000)
            yield bytes(block[:1000])

    total = 0
    async for size in cluster.map(len, blocks(), limit=4, chunk_size=1):
        total += size
    assert total == 100_000
    assert most <= 8
