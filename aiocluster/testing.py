"""For those who write launchers: what each of them must do, as checks that any test framework can run.

    from aiocluster.testing import Ground, launcher_conformance

    @pytest.mark.parametrize("check", launcher_conformance, ids=lambda check: check.__name__)
    async def test_my_launcher_conforms(check):
        await check(Ground(launcher=MyLauncher, broken=broken_launcher, broken_says="no", left=still_there))

Each check opens clusters of its own, raises `AssertionError` where the launcher fails, and closes what it has opened. They are
functions of this module: a launcher whose infrastructure starts all nodes at once and ends no single one, as that of
`BatchNodes`, is tested with all but those that do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import cloudpickle  # type: ignore[import-untyped]

from aiocluster.cluster import Cluster, Opening
from aiocluster.errors import AioclusterError, LaunchError
from aiocluster.launch.base import Launcher

__all__ = ["Check", "Ground", "launcher_conformance"]

NEVER_S = 3600.0
"""A launch timeout: what waits for it is too late, and is seen."""
POLL_S = 0.1
COLOUR = "AIOCLUSTER_CONFORMANCE_COLOUR"
TURNS = (0, 1, 3, 10, 30, 100, 300)
"""Turns of the loop after which a start is cancelled: early ones hit each request that it makes, one after another."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the checks need to know of a launcher and its infrastructure."""

    launcher: Callable[..., Launcher]
    """Makes a new one, that can start nodes; takes `env` and, unless all workers share a node, `workers_per_node`. It is also
    used in another process: cloudpickle must be able to take it there."""
    broken: Callable[[], Launcher]
    """Makes a new one, whose nodes are started and end at once without joining."""
    broken_says: str
    """What such a node writes before it ends."""
    left: Callable[[str], Awaitable[Collection[str]]]
    """Names what is still there of the nodes of a cluster, by the cluster's id: one entry for each node."""
    states: Collection[str] = ()
    """What is observed of each node until it joins, in the words of the infrastructure."""
    patience_s: float = 60.0
    """How long the infrastructure may take for one step."""


Check = Callable[[Ground], Awaitable[None]]


async def nodes_join_and_their_states_are_told(ground: Ground) -> None:
    """Two workers are asked for: two join, and of each node is told what the infrastructure says of it."""
    async with _opened(ground, Cluster.start(ground.launcher(), 2, timeout=ground.patience_s, output="quiet")) as cluster:
        assert set(cluster.workers) == {1, 2}, f"two workers were asked for: {cluster.workers}"
        assert await cluster.map(_double, [1, 2, 3]) == [2, 4, 6]
        nodes = {worker.node for worker in cluster.workers.values()}
        for node in nodes:
            told = {event.text for event in cluster.events() if event.kind == "node_state" and event.node == node}
            assert told.issuperset(ground.states), f"of {node} was told {told}"
    await _nothing_left(ground, cluster.id)


async def workers_share_a_node_as_they_are_told(ground: Ground) -> None:
    """Three workers, two for each node, are on two nodes; all of them on one where the launcher has no such number."""
    launcher = ground.launcher() if ground.launcher().workers_per_node is None else ground.launcher(workers_per_node=2)
    async with _opened(ground, Cluster.start(launcher, 3, timeout=ground.patience_s, output="quiet")) as cluster:
        nodes = [worker.node for worker in cluster.workers.values()]
        counts = sorted(nodes.count(node) for node in set(nodes))
        assert counts == ([3] if launcher.workers_per_node is None else [1, 2]), f"the nodes have {counts} workers"
        there = await ground.left(cluster.id)
        assert len(there) == len(counts), f"there are {', '.join(there)}"
    await _nothing_left(ground, cluster.id)


async def no_workers_need_no_nodes(ground: Ground) -> None:
    """A cluster without workers opens, starts nothing, and closes."""
    async with _opened(ground, Cluster.start(ground.launcher(), 0, output="quiet")) as cluster:
        assert not cluster.workers, f"nobody asked for {cluster.workers}"
        await _nothing_left(ground, cluster.id)


async def a_node_that_cannot_join_fails_the_launch_at_once(ground: Ground) -> None:
    """Its end is not waited out: the error has the reason, and the last lines of who failed."""
    launcher = ground.broken()
    async with _opened(ground, Cluster.start(launcher, 0, output="quiet")) as cluster:
        failure: LaunchError | None = None
        try:
            async with asyncio.timeout(ground.patience_s):
                await cluster.add(launcher, 2, timeout=NEVER_S)
        except LaunchError as error:
            failure = error
        assert failure is not None, "a launch of nodes that cannot join succeeded"
        assert failure.nodes, "no node is reported"
        assert any(node.reason for node in failure.nodes), f"no reason is told: {failure}"
        lines = [line for node in failure.nodes for line in node.last_lines]
        assert any(ground.broken_says in line for line in lines), f"no last lines are told: {failure}"
        await _nothing_left(ground, cluster.id)


