"""Nodes that reach the manager by TCP."""

from __future__ import annotations

import asyncio
import socket

import pytest

from aiocluster import Cluster, LaunchError
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.local import Local
from aiocluster.launch.reach import Reach

from . import work
from .conftest import event_of


class ByTcp(Local):
    """Nodes on this machine that do not know that they are. They call themselves by other names than the manager gave them."""

    name = "far"
    workers_per_node = 1

    def __init__(self, reach: Reach) -> None:
        super().__init__()
        self.reach = reach
        self.address = ""

    async def start(self, request: LaunchRequest) -> None:
        self.address = request.address
        await super().start(request)


@pytest.mark.both_loops
async def test_calls_run_on_nodes_that_dial_by_tcp() -> None:
    launcher = ByTcp(Reach(advertise="127.0.0.1"))
    async with Cluster.start(launcher, 2, output="quiet") as cluster:
        assert launcher.address.startswith("tcp://127.0.0.1:")
        assert await cluster.map(work.square, range(1000)) == [n * n for n in range(1000)]
        assert {worker.node for worker in cluster.workers.values()} == {"far-1", "far-2"}


async def test_a_local_cluster_is_given_workers_from_elsewhere(cluster: Cluster) -> None:
    await cluster.add(ByTcp(Reach(advertise="127.0.0.1")), n=1)
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2, 3: 3}
    assert cluster.workers[3].node == "far-1"
    await cluster.scale(2)


async def test_an_address_in_use_is_a_launch_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"cannot listen at tcp://127.0.0.1:{port}"):
            await Cluster.start(ByTcp(Reach(advertise="127.0.0.1", port=port)), 1, output="quiet")


class Renaming(ByTcp):
    """Its agents call themselves by what their surroundings call them."""

    async def start(self, request: LaunchRequest) -> None:
        self.real = dict(zip([f"task-{n}" for n in range(len(request.nodes))], request.nodes, strict=True))
        self.expect = request.expect
        await super().start(
            LaunchRequest(
                cluster_id=request.cluster_id,
                token=request.token,
                address=request.address,
                nodes=list(self.real),
                workers=dict.fromkeys(self.real, 1),
                minimum=request.minimum,
                observed=request.observed,
                exited=lambda node, reason: request.exited(self.real[node], reason),
                expect=request.expect,
                settings=request.settings,
            )
        )

    def adopt(self, name: str) -> str | None:
        return self.real.get(name)


async def test_an_agent_with_a_name_of_its_own_is_the_node_that_its_launcher_says() -> None:
    async with Cluster.start(Renaming(Reach(advertise="127.0.0.1")), 2, output="quiet") as cluster:
        assert {worker.node for worker in cluster.workers.values()} == {"far-1", "far-2"}
        assert {await worker.submit(work.own_node) for worker in cluster.workers.values()} == {"far-1", "far-2"}


class Retrying(ByTcp):
    """Starts a node in the place of one that has ended, as a retry of a job does."""

    async def start(self, request: LaunchRequest) -> None:
        await super().start(request)
        (first,) = request.nodes
        agent = self._agents[first]

        def again(_ended: asyncio.Future[None]) -> None:
            request.expect(f"{first}.2", first)
            self._again = asyncio.ensure_future(
                super(Retrying, self).start(
                    LaunchRequest(
                        cluster_id=request.cluster_id,
                        token=request.token,
                        address=request.address,
                        nodes=[f"{first}.2"],
                        workers={f"{first}.2": 1},
                        minimum=1,
                        observed=request.observed,
                        exited=request.exited,
                        expect=request.expect,
                        settings=request.settings,
                    )
                )
            )

        agent.ended.add_done_callback(again)


async def test_a_node_that_the_infrastructure_starts_again_joins_as_a_new_one() -> None:
    launcher = Retrying(Reach(advertise="127.0.0.1"))
    async with Cluster.start(launcher, 1, output="quiet") as cluster:
        (agent,) = launcher._agents.values()
        agent._process.kill()
        await event_of(cluster, lambda event: event.kind == "worker_joined" and event.node == "far-1.2")
        assert set(cluster.workers) == {2}
        assert await cluster.submit(work.square, 3) == 9
        await launcher._again
