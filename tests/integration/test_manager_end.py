"""However the manager ends, nothing of its cluster is left: its processes are watched by descriptors, and all of them end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster import Cluster
from aiocluster.config import Settings

from . import work
from .conftest import Fifos, ended
from .processes import agent_of, descendants, send, worker_pids

SAFETY_NET_S = 10.0
"""Far more than the second that is promised: a machine may be busy, and what never ends is found all the same."""

PROLOGUE = """
import asyncio, os, signal, sys, time
import aiocluster
from aiocluster import Cluster, Settings
from tests.integration import work
from tests.integration.processes import agent_of, descendants, worker_pids

def tell(cluster):
    agent = agent_of(worker_pids(cluster)[0])
    print(agent, *descendants(agent), flush=True)

async def begun(path):
    await asyncio.to_thread(lambda: open(path).read())
"""


class Manager:
    """A program that opens a cluster and prints the processes of its node."""

    def __init__(self, body: str, runner: str) -> None:
        source = f"{PROLOGUE}\nasync def main():\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())
        self.process = subprocess.Popen(
            [sys.executable, "-c", source + runner],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._descriptors: dict[int, int] = {}

    def learn(self) -> list[int]:
        """The pids that it prints: from now on these very processes are watched, whatever their numbers become."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        pids = [int(pid) for pid in line.split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # one that has ended already is not left
                self._descriptors[pid] = os.pidfd_open(pid)
        assert len(pids) >= 2
        return pids

    def left(self) -> list[int]:
        """Those of its processes that have not ended within the safety net."""
        deadline = time.monotonic() + SAFETY_NET_S
        left = []
        for pid, descriptor in self._descriptors.items():
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                left.append(pid)
        return left

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr."""
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def manager(body: str, runner: str = "aiocluster.run(main())") -> Iterator[Manager]:
    one = Manager(body, runner)
    try:
        yield one
    finally:
        one.close()


OPEN = """
async with Cluster.local(n=2, output="quiet") as cluster:
    tell(cluster)
"""


# --- it is killed ---------------------------------------------------------------------------------------------------------


IDLE = "    await asyncio.sleep(3600)"
BUSY = """
    calls = [cluster.submit(time.sleep, 3600) for _ in range(100)]
    await asyncio.wait(calls)
"""


@pytest.mark.parametrize("doing", [IDLE, BUSY], ids=["idle", "busy"])
def test_kill_9_of_the_manager_ends_everything(doing: str) -> None:
    with manager(OPEN + doing) as it:
        it.learn()
        it.process.kill()
        assert it.left() == []


def with_call(call: str) -> str:
    return f"""
os.mkfifo(path := os.path.join(sys.argv[-1] if len(sys.argv) > 1 else os.environ["FOLDER"], "begun"))
async with Cluster.local(n=2, output="quiet") as cluster:
    call = cluster.submit({call})
    await begun(path)
    tell(cluster)
    await asyncio.sleep(3600)
"""


CALLS = {
    "holds the interpreter in C": "work.hold_the_interpreter, path, 3600",
    "ignores CancelledError": "work.announce_and_ignore_cancel, path",
    "ignores CancelledError on the loop": "work.async_announce_and_ignore_cancel, path",
    "waits for another call": "work.parent_of, path, '/dev/null'",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_kill_9_of_the_manager_ends_a_worker_whatever_it_does(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", str(tmp_path))
    with manager(with_call(call)) as it:
        it.learn()
        it.process.kill()
        assert it.left() == []


def test_a_manager_that_is_silent_for_the_orphan_timeout_is_given_up() -> None:
    with manager(OPEN.replace("n=2,", "n=2, orphan_timeout=1, heartbeat_interval=0.2,") + IDLE) as it:
        it.learn()
        it.process.send_signal(signal.SIGSTOP)
        assert it.left() == []


def test_a_manager_that_dies_while_it_launches_leaves_nothing() -> None:
    body = """
opening = asyncio.ensure_future(Cluster.local(n=4, output="quiet").__aenter__())
while not (pids := descendants(os.getpid())):
    await asyncio.sleep(0)
