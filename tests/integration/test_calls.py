"""One call: what goes in, what comes out, and when it is captured."""

from __future__ import annotations

import asyncio
import functools
import math
import operator
from pathlib import Path

import numpy as np
import pytest

from aiocluster import Cluster, Future

from .work import add, append, async_square, echo, log_call, own_id, read_lines, square


async def test_sync_and_async_functions_give_their_results(cluster: Cluster) -> None:
    assert await cluster.submit(square, 7) == 49
    assert await cluster.submit(async_square, 7) == 49
    assert await cluster.submit(add, 1, b=2, c=3) == 6


async def test_every_kind_of_function_travels(cluster: Cluster) -> None:
    base = 10

    def closure(x: int) -> int:
        return base + x

    class Adder:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, x: int) -> int:
            return x + self.by

        def method(self, x: int) -> int:
            return x - self.by

    assert await cluster.submit(lambda x: x + 1, 1) == 2
    assert await cluster.submit(closure, 1) == 11
    assert await cluster.submit(functools.partial(add, 1, c=5), 2) == 8
    assert await cluster.submit(Adder(3), 4) == 7
    assert await cluster.submit(Adder(3).method, 4) == 1
    assert await cluster.submit("a-b".split, "-") == ["a", "b"]
    assert await cluster.submit(len, "four") == 4
    assert await cluster.submit(math.gcd, 12, 18) == 6
    assert await cluster.submit(complex, 1, 2) == 1 + 2j
    assert await cluster.submit(operator.itemgetter(1), "abc") == "b"


async def test_what_a_closure_sees_is_captured_at_each_submit(cluster: Cluster) -> None:
    values = [1]
    number = 1

    def look() -> tuple[list[int], int]:
        return values, number

    first = cluster.submit(look)
    values.append(2)
    number = 2
    second = cluster.submit(look)
    assert await first == ([1], 1)
    assert await second == ([1, 2], 2)


async def test_arguments_are_captured_when_submit_returns(cluster: Cluster) -> None:
    numbers = [1, 2, 3]
    array = np.arange(1_000_000)
    futures = [cluster.submit(echo, numbers), cluster.submit(echo, array)]
    numbers.append(4)
    array[:] = -1
    assert await futures[0] == [1, 2, 3]
    result = await futures[1]
    assert (result == np.arange(1_000_000)).all()


async def test_results_are_the_callers_own_and_writable(cluster: Cluster) -> None:
    array = await cluster.submit(np.zeros, 500_000)
    array[0] = 1
    again = await cluster.submit(echo, array)
    again[1] = 2
    assert array[1] == 0
    assert again[0] == 1
    small = await cluster.submit(np.zeros, 3)
    small[0] = 5


async def test_arguments_are_writable_on_the_worker(cluster: Cluster) -> None:
    def fill(array: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        array[:] = 2
        return float(array.sum())

    assert await cluster.submit(fill, np.zeros(300_000)) == 600_000


async def test_futures_work_with_asyncio(cluster: Cluster) -> None:
    assert await asyncio.gather(*[cluster.submit(square, n) for n in range(100)]) == [n * n for n in range(100)]
    done, pending = await asyncio.wait([cluster.submit(square, n) for n in range(5)])
    assert not pending
    assert {future.result() for future in done} == {0, 1, 4, 9, 16}
    seen = [await future for future in asyncio.as_completed([cluster.submit(square, n) for n in range(5)])]
    assert sorted(seen) == [0, 1, 4, 9, 16]
    async with asyncio.timeout(60):
        assert await cluster.submit(square, 3) == 9
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.wait_for(cluster.submit(square, 4), 60))
    assert task.result() == 16


async def test_a_future_knows_its_worker(cluster: Cluster) -> None:
    future = cluster.submit(own_id)
    assert isinstance(future, asyncio.Future)
    assert isinstance(future, Future)
    assert await future == future.worker_id


async def test_calls_of_one_worker_start_in_order(cluster: Cluster, tmp_path: object) -> None:
    worker = next(iter(cluster.workers.values()))

    def note(number: int) -> list[int]:
        import builtins

        seen: list[int] = builtins.__dict__.setdefault("_aiocluster_seen", [])
        seen.append(number)
        return seen

    futures = [worker.submit(note, number) for number in range(500)]
    await asyncio.gather(*futures)
    assert futures[-1].result()[-500:] == list(range(500))
    assert {future.worker_id for future in futures} == {worker.id}


async def test_sync_and_async_calls_of_one_worker_start_in_order(cluster: Cluster, tmp_path: Path) -> None:
    worker = next(iter(cluster.workers.values()))
    log = str(tmp_path / "log")

    async def async_note(number: int) -> int:
        append(log, str(number))
        return number

    futures = [worker.submit(async_note, number) if number % 3 else worker.submit(log_call, log, number) for number in range(60)]
    assert await asyncio.gather(*futures) == list(range(60))
    assert [int(line) for line in read_lines(log)] == list(range(60))


async def test_all_workers_are_used(cluster: Cluster) -> None:
    ids = await asyncio.gather(*[cluster.submit(own_id) for _ in range(2000)])
    assert set(ids) == set(cluster.workers)


async def test_something_that_is_no_function_is_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(TypeError, match="needs a function"):
        cluster.submit(3)  # type: ignore[call-overload]


async def test_many_calls_at_once_all_end(cluster: Cluster) -> None:
    results = await asyncio.gather(*[cluster.submit(square, n) for n in range(50_000)])
    assert results == [n * n for n in range(50_000)]
    assert cluster.status().waiting == cluster.status().running == 0
