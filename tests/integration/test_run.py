"""`aiocluster run` with workers of this machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from .conftest import ended

COUNTS = """
import asyncio
from aiocluster import Cluster

class Doubled:
    def __init__(self, number):
        self.number = number * 2

async def main():
    async with Cluster.from_env() as cluster:
        doubled = [one.number async for one in cluster.map(Doubled, range(4))]
        print(len(cluster.workers), doubled)

asyncio.run(main())
"""
STAYS = """
import asyncio
from aiocluster import Cluster

async def main():
    try:
        async with Cluster.from_env() as cluster:
            print(*[worker.pid for worker in cluster.workers.values()], flush=True)
            await asyncio.Event().wait()
    finally:
        print("closed", cluster.closed, flush=True)

asyncio.run(main())
"""


async def started(script: Path, *options: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "aiocluster.cli.main", "run", *options, str(script)]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def test_from_env_opens_what_the_options_say(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(COUNTS)
    process = await started(script, "--launcher", "local", "--workers", "3", "--output", "quiet")
    printed, _ = await process.communicate()
    assert (process.returncode, printed) == (0, b"3 [0, 2, 4, 6]\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_closes_the_cluster_before_the_end(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(STAYS)
    process = await started(script, "--workers", "2")
    assert process.stdout is not None
    pids = [int(word) for word in (await process.stdout.readline()).split()]
    process.send_signal(number)
    rest, _ = await process.communicate()
    assert (process.returncode, rest) == (code, b"closed True\n")
    assert len(pids) == 2
    await ended(*pids)
