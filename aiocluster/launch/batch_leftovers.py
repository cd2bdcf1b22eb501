"""Jobs of AWS Batch whose manager may be gone: found by their tags, in all queues of a region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiocluster.launch import batch_jobs
from aiocluster.launch.aws import Api, Aws, items, region_of_arn
from aiocluster.launch.marks import CLUSTER, MANAGER, Leftover, leftover

__all__ = ["end", "leftovers"]

KIND = "batch job"


async def leftovers(*, region: str | None = None, api: Api | None = None) -> list[Leftover]:
    """The jobs of all queues of a region that a cluster has started and that have not ended, the children of arrays left out.

    Raises:
        AwsError: AWS does not tell.
    """
    asked: Api = Aws(region) if api is None else api
    try:
        queues = [str(queue["jobQueueArn"]) async for queue in items(asked, "batch", "describe_job_queues", "jobQueues")]
        ids = [
            str(job["jobId"])
            for queue in queues
            for status in batch_jobs.STATES
            async for job in items(asked, "batch", "list_jobs", "jobSummaryList", jobQueue=queue, jobStatus=status)
        ]
        ours = [job for job in await _described(asked, dict.fromkeys(ids)) if CLUSTER in (job.get("tags") or {})]
        managers = {job: f"batch:{job.replace('#', '@')}" for job in _managers(ours)}
        known = {managers[str(job["jobId"])]: job["status"] not in batch_jobs.ENDED for job in await _described(asked, managers)}
        return [
            leftover(
                job["tags"],
                kind=KIND,
                id=str(job["jobId"]),
                name=str(job["jobName"]),
                state=str(job["status"]),
                where=str(job["jobQueue"]),
                manager_alive=known.get(job["tags"].get(MANAGER, "")),
            )
            for job in ours
            if job["status"] not in batch_jobs.ENDED
        ]
    finally:
        await asked.close()


def _managers(jobs: Iterable[Mapping[str, Any]]) -> list[str]:
    marks = dict.fromkeys(str(job["tags"].get(MANAGER, "")) for job in jobs)
    return [mark.removeprefix("batch:").replace("@", "#") for mark in marks if mark.startswith("batch:")]


async def _described(api: Api, ids: Iterable[str]) -> list[Mapping[str, Any]]:
    wanted, found = list(ids), []
    for i in range(0, len(wanted), 100):
        found += (await api.call("batch", "describe_jobs", jobs=wanted[i : i + 100])).get("jobs", [])
    return found


async def end(leftover: Leftover, *, region: str | None = None, api: Api | None = None) -> None:
    """Terminate what `leftovers` has found.

    Raises:
        AwsError: AWS was not reached, or does not allow it.
    """
    asked: Api = Aws(region or region_of_arn(leftover.where)) if api is None else api
    try:
        await batch_jobs.terminate(asked, leftover.id, "aiocluster reap: its manager is gone")
    finally:
        await asked.close()
