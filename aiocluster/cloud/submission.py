"""Submitting a manager job, and ending one with all that it has started."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from aiocluster.cloud.definition import latest_definition
from aiocluster.cloud.jobs import JOB, MANAGER_JOB, SCRIPT, SUBMITTER, Job, find_job, started_by
from aiocluster.cloud.results import TAG as RESULTS
from aiocluster.cloud.results import VARIABLE as RESULTS_VARIABLE
from aiocluster.errors import LaunchError
from aiocluster.launch import batch_jobs
from aiocluster.launch.aws import Api, AwsError

__all__ = ["Manager", "Submitted", "cancel", "identity", "identity_tag", "name_of", "submit"]

logger = logging.getLogger("aiocluster.cloud")

WORKER_QUEUE = "WORKER_JOB_QUEUE"
"""Where `Cluster.batch` submits workers, unless it is told otherwise."""
TAG_CHARS = 256
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_NOT_IN_TAGS = re.compile(r"[^\w\s.:/=+@-]")
NAME_CHARS = 100
"""A key comes after it, and a job name has 128 characters at most."""
POLL_S = 2.0
GRACE_S = 60.0
"""For a manager that is told to end to end its workers: AWS sends SIGTERM, and SIGKILL half a minute later."""
REASON = "aiocluster job cancel"
MADE_UP = ("botocore-session-", "aws-go-sdk-", "aws-cli-")
"""How names of sessions begin that the SDKs make up. Others are persons' own, as those of single sign-on."""


