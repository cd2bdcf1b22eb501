"""Tasks of ECS whose manager may be gone: found by their tags, in all clusters of a region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiocluster.launch import ecs_tasks
from aiocluster.launch.aws import Api, Aws, items, region_of_arn
from aiocluster.launch.marks import CLUSTER, MANAGER, Leftover, leftover
from aiocluster.launch.own_task import task_id

__all__ = ["end", "leftovers"]

KIND = "ecs task"
_MANAGER = "ecs:"


async def leftovers(*, region: str | None = None, api: Api | None = None) -> list[Leftover]:
    """The tasks of all ECS clusters of a region that a cluster of ours has started and that have not ended.

    Raises:
        AwsError: AWS does not tell.
    """
    asked: Api = Aws(region) if api is None else api
    try:
        clusters = [str(arn) async for arn in items(asked, "ecs", "list_clusters", "clusterArns")]
        ours = [task for cluster in clusters for task in await ecs_tasks.find_tasks(asked, cluster) if CLUSTER in task["tags"]]
        known = {arn: await _runs(asked, arn, clusters) for arn in _managers(ours)}
        return [
            leftover(
                task["tags"],
                kind=KIND,
                id=str(task["taskArn"]),
                name=task_id(str(task["taskArn"])),
                state=str(task["lastStatus"]),
                where=str(task["clusterArn"]),
                manager_alive=known.get(task["tags"].get(MANAGER, "").removeprefix(_MANAGER)),
            )
            for task in ours
        ]
    finally:
        await asked.close()


def _managers(tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ARNs of those managers that are tasks themselves."""
    marks = dict.fromkeys(str(task["tags"].get(MANAGER, "")) for task in tasks)
    return [mark.removeprefix(_MANAGER) for mark in marks if mark.startswith(_MANAGER)]


async def _runs(api: Api, arn: str, clusters: Iterable[str]) -> bool | None:
    """Whether that task runs; None where it cannot be known from here: it is of another account or region."""
    home = next((cluster for cluster in clusters if arn.startswith(f"{cluster.replace(':cluster/', ':task/')}/")), None)
    if home is None:
        return None
    # AWS knows a task for an hour or so after its end, and no longer.
    return any([not ecs_tasks.is_over(task) async for task in ecs_tasks.described(api, home, [arn])])


async def end(leftover: Leftover, *, region: str | None = None, api: Api | None = None) -> None:
    """Stop what `leftovers` has found.

    Raises:
        AwsError: AWS was not reached, or does not allow it.
    """
    asked: Api = Aws(region or region_of_arn(leftover.id)) if api is None else api
    try:
        await ecs_tasks.stop_task(asked, leftover.where, leftover.id, "aiocluster reap: its manager is gone")
    finally:
        await asked.close()
