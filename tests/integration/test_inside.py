"""What a call may do: a worker is an ordinary process, with a main thread, signals, children and its own chance."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from aiocluster import Cluster

from . import work
from .conftest import Fifos
from .processes import send


async def test_sync_calls_run_on_the_main_thread_and_async_ones_on_a_loop(single: Cluster) -> None:
    def on_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def loop_of() -> tuple[bool, int]:
        return asyncio.get_running_loop().is_running(), id(asyncio.get_running_loop())

    assert await single.submit(on_main)
    first, second = await asyncio.gather(single.submit(loop_of), single.submit(loop_of))
    assert first == second
    assert first[0]


async def test_workers_have_different_random_numbers(cluster: Cluster) -> None:
    await cluster.scale(4)
    assert (
        len(set((await cluster.everywhere(lambda: random.random())).values())) == 4
    )  # in a function: the method would bring its own state along
    assert len(set((await cluster.everywhere(lambda: float(np.random.random()))).values())) == 4


async def test_a_call_may_use_alarms(single: Cluster) -> None:
    def wait_for_alarm() -> str:
        def ring(number: int, frame: object) -> None:
            raise InterruptedError("the alarm")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            time.sleep(3600)
        except InterruptedError as error:
            return str(error)
        finally:
            signal.signal(signal.SIGALRM, before)
        return "nothing"

    assert await single.submit(wait_for_alarm) == "the alarm"


async def test_a_call_may_start_processes(single: Cluster) -> None:
    def run() -> str:
        return subprocess.run([sys.executable, "-c", "print(6 * 7)"], check=True, capture_output=True, text=True).stdout

    assert await single.submit(run) == "42\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_a_call_may_use_multiprocessing(single: Cluster, method: str) -> None:
    def run() -> list[int]:
        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(work.square, range(5))

    assert await single.submit(run) == [0, 1, 4, 9, 16]
    assert await single.submit(work.own_id) == 1


async def test_a_call_may_run_its_own_loop(single: Cluster) -> None:
    def run() -> int:
        return asyncio.run(work.async_square(3))

    assert await single.submit(run) == 9
    assert await single.submit(work.async_square, 3) == 9


async def test_a_call_may_start_threads(single: Cluster) -> None:
    def run() -> int:
        numbers: list[int] = []
        threads = [threading.Thread(target=numbers.append, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(numbers)

    assert await single.submit(run) == 45


async def test_an_async_call_may_use_threads(single: Cluster) -> None:
    async def run() -> list[int]:
        return await asyncio.gather(*[asyncio.to_thread(work.square, number) for number in range(20)])

    assert await single.submit(run) == [number * number for number in range(20)]


async def test_many_async_calls_are_on_one_worker_at_a_time(single: Cluster) -> None:
    async with asyncio.timeout(60):  # each waits for all the others
        assert sorted(await asyncio.gather(*[single.submit(work.meet, 100) for _ in range(100)])) == list(range(1, 101))


async def test_async_calls_go_on_while_a_sync_call_computes(single: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    computing = single.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    assert await asyncio.gather(*[single.submit(work.async_square, number) for number in range(50)]) == [n * n for n in range(50)]
    assert not computing.done()
    fifos.release(go_on)
    assert await computing == 1


async def test_deep_recursion_is_an_exception_and_not_a_crash(single: Cluster) -> None:
    def recurse() -> int:
        return 1 + recurse()

    with pytest.raises(RecursionError):
        await single.submit(recurse)
    assert await single.submit(work.own_id) == 1


async def test_the_manager_s_path_and_folder_are_the_worker_s(single: Cluster) -> None:
    def look() -> tuple[str, list[str]]:
        return os.getcwd(), sys.path

    folder, path = await single.submit(look)
    assert folder == os.getcwd()
    assert set(sys.path) - {""} <= set(path)


async def test_reading_from_a_person_is_an_end_of_file(single: Cluster) -> None:
    with pytest.raises(EOFError):
        await single.submit(input, "your name? ")


async def test_closed_and_redirected_streams_hurt_nobody(single: Cluster) -> None:
    def close() -> None:
        sys.stdout.close()
        os.close(1)

    await single.submit(close)
    assert await single.submit(work.square, 3) == 9


async def test_state_of_a_module_stays_on_its_worker(cluster: Cluster) -> None:
    await cluster.workers[1].submit(work.count_up, 7)
    assert await cluster.everywhere(work.read_count) == {1: 7, 2: 0}


async def test_a_worker_that_is_told_to_end_from_outside_is_replaced(cluster: Cluster) -> None:
    send(signal.SIGTERM, cluster.workers[1].pid)
    assert await asyncio.gather(*[cluster.submit(work.square, number) for number in range(100)]) == [n * n for n in range(100)]
    await cluster.wait_for_workers(2)


async def test_a_collection_of_garbage_does_not_lose_a_call(single: Cluster) -> None:
    import gc

    futures = [single.submit(work.async_square, number) for number in range(200)]
    for _ in range(5):
        await single.submit(gc.collect)
        gc.collect()
    assert await asyncio.gather(*futures) == [number * number for number in range(200)]


async def test_a_call_whose_future_nobody_keeps_still_runs(single: Cluster, fifos: Fifos) -> None:
    import gc

    begun = fifos.new()
    single.submit(work.announce, begun)
    gc.collect()
    assert await fifos.read(begun) == "begun\n"
