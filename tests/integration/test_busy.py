"""A worker that computes is never taken for dead, whatever it holds meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiocluster import Cluster

from . import work
from .conftest import Fifos


@pytest.fixture
async def impatient() -> AsyncIterator[Cluster]:
    async with Cluster.local(n=1, heartbeat_interval=0.2, heartbeat_timeout=1, output="quiet") as cluster:
        yield cluster


def nothing_was_lost(cluster: Cluster) -> bool:
    return {event.kind for event in cluster.events()} == {"node_joined", "worker_joined"}


async def test_a_call_that_holds_the_interpreter_on_the_loop_is_not_killed(impatient: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()

    async def hold() -> int:
        import asyncio

        await asyncio.to_thread(work.announce, begun)
        return work.hold_without_a_word(2)

    future = impatient.submit(hold)
    await fifos.read(begun)
    assert await future == 1
    assert nothing_was_lost(impatient)


async def test_a_busy_worker_hinders_no_other(fifos: Fifos) -> None:
    async with Cluster.local(n=2, heartbeat_interval=0.2, heartbeat_timeout=1, output="quiet") as cluster:
        begun = fifos.new()
        future = cluster.submit(work.hold_the_interpreter, begun, 2)
        await fifos.read(begun)
        other = ({1, 2} - {future.worker_id}).pop()
        assert set(await cluster.options(workers=other).map(work.identify, range(1000))) == {other}
        assert not future.done()
        assert await future == future.worker_id
        assert nothing_was_lost(cluster)
