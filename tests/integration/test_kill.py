"""Workers are killed: one outcome per call, nothing runs twice unasked, and only what ran is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from aiocluster import Cluster, Future, WorkerLost

from . import work
from .conftest import SAFETY_S, Fifos, ended, event_of
from .processes import send, worker_pids


def numbers_in(log: Path) -> Counter[int]:
    return Counter(int(line) for line in log.read_text().split())


async def outcomes_under_fire(cluster: Cluster, futures: list[Future[int]], kills: int) -> list[int | BaseException]:
    """Kill a worker whenever another share of the calls has ended; the outcome of each call."""
    share = len(futures) // (kills + 1)
    ended_calls = 0
    shares = asyncio.Semaphore(0)

    def count(_future: object) -> None:
        nonlocal ended_calls
        ended_calls += 1
        if ended_calls % share == 0:
            shares.release()

    for future in futures:
        future.add_done_callback(count)
    async with asyncio.timeout(SAFETY_S):
        for _ in range(kills):
            await shares.acquire()
            await cluster.wait_for_workers(1)
            send(signal.SIGKILL, worker_pids(cluster)[0])
        return await asyncio.gather(*futures, return_exceptions=True)


async def test_an_idle_worker_that_is_killed_is_known_with_its_cause_and_replaced(cluster: Cluster) -> None:
    pid = cluster.workers[1].pid
    os.kill(pid, signal.SIGKILL)
    event = await event_of(cluster, lambda event: event.kind == "worker_lost")
    assert event.worker_id == 1
    assert "signal 9" in event.text
    await event_of(cluster, lambda event: event.kind == "worker_joined" and event.worker_id == 3)
    assert set(cluster.workers) == {2, 3}
    assert cluster.workers[3].pid != pid
    assert await cluster.everywhere(work.own_id) == {2: 2, 3: 3}


async def test_the_running_call_may_have_run_and_those_behind_it_simply_move(
    single: Cluster, fifos: Fifos, tmp_path: Path
) -> None:
    begun, log = fifos.new(), tmp_path / "log"
    running = single.submit(work.announce_and_sleep, begun)
    behind = [single.submit(work.log_call, str(log), number) for number in range(200)]
    await fifos.read(begun)
    os.kill(single.workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="signal 9") as caught:
        await running
    assert caught.value.maybe_executed
    assert caught.value.worker_id == 1
    assert "MAY have run" in str(caught.value)
    assert await asyncio.gather(*behind) == list(range(200))
    assert numbers_in(log) == Counter(range(200))


@pytest.mark.parametrize("kills", [1, 8])
async def test_sync_calls_under_fire_end_once_run_once_and_only_those_that_ran_are_lost(
    cluster: Cluster, tmp_path: Path, kills: int
) -> None:
    log = tmp_path / "log"
    futures = [cluster.submit(work.log_and_work, str(log), number) for number in range(1000)]
    outcomes = await outcomes_under_fire(cluster, futures, kills)
    ran = numbers_in(log)
    assert not [number for number, times in ran.items() if times > 1], "calls ran twice, unasked"
    lost = [number for number, outcome in enumerate(outcomes) if outcome != number]
    assert all(isinstance(outcomes[number], WorkerLost) for number in lost)
    assert len(lost) <= kills, "a worker runs one sync call at a time: no more than that is lost with it"
    assert all(ran[number] == 1 for number in range(1000) if number not in lost)


async def test_async_calls_under_fire_end_once_and_run_once(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    futures = [cluster.submit(work.async_log_call, str(log), number) for number in range(1000)]
    outcomes = await outcomes_under_fire(cluster, futures, 5)
    ran = numbers_in(log)
    assert not [number for number, times in ran.items() if times > 1], "calls ran twice, unasked"
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, WorkerLost)
            assert outcome.maybe_executed
        else:
            assert outcome == number
            assert ran[number] == 1


async def test_idempotent_calls_all_succeed_under_fire(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    calls = cluster.options(idempotent=True)
    futures = [calls.submit(work.log_and_work, str(log), number) for number in range(1000)]
    assert await outcomes_under_fire(cluster, futures, 8) == list(range(1000))
    assert set(numbers_in(log)) == set(range(1000))


async def test_a_map_under_fire_counts_every_item_once(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run(number: int) -> int:
        work.append(str(log), str(number))
        return number

    seen: list[object] = []
    async for value in cluster.map(run, range(3000), return_exceptions=True):
        seen.append(value)
        if len(seen) in (500, 1000, 1500):
            send(signal.SIGKILL, *worker_pids(cluster)[:1])
    ran = numbers_in(log)
    assert len(seen) == 3000
    assert not [number for number, times in ran.items() if times > 1], "items ran twice, unasked"
    for number, value in enumerate(seen):
        assert value == number or isinstance(value, WorkerLost)
        assert value != number or ran[number] == 1


async def test_all_workers_killed_at_once_cost_only_what_they_ran(cluster: Cluster, fifos: Fifos) -> None:
    paths = [fifos.new(), fifos.new()]
    running = [cluster.submit(work.announce_and_sleep, path) for path in paths]
    for path in paths:
        await fifos.read(path)
    waiting = [cluster.submit(work.square, number) for number in range(100)]
    send(signal.SIGKILL, *worker_pids(cluster))
    for future in running:
        with pytest.raises(WorkerLost):
            await future
    assert await asyncio.gather(*waiting) == [number * number for number in range(100)]
    assert set(cluster.workers) <= {3, 4}


async def test_a_call_that_always_kills_its_worker_is_blamed_after_three(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    others = [cluster.options(idempotent=True).submit(work.square, number) for number in range(100)]
    bad = cluster.options(idempotent=True).submit(work.log_and_exit, str(log))
    others += [cluster.options(idempotent=True).submit(work.square, number) for number in range(100)]
    with pytest.raises(WorkerLost, match="exited with code 3") as caught:
        await bad
    pids = log.read_text().split()
    assert len(pids) == len(set(pids)) == 3
    assert caught.value.maybe_executed
    assert await asyncio.gather(*others) == [number * number for number in range(100)] * 2


async def test_what_was_finished_before_the_crash_is_not_lost(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.workers[1]
    good = [worker.submit(work.square, number) for number in range(100)]
    bad = worker.submit(os.kill, work.SELF, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="signal 9"):
        await bad
    assert await asyncio.gather(*good) == [number * number for number in range(100)]


async def test_a_large_result_on_its_way_is_lost_or_whole(cluster: Cluster, tmp_path: Path) -> None:
    def make(number: int) -> bytes:
        return bytes([number]) * 3_000_000

    futures = [cluster.submit(make, number) for number in range(30)]
    await futures[0]
    send(signal.SIGKILL, *worker_pids(cluster))
    for number, outcome in enumerate(await asyncio.gather(*futures, return_exceptions=True)):
        assert isinstance(outcome, WorkerLost) or outcome == bytes([number]) * 3_000_000


async def test_a_forked_child_of_a_call_cannot_speak_for_the_worker(single: Cluster) -> None:
    def fork_and_exit() -> int:
        child = os.fork()
        if not child:
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return status

    assert await single.submit(fork_and_exit) == 0
    assert await single.submit(work.own_id) == 1


async def test_the_end_of_the_fork_server_leaves_no_call_hanging(cluster: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    running = cluster.submit(work.announce_and_sleep, begun)
    await fifos.read(begun)
    pids = worker_pids(cluster)
    server = psutil.Process(pids[0]).ppid()
    os.kill(server, signal.SIGKILL)
    waiting = [cluster.submit(work.square, number) for number in range(10)]
    await ended(server)
    send(signal.SIGKILL, *pids)
    async with asyncio.timeout(SAFETY_S):
        outcomes = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert isinstance(outcomes[0], WorkerLost)
    await ended(*pids)
    await cluster.scale(1)
    assert await cluster.submit(work.square, 3) == 9
