"""A node that dies, freezes or is cut off is lost, within its time and not before."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest

from aiocluster import Cluster, Unschedulable, WorkerLost

from . import work
from .conftest import Fifos, ended, event_of
from .processes import agent_of, descendants, send, stopped, worker_pids


@pytest.fixture
async def impatient() -> AsyncIterator[Cluster]:
    """A cluster that takes a second of silence for death."""
    async with Cluster.local(n=1, heartbeat_interval=0.2, heartbeat_timeout=1, output="quiet") as cluster:
        yield cluster


async def test_a_killed_agent_takes_its_node_with_it(cluster: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    running = cluster.submit(work.announce_and_sleep, begun)
    await fifos.read(begun)
    waiting = cluster.options(workers=running.worker_id).submit(work.square, 2)
    pids = worker_pids(cluster)
    agent = agent_of(pids[0])
    everyone = [agent, *descendants(agent)]
    send(signal.SIGKILL, agent)
    with pytest.raises(WorkerLost) as caught:
        await running
    assert caught.value.maybe_executed
    with pytest.raises((WorkerLost, Unschedulable)) as never:
        await waiting
    assert not getattr(never.value, "maybe_executed", False)
    event = await event_of(cluster, lambda event: event.kind == "node_lost")
    assert "signal 9" in event.text
    await ended(*everyone)
    assert len(cluster.workers) == 0
    with pytest.raises(Unschedulable):
        await cluster.submit(work.square, 2)


async def test_scale_replaces_a_lost_node(cluster: Cluster) -> None:
    before = {worker.node for worker in cluster.workers.values()}
    send(signal.SIGKILL, agent_of(worker_pids(cluster)[0]))
    await event_of(cluster, lambda event: event.kind == "node_lost")
    await cluster.scale(2)
    assert set(cluster.workers) == {3, 4}
    assert not before & {worker.node for worker in cluster.workers.values()}
    assert await cluster.everywhere(work.own_id) == {3: 3, 4: 4}


async def test_a_frozen_node_is_lost_and_nothing_of_it_is_left(impatient: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    running = impatient.submit(work.announce_and_sleep, begun)
    await fifos.read(begun)
    pids = worker_pids(impatient)
    agent = agent_of(pids[0])
    everyone = [agent, *descendants(agent)]
    with stopped(*everyone):
        with pytest.raises(WorkerLost) as caught:
            await running
        assert caught.value.maybe_executed
        assert (await event_of(impatient, lambda event: event.kind == "node_lost")).node
        assert len(impatient.workers) == 0
        await ended(agent)
    await ended(*everyone)
    await impatient.scale(1)
    assert await impatient.submit(work.square, 3) == 9


async def test_what_a_lost_node_says_later_is_ignored(impatient: Cluster, fifos: Fifos) -> None:
    """Its worker ends the call while it is frozen out; nobody hears of that, and the call is not ended twice."""
    begun, go_on = fifos.new(), fifos.new()
    running = impatient.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    (pid,) = worker_pids(impatient)
    agent = agent_of(pid)
    with stopped(agent), pytest.raises(WorkerLost):
        await running
    with pytest.raises(WorkerLost):
        running.result()
    await ended(agent, pid)
    assert [event.kind for event in impatient.events()].count("worker_lost") == 1


async def test_a_pause_shorter_than_the_timeout_is_no_death(fifos: Fifos) -> None:
    async with Cluster.local(n=1, heartbeat_interval=0.2, heartbeat_timeout=4, output="quiet") as cluster:
        begun, go_on = fifos.new(), fifos.new()
        running = cluster.submit(work.announce_and_wait, begun, go_on)
        await fifos.read(begun)
        (pid,) = worker_pids(cluster)
        agent = agent_of(pid)
        for _ in range(3):
            with stopped(agent, *descendants(agent)):
                await asyncio.sleep(0.5)  # the pause itself
            with stopped(pid):
                await asyncio.sleep(0.1)
        with open(go_on, "w"):
            pass
        assert await running == 1
        assert {event.kind for event in cluster.events()} == {"node_joined", "worker_joined"}


async def test_a_manager_that_was_busy_itself_declares_nobody_lost(impatient: Cluster) -> None:
    for _ in range(2):
        time.sleep(1.6)  # noqa: ASYNC251  # the manager's own loop stands still for longer than the timeout
        assert await impatient.submit(work.own_id) == 1
    assert {event.kind for event in impatient.events()} == {"node_joined", "worker_joined"}
