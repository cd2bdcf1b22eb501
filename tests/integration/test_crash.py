"""Workers are killed at awkward moments: what was finished is not lost, what arrives is whole, and no call hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from aiocluster import Cluster, WorkerLost

from . import work
from .conftest import SAFETY_S, Fifos, ended, numbers_in
from .processes import send, worker_pids


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
    ran = Counter(numbers_in(log))
    assert len(seen) == 3000
    assert not [number for number, times in ran.items() if times > 1], "items ran twice, unasked"
    for number, outcome in enumerate(seen):
        assert outcome == number or isinstance(outcome, WorkerLost)
        assert outcome != number or ran[number] == 1


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
