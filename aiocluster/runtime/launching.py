"""Nodes from launchers: what was started, what is known of it, and who waits for its workers to join."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from aiocluster.core.calls import check_resources
from aiocluster.core.effects import Event
from aiocluster.core.roster import Node, NodeState, WorkerState
from aiocluster.errors import ClusterClosed, LaunchError, NodeReport
from aiocluster.launch.base import Launcher, LaunchRequest
from aiocluster.runtime.manager import Manager

__all__ = ["Launching", "WorkerCount", "bounds"]

logger = logging.getLogger("aiocluster")

WorkerCount = int | tuple[int, int]
REPORT_EVERY_S = 30.0
"""Between two words in the log about a launch that waits."""
MANY = 100
PAUSE_S = 1e-5
"""For each node of a launch, between two looks at who has joined."""
LOOK_S = 10.0
"""For a launcher to find out what its nodes are doing, and why: a few requests to an API."""
SHOWN = 5
"""Nodes in one such word."""


class _Seen(NamedTuple):
    """What the infrastructure says of a node."""

    state: str
    since: float
    reason: str


@dataclass(slots=True, eq=False)
class _Launch:
    """One call that starts nodes, and those that it has started, with the ones that took the place of others."""

    launcher: Launcher
    minimum: int
    maximum: int
    timeout_s: float
    deadline: float
    resources: Mapping[str, float]
    nodes: list[Node] = field(default_factory=list)
    waiting: bool = True
    """The call has not returned."""


@dataclass(slots=True, eq=False)
class _Started:
    """One node that was started."""

    launcher: Launcher
    workers: int
    resources: Mapping[str, float]
    launch: _Launch
    seen: _Seen | None = None
    stopping: bool = False
    unwanted: bool = False
    """Nobody needs it any more, or another in its place."""


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
        self._started: dict[str, _Started] = {}
        """The nodes that have been started and not been released."""
        self._node_numbers: dict[str, int] = {}
        self._launches: set[asyncio.Task[None]] = set()
        """Those that are under way."""
        manager.release_node = self.release

    async def launch(self, launcher: Launcher, n: WorkerCount, *, timeout: float | None, resources: Mapping[str, float]) -> None:
        """Start nodes for `n` workers and wait until they have joined; see `Cluster.start`.

        Cancelling releases what was started.
        """
        minimum, maximum = bounds(n)
        check_resources(resources)
        self._refuse_when_closed()
        if timeout is None:
            timeout = self._settings.launch_timeout_s if launcher.timeout_s is None else launcher.timeout_s
        if launcher not in self.launchers:
            if self.launchers and launcher.agreed is not None:
                raise LaunchError(f"a {launcher.name} launcher can only be the first one of a cluster: its nodes know no other")
            self.launchers.append(launcher)
        if launcher is self.launchers[0]:
            self.resources = resources
        if maximum == 0:
            return
        launch = _Launch(launcher, minimum, maximum, timeout, self._manager.loop.time() + timeout, resources)
        # A task of its own: closing the cluster ends it, and not the task of whoever waits for it.
        task = self._manager.loop.create_task(self._launch(launch), name=f"{self._manager.id} launching {launcher.name}")
        self._launches.add(task)
        task.add_done_callback(self._launches.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        if task.cancelled():
            raise ClusterClosed
        task.result()

    async def _launch(self, launch: _Launch) -> None:
        launcher = launch.launcher
        try:
            limit = asyncio.timeout_at(launch.deadline)
            try:
                async with limit:
                    await launcher.start(await self._request(launch))
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise LaunchError(
                    f"nothing could be started within {launch.timeout_s:g} s: whoever starts nodes did not answer in time"
                ) from error
            await self._wait(launch)
        except BaseException as error:
            unknown = await self._look(launch, launch.nodes) if isinstance(error, LaunchError) else ""
            reports = self._reports(launch.nodes)
            await asyncio.shield(self._manager.spawn(self._abandon(launch), f"releasing what {launcher.name} has started"))
            if isinstance(error, Exception):
                self._refuse_when_closed(error)
            if isinstance(error, LaunchError) and not error.nodes:
                raise LaunchError(error.reason + unknown, reports) from error.__cause__
            raise
        finally:
            launch.waiting = False
            self._forget(launch)

    async def _request(self, launch: _Launch) -> LaunchRequest:
        """The nodes of the launch are recorded from now on, before anything is started."""
        launcher, manager = launch.launcher, self._manager
        address = await self._address_for(launcher)
        self._refuse_when_closed()
        per_node = launcher.workers_per_node or launch.maximum
        counts: dict[str, int] = {}
        for first in range(0, launch.maximum, per_node):
            counts[self._new_name(launcher)] = min(per_node, launch.maximum - first)
        for name, count in counts.items():
            self._expect(name, _Started(launcher, count, launch.resources, launch))
        return LaunchRequest(
            cluster_id=manager.id,
            token=manager.token,
            address=address,
            nodes=tuple(counts),
            workers=counts,
            minimum=launch.minimum,
            observed=self._observed,
            exited=self._node_exited,
            expect=self._succeed,
            settings=self._settings,
        )

    def _refuse_when_closed(self, cause: BaseException | None = None) -> None:
        if self._manager.core.closing is not None:
            raise ClusterClosed from cause

    def _new_name(self, launcher: Launcher) -> str:
        number = self._node_numbers.get(launcher.name, 0) + 1
        self._node_numbers[launcher.name] = number
        return f"{launcher.name}-{number}"

    async def wait_for_join(self, node: Node, count: int, timeout: float) -> None:
        """Return when so many workers of the node take calls.

        Raises:
            LaunchError: fewer can still join, or joined in time.
            ClusterClosed: the cluster closes meanwhile.
        """
        deadline = self._manager.loop.time() + timeout
        await self._wait(_Launch(self.launchers[0], count, count, timeout, deadline, {}, [node]))

    async def _wait(self, launch: _Launch) -> None:
        """Return when the maximum of workers take calls, or as many as can, and at least the minimum, by the deadline."""
        nodes, minimum, maximum = launch.nodes, launch.minimum, launch.maximum
        loop = self._manager.loop
        report_at = loop.time() + REPORT_EVERY_S
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
            if loop.time() >= launch.deadline:
                if joined < minimum:
                    raise LaunchError(
                        f"only {joined} of at least {minimum} workers joined within {launch.timeout_s:g} s; "
                        "a larger timeout= waits longer"
                    )
                text = "only %d of %d workers joined within %g s; the rest may join later"
                logger.warning(text, joined, maximum, launch.timeout_s)
                return
            if loop.time() >= report_at:
                report_at += REPORT_EVERY_S
                self._manager.spawn(self._tell_progress(launch, joined), "telling how a launch goes on")
            try:
                async with asyncio.timeout_at(min(launch.deadline, report_at)):
                    await self._changed()
                    if len(nodes) >= MANY:  # thousands that join one by one are not counted each time
                        await asyncio.sleep(len(nodes) * PAUSE_S)
            except TimeoutError:
                pass

    async def _tell_progress(self, launch: _Launch, joined: int) -> None:
        """Log what those are doing that have not joined, in few words, and why, as far as a look at them tells."""
        late = [node for node in launch.nodes if node.state is NodeState.EXPECTED]
        unknown = await self._look(launch, late[:SHOWN])
        if not launch.waiting:
            return  # it is over, and its end is told
        told = [
            f"; {one.name} {one.state} for {one.for_s:.0f} s" + (f" ({one.reason})" if one.reason else "")
            for one in self._reports(late[:SHOWN])
        ]
        more = f"; and {len(late) - SHOWN} more" if len(late) > SHOWN else ""
        logger.info("%d of %d workers have joined%s%s%s", joined, launch.maximum, "".join(told), more, unknown)

    async def _look(self, launch: _Launch, nodes: Sequence[Node]) -> str:
        """The latest states of these nodes are known; if not, why, for the text that tells of them."""
        try:
            async with asyncio.timeout(LOOK_S):
                await launch.launcher.look([node.name for node in nodes])
        except TimeoutError:
            return f"; what became of its nodes could not be found out within {LOOK_S:g} s"
        except Exception as error:
            return f"; what became of its nodes could not be found out: {error or type(error).__name__}"
        return ""

    def _reports(self, nodes: Sequence[Node]) -> list[NodeReport]:
        now, secret = self._manager.loop.time(), self._manager.token.reveal().hex()
        reports = []
        for node in nodes:
            state, since, reason = node.state.value, node.since, node.reason
            started = self._started.get(node.name)
            lines: Sequence[str] = ()
            if started is not None:
                lines = started.launcher.last_lines(node.name)
                if started.seen is not None and node.host == "":  # it never joined: what its infrastructure says tells more
                    state, since = started.seen.state, started.seen.since
                    reason = reason or started.seen.reason
            told = tuple(line.replace(secret, "***") for line in lines)  # a program may print its environment
            reports.append(NodeReport(node.name, state, now - since, reason, told))
        return reports

    async def _abandon(self, launch: _Launch) -> None:
        """Release what a failed launch has started."""
        for node in launch.nodes:
            self._started.pop(node.name, None)  # it is stopped here, and waited for
            if node.state is not NodeState.GONE:
                self._manager.core.lose_node(node.name, "its launch failed", self._manager.loop.time())
        self._manager.perform()
        self._manager.schedule_flush()
        stopping = [launch.launcher.stop(node.name) for node in launch.nodes]
        for node, outcome in zip(launch.nodes, await asyncio.gather(*stopping, return_exceptions=True), strict=True):
            if outcome is not None:
                logger.error("node %s could not be stopped after its launch failed: %s", node.name, outcome)

    # --- what launchers say --------------------------------------------------------------------------------------------------

    def _expect(self, name: str, started: _Started) -> None:
        core = self._manager.core
        self._started[name] = started
        core.expect_node(name, started.workers, started.resources, self._manager.loop.time())
        started.launch.nodes.append(core.roster.nodes[name])

    def _observed(self, name: str, state: str, reason: str) -> None:
        """The infrastructure says what a node is doing."""
        started = self._started.get(name)
        if started is None:
            return
        before, now = started.seen, self._manager.loop.time()
        if before is not None and (before.state, before.reason) == (state, reason):
            return
        since = before.since if before is not None and before.state == state else now
        started.seen = _Seen(state, since, reason)
        self._manager.publish(Event(now, "node_state", name, 0, f"{state}: {reason}" if reason else state))

    def _node_exited(self, name: str, reason: str) -> None:
        """A launcher says that a node has ended, or never will begin."""
        if name in self._manager.core.roster.nodes:
            self._manager.core.lose_node(name, reason, self._manager.loop.time())
            self._manager.perform()
            self._manager.schedule_flush()

    def _succeed(self, name: str, predecessor: str) -> None:
        """The infrastructure starts a node in the place of another one, as a retry of a job does."""
        before = self._started.get(predecessor)
        if before is None or name in self._started or self._manager.core.closing is not None:
            return
        self._expect(name, _Started(before.launcher, before.workers, before.resources, before.launch))
        self._manager.schedule_flush()

    def adopt(self, name: str) -> str:
        """The node that an agent is which calls itself so: launchers know by which names theirs go."""
        if name in self._started:
            return name
        for launcher in self.launchers:
            node = launcher.adopt(name)
            if node is not None:
                return node
        return name

    # --- nodes that run ------------------------------------------------------------------------------------------------------

    def env_at_join(self, name: str) -> dict[str, str]:
        """The variables that the node is to be told now."""
        started = self._started.get(name)
        return {} if started is None else dict(started.launcher.env_at_join)

    def nodes_of(self, launcher: Launcher) -> list[str]:
        """The nodes that it has started and that nobody has released, the latest last."""
        return [name for name, started in self._started.items() if started.launcher is launcher]

    def dismiss(self, name: str) -> None:
        """The node is not needed any more, nor is any that its infrastructure would start in its place."""
        if name in self._started:
            self._started[name].unwanted = True

    def release(self, name: str, reason: str) -> None:
        """The node is not needed any more, or lost: what its launcher has of it is ended."""
        started = self._started.get(name)
        if started is None or started.stopping or self._manager.core.closing is not None:
            return
        started.stopping = True
        self._manager.spawn(self._stop(name, started), f"stopping node {name}")

    async def _stop(self, name: str, started: _Started) -> None:
        node = self._manager.core.roster.nodes.get(name)
        lost = node is None or node.leaving or node.state is NodeState.GONE
        try:
            await started.launcher.stop(name, lost=lost and not started.unwanted)
        except LaunchError as error:
            logger.error("node %s could not be ended; closing the cluster tries it again: %s", name, error.reason)
        self._forget(started.launch)

    def _forget(self, launch: _Launch) -> None:
        """Nothing is kept of a launch whose nodes are gone; before that, one of them may be succeeded, or told of in a report."""
        if not launch.waiting and all(node.state is NodeState.GONE for node in launch.nodes):
            for node in launch.nodes:
                self._started.pop(node.name, None)

    async def close(self) -> list[BaseException]:
        """End what is being started, and all that was; what could not be ended is returned."""
        for task in self._launches:
            task.cancel()
        if self._launches:
            await asyncio.wait(set(self._launches))
        closing = [launcher.close(self._settings.close_grace_s) for launcher in self.launchers]
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        return [outcome for outcome in outcomes if outcome is not None]


def bounds(n: WorkerCount) -> tuple[int, int]:
    """The least and the greatest number of workers that `n` stands for. `TypeError` or `ValueError` for what makes no sense."""
    both = n if isinstance(n, tuple | list) else (n, n)
    if len(both) != 2 or not all(isinstance(one, int) and not isinstance(one, bool) for one in both):
        raise TypeError(f"n must be a number of workers or (minimum, maximum), not {n!r}")
    minimum, maximum = both
    if not 0 <= minimum <= maximum:
        raise ValueError(f"n must be a number of workers or (minimum, maximum), not {n!r}")
    return minimum, maximum
