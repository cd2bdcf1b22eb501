"""The processes of a cluster, as the operating system sees them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil

from aiocluster import Cluster


def agent_of(pid: int, manager: int | None = None) -> int:
    """The pid of the agent that a local worker hangs from: its ancestor that the manager started."""
    manager = os.getpid() if manager is None else manager
    process = psutil.Process(pid)
    while (parent := process.parent()) is not None:
        if parent.pid == manager:
            return process.pid
        process = parent
    raise AssertionError(f"process {pid} does not descend from the manager {manager}")


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def worker_pids(cluster: Cluster) -> list[int]:
    return [worker.pid for worker in cluster.workers.values()]


def send(number: signal.Signals, *pids: int) -> None:
    """Signal processes; one that has ended meanwhile is no matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes are frozen inside the block, and go on after it if they still exist."""
    send(signal.SIGSTOP, *pids)
    try:
        yield
    finally:
        send(signal.SIGCONT, *pids)