print(*pids, os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with manager(body) as it:
        it.learn()
        assert it.left() == []
    # What the agent forked after it was watched is an orphan, and seen by the check that every test has.


# --- it ends --------------------------------------------------------------------------------------------------------------


ENDS = {
    "normally": ("    pass", 0, ""),
    "with calls left": (
        BUSY.replace("await asyncio.wait(calls)", "pass"),
        0,
        "the cluster is closed with 100 calls unfinished: await their futures before its block ends",
    ),
    "by an exception": ("    raise LookupError('on purpose')", 1, "LookupError: on purpose"),
    "by sys.exit": ("    sys.exit(7)", 7, ""),
    "by sys.exit with calls left": (BUSY.replace("await asyncio.wait(calls)", "sys.exit(7)"), 7, ""),
    "by SIGINT to itself": (
        "    os.kill(os.getpid(), signal.SIGINT)" + IDLE.replace("    ", "\n    ", 1),
        -2,
        "KeyboardInterrupt",
    ),
    "by SIGTERM to itself": ("    os.kill(os.getpid(), signal.SIGTERM)" + IDLE.replace("    ", "\n    ", 1), 143, ""),
}


@pytest.mark.parametrize(("how", "code", "last"), ENDS.values(), ids=ENDS)
def test_a_manager_that_ends_leaves_nothing(how: str, code: int, last: str) -> None:
    with manager(OPEN + how) as it:
        it.learn()
        returned, stderr = it.wait()
        assert returned in (code, 130 if code == -2 else code)
        lines = stderr.strip().splitlines()
        assert (lines[-1] if lines else "") == last, stderr
        assert it.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("doing", [IDLE, BUSY], ids=["idle", "busy"])
def test_a_signal_closes_the_cluster_and_ends_the_manager(number: signal.Signals, doing: str) -> None:
    with manager(OPEN + doing) as it:
        it.learn()
        it.process.send_signal(number)
        code, stderr = it.wait()
        assert code in ((-2, 130) if number == signal.SIGINT else (143,))
        assert "Task was destroyed" not in stderr
        assert "never retrieved" not in stderr
        assert it.left() == []


def test_sigint_under_asyncio_run_leaves_nothing() -> None:
    with manager(OPEN + IDLE, "asyncio.run(main())") as it:
        it.learn()
        it.process.send_signal(signal.SIGINT)
        it.wait()
        assert it.left() == []


def test_sigterm_that_nobody_handles_leaves_nothing() -> None:
    with manager(OPEN + IDLE, "asyncio.run(main())") as it:
        it.learn()
        it.process.send_signal(signal.SIGTERM)
        assert it.wait()[0] == -signal.SIGTERM
        assert it.left() == []


def test_a_program_that_forgets_to_close_leaves_nothing() -> None:
    body = """
cluster = await Cluster.local(n=2, output="quiet")
tell(cluster)
"""
    with manager(body) as it:
        it.learn()
        it.wait()
        assert it.left() == []


# --- within one program ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def before() -> set[int]:
    return set(descendants(os.getpid()))


@pytest.mark.parametrize("wanted", [1, 2, 4])
async def test_a_cancelled_start_leaves_nothing(before: set[int], wanted: int) -> None:
    """Cancelled when so many of its processes are there: agent, fork server, workers."""

    async def start() -> None:
        await Cluster.local(n=3, output="quiet")

    task = asyncio.ensure_future(start())
    while len(pids := set(descendants(os.getpid())) - before) < wanted:  # noqa: ASYNC110  # the system says nothing
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended(*pids, *set(descendants(os.getpid())) - before)


async def test_close_is_not_held_up_by_calls_that_ignore_it(fifos: Fifos) -> None:
    settings = Settings(close_grace_s=0.3)
    async with Cluster.local(n=3, output="quiet", settings=settings) as cluster:
        functions: list[tuple[Any, ...]] = [
            (work.announce_and_ignore_cancel,),
            (work.async_announce_and_ignore_cancel,),
            (work.hold_the_interpreter, 3600),
        ]
        futures = []
        for (function, *more), worker in zip(functions, cluster.workers.values(), strict=True):
            path = fifos.new()
            futures.append(worker.submit(function, path, *more))
            await fifos.read(path)
        agent = agent_of(worker_pids(cluster)[0])
        pids = [agent, *descendants(agent)]
    assert all(future.done() for future in futures)
    await ended(*pids)
    assert "ClusterClosed" in {type(future.exception()).__name__ for future in futures}


async def test_close_ends_a_node_that_is_frozen() -> None:
    async with Cluster.local(n=2, output="quiet", settings=Settings(close_grace_s=0.3)) as cluster:
        agent = agent_of(worker_pids(cluster)[0])
        pids = [agent, *descendants(agent)]
        send(signal.SIGSTOP, *pids)
    await ended(*pids)
