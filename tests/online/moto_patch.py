"""A patch of moto, for these tests alone: the jobs of its AWS Batch behave as AWS documents them.

It is no part of moto, and nobody but these tests is served by it. It was made for moto 5.2.5 and refuses any other version,
since it replaces classes and functions from within. moto as it is runs a container for each job, and that is kept; added are

- the variables that AWS sets: array index and size, node index, number of nodes, main node and its address, attempt, queue;
- states that are true: SUBMITTED, RUNNABLE until the compute environment has room (`maxvCpus`, and it is not DISABLED),
  STARTING, RUNNING; parents are PENDING, then SUCCEEDED or FAILED; `statusReason`, `exitCode` and `attempts` tell why;
- multi-node jobs: a container with an address of its own for each node, overrides by node, the end of the main node is the end;
- retries and what they are for (`evaluateOnExit`), a container whose instance is gone (who removes it stands for that);
- the memory limit, SIGTERM and then SIGKILL at the end, logs while a job runs, the end of a parent's children;
- the nodes of a definition, when it is described;
- the limits of the API: 2 to 10,000 array children, 100 jobs in one question, RUNNING as what is listed by default, pages.

Not there: scheduling by shares, priorities, gang scheduling, Fargate, EKS.

`MOTO_JOB_LABEL` is a label, name=value, that every container gets; `ECS_CONTAINER_STOP_TIMEOUT` is the time between the two
signals, in s.

Source: the AWS Batch user guide (job states, environment variables, array jobs, multi-node parallel jobs) and API reference.
"""

from __future__ import annotations

import json
from typing import Any

import moto
from moto.batch import models, responses
from moto.batch.exceptions import ClientException
from moto.core.base_backend import BaseBackend

from tests.online import moto_stacks
from tests.online.moto_jobs import ContainerJob, Job
from tests.online.moto_parents import ArrayJob, NodesJob
from tests.online.moto_properties import overridden

VERSION = "5.2.5"
LARGEST_ARRAY = 10_000
LARGEST_QUESTION = 100
PAGE = 100
RESET_TIMEOUT_S = 5.0
describe_definition = models.JobDefinition.describe


def submit_job(backend: Any, asked: dict[str, Any]) -> Job:
    if models.JOB_NAME_REGEX.match(asked["jobName"]) is None:
        raise ClientException("Job name should match valid pattern")
    definition = backend.get_job_definition(asked["jobDefinition"])
    if definition is None or definition.status != "ACTIVE":
        raise ClientException(f"Job definition {asked['jobDefinition']} does not exist")
    queue = backend.get_job_queue(asked["jobQueue"])
    if queue is None:
        raise ClientException(f"Job queue {asked['jobQueue']} does not exist")
    if queue.state != "ENABLED":
        raise ClientException(f"Job queue {asked['jobQueue']} is not enabled")
    size = (asked.get("arrayProperties") or {}).get("size")
    if size is not None and not 2 <= size <= LARGEST_ARRAY:
        raise ClientException(f"Array size must be between 2 and {LARGEST_ARRAY}")
    job: Job
    if definition.type == "multinode":
        if size is not None or asked.get("containerOverrides"):
            raise ClientException("multi-node jobs have no arrayProperties and no containerOverrides")
        job = NodesJob(backend, definition, queue, asked)
    else:
        container = overridden(definition.container_properties, asked)
        if size is not None:
            job = ArrayJob(backend, definition, queue, asked, container)
        else:
            job = ContainerJob(backend, definition, queue, asked, container=container)
    job.start()
    return job


def answer_submit_job(self: Any) -> str:
    job = submit_job(self.batch_backend, json.loads(self.body))
    return json.dumps({"jobId": job.job_id, "jobName": job.job_name, "jobArn": job.arn})


def answer_describe_jobs(self: Any) -> str:
    asked = json.loads(self.body).get("jobs") or []
    if not 1 <= len(asked) <= LARGEST_QUESTION:
        raise ClientException(f"jobs must have between 1 and {LARGEST_QUESTION} members")
    known = self.batch_backend._jobs
    found = (known.get(name.rpartition(":job/")[2] if name.startswith("arn:") else name) for name in asked)
    return json.dumps({"jobs": [job.describe() for job in found if job is not None]})


def answer_list_jobs(self: Any) -> str:
    asked = json.loads(self.body)
    backend = self.batch_backend
    parent = asked.get("arrayJobId") or asked.get("multiNodeJobId")
    if parent:
        job = backend.get_job_by_id(parent)
        jobs = job.children if job else []
    else:
        queue = backend.get_job_queue(asked.get("jobQueue"))
        if queue is None:
            raise ClientException(f"Job queue {asked.get('jobQueue')} does not exist")
        jobs = [job for job in queue.jobs if ":" not in job.job_id and "#" not in job.job_id]
    filters = asked.get("filters")
    if filters:
        jobs = [job for job in jobs if all(matches(job, one) for one in filters)]
    else:
        state = asked.get("jobStatus") or "RUNNING"
        jobs = [job for job in jobs if job.status == state]
    start = int(asked.get("nextToken") or 0)
    end = start + min(int(asked.get("maxResults") or PAGE), PAGE)
    told: dict[str, Any] = {"jobSummaryList": [job.describe_short() for job in jobs[start:end]]}
    if end < len(jobs):
        told["nextToken"] = str(end)
    return json.dumps(told)


def matches(job: Job, one: dict[str, Any]) -> bool:
    """Whether one of a filter's values fits the job: names, with a * at their end or without, or the moment before its making."""
    if one["name"] == "AFTER_CREATED_AT":
        return any(job.describe()["createdAt"] > int(value) for value in one["values"])
    if one["name"] != "JOB_NAME":
        raise ClientException(f"the filter {one['name']} is not known to moto_patch")
    name = job.job_name.lower()
    wanted = [value.lower() for value in one["values"]]
    return any(name.startswith(value[:-1]) if value.endswith("*") else name == value for value in wanted)


def described(self: Any) -> dict[str, Any]:
    """A definition as it was registered: that of a multi-node job with its nodes."""
    nodes = {} if self.node_properties is None else {"nodeProperties": self.node_properties}
    return {**describe_definition(self), **nodes}


def reset(self: Any) -> None:
    """No container of a job is there any more."""
    jobs = list(self._jobs.values())
    for job in jobs:
        job.told_to_end.set()
    for job in jobs:
        if isinstance(job, ContainerJob):
            job.end_container(0)
    for job in jobs:
        if job.is_alive():
            job.join(RESET_TIMEOUT_S)
    BaseBackend.reset(self)


def end_all() -> None:
    """No container of a job of this process is there any more."""
    for regions in models.batch_backends.values():
        for backend in regions.values():
            backend.reset()


def apply() -> None:
    """moto's AWS Batch is patched in this process.

    Raises:
        RuntimeError: This is another version than the one that the patch was made for.
    """
    if moto.__version__ != VERSION:
        raise RuntimeError(f"this patch was made for moto {VERSION}, not for {moto.__version__}")
    responses.BatchResponse.submitjob = answer_submit_job
    responses.BatchResponse.describejobs = answer_describe_jobs
    responses.BatchResponse.listjobs = answer_list_jobs
    models.BatchBackend.reset = reset
    models.JobDefinition.describe = described
    moto_stacks.apply()
