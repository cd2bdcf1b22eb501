"""The public face: a cluster, its workers, and how one is opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, Self, TypeVar

from aiocluster import context
from aiocluster.calling import Calling, CurrentCluster, worker_ids
from aiocluster.config import Settings
from aiocluster.console import OutputMode, make_output
from aiocluster.core.calls import DEFAULT_OPTIONS, CallOptions, CallState
from aiocluster.core.effects import Event
from aiocluster.core.roster import WorkerRecord, WorkerState
from aiocluster.errors import ClusterClosed
from aiocluster.launch.base import Launcher
from aiocluster.runtime.launching import WorkerCount
from aiocluster.runtime.owner import Owner
from aiocluster.status import NodeStatus, Status, WorkerStats

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Cluster", "Events", "Opening", "Worker", "run"]

logger = logging.getLogger("aiocluster")

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


class Opening:
    """A cluster that is about to open: `await` it, or use it as an async context manager. Nothing is started before."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Cluster]]) -> None:
        self._start = start
        self._cluster: Cluster | None = None

    def __await__(self) -> Generator[Any, Any, Cluster]:
        return self._start().__await__()

    async def __aenter__(self) -> Cluster:
        self._cluster = await self._start()
        return self._cluster

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Cluster, name):
            raise AttributeError(f"a cluster has no attribute {name!r}")
        raise AttributeError(f"the cluster is not open yet: `await` this, or use it with `async with`, to have its {name!r}")

    def __enter__(self) -> NoReturn:
        raise TypeError("a cluster is opened with `async with`, not with `with`")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        return None

    def __repr__(self) -> str:
        return "<Cluster that is not open: `await` it, or use it with `async with`>"

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._cluster is not None
        await self._cluster.__aexit__(kind, error, trace)