async def stopping_a_node_ends_it_and_no_other(ground: Ground) -> None:
    """Of two nodes one is stopped: the other one goes on."""
    launcher = ground.launcher()
    async with _opened(ground, Cluster.start(launcher, 1, timeout=ground.patience_s, output="quiet")) as cluster:
        await cluster.add(launcher, 1, timeout=ground.patience_s)
        nodes = [worker.node for worker in cluster.workers.values()]
        assert len(set(nodes)) == 2, f"the workers are on {nodes}"
        async with asyncio.timeout(ground.patience_s):
            await launcher.stop(nodes[0])
            await launcher.stop(nodes[0])  # it is gone, and that is no matter
        there = await ground.left(cluster.id)
        assert len(there) == 1, f"one of two nodes was stopped, and there are {', '.join(there) or 'none'}"
        assert await cluster.workers[2].submit(_double, 4) == 8
    await _nothing_left(ground, cluster.id)


async def a_lost_node_is_ended_too(ground: Ground) -> None:
    """One that was not told to end, and is taken for dead, does not go on."""
    launcher = ground.launcher()
    async with _opened(ground, Cluster.start(launcher, 1, timeout=ground.patience_s, output="quiet")) as cluster:
        await cluster.add(launcher, 1, timeout=ground.patience_s)
        async with asyncio.timeout(ground.patience_s):
            await launcher.stop(cluster.workers[1].node, lost=True)
        there = await ground.left(cluster.id)
        assert len(there) == 1, f"one of two nodes was lost, and there are {', '.join(there) or 'none'}"
        assert await cluster.workers[2].submit(_double, 4) == 8
    await _nothing_left(ground, cluster.id)


async def a_node_that_ends_by_itself_is_told(ground: Ground) -> None:
    """Its agent has joined, and leaves: the cluster hears of it and goes on with the others."""
    launcher = ground.launcher()
    together = 1 if launcher.workers_per_node is None else 2
    async with _opened(ground, Cluster.start(launcher, together, timeout=ground.patience_s, output="quiet")) as cluster:
        if together == 1:
            await cluster.add(launcher, 1, timeout=ground.patience_s)
        agent = cluster._owner.manager.core.roster.nodes[cluster.workers[1].node].pid
        await cluster.workers[1].submit(os.kill, agent, signal.SIGTERM)
        async with asyncio.timeout(ground.patience_s):
            while 1 in cluster.workers:  # noqa: ASYNC110  # the same
                await asyncio.sleep(POLL_S)
            while len(await ground.left(cluster.id)) > 1:  # noqa: ASYNC110  # an infrastructure is asked: it does not tell
                await asyncio.sleep(POLL_S)
        assert await cluster.workers[2].submit(_double, 6) == 12
    await _nothing_left(ground, cluster.id)


async def stopping_what_is_unknown_is_no_matter(ground: Ground) -> None:
    """Neither before anything was started nor afterwards."""
    launcher = ground.launcher()
    await launcher.stop("nobody-1")
    await launcher.look(["nobody-1"])
    async with _opened(ground, Cluster.start(launcher, 1, timeout=ground.patience_s, output="quiet")) as cluster:
        await launcher.stop("nobody-1")
        await launcher.stop("nobody-1", lost=True)
        await launcher.look(["nobody-1"])
        assert not launcher.last_lines("nobody-1"), "an unknown node has last lines"
        assert await cluster.submit(_double, 5) == 10
    await _nothing_left(ground, cluster.id)


async def closing_ends_all_and_can_be_done_again(ground: Ground) -> None:
    """Once through the cluster, twice more for the launcher alone; one that never started anything can be closed too."""
    await ground.launcher().close(0.0)
    launcher = ground.launcher()
    async with _opened(ground, Cluster.start(launcher, 2, timeout=ground.patience_s, output="quiet")) as cluster:
        await cluster.close()
        assert not await ground.left(cluster.id), "nodes are left after the cluster has closed"
        await launcher.close(0.0)
        await launcher.close(0.0)


