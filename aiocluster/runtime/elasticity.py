"""How many workers there are: `scale`, `retire` and `adapt`, one change at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiocluster.core.adaptive import Adaptive
from aiocluster.core.roster import Node, NodeState, WorkerRecord, WorkerState
from aiocluster.errors import ClusterClosed, LaunchError
from aiocluster.runtime.launching import Launching
from aiocluster.runtime.manager import Manager

__all__ = ["Elasticity"]

logger = logging.getLogger("aiocluster")

LOOK_S = 0.25
"""Between two looks at the work while the number of workers adapts to it."""


class Elasticity:
    """Changes the number of a cluster's workers. Each change waits for the one before it: both would count the same workers.

    Args:
        manager: whose workers they are.
        launching: starts more of them.
        changed: returns when anything has happened to the cluster.
    """

    def __init__(self, manager: Manager, launching: Launching, changed: Callable[[], Awaitable[None]]) -> None:
        self._manager = manager
        self._launching = launching
        self._changed = changed
        self._turn = asyncio.Lock()
        self._adapting: asyncio.Task[None] | None = None

    async def scale(self, n: int, timeout: float | None) -> None:
        """Have `n` workers; ends `adapt`. See `Cluster.scale`."""
        if not isinstance(n, int) or n < 0:
            raise ValueError(f"a cluster cannot have {n!r} workers")
        if self._adapting is not None:
            await self._cancel(self._adapting)
        await self._scale(n, timeout)

    async def _scale(self, n: int, timeout: float | None) -> None:
        async with self._turn:
            self._refuse_when_closed()
            more = n - self._manager.core.roster.wanted
            if more > 0:
                await self._grow(more, timeout)
            elif more < 0:
                await self._shrink(-more)

    def _refuse_when_closed(self) -> None:
        if self._manager.core.closing is not None:
            raise ClusterClosed

    # --- more ----------------------------------------------------------------------------------------------------------------

    async def _grow(self, more: int, timeout: float | None) -> None:
        launching = self._launching
        if not launching.launchers:
            raise LaunchError("no launcher has been used yet: `await cluster.add(launcher, n=...)` names one")
        launcher = launching.launchers[0]
        if launcher.workers_per_node is None:
            nodes = self._manager.core.roster.nodes
            for name in launching.nodes_of(launcher):
                node = nodes.get(name)  # those that went long ago are forgotten there
                if node is not None and node.state is NodeState.JOINED:
                    await self._grow_node(node, more, timeout)
                    return
        await launching.launch(launcher, more, timeout=timeout, resources=launching.resources)

    async def _grow_node(self, node: Node, more: int, timeout: float | None) -> None:
        manager = self._manager
        wanted = node.wanted
        manager.core.add_workers(node.name, more, manager.loop.time())
        manager.perform()
        limit = manager.settings.launch_timeout_s if timeout is None else timeout
        try:
            await self._launching.wait_for_join(node, wanted + more, limit)
        except BaseException:  # what was started for it goes again: those that have not joined, then the youngest
            late = sorted(node.workers.values(), key=lambda record: (record.state is WorkerState.READY, -record.id))
            self._begin_retiring(late[: max(0, node.wanted - wanted)], 0.0)
            raise

    # --- fewer ---------------------------------------------------------------------------------------------------------------

    async def retire(self, ids: tuple[int, ...], grace: float | None) -> None:
        """End these workers and wait for their end; see `Cluster.retire`."""
        if grace is not None and not (isinstance(grace, int | float) and grace >= 0):
            raise ValueError(f"grace must be a number of seconds, 0 or more, not {grace!r}")
        roster = self._manager.core.roster
        for id in ids:
            if id not in roster.workers:
                raise KeyError(f"there is no worker {id}; the cluster has {', '.join(map(str, roster.workers)) or 'none'}")
        self._begin_retiring([roster.workers[id] for id in ids], float("inf") if grace is None else grace)
        await self._retired(ids)

    async def _shrink(self, fewer: int) -> None:
        """Nodes that have not joined go first, then workers that have not, then those with the least to do."""
        manager, roster = self._manager, self._manager.core.roster
        for node in list(reversed(roster.nodes.values())):
            if node.state is NodeState.EXPECTED and node.wanted <= fewer:
                fewer -= node.wanted
                self._launching.dismiss(node.name)
                manager.core.lose_node(node.name, "it is not needed any more", manager.loop.time())
        places = manager.core.dispatch.places

        def cost(record: WorkerRecord) -> tuple[bool, int, int]:
            place = places.get(record.id)
            return record.state is WorkerState.READY, 0 if place is None else len(place.inflight), -record.id

        staying = [record for record in roster.workers.values() if record.drain_until is None]
        leaving = sorted(staying, key=cost)[:fewer]
        self._begin_retiring(leaving, float("inf"))
        await self._retired([record.id for record in leaving])

    def _begin_retiring(self, records: list[WorkerRecord], grace_s: float) -> None:
        manager = self._manager
        for record in records:
            manager.core.retire(record.id, grace_s, manager.loop.time())
        manager.perform()
        manager.flush()

    async def _retired(self, ids: list[int] | tuple[int, ...]) -> None:
        core = self._manager.core
        while core.closing is None and any(id in core.roster.workers for id in ids):
            await self._changed()

    # --- as many as the work asks for ----------------------------------------------------------------------------------------

    def adapt(self, minimum: int, maximum: int, reached: Callable[[int], Awaitable[None]]) -> asyncio.Future[None]:
        """Follow the work from now on, in place of what followed it before; see `Cluster.adapt`."""
        self._refuse_when_closed()
        policy = Adaptive(minimum, maximum, idle_s=self._manager.settings.adapt_idle_s)
        self._manager.core.set_launching(True)  # calls may wait: workers come when they are needed
        self._adapting = self._manager.spawn(self._follow(policy, self._adapting), "adapting")
        return self._manager.spawn(reached(minimum), "waiting for the least number of workers")

    async def _follow(self, policy: Adaptive, before: asyncio.Task[None] | None) -> None:
        core = self._manager.core
        look_s = min(LOOK_S, self._manager.settings.adapt_idle_s / 2)
        try:
            if before is not None:
                await self._cancel(before)
            while True:
                dispatch = core.dispatch
                running = sum(len(place.inflight) for place in dispatch.places.values())
                wanted = core.roster.wanted
                target = policy.target(
                    waiting=dispatch.pending_calls - running, running=running, wanted=wanted, now=self._manager.loop.time()
                )
                if target != wanted:
                    try:
                        await self._scale(target, None)
                    except LaunchError as error:
                        logger.error("could not adapt to %d workers: %s", target, error)
                    except ClusterClosed:
                        return
                await asyncio.sleep(look_s)
        finally:
            if self._adapting is asyncio.current_task():  # else another one follows the work
                self._adapting = None
                core.set_launching(False)
                self._manager.perform()

    @staticmethod
    async def _cancel(task: asyncio.Task[None]) -> None:
        """Cancel the task and wait for its end: what it had begun is undone then."""
        task.cancel()
        await asyncio.wait([task])  # an error of it has been logged
