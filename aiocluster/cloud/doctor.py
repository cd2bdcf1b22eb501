"""What a launch needs, looked at before anything is started: what is well, what is not and what to try, what cannot be told.

Nothing is changed in AWS, no job or task is started. On a Docker engine, a container or two are run and removed.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import re
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiocluster._version import __version__
from aiocluster.cloud.definition import latest_definition
from aiocluster.cloud.permissions import Denied, Permissions, Unknown
from aiocluster.cloud.results import place_of
from aiocluster.cloud.stack import Stack, find_stack, stack_name
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, Aws, AwsError, Fault
from aiocluster.launch.batch_jobs import room_of
from aiocluster.launch.own_job import describe_own_job, own_job
from aiocluster.launch.own_task import describe_own_task, own_task
from aiocluster.launch.reach import Reach

if TYPE_CHECKING:
    from aiocluster.launch.engine import Engine

__all__ = ["LAUNCHERS", "Finding", "Outcome", "Plan", "examine"]

LAUNCHERS = ("local", "docker", "batch", "ecs")
PACKAGES = {
    "local": ("cloudpickle", "cryptography", "msgpack", "psutil"),
    "docker": ("aiodocker",),
    "batch": ("aiobotocore",),
    "ecs": ("aiobotocore",),
}
"""Beside those of "local", which all need."""
LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket. Source: unix(7)."""
SOCKET_NAME = "aiocluster-xxxxxxxx/manager.sock"
"""About what is added to the folder for temporary files."""
CONTAINER_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()"
_VERSIONS = re.compile(r"aiocluster (?P<package>\S+), Python (?P<python>[0-9]+\.[0-9]+)")
_ECR = re.compile(
    r"(?P<account>[0-9]{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<name>[^:@]+)(?::(?P<tag>[^@]+))?"
    r"(?:@(?P<digest>.+))?"
)


class Outcome(StrEnum):
    """What came of one check."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It does not apply, or cannot be known from here; the detail says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check and what came of it."""

    check: str
    outcome: Outcome
    detail: str
    hint: str = ""
    """What to try; empty unless it failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be launched; empty for what is not said, which then is taken from the stack or not looked at.

    Args:
        launcher: "local", "docker", "batch" or "ecs".
        stack: the name of a stack, whose outputs stand for what is not given here.
        image: what containers run; for batch and ecs the default is what the definition says.
        workers: how many are wanted.
        advertise, network: as for the launchers.
        results: where results go.
    """

    launcher: str = "local"
    stack: str = ""
    queue: str = ""
    definition: str = ""
    ecs_cluster: str = ""
    subnets: tuple[str, ...] = ()
    image: str = ""
    workers: int = 1
    advertise: str | None = None
    network: str | None = None
    results: str = ""


Tell = Callable[[Finding], None]


