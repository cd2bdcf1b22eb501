"""Nodes from launchers: what was started, what is known of it, and who waits for its workers to join."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiocluster.core.roster import Node, NodeState, WorkerState
from aiocluster.errors import ClusterClosed, LaunchError, NodeReport
from aiocluster.launch.base import Launcher, LaunchRequest
from aiocluster.runtime.manager import Manager

__all__ = ["Launching", "WorkerCount", "bounds"]

logger = logging.getLogger("aiocluster")

WorkerCount = int | tuple[int, int]


class Launching:
    """The launchers of one cluster and their nodes.

    Args:
        manager: whose nodes they are.
        address_for: where agents that this launcher starts reach the manager.
        changed: returns when anything has happened to the cluster.
    """

    def __init__(
        self,
        manager: Manager,
        address_for: Callable[[Launcher], Awaitable[str]],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.launchers: list[Launcher] = []
        self.resources: Mapping[str, float] = {}
        """Those of the first launcher's workers: `scale` adds more of them."""
        self._manager = manager
        self._settings = manager.settings
        self._address_for = address_for
        self._changed = changed
        self._launcher_of: dict[str, Launcher] = {}
        self._node_numbers: dict[str, int] = {}
        manager.release_node = self.release

    async def launch(self, launcher: Launcher, n: WorkerCount, *, timeout: float | None, resources: Mapping[str, float]) -> None:
        """Start nodes for `n` workers and wait until they have joined; see `Cluster.start`.

        Cancelling releases what was started.
        """
        minimum, maximum = bounds(n)
        manager, core = self._manager, self._manager.core
        self._refuse_when_closed()
        timeout = self._settings.launch_timeout_s if timeout is None else timeout
        if launcher not in self.launchers:
            self.launchers.append(launcher)
        if launcher is self.launchers[0]:
            self.resources = resources
        if maximum == 0:
            return
        address = await self._address_for(launcher)
        per_node = launcher.workers_per_node or maximum
        counts: dict[str, int] = {}
        for first in range(0, maximum, per_node):
            counts[self._new_name(launcher)] = min(per_node, maximum - first)
        for name, count in counts.items():  # recorded before anything is started
            self._launcher_of[name] = launcher
            core.expect_node(name, count, resources, manager.loop.time())
        nodes = [core.roster.nodes[name] for name in counts]
        request = LaunchRequest(
            cluster_id=manager.id,
            token=manager.token,
            address=address,
            nodes=tuple(counts),
            workers=counts,
            exited=self._node_exited,
            settings=self._settings,
        )
        try:
            await launcher.start(request)
            await self.wait_for_join(nodes, minimum, maximum, timeout)
        except BaseException as error:
            reports = self._reports(nodes, launcher)
            await asyncio.shield(self._abandon(nodes, launcher))
            if isinstance(error, Exception):
                self._refuse_when_closed(error)
            if isinstance(error, LaunchError) and not error.nodes:
                raise LaunchError(error.reason, reports) from error.__cause__
            raise

    def _refuse_when_closed(self, cause: BaseException | None = None) -> None:
        if self._manager.core.closing is not None:
            raise ClusterClosed from cause

    def _new_name(self, launcher: Launcher) -> str:
        number = self._node_numbers.get(launcher.name, 0) + 1
        self._node_numbers[launcher.name] = number
        return f"{launcher.name}-{number}"

    async def wait_for_join(self, nodes: Sequence[Node], minimum: int, maximum: int, timeout: float) -> None:
        """Return when `maximum` workers of these nodes take calls, or as many as can, and at least `minimum`, by the timeout.

        Raises:
            LaunchError: fewer than the minimum can still join, or joined in time.
            ClusterClosed: the cluster closes meanwhile.
        """
        deadline = self._manager.loop.time() + timeout
        while True:
            self._refuse_when_closed()
            possible = sum(node.wanted for node in nodes if node.state is not NodeState.GONE)
            joined = sum(1 for node in nodes for record in node.workers.values() if record.state is WorkerState.READY)
            if joined >= maximum:
                return
            if possible < minimum:
                reasons = list(dict.fromkeys(node.reason for node in nodes if node.reason))
                why = "; ".join(reasons) or "nodes ended while they were starting"
                raise LaunchError(f"only {possible} of at least {minimum} workers can still join: {why}")
            if joined >= possible:
                logger.warning("only %d of %d workers joined", joined, maximum)
                return
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed()
            except TimeoutError:
                if joined >= minimum:
                    logger.warning("only %d of %d workers joined within %g s; the rest may join later", joined, maximum, timeout)
                    return
                raise LaunchError(
                    f"only {joined} of at least {minimum} workers joined within {timeout:g} s; a larger timeout= waits longer"
                ) from None

    def _reports(self, nodes: Sequence[Node], launcher: Launcher) -> list[NodeReport]:
        now = self._manager.loop.time()
        return [
            NodeReport(node.name, node.state.value, now - node.since, node.reason, tuple(launcher.last_lines(node.name)))
            for node in nodes
        ]

    async def _abandon(self, nodes: Sequence[Node], launcher: Launcher) -> None:
        """Release what a failed launch has started."""
        for node in nodes:
            self._launcher_of.pop(node.name, None)  # it is stopped here, and waited for
            if node.state is not NodeState.GONE:
                self._manager.core.lose_node(node.name, "its launch failed", self._manager.loop.time())
        self._manager.perform()
        self._manager.schedule_flush()
        await asyncio.gather(*[launcher.stop(node.name) for node in nodes])

    # --- nodes that run ------------------------------------------------------------------------------------------------------

    def nodes_of(self, launcher: Launcher) -> list[str]:
        """The nodes that it has started and that nobody has released, the latest last."""
        return [name for name, one in self._launcher_of.items() if one is launcher]

    def _node_exited(self, name: str, reason: str) -> None:
        """A launcher says that a node has ended."""
        self._manager.core.lose_node(name, reason, self._manager.loop.time())
        self._manager.perform()
        self._manager.schedule_flush()

    def release(self, name: str, reason: str) -> None:
        """The node is not needed any more, or lost: what its launcher has of it is ended."""
        launcher = self._launcher_of.pop(name, None)
        if launcher is not None and self._manager.core.closing is None:
            self._manager.spawn(launcher.stop(name), f"stopping node {name}")

    async def close(self) -> list[BaseException]:
        """End all that was started; what could not be ended is returned."""
        closing = [launcher.close(self._settings.close_grace_s) for launcher in self.launchers]
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        return [outcome for outcome in outcomes if outcome is not None]


def bounds(n: WorkerCount) -> tuple[int, int]:
    """The least and the greatest number of workers that `n` stands for. Raises `ValueError` for what makes no sense."""
    minimum, maximum = (n, n) if isinstance(n, int) else n
    if isinstance(minimum, bool) or not 0 <= minimum <= maximum:
        raise ValueError(f"n must be a number of workers or (minimum, maximum), not {n!r}")
    return minimum, maximum
