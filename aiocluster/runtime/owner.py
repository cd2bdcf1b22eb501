"""Owns what a cluster consists of: the listener, the launchers and their nodes, from opening to closing."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from aiocluster.config import Settings
from aiocluster.core.adaptive import Adaptive
from aiocluster.core.effects import Event
from aiocluster.core.roster import NodeState, WorkerState
from aiocluster.errors import ClusterClosed, LaunchError, NodeReport
from aiocluster.launch.base import Launcher, LaunchRequest
from aiocluster.net.listener import Accepted, Listener
from aiocluster.net.sockets import FOLDER_PREFIX
from aiocluster.runtime.manager import Manager
from aiocluster.runtime.peers import NodePeer, WorkerPeer
from aiocluster.wire.handshake import versions
from aiocluster.wire.messages import Hello, Refused

__all__ = ["Owner", "WorkerCount"]

logger = logging.getLogger("aiocluster")

WorkerCount = int | tuple[int, int]
LOOK_S = 0.25
"""Between two looks at the work while the number of workers adapts to it."""


class Owner:
    """One cluster's outer life. The manager turns inside it."""

    def __init__(self, settings: Settings, write_output: Callable[[int, int, list[str]], None]) -> None:
        self.settings = settings
        self.manager = Manager(settings, write_output)
        self.manager.release_node = self._release_node
        self.manager.listeners[self._on_event] = None
        self.ending: dict[asyncio.Queue[Event | None], None] = {}
        """Queues of those who follow the events; each gets None at the end."""
        self._listener: Listener | None = None
        self._folder: str | None = None
        self._launchers: list[Launcher] = []
        self._launcher_of: dict[str, Launcher] = {}
        self._resources: Mapping[str, float] = {}
        self._node_numbers: dict[str, int] = {}
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._adapting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closing is not None

    # --- opening -------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen for nodes."""
        self._folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        path = f"{self._folder}/manager.sock"
        if len(path) > 100:  # a Unix socket's path has at most 107 bytes
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp")
            path = f"{self._folder}/manager.sock"
        manager = self.manager
        self._listener = Listener(
            [f"unix:{path}"],
            manager.token,
            manager.id,
            self._accept,
            resume_within_s=2 * self.settings.heartbeat_timeout_s,
        )
        await self._listener.start()
        manager.start()

    def _accept(self, hello: Hello) -> Accepted | Refused:
        core = self.manager.core
        settings: dict[str, Any] = {
            "heartbeat_interval_s": self.settings.heartbeat_interval_s,
            "heartbeat_timeout_s": self.settings.heartbeat_timeout_s,
            "orphan_timeout_s": self.settings.orphan_timeout_s,
            "close_grace_s": self.settings.close_grace_s,
        }
        if hello.role == "agent":
            refusal = core.refuse_node(hello.node)
            if refusal is None:
                return Accepted(NodePeer(self.manager, hello.node), settings)
        else:
            refusal = core.refuse_worker(hello.worker_id, hello.node)
            if refusal is None:
                return Accepted(WorkerPeer(self.manager, hello.worker_id), settings)
        ours = versions()
        return Refused("closing" if core.closing else "stale", refusal, str(ours), hello.version)

    # --- launching -----------------------------------------------------------------------------------------------------------

    async def launch(self, launcher: Launcher, n: WorkerCount, *, timeout: float | None, resources: Mapping[str, float]) -> None:
        """Start nodes for `n` workers and wait until they have joined; see `Cluster.start`."""
        minimum, maximum = _bounds(n)
        if self.closed:
            raise ClusterClosed
        timeout = self.settings.launch_timeout_s if timeout is None else timeout
        if launcher not in self._launchers:
            self._launchers.append(launcher)
        if launcher is self._launchers[0]:
            self._resources = resources  # those of the workers that `scale` adds later, which come from this launcher
        if maximum == 0:
            return
        manager, core = self.manager, self.manager.core
        per_node = launcher.workers_per_node or maximum
        names: list[str] = []
        counts: dict[str, int] = {}
        for first in range(0, maximum, per_node):
            names.append(self._new_name(launcher))
            counts[names[-1]] = min(per_node, maximum - first)
        for name in names:  # recorded before anything is started
            self._launcher_of[name] = launcher
            core.expect_node(name, counts[name], resources, manager.loop.time())
        assert self._listener is not None
        request = LaunchRequest(
            cluster_id=manager.id,
            token=manager.token,
            address=self._listener.addresses[0],
            nodes=tuple(names),
            workers=counts,
            exited=self._node_exited,
            settings=self.settings,
        )
        try:
            await launcher.start(request)
            await self._wait_for_join(names, minimum, maximum, timeout, launcher)
        except BaseException as error:
            reports = self._reports(names, launcher)
            await asyncio.shield(self._abandon(names, launcher))
            if isinstance(error, LaunchError) and not error.nodes:
                raise LaunchError(error.reason, reports) from error.__cause__
            raise

    def _new_name(self, launcher: Launcher) -> str:
        number = self._node_numbers.get(launcher.name, 0) + 1
        self._node_numbers[launcher.name] = number
        return f"{launcher.name}-{number}"

    async def _wait_for_join(self, names: list[str], minimum: int, maximum: int, timeout: float, launcher: Launcher) -> None:
        roster = self.manager.core.roster
        deadline = self.manager.loop.time() + timeout
        while True:
            nodes = [roster.nodes[name] for name in names]
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

    def _reports(self, names: list[str], launcher: Launcher) -> list[NodeReport]:
        now = self.manager.loop.time()
        reports = []
        for name in names:
            node = self.manager.core.roster.nodes[name]
            reports.append(NodeReport(name, node.state.value, now - node.since, node.reason, tuple(launcher.last_lines(name))))
        return reports

    async def _abandon(self, names: list[str], launcher: Launcher) -> None:
        """Release what a failed launch has started."""
        for name in names:
            self._launcher_of.pop(name, None)  # it is stopped here, and waited for
            self.manager.core.lose_node(name, "its launch failed", self.manager.loop.time())
        self.manager.perform()
        for name in names:
            await launcher.stop(name)

    def _node_exited(self, name: str, reason: str) -> None:
        """A launcher says that a node has ended."""
        self.manager.core.lose_node(name, reason, self.manager.loop.time())
        self.manager.perform()
        self.manager.schedule_flush()

    def _release_node(self, name: str, reason: str) -> None:
        launcher = self._launcher_of.pop(name, None)
        if launcher is not None and not self.closed:
            self.manager.spawn(launcher.stop(name), f"stopping node {name}")

    # --- waiting -------------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _changed(self) -> None:
        """Return when anything has happened to the cluster."""
        waiter = self.manager.loop.create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    async def wait_for_workers(self, n: int, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                while len(self.manager.core.roster.ready()) < n:
                    if self.closed:
                        raise ClusterClosed
                    await self._changed()
        except TimeoutError:
            have = len(self.manager.core.roster.ready())
            raise TimeoutError(f"{have} of {n} workers take calls after {timeout:g} s") from None

    # --- elasticity ----------------------------------------------------------------------------------------------------------

    async def scale(self, n: int, timeout: float | None) -> None:
        if n < 0:
            raise ValueError(f"a cluster cannot have {n} workers")
        if self._adapting is not None:
            self._adapting.cancel()
            self._adapting = None
        await self._scale(n, timeout)

    async def _scale(self, n: int, timeout: float | None) -> None:
        if self.closed:
            raise ClusterClosed
        roster = self.manager.core.roster
        more = n - roster.wanted
        if more > 0:
            await self._grow(more, timeout)
        elif more < 0:
            places = self.manager.core.dispatch.places
            ready = sorted(roster.ready(), key=lambda record: (len(places[record.id].inflight), -record.id))
            await self.retire(tuple(record.id for record in ready[:-more]), None)

    async def _grow(self, more: int, timeout: float | None) -> None:
        if not self._launchers:
            raise LaunchError("no launcher has been used yet: `await cluster.add(launcher, n=...)` names one")
        launcher = self._launchers[0]
        core, now = self.manager.core, self.manager.loop.time()
        if launcher.workers_per_node is None:
            for name, node in core.roster.nodes.items():
                if node.state is NodeState.JOINED and self._launcher_of.get(name) is launcher:
                    before = len([record for record in node.workers.values() if record.state is WorkerState.READY])
                    core.add_workers(name, more, now)
                    self.manager.perform()
                    limit = self.settings.launch_timeout_s if timeout is None else timeout
                    await self._wait_for_join([name], before + more, before + more, limit, launcher)
                    return
        await self.launch(launcher, more, timeout=timeout, resources=self._resources)

    async def retire(self, ids: tuple[int, ...], grace: float | None) -> None:
        core, roster = self.manager.core, self.manager.core.roster
        for id in ids:
            if id not in roster.workers:
                raise KeyError(id)
        for id in ids:
            core.retire(id, float("inf") if grace is None else grace, self.manager.loop.time())
        self.manager.perform()
        self.manager.flush()
        while any(id in roster.workers for id in ids) and not self.closed:
            await self._changed()

    def adapt(self, minimum: int, maximum: int) -> asyncio.Future[None]:
        policy = Adaptive(minimum, maximum, idle_s=self.settings.adapt_idle_s)
        if self._adapting is not None:
            self._adapting.cancel()
        self.manager.core.set_launching(True)  # calls may wait: workers come when they are needed
        self._adapting = self.manager.spawn(self._follow(policy), "adapting")
        return asyncio.ensure_future(self.wait_for_workers(minimum, None))

    async def _follow(self, policy: Adaptive) -> None:
        core = self.manager.core
        look_s = min(LOOK_S, self.settings.adapt_idle_s / 2)
        try:
            while True:
                dispatch = core.dispatch
                running = sum(len(place.inflight) for place in dispatch.places.values())
                wanted = core.roster.wanted
                target = policy.target(
                    waiting=dispatch.pending_calls - running, running=running, wanted=wanted, now=self.manager.loop.time()
                )
                if target != wanted:
                    try:
                        await self._scale(target, None)
                    except LaunchError as error:
                        logger.error("could not adapt to %d workers: %s", target, error)
                await asyncio.sleep(look_s)
        finally:
            core.set_launching(False)
            self.manager.perform()

    # --- closing -------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Release everything; whoever calls it later waits for the same end."""
        if self._closing is None:
            self._closing = self.manager.loop.create_task(self._close(), name=f"{self.manager.id} closing")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        manager = self.manager
        manager.begin_close(ClusterClosed(), self.settings.close_grace_s)
        self._on_event(Event(manager.loop.time(), "closing", "", 0, ""))
        try:
            errors = await asyncio.gather(
                *[launcher.close(self.settings.close_grace_s) for launcher in self._launchers], return_exceptions=True
            )
            await manager.stop()
        finally:  # also when the loop is torn down meanwhile
            if self._listener is not None:
                self._listener.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            for queue in list(self.ending):
                queue.put_nowait(None)
        failed = [error for error in errors if isinstance(error, BaseException)]
        if failed:
            raise BaseExceptionGroup("some nodes could not be released", failed)


def _bounds(n: WorkerCount) -> tuple[int, int]:
    minimum, maximum = (n, n) if isinstance(n, int) else n
    if isinstance(minimum, bool) or not 0 <= minimum <= maximum:
        raise ValueError(f"n must be a number of workers or (minimum, maximum), not {n!r}")
    return minimum, maximum