@dataclass(frozen=True, kw_only=True)
class Manager:
    """What a manager job is to be.

    Args:
        script: what it runs, as its image names it.
        arguments: of the script.
        workers: how many `Cluster.from_env()` is to open: "4", or "2,8" for at least two; "" where the script says so.
        queue: where it waits: a queue's name or ARN.
        definition: of the job: name, name:revision or ARN.
        name: what the job is called; default: after the script. A key is appended, which makes it its own.
        worker_queue: where its workers wait; "" where the script, or the definition, says so.
        bucket: where results go: `s3://BUCKET/results/JOB`; "" where the script, or `results`, says so.
        results: that place itself, in place of one in the bucket.
        env: more variables.
        tags: more tags.
        timeout_s: when AWS ends it; None: never.
    """

    script: str
    queue: str
    definition: str
    arguments: Sequence[str] = ()
    workers: str = ""
    name: str | None = None
    worker_queue: str = ""
    bucket: str = ""
    results: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A manager job that AWS has taken."""

    id: str
    name: str
    results: str
    """Where its results will be; "" where only the script knows."""


def name_of(script: str) -> str:
    """A job's name after a script's."""
    return _as_name(PurePath(script).stem)


def _as_name(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", text).strip("-_")[:NAME_CHARS] or "job"


async def identity(api: Api) -> str:
    """Who asks: the ARN of the user or the role, without the name of a session that the SDK has made up for this day alone.

    Raises:
        AwsError: there are no credentials, or they are no good.
    """
    arn = str((await api.call("sts", "get_caller_identity"))["Arn"])
    role, _, session = arn.rpartition("/")
    return role if session.startswith(MADE_UP) else arn


async def identity_tag(api: Api) -> str:
    """The same as the value of a tag, which holds fewer characters."""
    return _as_tag(await identity(api))


def _as_tag(text: str) -> str:
    return _NOT_IN_TAGS.sub("_", text)[:TAG_CHARS]


async def submit(
    api: Api,
    manager: Manager,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    draw: Callable[[], float] = random.random,
) -> Submitted:
    """Submit a manager job, once, whatever becomes of the answer of AWS.

    Raises:
        LaunchError: it is too large for AWS, or there is no such definition.
        AwsError: it was not submitted.

    Cancelling it ends a job that was submitted all the same, if AWS tells of it.
    """
    called = _as_name(manager.name) if manager.name else name_of(manager.script)
    name = f"{called}-{secrets.token_hex(4)}"
    results = manager.results or (f"s3://{manager.bucket}/results/{name}" if manager.bucket else "")
    overrides, launcher = await _how(api, manager.definition)
    variables = {
        "AIOCLUSTER_LAUNCHER": launcher,
        **({"AIOCLUSTER_WORKERS": manager.workers} if manager.workers else {}),
        **({WORKER_QUEUE: manager.worker_queue} if manager.worker_queue else {}),
        **({RESULTS_VARIABLE: results} if results else {}),
        **manager.env,
    }
    tags = {
        **manager.tags,
        JOB: MANAGER_JOB,
        SCRIPT: manager.script,
        SUBMITTER: await identity(api),
        **({RESULTS: results} if results and _as_tag(results) == results else {}),  # else the variable says it
    }
    container = {
        "command": ["python", manager.script, *manager.arguments],
        "environment": [{"name": key, "value": value} for key, value in variables.items()],
    }
    batch_jobs.check_overrides(container)
    arguments: dict[str, Any] = {
        "jobName": name,
        "jobQueue": manager.queue,
        "jobDefinition": manager.definition,
        "tags": {key: _as_tag(value) for key, value in tags.items()},
        **overrides(container),
    }
    if manager.timeout_s is not None:
        arguments["timeout"] = {"attemptDurationSeconds": max(60, round(manager.timeout_s))}
    unsure = batch_jobs.Unsure()
    try:
        id = await batch_jobs.submit(api, arguments, unsure, pause=pause, random=draw)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.create_task(_withdraw(api, manager.queue, name), name=f"aiocluster: withdraw {name}"))
        raise
    return Submitted(id=id, name=name, results=results)


async def _how(api: Api, definition: str) -> tuple[Callable[[Mapping[str, Any]], dict[str, Any]], str]:
    """How a submission says what the manager's container runs, and which launcher its workers come from.

    A plain job submits jobs; the workers of a multi-node one are its other nodes.
    """
    found = await latest_definition(api, definition)
    if found is None:
        raise LaunchError(f"there is no job definition {definition} here: `aiocluster job register` makes one")
    if found.get("type") != "multinode":
        return lambda container: {"containerOverrides": container}, "batch"
    main = int((found.get("nodeProperties") or {}).get("mainNode", 0))

    def of_main_node(container: Mapping[str, Any]) -> dict[str, Any]:
        return {"nodeOverrides": {"nodePropertyOverrides": [{"targetNodes": f"{main}:{main}", "containerOverrides": container}]}}

    return of_main_node, "batch-nodes"


async def _withdraw(api: Api, queue: str, name: str) -> None:
    """End the job if AWS has taken it; where that cannot be known, say so, and go on with what there was to do."""
    try:
        for id in await batch_jobs.find_jobs(api, queue, name):
            await batch_jobs.terminate(api, id, "nobody waits for it any more")
    except AwsError as error:
        logger.warning("whether there is a job %s in the queue %s cannot be known, and it may run: %s", name, queue, error)


async def cancel(
    api: Api,
    id: str,
    *,
    force: bool = False,
    tell: Callable[[str], None] = lambda _text: None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[str]:
    """End a manager job, and what is left of the jobs that it has started; the ids of those that this has ended.

    Args:
        force: also a job that is no manager of aiocluster's, or that somebody else has submitted.
        tell: called with what happens, in words.

    Raises:
        LaunchError: there is no such job, or it is not the caller's own.
        AwsError: AWS does not allow it, or does not answer.
    """
    job = await find_job(api, id)
    if not force:
        await _check_own(api, job)
    ended: list[str] = []
    if job.ended:
        tell(f"job {job.name} has ended before: {job.status}")
    else:
        await batch_jobs.terminate(api, job.id, REASON)
        ended.append(job.id)
        tell(f"told job {job.name} to end")
        job = await _wait_for_end(api, job, pause)
    left = [one async for one in started_by(api, job) if not one.ended]
    for worker in left:
        await batch_jobs.terminate(api, worker.id, REASON)
        ended.append(worker.id)
        tell(f"told its job {worker.name} to end{f', with {worker.size} children' if worker.size else ''}")
    return ended


async def _check_own(api: Api, job: Job) -> None:
    if not job.is_manager:
        raise LaunchError(f"job {job.id} ({job.name}) was not submitted by `aiocluster job submit`; --force ends it all the same")
    submitter, own = job.tags.get(SUBMITTER, ""), await identity_tag(api)
    if submitter != own:
        whose = submitter or "somebody else"
        raise LaunchError(f"job {job.id} ({job.name}) was submitted by {whose}, and you are {own}; --force ends it all the same")


async def _wait_for_end(api: Api, job: Job, pause: Callable[[float], Awaitable[None]]) -> Job:
    """The manager ends its workers itself where it can."""
    for _ in range(round(GRACE_S / POLL_S)):
        job = await find_job(api, job.id)
        if job.ended:
            break
        await pause(POLL_S)
    return job
