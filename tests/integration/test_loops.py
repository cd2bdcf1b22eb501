"""The same program on uvloop and on plain asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import uvloop

from aiocluster import CallTimeout, Cluster, WorkerLost

from . import work
from .conftest import Fifos, ended
from .processes import worker_pids

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
Program = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=list(LOOPS))
def runner(request: pytest.FixtureRequest) -> Callable[[Program], None]:
    def run(main: Program) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main())

    return run


def test_calls_maps_and_arrays(runner: Callable[[Program], None]) -> None:
    async def main() -> None:
        async with Cluster.local(n=2, output="quiet") as cluster:
            assert await cluster.submit(work.square, 3) == 9
            assert await asyncio.gather(*[cluster.submit(work.square, n) for n in range(3000)]) == [n * n for n in range(3000)]
            assert await cluster.map(work.async_square, range(500)) == [n * n for n in range(500)]
            array = np.random.default_rng(1).random(4_000_000)
            copies = await asyncio.gather(*[cluster.submit(work.echo, array) for _ in range(4)])
            assert all((copy == array).all() for copy in copies)

    runner(main)


def test_cancelling_and_deadlines(runner: Callable[[Program], None], fifos: Fifos) -> None:
    async def main() -> None:
        async with Cluster.local(n=1, output="quiet") as cluster:
            begun = fifos.new()
            future = cluster.submit(work.announce_and_sleep, begun)
            await fifos.read(begun)
            future.cancel()
            with pytest.raises(CallTimeout):
                await cluster.options(timeout=0.1).submit(time.sleep, 3600)
            assert await cluster.submit(work.own_id) == 1

    runner(main)


def test_a_crash_and_a_kill(runner: Callable[[Program], None]) -> None:
    async def main() -> None:
        async with Cluster.local(n=2, output="quiet") as cluster:
            with pytest.raises(WorkerLost):
                await cluster.submit(os._exit, 1)
            await cluster.wait_for_workers(2)
            os.kill(worker_pids(cluster)[0], signal.SIGKILL)
            assert await asyncio.gather(*[cluster.submit(work.square, n) for n in range(100)]) == [n * n for n in range(100)]
            pids = worker_pids(cluster)
        await ended(*pids)

    runner(main)


def test_nested_calls(runner: Callable[[Program], None]) -> None:
    async def main() -> None:
        async with Cluster.local(n=1, output="quiet") as cluster:
            assert await cluster.submit(work.nested_sum, 4) == 16
            assert await cluster.submit(work.sync_nested_sum, 4) == 16

    runner(main)


def test_scaling_and_output(runner: Callable[[Program], None]) -> None:
    async def main() -> None:
        lines: list[str] = []
        async with Cluster.local(n=1, output=lambda _id, _stream, line: lines.append(line)) as cluster:
            await cluster.scale(2)
            future = cluster.submit(work.print_lines, "hello")
            await future
            assert await future.logs() == ["hello"]
            await cluster.scale(1)
        assert lines == ["hello"]

    runner(main)
