"""Manager jobs of AWS Batch, and the jobs that they have started: as they are, from one request to the next.

A manager is a job that `submit` has made: it carries the tag `aiocluster:job`. The jobs of its workers are found by the mark that
its launcher puts on them, so that they are there for everybody who may look, also when the manager is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, items
from aiocluster.launch.batch_jobs import ENDED, STATES, JobState, observed_reason
from aiocluster.launch.marks import MANAGER

__all__ = ["JOB", "MANAGER_JOB", "SCRIPT", "SUBMITTER", "Job", "Stream", "find_job", "managers", "tree"]

JOB = "aiocluster:job"
MANAGER_JOB = "manager"
SCRIPT = "aiocluster:script"
SUBMITTER = "aiocluster:submitter"
AT_ONCE = 100
"""Jobs in a DescribeJobs call. Source: its API reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Where an attempt of a job has written its output."""

    group: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as AWS Batch describes it.

    `children` are those of an array or of a multi-node job, and below a manager the jobs that it has started.
    """

    id: str
    name: str
    queue: str
    status: str
    reason: str = ""
    exit_code: int | None = None
    created: datetime | None = None
    started: datetime | None = None
    stopped: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    streams: tuple[Stream, ...] = ()
    """Of all attempts, the first one first."""
    size: int = 0
    """How many children an array or a multi-node job has; 0: it is neither."""
    nodes: bool = False
    """It is a multi-node job. What it has written, and its exit code, are those of its main node."""
    main: int = 0
    """The index of that."""
    children: tuple[Job, ...] = ()

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def is_manager(self) -> bool:
        return self.tags.get(JOB) == MANAGER_JOB

    @property
    def code(self) -> int:
        """What a command that has waited for the end of it ends with."""
        if self.status == "SUCCEEDED":
            return 0
        return self.exit_code or 1

    def lasted(self, now: datetime) -> timedelta | None:
        """How long it has run, or has been waiting where it does not run yet."""
        since = self.started or self.created
        return None if since is None else (self.stopped or now) - since

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Job:
        """From an element of an answer of DescribeJobs or ListJobs."""
        state = JobState.of(told)
        array, nodes = told.get("arrayProperties") or {}, told.get("nodeProperties") or {}
        return cls(
            id=str(told["jobId"]),
            name=str(told.get("jobName", "")),
            queue=str(told.get("jobQueue", "")).rpartition("/")[2],
            status=state.status,
            reason=observed_reason(state),
            exit_code=state.exit_code,
            created=_time(told.get("createdAt")),
            started=_time(told.get("startedAt")),
            stopped=_time(told.get("stoppedAt")),
            tags=told.get("tags") or {},
            streams=_streams(told, state),
            size=int(array.get("size") or nodes.get("numNodes") or 0),
            nodes=bool(nodes),
            main=int(nodes.get("mainNode") or 0),
        )


def _time(milliseconds: Any) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _streams(told: Mapping[str, Any], state: JobState) -> tuple[Stream, ...]:
    names = [(one.get("container") or {}).get("logStreamName") for one in told.get("attempts") or ()]
    return tuple(Stream(group=state.log_group, name=name) for name in dict.fromkeys([*names, state.log_stream]) if name)


# --- one job -----------------------------------------------------------------------------------------------------------------


async def find_job(api: Api, id: str) -> Job:
    """The job of this id, without its children.

    Raises:
        LaunchError: there is none.
        AwsError: AWS does not tell.
    """
    found = await described(api, [id])
    if not found:
        raise LaunchError(f"AWS Batch has no job {id} here: is the region right? It forgets jobs a week after their end")
    return found[0]


async def described(api: Api, ids: Iterable[str]) -> list[Job]:
    """These jobs, as far as AWS knows them."""
    found = await _described(api, ids)
    leaders = {job.id: f"{job.id}#{job.main}" for job in found if job.nodes and "#" not in job.id}
    told = {job.id: job for job in await _described(api, leaders.values())}
    return [_led(job, told.get(leaders.get(job.id, ""))) for job in found]


def _led(job: Job, main: Job | None) -> Job:
    """A multi-node job has no container; its nodes have."""
    if main is None:
        return job
    return replace(job, streams=main.streams, exit_code=main.exit_code, reason=job.reason or main.reason)


async def _described(api: Api, ids: Iterable[str]) -> list[Job]:
    wanted, found = list(dict.fromkeys(ids)), []
    for i in range(0, len(wanted), AT_ONCE):
        answer = await api.call("batch", "describe_jobs", jobs=wanted[i : i + AT_ONCE])
        found += [Job.of(one) for one in answer.get("jobs", ())]
    return found


async def tree(api: Api, job: Job, *, children: bool = True) -> Job:
    """The job with all jobs that it has started, and with the children of each.

    Args:
        children: also the children of arrays, one by one.

    Raises:
        AwsError: AWS does not tell.
    """
    workers = [one async for one in started_by(api, job)]
    if not children:
        return replace(job, children=tuple(workers))
    whole = [replace(one, children=tuple([child async for child in _children(api, one)])) for one in workers]
    own = [child async for child in _children(api, job)]
    return replace(job, children=(*own, *whole))


async def started_by(api: Api, manager: Job) -> AsyncIterator[Job]:
    """The jobs that a manager has started, in all queues, whether they run or have ended; the oldest first."""
    mark = f"batch:{manager.id.replace('#', '@')}"
    since = manager.created or datetime.fromtimestamp(0, UTC)
    found = [job async for job in created_since(api, since) if job.tags.get(MANAGER) == mark]
    for job in sorted(found, key=lambda one: (one.created or since, one.id)):
        yield job


async def managers(api: Api, since: datetime) -> AsyncIterator[Job]:
    """The managers that were submitted after that moment, the latest first."""
    found = [job async for job in created_since(api, since) if job.is_manager]
    for job in sorted(found, key=lambda one: (one.created or since, one.id), reverse=True):
        yield job


async def created_since(api: Api, since: datetime) -> AsyncIterator[Job]:
    """All jobs of all queues that were submitted after that moment, without the children of arrays."""
    filters = [{"name": "AFTER_CREATED_AT", "values": [str(max(0, int(since.timestamp() * 1000) - 1))]}]
    queues = [str(queue["jobQueueArn"]) async for queue in items(api, "batch", "describe_job_queues", "jobQueues")]
    for queue in queues:
        listed = items(api, "batch", "list_jobs", "jobSummaryList", jobQueue=queue, filters=filters)
        ids = [str(one["jobId"]) async for one in listed]
        for job in await described(api, ids):  # a list tells no tags
            yield job


async def _children(api: Api, job: Job) -> AsyncIterator[Job]:
    if not job.size:
        return
    parent = {"multiNodeJobId": job.id} if job.nodes else {"arrayJobId": job.id}
    ids = [
        str(one["jobId"])
        for status in (*STATES, *ENDED)
        async for one in items(api, "batch", "list_jobs", "jobSummaryList", jobStatus=status, **parent)
    ]
    for child in sorted(await described(api, ids), key=lambda one: _index(one.id)):
        yield child


def _index(id: str) -> int:
    number = id.replace("#", ":").rpartition(":")[2]
    return int(number) if number.isdecimal() else 0
