"""Jobs of AWS Batch: how they are submitted, found, described and ended, and what their states mean.

These are the requests; which of them are made, and when, is decided by the launchers.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, AwsError, Fault, items

__all__ = [
    "ENDED",
    "LARGEST_ARRAY",
    "LOG_GROUP",
    "STATES",
    "JobState",
    "Room",
    "Unsure",
    "check_overrides",
    "find_jobs",
    "observed_reason",
    "parts",
    "room_of",
    "submit",
    "terminate",
]

logger = logging.getLogger("aiocluster")

LARGEST_ARRAY = 10_000
LARGEST_OVERRIDES = 8192
"""Bytes. Source: `containerOverrides` in the API reference of SubmitJob."""
ENDED = ("SUCCEEDED", "FAILED")
STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
"""Those of jobs that have not ended."""
LOG_GROUP = "/aws/batch/job"
SUBMIT_ATTEMPTS = 6
SUBMIT_WAIT_S = 1.0
"""Before the second attempt; doubled for each later one. A job that was submitted is listed within so much."""

_HINTS = (
    ("COMPUTE_ENVIRONMENT_MAX_RESOURCE", "the compute environment's maxvCpus is less than one job needs"),
    ("JOB_RESOURCE_REQUIREMENT", "no instance type of the compute environment has the memory, vCPUs or GPUs that are asked for"),
    ("INSUFFICIENT_INSTANCE_CAPACITY", "AWS has no such instance now: allow more instance types, zones, or on-demand"),
    ("SERVICE_ROLE_PERMISSIONS", "the compute environment's service role lacks a permission"),
    ("ACTION_REQUIRED", "the compute environments of the queue need a look"),
    ("Host EC2", "the instance was terminated, as spot instances are"),
    ("OutOfMemory", "memory= gives more"),
    ("CannotPullContainer", "is the image's name right, may the execution role pull it, and does the subnet lead to ECR?"),
    ("ResourceInitializationError", "does the subnet lead to ECR, CloudWatch Logs and the secrets (NAT or VPC endpoints)?"),
)  # fmt: skip


class JobState(NamedTuple):
    """What DescribeJobs says of one job, as far as it matters here."""

    status: str
    reason: str = ""
    """Why: the job's own reason, and the container's."""
    exit_code: int | None = None
    attempt: int = 1
    """The number of the attempt that runs or comes next, or was the last one."""
    previous: str = ""
    """Why the attempt before that one ended."""
    log_group: str = LOG_GROUP
    log_stream: str = ""
    """Of the last attempt that has one."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> JobState:
        """The state in one element of an answer."""
        container = job.get("container") or {}
        status = str(job["status"])
        attempts = job.get("attempts") or ()
        over = [one for one in attempts if one.get("stoppedAt")]
        # While a job runs, AWS may have listed its attempt as over a moment before the job itself: that is no next attempt yet.
        begun = status in ENDED or (status == "RUNNING" and len(attempts) <= len(over))
        streams = [one.get("container", {}).get("logStreamName") for one in attempts]
        stream = container.get("logStreamName") or next((one for one in reversed(streams) if one), "")
        options = (container.get("logConfiguration") or {}).get("options") or {}
        before = over[-1] if over and not begun else {}
        return cls(
            status=status,
            reason=_sentence(job.get("statusReason"), container.get("reason")),
            exit_code=container.get("exitCode"),
            attempt=max(1, len(over) + (0 if begun else 1)),
            previous=_sentence(
                before.get("statusReason"), before.get("container", {}).get("reason"), _exit(before.get("container", {}))
            ),
            log_group=options.get("awslogs-group", LOG_GROUP),
            log_stream=stream,
        )

    def end(self) -> str:
        """Why a job that has ended did so, for people."""
        told = _sentence(self.reason, None if self.exit_code is None else f"exit code {self.exit_code}")
        hint = _hint(self.reason)
        return f"its job {'has' if self.status == 'FAILED' else 'is'} {self.status}: {told or 'no reason given'}{hint}"


def _sentence(*parts: str | None) -> str:
    return "; ".join(dict.fromkeys(part for part in parts if part))


def _exit(container: Mapping[str, Any]) -> str | None:
    return None if container.get("exitCode") is None else f"exit code {container['exitCode']}"


def _hint(reason: str) -> str:
    return next((f" ({text})" for sign, text in _HINTS if sign in reason), "")


def observed_reason(state: JobState) -> str:
    """What to say of a job that has not ended."""
    return f"{state.reason}{_hint(state.reason)}" if state.reason else ""


