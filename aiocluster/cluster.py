"""The public face: a cluster, its workers, and how one is opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from aiocluster import context
from aiocluster.calling import Calling, CurrentCluster, worker_ids
from aiocluster.core.calls import DEFAULT_OPTIONS, CallOptions, CallState
from aiocluster.core.effects import Event
from aiocluster.core.roster import WorkerRecord, WorkerState
from aiocluster.errors import ClusterClosed
from aiocluster.launch.base import Launcher
from aiocluster.opening import Constructors, Opening
from aiocluster.runtime.launching import WorkerCount
from aiocluster.runtime.owner import Owner
from aiocluster.status import NodeStatus, Status, WorkerStats

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Cluster", "Events", "Opening", "Worker", "run"]

logger = logging.getLogger("aiocluster")

EVENTS_SHOWN = 50
"""Of the latest, to those who look from another process."""

T = TypeVar("T")
P = ParamSpec("P")


class Worker(Calling):
    """One worker of a cluster. Calls through it run there, in the order in which they are submitted."""

    def __init__(self, owner: Owner, record: WorkerRecord) -> None:
        super().__init__(owner.manager, CallOptions(workers=frozenset((record.id,))))
        self._owner = owner
        self._record = record

    @property
    def id(self) -> int:
        """Its number, from 1; never given again within the cluster."""
        return self._record.id

    @property
    def node(self) -> str:
        """The name of its node."""
        return self._record.node.name

    @property
    def host(self) -> str:
        """The host name of its node."""
        return self._record.node.host

    @property
    def pid(self) -> int:
        """Its process id on that host."""
        return self._record.pid

    @property
    def state(self) -> str:
        """ "starting", "joining", "ready", "draining" or "gone"."""
        return self._record.state.value

    @property
    def stats(self) -> WorkerStats:
        """Its figures now."""
        record = self._record
        place = self._owner.manager.core.dispatch.places.get(record.id)
        process_state, cpu, rss = record.figures
        return WorkerStats(
            state=record.state.value,
            in_flight=0 if place is None else len(place.inflight),
            cpu_percent=cpu,
            rss_bytes=rss,
            process_state=process_state,
        )

    async def stop(self, grace: float | None = None) -> None:
        """End this worker; like `Cluster.retire` with its id."""
        await self._owner.elasticity.retire((self.id,), grace)

    def __repr__(self) -> str:
        return f"<Worker {self.id} on {self.node}, pid {self.pid}: {self.state}>"


class Workers(Mapping[int, Worker]):
    """The workers that have joined and are not gone, by id; a live view."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._made: dict[int, Worker] = {}

    def _records(self) -> Iterator[WorkerRecord]:
        for record in self._owner.manager.core.roster.workers.values():
            if record.state in (WorkerState.READY, WorkerState.DRAINING) and record.has_place:
                yield record

    def __getitem__(self, id: int) -> Worker:
        record = self._owner.manager.core.roster.workers.get(id)
        if record is None or record.state not in (WorkerState.READY, WorkerState.DRAINING) or not record.has_place:
            raise KeyError(id)
        worker = self._made.get(id)
        if worker is None:
            self._made = {key: one for key, one in self._made.items() if key in self}
            worker = self._made[id] = Worker(self._owner, record)
        return worker

    def __contains__(self, id: object) -> bool:
        return any(record.id == id for record in self._records())

    def __iter__(self) -> Iterator[int]:
        return iter([record.id for record in self._records()])

    def __len__(self) -> int:
        return sum(1 for _ in self._records())

    async def __call__(self) -> dict[int, Worker]:
        """The workers as they are now, as in a call on a worker: `await get_cluster().workers()`."""
        return dict(self)

    def __repr__(self) -> str:
        return f"<workers {', '.join(map(str, self)) or 'none'}>"


