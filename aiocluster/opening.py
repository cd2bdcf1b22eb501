"""How clusters are opened: one constructor for each kind of infrastructure, and what can be awaited, or entered, to have one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict, Unpack, cast

from aiocluster import context
from aiocluster.config import Settings, worker_count
from aiocluster.console import OutputMode, make_output
from aiocluster.launch.base import Launcher
from aiocluster.runtime.launching import WorkerCount
from aiocluster.runtime.owner import Owner

if TYPE_CHECKING:
    from types import TracebackType

    from aiocluster.cluster import Cluster

__all__ = ["Constructors", "How", "Opening"]


_ADVERTISE = {"advertise": "AIOCLUSTER_ADVERTISE"}
_VARIABLES: Mapping[str, Mapping[str, str]] = {
    "docker": _ADVERTISE,
    "batch": {"queue": "AIOCLUSTER_QUEUE", "definition": "AIOCLUSTER_DEFINITION", **_ADVERTISE},
    "batch-nodes": _ADVERTISE,
    "ecs": {
        "cluster": "AIOCLUSTER_ECS_CLUSTER",
        "task_definition": "AIOCLUSTER_DEFINITION",
        "launch_type": "AIOCLUSTER_LAUNCH_TYPE",
        "subnets": "AIOCLUSTER_SUBNETS",
        "security_groups": "AIOCLUSTER_SECURITY_GROUPS",
        **_ADVERTISE,
    },
}
"""What `from_env` reads beside what all have, by launcher: arguments of its constructor, and their variables."""
_LISTS = ("subnets", "security_groups")


class How(TypedDict, total=False):
    """What every constructor takes beside its own arguments; see `Cluster.local`."""

    timeout: float | None
    resources: Mapping[str, float] | None
    output: OutputMode
    heartbeat_interval: float | None
    heartbeat_timeout: float | None
    orphan_timeout: float | None
    settings: Settings | None


class Opening:
    """A cluster that is about to open: `await` it, or use it as an async context manager. Nothing is started before."""

    def __init__(self, made: type[Cluster], start: Callable[[], Coroutine[Any, Any, Cluster]]) -> None:
        self._made = made
        self._start = start
        self._cluster: Cluster | None = None

    def __await__(self) -> Generator[Any, Any, Cluster]:
        return self._start().__await__()

    async def __aenter__(self) -> Cluster:
        self._cluster = await self._start()
        return self._cluster

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(self._made, name):
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


class Constructors:
    """The constructors of `Cluster`. Each returns what can be awaited, or used with `async with`; nothing is started before."""

    @classmethod
    def local(
        cls,
        n: WorkerCount | None = None,
        *,
        env: Mapping[str, str] | None = None,
        **how: Unpack[How],
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
            **how,
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
        **how: Unpack[How],
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
            **how,
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
        **how: Unpack[How],
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
            **how,
        )

    @classmethod
    def batch_nodes(
        cls,
        n: WorkerCount | None = None,
        *,
        workers_per_node: int = 1,
        env: Mapping[str, str] | None = None,
        region: str | None = None,
        advertise: str | None = None,
        host: str | None = None,
        port: int | None = None,
        network: str | None = None,
        **how: Unpack[How],
    ) -> Opening:
        """A cluster of the other nodes of this multi-node parallel job of AWS Batch; the manager runs on its main node.

        Arguments as for `aiocluster.BatchNodes`, and then as for `local`; `n`: default all of them; timeout: 5 min.

        Raises:
            LaunchError: this is no such node, the job has too few others, or fewer than the minimum joined in time.
        """
        from aiocluster.launch.batch_nodes import BatchNodes

        launcher = BatchNodes(
            workers_per_node=workers_per_node,
            env=env,
            region=region,
            advertise=advertise,
            host=host,
            port=port,
            network=network,
        )
        return cls.start(
            launcher,
            launcher.most_workers if n is None else n,
            **how,
        )

    @classmethod
    def ecs(
        cls,
        n: WorkerCount,
        *,
        cluster: str | None = None,
        task_definition: str | None = None,
        container: str | None = None,
        launch_type: str | None = None,
        subnets: Sequence[str] = (),
        security_groups: Sequence[str] = (),
        assign_public_ip: bool = False,
        cpu: int | None = None,
        memory: int | None = None,
        tags: Mapping[str, str] | None = None,
        region: str | None = None,
        command: Sequence[str] = ("aiocluster", "agent"),
        env: Mapping[str, str] | None = None,
        secret_store: Literal["ssm", "secretsmanager"] | None = None,
        workers_per_node: int = 1,
        advertise: str | None = None,
        host: str | None = None,
        port: int = 0,
        network: str | None = None,
        **how: Unpack[How],
    ) -> Opening:
        """A cluster of tasks of Amazon ECS. Arguments as for `aiocluster.ECS`, and then as for `local`; timeout: 10 min.

        Raises:
            LaunchError: AWS refuses, or fewer than the minimum joined in time; no task is left.
        """
        from aiocluster.launch.ecs import ECS

        launcher = ECS(
            cluster=cluster,
            task_definition=task_definition,
            container=container,
            launch_type=launch_type,
            subnets=subnets,
            security_groups=security_groups,
            assign_public_ip=assign_public_ip,
            cpu=cpu,
            memory=memory,
            tags=tags,
            region=region,
            command=command,
            env=env,
            secret_store=secret_store,
            workers_per_node=workers_per_node,
            advertise=advertise,
            host=host,
            port=port,
            network=network,
        )
        return cls.start(launcher, n, **how)

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

        made = cast("type[Cluster]", cls)

        async def start() -> Cluster:
            owner = Owner(figures, write, launcher.agreed)
            cluster = made(owner)
            try:
                await owner.open()
                await owner.launching.launch(launcher, n, timeout=timeout, resources=resources or {})
            except BaseException as error:
                try:
                    await asyncio.shield(owner.close())
                except Exception as left:  # why it was not opened matters more
                    error.add_note(f"and something may be left of it: {_said(left)}; `aiocluster ls` tells")
                raise
            context.opened(cluster)
            return cluster

        return Opening(made, start)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Opening:
        """The cluster that the environment describes, so that one script runs anywhere.

        `AIOCLUSTER_LAUNCHER` names the constructor (default "local"), `AIOCLUSTER_WORKERS` the number of workers, or
        "minimum,maximum"; figures of `Settings`, and what a constructor must be told of where to start what, have variables of
        their own (docs/guide.md lists them).

        Raises:
            ValueError: a variable makes no sense; the text names it.
        """
        environ = os.environ if environ is None else environ
        launcher = environ.get("AIOCLUSTER_LAUNCHER") or "local"
        remote: dict[str, Callable[..., Opening]] = {  # each has a row in _VARIABLES
            "docker": cls.docker,
            "batch": cls.batch,
            "batch-nodes": cls.batch_nodes,
            "ecs": cls.ecs,
        }
        if launcher != "local" and launcher not in remote:
            raise ValueError(f"AIOCLUSTER_LAUNCHER={launcher!r} is not known; this version has: local, {', '.join(remote)}")
        text = environ.get("AIOCLUSTER_WORKERS") or ""
        n: WorkerCount | None = None
        if text:
            try:
                n = worker_count(text)
            except ValueError as error:
                raise ValueError(f"AIOCLUSTER_WORKERS: {error}") from None
        output = environ.get("AIOCLUSTER_OUTPUT") or "forward"
        settings = Settings.from_env(environ)
        if launcher == "local":
            return cls.local(n, output=output, settings=settings)
        if n is None and launcher != "batch-nodes":
            raise ValueError(f"AIOCLUSTER_WORKERS must say how many workers AIOCLUSTER_LAUNCHER={launcher} is to start")
        told: dict[str, Any] = {name: environ[key] for name, key in _VARIABLES[launcher].items() if environ.get(key)}
        told.update((name, [part.strip() for part in told[name].split(",")]) for name in _LISTS if name in told)
        return remote[launcher](n, output=output, settings=settings, **told)


def _said(error: Exception) -> str:
    """An error, or those of a group, in one line."""
    if isinstance(error, ExceptionGroup):
        return "; ".join(_said(one) for one in error.exceptions)
    return str(error) or type(error).__name__