def parts(nodes: Sequence[str]) -> list[tuple[str, ...]]:
    """The nodes of each job to submit: arrays as large as AWS allows, and one of a single node is a plain job."""
    return [tuple(nodes[i : i + LARGEST_ARRAY]) for i in range(0, len(nodes), LARGEST_ARRAY)]


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raises `LaunchError` if AWS would refuse them for their size; says what is large."""
    size = len(json.dumps(overrides).encode())
    if size <= LARGEST_OVERRIDES:
        return
    largest = sorted(overrides.get("environment", ()), key=lambda one: -len(one["value"]))[:3]
    names = ", ".join(f"{one['name']} ({len(one['value'])} bytes)" for one in largest)
    raise LaunchError(
        f"command and environment take {size} bytes, and AWS Batch allows {LARGEST_OVERRIDES}; the largest variables: {names}. "
        "Put large values into the job definition, or into S3"
    )


# --- requests ----------------------------------------------------------------------------------------------------------------


class Unsure:
    """What is not known of a submission. `maybe_done`: it may have been carried out although no answer came."""

    maybe_done = False
    abandoned = False
    """Nobody wants it any more: it is not to be tried again."""


async def submit(
    api: Api,
    arguments: Mapping[str, Any],
    unsure: Unsure,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    random: Callable[[], float],
) -> str:
    """The id of the job, which has been submitted once.

    SubmitJob is not idempotent. A job whose answer was lost is looked for by its name, which must be its alone, before it is
    submitted again; a second one that shows up later all the same is terminated.

    Args:
        arguments: of SubmitJob.
        unsure: is told what may be left behind if this raises or is cancelled.

    Raises:
        AwsError: it was not submitted, unless `unsure.maybe_done`.
    """
    name, queue = arguments["jobName"], arguments["jobQueue"]
    wait_s = SUBMIT_WAIT_S
    for attempt in range(1, SUBMIT_ATTEMPTS + 1):
        try:
            answer = await api.call("batch", "submit_job", patient=False, **arguments)
        except AwsError as error:
            unsure.maybe_done |= error.maybe_done
            if not error.passing or unsure.abandoned or (attempt == SUBMIT_ATTEMPTS and not unsure.maybe_done):
                raise
            await pause(wait_s * (0.75 + 0.5 * random()))
            wait_s *= 2
            if unsure.maybe_done:
                found = await find_jobs(api, queue, name)
                if found:
                    logger.info("the answer to SubmitJob was lost, and the job was found by its name: %s", found[0])
                    return await _only(api, found[0], found)
            if unsure.abandoned or attempt == SUBMIT_ATTEMPTS:
                raise
        else:
            id = str(answer["jobId"])
            return await _only(api, id, await find_jobs(api, queue, name)) if unsure.maybe_done else id
    raise AssertionError("the last attempt returns or raises")


async def _only(api: Api, id: str, found: Sequence[str]) -> str:
    for other in found:
        if other != id:
            logger.warning("job %s was submitted twice, by a request whose answer was lost: terminating %s", id, other)
            await terminate(api, other, "submitted twice")
    return id


async def find_jobs(api: Api, queue: str, name: str) -> list[str]:
    """The ids of the jobs with this name that have not ended, the oldest first. Children of arrays are not listed."""
    filters = [{"name": "JOB_NAME", "values": [name]}]
    found = [
        job
        async for job in items(api, "batch", "list_jobs", "jobSummaryList", jobQueue=queue, filters=filters)
        if job["jobName"] == name and job.get("status") not in ENDED
    ]
    return [str(job["jobId"]) for job in sorted(found, key=lambda job: int(job.get("createdAt", 0)))]


async def terminate(api: Api, id: str, reason: str) -> None:
    """The job ends, whatever it is doing; one that has ended, or is not known, is no matter.

    Raises:
        AwsError: AWS was not reached, or does not allow it.
    """
    try:
        await api.call("batch", "terminate_job", jobId=id, reason=reason)
    except AwsError as error:
        if error.fault is not Fault.REJECTED:
            raise
        logger.debug("job %s could not be terminated: %s", id, error.reason)


class Room(NamedTuple):
    """What a queue can give."""

    vcpus: float | None
    """The sum over its compute environments; None if one of them has no limit that AWS knows."""
    trouble: str
    """What is wrong with the queue or its environments, as AWS says it."""
    environments: frozenset[str]
    """Its compute environments, in AWS's words."""


async def room_of(api: Api, queue: str) -> Room:
    """How much the queue can ever run at once.

    Raises:
        AwsError: there is no such queue, or AWS does not tell.
    """
    answer = await api.call("batch", "describe_job_queues", jobQueues=[queue])
    if not answer.get("jobQueues"):
        raise AwsError(f"there is no job queue {queue} in this account and region", Fault.REJECTED)
    told = answer["jobQueues"][0]
    trouble = _trouble("queue", queue, told)
    names = [one["computeEnvironment"] for one in told.get("computeEnvironmentOrder", ())]
    if not names:
        return Room(None, trouble, frozenset())
    answer = await api.call("batch", "describe_compute_environments", computeEnvironments=names)
    vcpus: float | None = 0.0
    for environment in answer.get("computeEnvironments", ()):
        trouble = _sentence(trouble, _trouble("compute environment", environment["computeEnvironmentName"], environment))
        if environment.get("state", "ENABLED") != "ENABLED":
            continue
        most = (environment.get("computeResources") or {}).get("maxvCpus", environment.get("unmanagedvCpus"))
        vcpus = None if vcpus is None or most is None else vcpus + most
    return Room(vcpus, trouble, frozenset(names))


def _trouble(kind: str, name: str, told: Mapping[str, Any]) -> str:
    if told.get("state", "ENABLED") != "ENABLED":
        return f"{kind} {name} is {told['state']}"
    if told.get("status") == "INVALID":
        return f"{kind} {name} is INVALID: {told.get('statusReason', 'no reason given')}"
    return ""
