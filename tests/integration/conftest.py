"""Clusters of real processes, and ways to wait for what they do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aiocluster import Cluster, Event

SAFETY_S = 60.0
"""A safety net for waits on events: a machine may be slow, a test never counts on it."""


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster.local(n=2, output="quiet") as cluster:
        yield cluster


@pytest.fixture
async def single() -> AsyncIterator[Cluster]:
    """One worker: whatever deadlocks, deadlocks here."""
    async with Cluster.local(n=1, output="quiet") as cluster:
        yield cluster


class Fifos:
    """Fifos through which calls tell that they have begun."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def new(self) -> str:
        self._count += 1
        path = str(self._folder / f"fifo-{self._count}")
        os.mkfifo(path)
        return path

    @staticmethod
    def release(path: str) -> None:
        """Let a call go on that waits until the fifo has been opened for writing."""
        open(path, "w").close()

    @staticmethod
    async def read(path: str) -> str:
        """What a call writes into the fifo, when it has."""
        loop = asyncio.get_running_loop()
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        keep_open = os.open(path, os.O_WRONLY)  # no end of file before the call has opened it
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, lambda: None if readable.done() else readable.set_result(None))
        try:
            async with asyncio.timeout(SAFETY_S):
                await readable
            return os.read(descriptor, 65536).decode()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            os.close(keep_open)


@pytest.fixture
def fifos(tmp_path: Path) -> Fifos:
    return Fifos(tmp_path)


def lines_of(log: str | Path) -> list[str]:
    """What calls have appended to the file, in their order; nothing if there is no file."""
    path = Path(log)
    return path.read_text().splitlines() if path.exists() else []


def numbers_in(log: str | Path) -> list[int]:
    return [int(line) for line in lines_of(log)]


async def event_of(cluster: Cluster, wanted: Callable[[Event], bool]) -> Event:
    """The first event of the cluster, past or to come, that is wanted."""
    async with asyncio.timeout(SAFETY_S):
        async for event in cluster.events():
            if wanted(event):
                return event
    raise AssertionError("the cluster closed before the event came")


async def ended(*pids: int) -> None:
    """Return when none of these processes exists any more (zombies of other parents count as ended)."""
    loop = asyncio.get_running_loop()
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        gone: asyncio.Future[None] = loop.create_future()

        def set_gone(gone: asyncio.Future[None] = gone) -> None:
            if not gone.done():
                gone.set_result(None)

        loop.add_reader(descriptor, set_gone)
        try:
            async with asyncio.timeout(SAFETY_S):
                await gone
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