class Cluster(CurrentCluster):
    """Workers on this machine or others, and calls that run on them.

    Open one with `Cluster.local(n=4)` or another constructor, which can be awaited or used with `async with`. All methods are
    for the loop that opened it.
    """

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.manager, DEFAULT_OPTIONS)
        self._owner = owner
        self._workers = Workers(owner)

    # --- opening -----------------------------------------------------------------------------------------------------------

    @classmethod
    def local(
        cls,
        n: WorkerCount | None = None,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        resources: Mapping[str, float] | None = None,
        output: OutputMode = "forward",
        heartbeat_interval: float | None = None,
        heartbeat_timeout: float | None = None,
        orphan_timeout: float | None = None,
        settings: Settings | None = None,
    ) -> Opening:
        """A cluster of processes on this machine, on one node, connected by a Unix socket.

        Args:
            n: workers, or `(minimum, maximum)`. Default: one for each processor that this process may use.
            timeout: seconds for the minimum to join, default 60.
            env: variables for the workers, on top of this process's environment.
            resources: what each worker has, such as `{"gpu": 1}`, for `options(resources=)`.
            output: what becomes of the workers' output: "forward" (lines tagged with the worker's id on stdout and stderr),
                "log" (to the logger `aiocluster.worker`), "quiet", or a function called with worker id, "stdout" or
                "stderr", and the line.
            heartbeat_interval: seconds between heartbeats of a node, default 2.
            heartbeat_timeout: seconds of silence after which a node is lost, default 10.
            orphan_timeout: seconds of the manager's silence after which a node ends itself, default 60.
            settings: all figures at once; the ones above go first.

        Raises:
            LaunchError: fewer than the minimum joined in time; nothing is left running.

        Cancelling releases all that was started.
        """
        from aiocluster.launch.local import Local

        count: WorkerCount = len(os.sched_getaffinity(0)) if n is None else n
        return cls.start(
            Local(env=env),
            n=count,
            timeout=timeout,
            resources=resources,
            output=output,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            orphan_timeout=orphan_timeout,
            settings=settings,
        )

    @classmethod
    def docker(
        cls,
        n: WorkerCount,
        *,
        image: str | None = None,
        network: str = "host",
        command: Sequence[str] = ("aiocluster", "agent"),
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        mounts: Sequence[str] = (),
        workers_per_node: int = 1,
        advertise: str | None = None,
        host: str | None = None,
        port: int = 0,
        engine: str | None = None,
        timeout: float | None = None,
        resources: Mapping[str, float] | None = None,
        output: OutputMode = "forward",
        heartbeat_interval: float | None = None,
        heartbeat_timeout: float | None = None,
        orphan_timeout: float | None = None,
        settings: Settings | None = None,
    ) -> Opening:
        """A cluster of containers of one Docker engine. Arguments as for `aiocluster.Docker`, and then as for `local`.

        Raises:
            LaunchError: no engine answers, it does not have the image or the network, or fewer than the minimum joined in time;
                nothing is left.
        """
        from aiocluster.launch.docker import Docker

        launcher = Docker(
            image=image,
            network=network,
            command=command,
            env=env,
            labels=labels,
            mounts=mounts,
            workers_per_node=workers_per_node,
            advertise=advertise,
            host=host,
            port=port,
            engine=engine,
        )
        return cls.start(
            launcher,
            n,
            timeout=timeout,
            resources=resources,
            output=output,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            orphan_timeout=orphan_timeout,
            settings=settings,
        )

    @classmethod
    def batch(
        cls,
        n: WorkerCount,
        *,
        queue: str | None = None,
        definition: str | None = None,
        name: str = "aiocluster",
        region: str | None = None,
        memory: int | None = None,
        vcpus: float = 1,
        gpus: int | None = None,
        tags: Mapping[str, str] | None = None,
        share_identifier: str | None = None,
        retry: int = 0,
        job_timeout: float | None = None,
        command: Sequence[str] = ("aiocluster", "agent"),
        env: Mapping[str, str] | None = None,
        secret_store: Literal["ssm", "secretsmanager"] | None = None,
        workers_per_node: int = 1,
        advertise: str | None = None,
        host: str | None = None,
        port: int = 0,
        network: str | None = None,
        timeout: float | None = None,
        resources: Mapping[str, float] | None = None,
        output: OutputMode = "forward",
        heartbeat_interval: float | None = None,
        heartbeat_timeout: float | None = None,
        orphan_timeout: float | None = None,
        settings: Settings | None = None,
    ) -> Opening:
        """A cluster of jobs of AWS Batch. Arguments as for `aiocluster.Batch`, and then as for `local`; timeout: 25 min.

        Raises:
            LaunchError: AWS refuses, the queue can never run the minimum, or fewer joined in time; no job is left.
        """
        from aiocluster.launch.batch import Batch

        launcher = Batch(
            queue=queue,
            definition=definition,
            name=name,
            region=region,
            memory=memory,
            vcpus=vcpus,
            gpus=gpus,
            tags=tags,
            share_identifier=share_identifier,
            retry=retry,
            job_timeout=job_timeout,
            command=command,
            env=env,
            secret_store=secret_store,
            workers_per_node=workers_per_node,
            advertise=advertise,
            host=host,
            port=port,
            network=network,
        )
        return cls.start(
            launcher,
            n,
            timeout=timeout,
            resources=resources,
            output=output,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            orphan_timeout=orphan_timeout,
            settings=settings,
        )

    @classmethod
    def batch_nodes(
        cls,
        n: WorkerCount | None = None,
        *,
        workers_per_node: int = 1,
        region: str | None = None,
        advertise: str | None = None,
        host: str | None = None,
        port: int | None = None,
        network: str | None = None,
        timeout: float | None = None,
        resources: Mapping[str, float] | None = None,
        output: OutputMode = "forward",
        heartbeat_interval: float | None = None,
        heartbeat_timeout: float | None = None,
        orphan_timeout: float | None = None,
        settings: Settings | None = None,
    ) -> Opening:
        """A cluster of the other nodes of this multi-node parallel job of AWS Batch; the manager runs on its main node.

        Arguments as for `aiocluster.BatchNodes`, and then as for `local`; `n`: default all of them; timeout: 5 min.

        Raises:
            LaunchError: this is no such node, the job has too few others, or fewer than the minimum joined in time.
        """
        from aiocluster.launch.batch_nodes import BatchNodes

        launcher = BatchNodes(
            workers_per_node=workers_per_node, region=region, advertise=advertise, host=host, port=port, network=network
        )
        return cls.start(
            launcher,
            launcher.most_workers if n is None else n,
            timeout=timeout,
            resources=resources,
            output=output,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            orphan_timeout=orphan_timeout,
            settings=settings,
        )

    @classmethod
    def start(
        cls,
        launcher: Launcher,
        n: WorkerCount,
        *,
        timeout: float | None = None,
        resources: Mapping[str, float] | None = None,
        output: OutputMode = "forward",
        heartbeat_interval: float | None = None,
        heartbeat_timeout: float | None = None,
        orphan_timeout: float | None = None,
        settings: Settings | None = None,
    ) -> Opening:
        """A cluster whose nodes a launcher starts. Arguments as for `local`."""
        base = settings if settings is not None else Settings.from_env()
        figures = base.with_changes(
            heartbeat_interval_s=heartbeat_interval, heartbeat_timeout_s=heartbeat_timeout, orphan_timeout_s=orphan_timeout
        )
        write = make_output(output)

        async def start() -> Cluster:
            owner = Owner(figures, write, launcher.agreed)
            cluster = cls(owner)
            try:
                await owner.open()
                await owner.launching.launch(launcher, n, timeout=timeout, resources=resources or {})
            except BaseException:
                await asyncio.shield(owner.close())
                raise
            context.opened(cluster)
            return cluster

        return Opening(start)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Opening:
        """The cluster that the environment describes, so that one script runs anywhere.

        `AIOCLUSTER_LAUNCHER` names the constructor (default "local"), `AIOCLUSTER_WORKERS` the number of workers, or
        "minimum,maximum"; figures of `Settings` have variables of their own.

        Raises:
            ValueError: a variable makes no sense; the text names it.
        """
        environ = os.environ if environ is None else environ
        launcher = environ.get("AIOCLUSTER_LAUNCHER") or "local"
        remote: dict[str, Callable[..., Opening]] = {"docker": cls.docker, "batch": cls.batch, "batch-nodes": cls.batch_nodes}
        if launcher != "local" and launcher not in remote:
            raise ValueError(f"AIOCLUSTER_LAUNCHER={launcher!r} is not known; this version has: local, {', '.join(remote)}")
        text = environ.get("AIOCLUSTER_WORKERS") or ""
        n: WorkerCount | None = None
        if text:
            try:
                numbers = [int(part) for part in text.split(",")]
                n = numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
                if len(numbers) > 2:
                    raise ValueError
            except ValueError:
                raise ValueError(f'AIOCLUSTER_WORKERS={text!r} is neither a number nor "minimum,maximum"') from None
        output = environ.get("AIOCLUSTER_OUTPUT") or "forward"
        settings = Settings.from_env(environ)
        if launcher == "local":
            return cls.local(n, output=output, settings=settings)
        if n is None and launcher != "batch-nodes":
            raise ValueError(f"AIOCLUSTER_WORKERS must say how many workers AIOCLUSTER_LAUNCHER={launcher} is to start")
        return remote[launcher](n, output=output, settings=settings)

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
