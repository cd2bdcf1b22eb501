"""What the tests of AWS Batch ask of it, from beside aiocluster: which jobs are there, and what they have written."""

from __future__ import annotations

from typing import Any

from tests.online.engine import Engine
from tests.online.ground import Batch
from tests.online.waiting import until

LIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
ENDED = ("SUCCEEDED", "FAILED")
SOON_S = 60.0


def jobs_of(batch: Batch, cluster_id: str, statuses: tuple[str, ...] = LIVE) -> list[dict[str, Any]]:
    """The array and plain jobs of a cluster, of all queues, as they are described."""
    with batch.client("batch") as client:
        queues = [batch.queue, *([batch.small_queue] if batch.small_queue else [])]
        ids = [
            job["jobId"]
            for queue in queues
            for status in statuses
            for page in client.get_paginator("list_jobs").paginate(jobQueue=queue, jobStatus=status)
            for job in page["jobSummaryList"]
        ]
        found = [job for i in range(0, len(ids), 100) for job in client.describe_jobs(jobs=ids[i : i + 100])["jobs"]]
    return [job for job in found if job["tags"].get("aiocluster:cluster") == cluster_id]


def nodes_left(batch: Batch, cluster_id: str) -> list[str]:
    """The ids of the jobs, and of the children of arrays, of a cluster that have not ended."""
    left = []
    with batch.client("batch") as client:
        for job in jobs_of(batch, cluster_id):
            size = job.get("arrayProperties", {}).get("size")
            if size is None:
                left.append(job["jobId"])
                continue
            for status in LIVE:
                for page in client.get_paginator("list_jobs").paginate(arrayJobId=job["jobId"], jobStatus=status):
                    left += [child["jobId"] for child in page["jobSummaryList"]]
    return left


def jobs_named(batch: Batch, name: str) -> list[dict[str, Any]]:
    """All array and plain jobs whose names begin so, whatever became of them, as they are described."""
    filters = [{"name": "JOB_NAME", "values": [f"{name}*"]}]
    with batch.client("batch") as client:
        ids = [
            job["jobId"]
            for queue in {batch.queue, batch.manager_queue, batch.small_queue or batch.queue}
            for page in client.get_paginator("list_jobs").paginate(jobQueue=queue, filters=filters)
            for job in page["jobSummaryList"]
        ]
        return list(client.describe_jobs(jobs=ids)["jobs"]) if ids else []


def described(batch: Batch, job_id: str) -> dict[str, Any]:
    with batch.client("batch") as client:
        (job,) = client.describe_jobs(jobs=[job_id])["jobs"]
        return dict(job)


def output_of(batch: Batch, job_id: str) -> list[str]:
    """What the job has written by now."""
    stream = described(batch, job_id)["container"].get("logStreamName")
    return batch.log_lines("/aws/batch/job", stream) if stream else []


def given(batch: Batch, **more: Any) -> dict[str, Any]:
    return {"queue": batch.queue, "definition": batch.definition, "output": "quiet", **more}


async def nothing_left(batch: Batch, cluster_id: str) -> None:
    await until(lambda: nodes_left(batch, cluster_id), lambda left: left == [], timeout=SOON_S)


def container_of(engine: Engine, job_id: str) -> str:
    (container,) = engine.docker("ps", "--quiet", "--no-trunc", "--filter", f"label=moto.batch.job={job_id}").split()
    return container


def kill(engine: Engine, job_id: str) -> None:
    engine.docker("kill", "--signal", "KILL", container_of(engine, job_id))


def take_away(engine: Engine, job_id: str) -> None:
    """As if its instance were gone: nothing is left of the container."""
    engine.docker("rm", "--force", container_of(engine, job_id))
