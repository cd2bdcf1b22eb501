"""`everywhere`: once on each worker, and on later ones before they take calls."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from aiocluster import Cluster, get_worker

from . import work
from .conftest import event_of


async def test_it_runs_once_on_every_worker_and_gives_results_by_id(cluster: Cluster) -> None:
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}
    assert await cluster.everywhere(work.own_pid) == {id: worker.pid for id, worker in cluster.workers.items()}
    assert await cluster.everywhere(work.count_up, 5) == {1: 5, 2: 5}
    assert await cluster.everywhere(work.add, 1, b=2, c=3) == {1: 6, 2: 6}
    assert await cluster.everywhere(work.async_square, 3) == {1: 9, 2: 9}


async def test_errors_come_together_and_each_names_its_worker(cluster: Cluster) -> None:
    def fail_on(ids: list[int]) -> int:
        if get_worker().id in ids:
            raise ValueError(f"not on {get_worker().id}")
        return 1

    with pytest.raises(ExceptionGroup) as both:
        await cluster.everywhere(fail_on, [1, 2])
    assert sorted(str(error) for error in both.value.exceptions) == ["not on 1", "not on 2"]
    with pytest.raises(ExceptionGroup) as one:
        await cluster.everywhere(fail_on, [2])
    (error,) = one.value.exceptions
    assert isinstance(error, ValueError)
    assert any("2" in note for note in error.__notes__)
    assert await cluster.everywhere(fail_on, []) == {1: 1, 2: 1}


async def test_an_argument_that_cannot_travel_hurts_nobody(cluster: Cluster) -> None:
    import threading

    with pytest.raises((TypeError, ExceptionGroup)):
        await cluster.everywhere(work.echo, threading.Lock())
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}


async def test_a_replacement_is_prepared_before_it_takes_calls(cluster: Cluster) -> None:
    assert await cluster.everywhere(work.count_up, on_join=True) == {1: 1, 2: 1}
    os.kill(cluster.workers[1].pid, signal.SIGKILL)
    os.kill(cluster.workers[2].pid, signal.SIGKILL)
    counts = await asyncio.gather(*[cluster.options(idempotent=True).submit(work.read_count) for _ in range(300)])
    assert set(counts) == {1}, "a call saw a worker that was not prepared"
    await cluster.wait_for_workers(2)
    assert await cluster.everywhere(work.read_count) == {3: 1, 4: 1}


async def test_workers_that_join_by_scaling_are_prepared(single: Cluster) -> None:
    await single.everywhere(work.count_up, 3, on_join=True)
    await single.scale(3)
    assert await single.everywhere(work.read_count) == {1: 3, 2: 3, 3: 3}


async def test_what_runs_on_joining_runs_in_the_order_in_which_it_was_given(single: Cluster) -> None:
    def multiply(by: int) -> None:
        work.Counter.value *= by

    await single.everywhere(work.count_up, 2, on_join=True)
    await single.everywhere(multiply, 10, on_join=True)
    await single.everywhere(work.count_up, 1, on_join=True)
    await single.scale(2)
    assert await single.everywhere(work.read_count) == {1: 21, 2: 21}


async def test_without_on_join_later_workers_know_nothing_of_it(single: Cluster) -> None:
    await single.everywhere(work.count_up, 3)
    await single.scale(2)
    assert await single.everywhere(work.read_count) == {1: 3, 2: 0}


async def test_the_argument_of_on_join_is_captured_when_it_is_given(single: Cluster) -> None:
    values = [1, 2]
    await single.everywhere(work.remember, values, on_join=True)
    values.append(3)
    await single.scale(2)
    assert await single.everywhere(work.recall) == {1: [1, 2], 2: [1, 2]}


async def test_a_joining_worker_that_dies_while_it_is_prepared_is_replaced(single: Cluster) -> None:
    def die_on(id: int) -> None:
        if get_worker().id == id:
            os._exit(1)

    await single.everywhere(die_on, 2, on_join=True)
    await single.scale(2)
    await event_of(single, lambda event: event.kind == "worker_lost" and event.worker_id == 2)
    await single.wait_for_workers(2)
    assert set(await single.everywhere(work.own_id)) == {1, 3}
