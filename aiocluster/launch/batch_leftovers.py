"""Jobs of AWS Batch, and tokens in stores, whose manager may be gone: found by their tags, in all queues of a region."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from aiocluster.launch import batch_jobs
from aiocluster.launch.aws import Api, Aws, AwsError, items, region_of_arn
from aiocluster.launch.marks import CLUSTER, MANAGER, Leftover, leftover
from aiocluster.launch.secret_store import Stored, delete_token, stored_tokens

__all__ = ["end", "leftovers"]

KIND = "batch job"
STORED = "batch token"

logger = logging.getLogger("aiocluster")


async def leftovers(*, region: str | None = None, api: Api | None = None) -> list[Leftover]:
    """The jobs of all queues of a region that a cluster has started and that have not ended, the children of arrays left out; and
    the tokens that clusters have in the region's stores, those of ECS as well.

    Where AWS does not tell of tokens, which takes the right `tag:GetResources`, that is a warning.

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
        tokens = await _tokens(asked)
        marks = [*(job["tags"] for job in ours), *(token.tags for token in tokens)]
        managers = {job: f"batch:{job.replace('#', '@')}" for job in _managers(marks)}
        known = {managers[str(job["jobId"])]: job["status"] not in batch_jobs.ENDED for job in await _described(asked, managers)}
        jobs = [
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
        return jobs + [
            leftover(
                token.tags,
                kind=STORED,
                id=token.reference,
                name="token",
                state="stored",
                where=token.arn,
                manager_alive=known.get(token.tags.get(MANAGER, "")),
            )
            for token in tokens
        ]
    finally:
        await asked.close()


async def _tokens(api: Api) -> list[Stored]:
    try:
        return await stored_tokens(api)
    except AwsError as error:  # most clusters have none there: jobs are to be found all the same
        logger.warning("tokens in Parameter Store and Secrets Manager are not looked for: %s", error.reason)
        return []


def _managers(marks: Iterable[Mapping[str, str]]) -> list[str]:
    managers = dict.fromkeys(str(one.get(MANAGER, "")) for one in marks)
    return [manager.removeprefix("batch:").replace("@", "#") for manager in managers if manager.startswith("batch:")]


async def _described(api: Api, ids: Iterable[str]) -> list[Mapping[str, Any]]:
    wanted, found = list(ids), []
    for i in range(0, len(wanted), 100):
        found += (await api.call("batch", "describe_jobs", jobs=wanted[i : i + 100])).get("jobs", [])
    return found


async def end(leftover: Leftover, *, region: str | None = None, api: Api | None = None) -> None:
    """Terminate or delete what `leftovers` has found.

    Raises:
        AwsError: AWS was not reached, or does not allow it.
    """
    asked: Api = Aws(region or region_of_arn(leftover.where)) if api is None else api
    try:
        if leftover.kind == STORED:
            await delete_token(leftover.id, asked)
        else:
            await batch_jobs.terminate(asked, leftover.id, "aiocluster reap: its manager is gone")
    finally:
        await asked.close()