class Events:
    """What happened to a cluster: iterate for what is known, or with `async for` for that and what comes, until it closes."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def __iter__(self) -> Iterator[Event]:
        return iter(list(self._owner.manager.events))

    async def __aiter__(self) -> AsyncIterator[Event]:
        manager = self._owner.manager
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in manager.events:
            queue.put_nowait(event)
        if self._owner.closed:
            queue.put_nowait(None)
        manager.listeners[queue.put_nowait] = None
        self._owner.ending[queue] = None
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            manager.listeners.pop(queue.put_nowait, None)
            self._owner.ending.pop(queue, None)


class Cluster(Constructors, CurrentCluster):
    """Workers on this machine or others, and calls that run on them.

    Open one with `Cluster.local(n=4)` or another constructor, which can be awaited or used with `async with`. All methods are
    for the loop that opened it.
    """

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.manager, DEFAULT_OPTIONS)
        self._owner = owner
        self._workers = Workers(owner)
        owner.snapshot = self._snapshot

    # --- what it is --------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The cluster's id; resources that launchers make are tagged with it."""
        return self._owner.manager.id

    @property
    def closed(self) -> bool:
        """True from the beginning of `close`."""
        return self._owner.closed

    @property
    def workers(self) -> Workers:
        """The workers that have joined, by id; a live view."""
        return self._workers

    def status(self) -> Status:
        """Figures of this moment."""
        manager = self._owner.manager
        core, dispatch = manager.core, manager.core.dispatch
        now = manager.loop.time()
        running = sum(len(place.inflight) for place in dispatch.places.values())
        return Status(
            cluster_id=self.id,
            workers=len(core.roster.ready()),
            wanted=core.roster.wanted,
            waiting=dispatch.pending_calls - running,
            running=running,
            ended=dispatch.ended_calls,
            pending_bytes=dispatch.pending_bytes,
            nodes=tuple(
                NodeStatus(
                    name=node.name,
                    state=node.state.value,
                    host=node.host,
                    workers=tuple(node.workers),
                    heard_s_ago=now - node.last_heard,
                    reason=node.reason,
                )
                for node in core.roster.nodes.values()
            ),
            closed=self.closed,
        )

    def _snapshot(self) -> dict[str, Any]:
        """What `aiocluster top` shows, of what JSON knows; nothing of what calls are given or give."""
        now = self._owner.manager.loop.time()
        workers = [
            {"id": worker.id, "node": worker.node, "host": worker.host, "pid": worker.pid, **asdict(worker.stats)}
            for worker in self._workers.values()
        ]
        last = list(self._owner.manager.events)[-EVENTS_SHOWN:]
        events = [
            {"s_ago": now - one.at, "kind": one.kind, "node": one.node, "worker_id": one.worker_id, "text": one.text}
            for one in last
        ]
        return {
            "cluster": self.id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "program": sys.argv[0] if sys.argv else "",
            "status": asdict(self.status()),
            "workers": workers,
            "events": events,
        }

    def events(self) -> Events:
        """What has happened to nodes and workers: `for` gives what is known, `async for` goes on until the cluster closes."""
        return Events(self._owner)

    # --- how large it is ---------------------------------------------------------------------------------------------------

    async def add(
        self,
        launcher: Launcher,
        n: WorkerCount,
        *,
        timeout: float | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Add workers from a launcher, also of another kind than the first; they join this cluster.

        Raises:
            LaunchError: fewer than the minimum joined in time; what this call started is released, the rest stays.
        """
        await self._owner.launching.launch(launcher, n, timeout=timeout, resources=resources or {})

    async def scale(self, n: int, *, timeout: float | None = None) -> None:
        """Have `n` workers: more are started and waited for, or the ones with the least to do are retired.

        Raises:
            LaunchError: the additional ones did not join within `timeout` seconds.
        """
        await self._owner.elasticity.scale(n, timeout)

    def adapt(self, minimum: int = 0, maximum: int | None = None) -> asyncio.Future[None]:
        """Let the number of workers follow the work, between two bounds, until the cluster closes or `scale` is called.

        Args:
            minimum: workers kept when there is nothing to do.
            maximum: workers at most; default: one for each processor that this process may use.

        Returns: what can be awaited to know that the minimum is there. It takes effect without that.
        """
        most = len(os.sched_getaffinity(0)) if maximum is None else maximum
        return self._owner.elasticity.adapt(minimum, most, lambda n: self._owner.wait_for_workers(n, None))

    async def retire(self, *ids: int | Worker, grace: float | None = None) -> None:
        """End workers: they take no more calls, calls that have not started there move, running ones may finish.

        Args:
            ids: workers, by id or as `Worker`.
            grace: seconds for running calls to finish, then they are lost; default: as long as they take.

        Raises:
            KeyError: there is no such worker.
            ValueError: the grace is no number of seconds.
        """
        await self._owner.elasticity.retire(tuple(worker_ids(ids)) if ids else (), grace)

    async def wait_for_workers(self, n: int, timeout: float | None = None) -> None:
        """Return when at least `n` workers take calls.

        Raises:
            TimeoutError: there are fewer after `timeout` seconds.
            ClusterClosed: the cluster closed meanwhile.
        """
        await self._owner.wait_for_workers(n, timeout)

    # --- the end -----------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End every call (in `ClusterClosed`), every worker and every node; nothing that was started is left. Idempotent."""
        context.left(self)
        await self._owner.close()

    async def __aenter__(self) -> Self:
        if self.closed:
            raise ClusterClosed
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            for _ in range(2):  # a stream of results that was left in this very turn is closed by a task of the next one
                await asyncio.sleep(0)
        unfinished = self._unfinished() if kind is None else 0
        if unfinished:
            logger.warning(
                "the cluster is closed with %d calls unfinished: await their futures before its block ends", unfinished
            )
        await self.close()

    def _unfinished(self) -> int:
        """Calls whose futures have no outcome yet."""
        dispatch = self._owner.manager.core.dispatch
        sent = (call for place in dispatch.places.values() for call in place.inflight.values())
        return 0 if self.closed else dispatch.waiting_calls + sum(1 for call in sent if call.state is CallState.SENT)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._workers)} workers"
        return f"<Cluster {self.id}: {state}>"


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """`asyncio.run` on uvloop: SIGINT and SIGTERM cancel `main`, so that clusters close before the process ends.

    Args:
        main: a coroutine, as for `asyncio.run`.
        debug: the loop's debug mode.

    Raises: what `main` raises; `KeyboardInterrupt` after SIGINT; `SystemExit(143)` after SIGTERM.
    """
    if not asyncio.iscoroutine(main):
        raise TypeError(f"run() needs a coroutine, such as that of calling `async def main()`, not {main!r}")
    try:
        import uvloop

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:  # where uvloop does not exist
        loop_factory = None
    terminated = False

    async def guarded() -> T:
        nonlocal terminated
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel("SIGTERM")

        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not on the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await main

    with asyncio.Runner(debug=debug, loop_factory=loop_factory) as runner:
        try:
            return runner.run(guarded())
        except asyncio.CancelledError:
            if terminated:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise
