"""A cancel that comes at any moment hits its own call or nothing, and the worker is whole after it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from aiocluster import CallTimeout, Cluster, get_cluster

from . import work
from .conftest import Fifos, numbers_in


@pytest.mark.parametrize("function", [work.spin_and_square, work.yield_and_square], ids=["sync", "async"])
async def test_cancels_at_any_moment_never_hit_another_call(cluster: Cluster, function: object) -> None:
    chance = random.Random(1)
    futures = [cluster.submit(function, number) for number in range(1500)]  # type: ignore[call-overload]
    kept = set(range(1500))
    while not all(futures[number].done() for number in kept):
        running = [number for number in sorted(kept) if not futures[number].done()][:40]
        victim = chance.choice(running)
        if futures[victim].cancel():
            kept.discard(victim)
        await asyncio.sleep(chance.choice((0, 0, 0.001)))  # other moments than between two turns of the loop
    assert [await futures[number] for number in sorted(kept)] == [number * number for number in sorted(kept)]
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}


@pytest.mark.parametrize("function", [work.spin_and_square, work.yield_and_square], ids=["sync", "async"])
async def test_deadlines_at_any_moment_never_hit_another_call(cluster: Cluster, function: object) -> None:
    futures = []
    for number in range(600):
        view = cluster.options(timeout=0.0005 * (number % 40)) if number % 2 else cluster
        futures.append(view.submit(function, number))  # type: ignore[call-overload]
    for number, outcome in enumerate(await asyncio.gather(*futures, return_exceptions=True)):
        assert outcome == number * number or (number % 2 and isinstance(outcome, CallTimeout))
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}


async def test_cancels_on_a_stand_in_cost_no_place_and_hit_no_other_call(single: Cluster, fifos: Fifos) -> None:
    """While the main thread waits, calls run on a thread that takes exceptions and no signals; some of them wait as well."""
    begun, go_on = fifos.new(), fifos.new()

    async def child() -> int:
        return await asyncio.to_thread(work.announce_and_wait, begun, go_on)

    def parent() -> int:
        return get_cluster().submit(child).result()

    def spin_or_wait(number: int) -> int:
        return work.spin_and_square(number) if number % 3 else get_cluster().submit(work.async_square, number).result()

    waits = single.submit(parent)
    await fifos.read(begun)
    chance = random.Random(2)
    futures = [single.submit(spin_or_wait, number) for number in range(600)]
    kept = set(range(600))
    while not all(futures[number].done() for number in kept):
        running = [number for number in sorted(kept) if not futures[number].done()][:10]
        victim = chance.choice(running)
        if futures[victim].cancel():
            kept.discard(victim)
        await asyncio.sleep(chance.choice((0, 0.001, 0.002)))
    assert [await futures[number] for number in sorted(kept)] == [number * number for number in sorted(kept)]
    fifos.release(go_on)
    assert await waits == 1
    assert await single.submit(work.own_id) == 1
    assert single.status().running == 0


async def test_a_call_cancelled_in_the_tick_of_its_submit_never_runs(cluster: Cluster, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for number in range(100):
        assert cluster.submit(work.log_call, log, number).cancel()
    await cluster.everywhere(work.own_id)
    assert numbers_in(log) == []


async def test_thousands_of_cancelled_calls_leave_nothing_waiting(single: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, go_on, log = fifos.new(), fifos.new(), str(tmp_path / "log")
    running = single.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    futures = [single.submit(work.log_call, log, number) for number in range(5000)]
    await asyncio.sleep(0)
    for future in futures[:-1]:
        future.cancel()
    fifos.release(go_on)
    assert await running == 1
    assert await futures[-1] == 4999
    assert numbers_in(log) == [4999]
    status = single.status()
    assert (status.waiting, status.running, status.pending_bytes) == (0, 0, 0)


async def test_a_task_group_that_fails_cancels_the_calls_of_its_tasks(cluster: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, log = fifos.new(), str(tmp_path / "log")

    async def sleep() -> None:
        await cluster.submit(work.announce_and_note_cancel, begun, log)

    async def fail() -> None:
        await fifos.read(begun)
        await cluster.submit(work.fail_on_odd, 3)

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the group is what raises
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep())
            group.create_task(fail())
    assert [str(error) for error in caught.value.exceptions] == ["3 is odd"]
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}  # each worker is free: what was cancelled has ended
    assert Path(log).read_text() == "cancelled\n"  # noqa: ASYNC240


async def test_force_on_a_waiting_call_kills_nobody(single: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    running = single.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    waiting = [single.submit(work.square, number) for number in range(10)]
    unplaced = single.options(priority=-1).submit(work.square, 3)
    if unplaced.worker_id is None:  # it has not been sent to a worker: nobody has to die for it
        assert unplaced.cancel(force=True)
        fifos.release(go_on)
        assert await running == 1
        assert await asyncio.gather(*waiting) == [number * number for number in range(10)]
        assert list(single.workers) == [1]
    else:
        fifos.release(go_on)
        await running


async def test_an_async_call_that_ignores_its_cancellation_keeps_its_own_place_only(single: Cluster, fifos: Fifos) -> None:
    begun, clean, go_on = fifos.new(), fifos.new(), fifos.new()

    async def stubborn() -> int:
        try:
            await asyncio.to_thread(work.announce, begun)
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.to_thread(work.announce_and_wait, clean, go_on)
        return 1

    future = single.submit(stubborn)
    await fifos.read(begun)
    future.cancel()
    await fifos.read(clean)
    assert await single.submit(work.square, 3) == 9
    assert await single.submit(work.async_square, 3) == 9
    assert single.status().running == 1, "the call still holds its slot"
    fifos.release(go_on)
    with pytest.raises(asyncio.CancelledError):
        await future


async def test_wait_for_gives_up_and_the_worker_is_free(single: Cluster) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(single.submit(work.spin), 0.2)
    assert await single.submit(work.own_id) == 1


async def test_shield_keeps_a_call_from_the_cancellation_of_its_caller(cluster: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    future = cluster.submit(work.announce_and_wait, begun, go_on)

    async def caller() -> None:
        await asyncio.shield(future)

    task = asyncio.create_task(caller())
    await fifos.read(begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not future.done()
    fifos.release(go_on)
    assert await future in (1, 2)