async def a_start_that_is_cancelled_leaves_nothing(ground: Ground) -> None:
    """Wherever the cancellation comes: what was asked for before it is gone when the cluster has closed."""
    for turns in TURNS:
        launcher = ground.launcher()
        async with _opened(ground, Cluster.start(launcher, 0, output="quiet")) as cluster:
            adding = asyncio.ensure_future(cluster.add(launcher, 2, timeout=NEVER_S))
            for _ in range(turns):
                await asyncio.sleep(0)
            adding.cancel()
            await asyncio.wait([adding])
            assert adding.cancelled() or adding.exception() is None, f"after {turns} turns: {adding.exception()!r}"
            await cluster.close()
            await _nothing_left(ground, cluster.id)


async def closing_during_a_start_leaves_nothing(ground: Ground) -> None:
    """Wherever the close comes: the launch ends with it, and what was asked for before it is gone."""
    for turns in TURNS:
        launcher = ground.launcher()
        async with _opened(ground, Cluster.start(launcher, 0, output="quiet")) as cluster:
            adding = asyncio.ensure_future(cluster.add(launcher, 2, timeout=NEVER_S))
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(ground.patience_s):
                await cluster.close()
                await asyncio.wait([adding])
            assert not adding.cancelled(), f"after {turns} turns: nobody cancelled the launch but the close"
            error = adding.exception()
            assert error is None or isinstance(error, AioclusterError), f"after {turns} turns: {error!r}"
            await _nothing_left(ground, cluster.id)


async def variables_reach_workers_and_the_token_does_not(ground: Ground) -> None:
    """What was given as `env` is there; the cluster's secret is in no variable that user code sees."""
    opening = Cluster.start(ground.launcher(env={COLOUR: "green"}), 1, timeout=ground.patience_s, output="quiet")
    async with _opened(ground, opening) as cluster:
        seen = await cluster.submit(_environment)
        assert seen.get(COLOUR) == "green", "what was given as env is not there"
        secret = cluster._owner.manager.token.reveal().hex()
        told = [name for name, value in seen.items() if secret in value.lower()]
        assert not told, f"user code sees the token in {', '.join(told)}"


async def nodes_end_when_their_manager_is_killed(ground: Ground) -> None:
    """SIGKILL leaves the manager no word to say: its nodes end by themselves, and nothing of them stays."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    manager = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from aiocluster.testing import _be_manager; _be_manager()",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert manager.stdin is not None
        assert manager.stdout is not None
        manager.stdin.write(cloudpickle.dumps((ground.launcher, ground.patience_s)))
        manager.stdin.close()
        async with asyncio.timeout(2 * ground.patience_s):
            cluster_id = (await manager.stdout.readline()).decode().strip()
        assert cluster_id, "the manager did not get its workers"
        assert await ground.left(cluster_id), "of nodes that run nothing is found: the ground cannot see what is left"
    finally:
        if manager.returncode is None:
            manager.kill()
        await manager.wait()
    await _nothing_left(ground, cluster_id)


launcher_conformance: tuple[Check, ...] = (
    nodes_join_and_their_states_are_told,
    workers_share_a_node_as_they_are_told,
    no_workers_need_no_nodes,
    a_node_that_cannot_join_fails_the_launch_at_once,
    stopping_a_node_ends_it_and_no_other,
    a_lost_node_is_ended_too,
    a_node_that_ends_by_itself_is_told,
    stopping_what_is_unknown_is_no_matter,
    closing_ends_all_and_can_be_done_again,
    a_start_that_is_cancelled_leaves_nothing,
    closing_during_a_start_leaves_nothing,
    variables_reach_workers_and_the_token_does_not,
    nodes_end_when_their_manager_is_killed,
)


class _opened:
    """A cluster that is closed in any case, with patience for both."""

    def __init__(self, ground: Ground, opening: Opening) -> None:
        self._ground = ground
        self._opening = opening

    async def __aenter__(self) -> Cluster:
        async with asyncio.timeout(2 * self._ground.patience_s):
            self._cluster = await self._opening
        return self._cluster

    async def __aexit__(self, *error: object) -> None:
        async with asyncio.timeout(self._ground.patience_s):
            await self._cluster.close()


async def _nothing_left(ground: Ground, cluster_id: str) -> None:
    left: Collection[str] = ()
    try:
        async with asyncio.timeout(ground.patience_s):
            while left := await ground.left(cluster_id):  # noqa: ASYNC110  # an infrastructure is asked: it does not tell
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"of {cluster_id} is left: {', '.join(left)}") from None


def _double(x: int) -> int:
    return 2 * x


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _be_manager() -> None:
    """The manager of two workers, until it is killed."""
    make, patience_s = cloudpickle.load(sys.stdin.buffer)

    async def main() -> None:
        async with Cluster.start(make(), 2, timeout=patience_s, output="quiet") as cluster:
            print(cluster.id, flush=True)  # noqa: T201  # who started this process waits for it
            await asyncio.Event().wait()

    asyncio.run(main())