class _Trouble(Exception):
    """A check has failed."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


async def examine(
    plan: Plan,
    *,
    api: Api | None = None,
    region: str | None = None,
    engine: Callable[[], Engine] | None = None,
    tell: Tell = lambda finding: None,
    environ: Mapping[str, str] | None = None,
) -> list[Finding]:
    """All checks for such a launch, in order. No check raises: what it meets is what it found.

    Args:
        plan: what is to be launched.
        api: where requests go; default: AWS.
        region: of AWS, without `api`.
        engine: makes a connection to the Docker engine; default: the usual one.
        tell: is called with each finding as soon as it is there.
        environ: variables of this process.

    Cancelling ends it; a container that was started for a check is removed.
    """
    if plan.launcher not in LAUNCHERS:
        raise ValueError(f"{plan.launcher!r} is none of {', '.join(LAUNCHERS)}")
    mine = Aws(region, environ=environ) if api is None else api
    try:
        doctor = _Doctor(plan, mine, engine or _usual_engine, tell, os.environ if environ is None else environ)
        await doctor.examine()
        return doctor.findings
    finally:
        if api is None:
            await mine.close()


def _usual_engine() -> Engine:
    from aiocluster.launch.engine import Engine

    return Engine()


class _Doctor:
    """One examination."""

    def __init__(self, plan: Plan, api: Api, engine: Callable[[], Engine], tell: Tell, environ: Mapping[str, str]) -> None:
        self.findings: list[Finding] = []
        self._plan = plan
        self._api = api
        self._make_engine = engine
        self._tell = tell
        self._environ = environ
        self._identity = ""
        self._image = plan.image
        self._log_group = "/aws/batch/job"
        self._roles: list[str] = []

    async def examine(self) -> None:
        await self._check("python", self._python())
        if not await self._check("packages", self._packages()):
            return
        if self._plan.launcher == "local":
            await self._check("machine", self._machine())
        elif self._plan.launcher == "docker":
            await self._docker()
        else:
            await self._aws()

    async def _check(self, name: str, work: Awaitable[str]) -> bool:
        """Whether nothing speaks against it."""
        try:
            self._found(name, Outcome.OK, await work)
        except _Trouble as trouble:
            self._found(name, Outcome.FAILED, trouble.detail, trouble.hint)
            return False
        except Denied as denied:
            self._found(
                name, Outcome.FAILED, str(denied), "add it to the policy of the role or user; deploy/ has policies that suffice"
            )
            return False
        except Unknown as unknown:
            self._found(name, Outcome.SKIPPED, str(unknown))
        except AwsError as error:
            if error.fault is Fault.DENIED:  # the launcher may do without; what it needs is looked at under permissions
                self._found(name, Outcome.SKIPPED, f"cannot be known: {error.reason}")
                return True
            self._found(name, Outcome.FAILED, error.reason)
            return False
        except LaunchError as error:
            self._found(name, Outcome.FAILED, error.reason)
            return False
        except ValueError as error:  # the launchers say so of what they are given
            self._found(name, Outcome.FAILED, str(error), "give the option another value")
            return False
        return True

    def _found(self, check: str, outcome: Outcome, detail: str, hint: str = "") -> None:
        finding = Finding(check=check, outcome=outcome, detail=detail, hint=hint)
        self.findings.append(finding)
        self._tell(finding)

    def _skip(self, why: str, *checks: str) -> None:
        for check in checks:
            self._found(check, Outcome.SKIPPED, why)

    # --- here ----------------------------------------------------------------------------------------------------------------

    async def _python(self) -> str:
        return f"Python {platform.python_version()} at {sys.executable}, aiocluster {__version__}"

    async def _packages(self) -> str:
        found, lacking = [], []
        for name in dict.fromkeys((*PACKAGES["local"], *PACKAGES[self._plan.launcher])):
            try:
                found.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                lacking.append(name)
        if lacking:
            raise _Trouble(f"not installed: {', '.join(lacking)}", f"python -m pip install {' '.join(lacking)}")
        return ", ".join(found)

    async def _machine(self) -> str:
        folder = tempfile.gettempdir()
        if len(os.fsencode(f"{folder}/{SOCKET_NAME}")) > LONGEST_SOCKET:
            raise _Trouble(f"the path of a socket in {folder} would be too long", "set TMPDIR to a folder with a short path")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _Trouble(
                f"no file can be made in {folder}: {error}", "make room there, or set TMPDIR to another folder"
            ) from None
        return f"{len(os.sched_getaffinity(0))} CPUs for workers; {folder} can be written"

    # --- an engine -----------------------------------------------------------------------------------------------------------

    async def _docker(self) -> None:
        from aiocluster.launch.docker import IMAGE_VARIABLE
        from aiocluster.launch.engine import EngineError

        engine = self._make_engine()
        try:
            await engine.open()
        except EngineError as error:
            hint = "start Docker, add yourself to its group, or set DOCKER_HOST"
            self._found("engine", Outcome.FAILED, f"no Docker engine answers at {engine.host}: {error}", hint)
            self._skip("there is no engine", "image", "versions", "address")
            return
        try:
            self._found("engine", Outcome.OK, f"an engine answers at {engine.host}")
            self._image = self._image or self._environ.get(IMAGE_VARIABLE, "")
            if not await self._check("image", self._image_here(engine)):
                self._skip("there is no image", "versions", "address")
                return
            if await self._check("versions", self._versions(engine)):
                await self._check("address", self._reached_from_container(engine))
            else:
                self._skip("the image cannot be used", "address")
        finally:
            await engine.close()

    async def _image_here(self, engine: Engine) -> str:
        from aiocluster.launch.engine import GONE, EngineError

        if not self._image:
            raise _Trouble(
                "no image was named", "name one with --image or AIOCLUSTER_DOCKER_IMAGE; `aiocluster image build` makes one"
            )
        try:
            id = await engine.image_id(self._image)
        except EngineError as error:
            if error.status != GONE:
                raise _Trouble(f"the engine does not tell of {self._image}: {error}") from None
            hint = f"`docker pull {self._image}` gets it, `aiocluster image build` makes one"
            raise _Trouble(f"the engine does not have {self._image}", hint) from None
        return f"{self._image} is {id[:19]}"

    async def _versions(self, engine: Engine) -> str:
        code, printed = await self._run_container(engine, ["aiocluster", "--version"], "none")
        match = _VERSIONS.search(printed)
        if code or match is None:
            raise _Trouble(
                f"`aiocluster --version` in {self._image} ended with {code}: {printed.strip()[-300:]}",
                "the image must have this package: `aiocluster image build` makes one that has",
            )
        ours = (__version__, f"{sys.version_info.major}.{sys.version_info.minor}")
        if (match["package"], match["python"]) != ours:
            raise _Trouble(
                f"{self._image} has aiocluster {match['package']} on Python {match['python']}, here it is {ours[0]} on {ours[1]}",
                "both ends must have the same: build the image anew, or run the manager in it",
            )
        return f"{self._image} has the same: {match[0]}"

    async def _reached_from_container(self, engine: Engine) -> str:
        from aiocluster.launch.docker import HOST_NETWORK, Docker

        plan = self._plan
        launcher = Docker(image=self._image, network=plan.network or HOST_NETWORK, advertise=plan.advertise)
        try:
            reach = await launcher.find_reach()
        finally:
            await launcher.close(0.0)
        told, host = reach.choose()
        try:
            server = await asyncio.start_server(lambda _reader, writer: writer.close(), host, reach.told_port(reach.port))
        except OSError as error:
            raise _Trouble(
                f"this process cannot listen at {host}: {error}", "name another address or port with --advertise"
            ) from None
        async with server:
            port = reach.told_port(server.sockets[0].getsockname()[1])
            network = HOST_NETWORK if plan.network is None or "/" in plan.network else plan.network
            code, printed = await self._run_container(engine, ["python", "-c", CONNECT, told, str(port)], network)
        if code:
            last = printed.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise _Trouble(
                f"a container does not reach this process at {told}: {last[0]}",
                "name an address that it reaches with --advertise, and let a firewall allow it",
            )
        return f"a container has reached this process at {told}"

    async def _run_container(self, engine: Engine, command: list[str], network: str) -> tuple[int, str]:
        """The exit code and what it has printed; the container is gone afterwards."""
        from aiocluster.launch.engine import EngineError

        name = f"aiocluster-doctor-{secrets.token_hex(8)}"
        config = {"Image": self._image, "Cmd": command, "HostConfig": {"NetworkMode": network}}
        printed: list[bytes] = []
        try:
            async with asyncio.timeout(CONTAINER_TIMEOUT_S):
                await engine.create(name, config)
                async with engine.output(name) as output:
                    await engine.start(name)
                    async for _descriptor, part in output:
                        printed.append(part)
                code = await engine.ended(name)
            return code, b"".join(printed).decode(errors="replace")
        except EngineError as error:
            raise _Trouble(
                f"{self._image} does not run `{' '.join(command[:2])}`: {error}", "the image must have Python and this package"
            ) from None
        except TimeoutError:
            raise _Trouble(f"a container of {self._image} has not ended within {CONTAINER_TIMEOUT_S:g} s") from None
        finally:
            try:
                await engine.remove(name)
            except EngineError as error:  # of what goes on meanwhile, this changes nothing
                detail = f"the container {name} cannot be removed, and may be left: {error}"
                self._found("cleanup", Outcome.FAILED, detail, f"docker rm --force {name}")

    # --- AWS -----------------------------------------------------------------------------------------------------------------

    async def _aws(self) -> None:
        batch = self._plan.launcher == "batch"
        rest = ("queue" if batch else "cluster", "definition", "image", "versions", "permissions", "address")
        if not await self._check("credentials", self._credentials()):
            self._skip("there is no way into AWS", *rest)
            return
        if self._plan.stack and not await self._check("stack", self._stack()):
            self._skip("there is no stack", *rest)
            return
        if self._lacks():
            await self._check("manager", self._own())
        if self._lacks() and not self._plan.stack:
            await self._check("stack", self._default_stack())
        if batch:
            await self._check("queue", self._queue())
            usable = await self._check("definition", self._job_definition())
        else:
            await self._check("cluster", self._ecs_cluster())
            usable = await self._check("definition", self._task_definition())
        if usable and self._image:
            await self._check("image", self._image_in_registry())
            await self._check("versions", self._versions_if_here())
        else:
            self._skip("no definition or --image says which image", "image", "versions")
        await self._permissions()
        if self._plan.results:
            await self._check("results", self._results())
        await self._check("address", self._address())

    async def _credentials(self) -> str:
        try:
            told = await self._api.call("sts", "get_caller_identity")
        except AwsError as error:
            raise _Trouble(error.reason) from None
        self._identity = str(told["Arn"])
        return f"AWS knows this process as {self._identity} in account {told['Account']}"

    async def _stack(self) -> str:
        stack = await find_stack(self._plan.stack, api=self._api)
        self._plan = with_stack(self._plan, stack)
        return f"{stack.name} in {stack.region} is ready"

    def _lacks(self) -> bool:
        """Whether it was not said where to start what."""
        plan = self._plan
        return not plan.definition or not (plan.queue if plan.launcher == "batch" else plan.ecs_cluster)

    async def _own(self) -> str:
        """What launchers take from the manager's own job or task, where it runs in one."""
        plan = self._plan
        if plan.launcher == "batch":
            queue = plan.queue or self._environ.get("WORKER_JOB_QUEUE", "")
            job = own_job(self._environ)
            if job is not None and not (queue and plan.definition):
                own = await describe_own_job(self._api, job)
                self._plan = replace(plan, queue=queue or own.queue, definition=plan.definition or own.definition)
                return f"this process is job {job.id}, whose queue and definition are taken where none was named"
            self._plan = replace(plan, queue=queue)
            raise Unknown("this process is no job of AWS Batch, whose queue and definition could be taken")
        task = None if self._environ.get("AWS_BATCH_JOB_ID") else await own_task(self._environ)
        if task is None:
            raise Unknown("this process is no task of ECS, whose cluster and definition could be taken")
        subnets = plan.subnets or (await describe_own_task(self._api, task)).subnets
        cluster, definition = plan.ecs_cluster or task.cluster, plan.definition or task.definition
        self._plan = replace(plan, ecs_cluster=cluster, definition=definition, subnets=subnets)
        return f"this process is task {task.arn}, whose cluster and definition are taken where none was named"

    async def _default_stack(self) -> str:
        try:
            stack = await find_stack(stack_name(environ=self._environ), api=self._api)
        except LaunchError as error:
            raise Unknown(error.reason) from None
        self._plan = with_stack(self._plan, stack)
        return f"{stack.name} in {stack.region} is ready, and used where nothing was named"

    async def _queue(self) -> str:
        plan = self._plan
        if not plan.queue:
            raise _Trouble("no queue was named", "name one with --queue or AIOCLUSTER_QUEUE, or a stack with --stack")
        room = await room_of(self._api, plan.queue)
        if room.trouble:
            raise _Trouble(room.trouble, "enable it, or mend what AWS complains of; jobs would wait for ever")
        if room.vcpus is None:
            return f"{plan.queue} takes jobs; AWS knows no limit of its environments"
        if room.vcpus < plan.workers:
            raise _Trouble(
                f"{plan.queue} has {room.vcpus:g} vCPUs at most, too few for {plan.workers} workers of one vCPU",
                "raise maxvCpus of its compute environments (MaxVCPUs of the stack), or ask for fewer",
            )
        return f"{plan.queue} takes jobs; {room.vcpus:g} vCPUs at most"

    async def _job_definition(self) -> str:
        name = self._plan.definition
        if not name:
            raise _Trouble(
                "no job definition was named", "name one with --definition or AIOCLUSTER_DEFINITION, or a stack with --stack"
            )
        newest = await latest_definition(self._api, name)
        if newest is None or newest.get("status", "ACTIVE") != "ACTIVE":
            raise _Trouble(f"there is no active job definition {name}", "`aiocluster job register` makes one")
        if newest.get("type", "container") != "container":
            raise _Trouble(
                f"{name} is of type {newest['type']}", "workers of this launcher are jobs of the type container; register one"
            )
        container = newest.get("containerProperties") or {}
        self._image = self._image or str(container.get("image", ""))
        self._log_group = container.get("logConfiguration", {}).get("options", {}).get("awslogs-group", self._log_group)
        return f"{newest['jobDefinitionName']}:{newest['revision']} runs {container.get('image', '?')}"

    async def _ecs_cluster(self) -> str:
        name = self._plan.ecs_cluster
        if not name:
            raise _Trouble(
                "no ECS cluster was named", "name one with --ecs-cluster or AIOCLUSTER_ECS_CLUSTER, or a stack with --stack"
            )
        told = (await self._api.call("ecs", "describe_clusters", clusters=[name])).get("clusters", [])
        if not told or told[0].get("status") != "ACTIVE":
            state = told[0].get("status") if told else "missing"
            raise _Trouble(
                f"the ECS cluster {name} is {state}", "make it with `aiocluster stack deploy --template ecs`, or name another"
            )
        instances = told[0].get("registeredContainerInstancesCount", 0)
        return f"{name} is ACTIVE, with {instances} instances of its own" + (
            "" if instances else ": tasks need Fargate or a provider"
        )

    async def _task_definition(self) -> str:
        name = self._plan.definition
        if not name:
            raise _Trouble(
                "no task definition was named", "name one with --definition or AIOCLUSTER_DEFINITION, or a stack with --stack"
            )
        try:
            told = (await self._api.call("ecs", "describe_task_definition", taskDefinition=name))["taskDefinition"]
        except AwsError as error:
            if error.fault is not Fault.REJECTED:
                raise
            raise _Trouble(
                f"there is no task definition {name} ({error.reason})", "`aiocluster stack deploy --template ecs` makes one"
            ) from None
        if told.get("status", "ACTIVE") != "ACTIVE":
            raise _Trouble(f"the task definition {name} is {told['status']}", "register it anew")
        own_network = told.get("networkMode") == "awsvpc"
        if own_network and not self._plan.subnets:
            raise _Trouble(
                f"tasks of {name} have network interfaces of their own (awsvpc), and no subnet was named",
                "name one with --subnet",
            )
        containers = told.get("containerDefinitions") or [{}]
        self._image = self._image or str(containers[0].get("image", ""))
        self._roles = [str(told[role]) for role in ("taskRoleArn", "executionRoleArn") if told.get(role)]
        self._log_group = containers[0].get("logConfiguration", {}).get("options", {}).get("awslogs-group", "")
        return f"{told['family']}:{told['revision']} runs {containers[0].get('image', '?')}"

    async def _image_in_registry(self) -> str:
        match = _ECR.fullmatch(self._image)
        if match is None:
            raise Unknown(f"cannot be known: {self._image} is in no registry of ECR, and others are not asked")
        here = await _region_of(self._api)
        if here is not None and match["region"] != here:
            raise Unknown(f"cannot be known: {self._image} is in {match['region']}, and this looks at {here}")
        which = {"imageDigest": match["digest"]} if match["digest"] else {"imageTag": match["tag"] or "latest"}
        try:
            told = await self._api.call(
                "ecr", "describe_images", registryId=match["account"], repositoryName=match["name"], imageIds=[which]
            )
        except AwsError as error:
            if error.fault is Fault.REJECTED:
                raise _Trouble(
                    f"ECR does not have {self._image} ({error.reason})", "`aiocluster image push` brings it there"
                ) from None
            raise
        pushed = told["imageDetails"][0].get("imagePushedAt", "?")
        return f"{self._image} is in ECR since {pushed}"

    async def _versions_if_here(self) -> str:
        from aiocluster.launch.engine import EngineError

        engine = self._make_engine()
        try:
            await engine.open()
        except EngineError as error:
            raise Unknown(f"cannot be known: no Docker engine answers here that could run the image ({error})") from None
        try:
            try:
                await engine.image_id(self._image)
            except EngineError as error:
                raise Unknown(
                    f"cannot be known: the engine here does not have {self._image}, and it is not pulled for this ({error})"
                ) from None
            return await self._versions(engine)
        finally:
            await engine.close()

    async def _permissions(self) -> None:
        plan = self._plan
        permissions = Permissions(self._api, self._identity)
        if plan.launcher == "batch":
            needed = await permissions.of_batch(plan.queue, plan.definition, self._log_group)
        else:
            needed = await permissions.of_ecs(plan.ecs_cluster, plan.definition, self._roles, self._log_group)
        for permission in needed:
            await self._check(permission.action, permission.look())

    async def _results(self) -> str:
        place = place_of(self._plan.results)
        if isinstance(place, Path):
            return f"{self._plan.results} is a folder of this machine"
        try:
            await self._api.call("s3", "list_objects_v2", Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)
        except AwsError as error:
            if error.fault is Fault.REJECTED:
                raise _Trouble(error.reason, "name a bucket that is there; a stack makes one") from None
            raise
        return f"the bucket {place.bucket} is there"

    async def _address(self) -> str:
        told, host = Reach(advertise=self._plan.advertise, network=self._plan.network).choose()
        inside = self._environ.get("AWS_BATCH_JOB_ID") or self._environ.get("ECS_CONTAINER_METADATA_URI_V4")
        known = (
            "its security group must let nodes in"
            if inside
            else "this process is no job or task, so that nodes reach it only if both are in one network; "
            "`aiocluster job submit` runs the manager among them"
        )
        return f"nodes are told {told}, the manager listens at {host}; {known}"


async def _region_of(api: Api) -> str | None:
    region: Any = getattr(api, "region", None)
    return None if region is None else str(await region())


def with_stack(plan: Plan, stack: Stack) -> Plan:
    """The plan, with what the stack says of what it does not."""
    if plan.launcher == "batch":
        return replace(plan, queue=plan.queue or stack.worker_queue, definition=plan.definition or stack.job_definition)
    return replace(
        plan,
        ecs_cluster=plan.ecs_cluster or stack.cluster,
        definition=plan.definition or stack.task_definition,
        subnets=plan.subnets or stack.subnets,
    )
