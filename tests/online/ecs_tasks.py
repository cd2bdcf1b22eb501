"""What the tests of ECS ask of it, from beside aiocluster: which tasks are there, and what they have written."""

from __future__ import annotations

from typing import Any

from tests.online.ground import Ecs

ENDING = ("DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED")


def described(ecs: Ecs, tasks: list[str]) -> list[dict[str, Any]]:
    """Tasks by their ids or ARNs, with their tags as a dictionary."""
    with ecs.client("ecs") as client:
        found = client.describe_tasks(cluster=ecs.cluster, tasks=tasks, include=["TAGS"])["tasks"] if tasks else []
    return [{**task, "tags": {tag["key"]: tag["value"] for tag in task.get("tags", ())}} for task in found]


def tasks_of(ecs: Ecs, value: str, key: str = "aiocluster:cluster") -> list[dict[str, Any]]:
    """The tasks with that tag that AWS still lists, whether they run or have ended."""
    with ecs.client("ecs") as client:
        pages = client.get_paginator("list_tasks")
        arns = [
            arn
            for status in ("RUNNING", "STOPPED")
            for page in pages.paginate(cluster=ecs.cluster, desiredStatus=status)
            for arn in page["taskArns"]
        ]
    found = [task for i in range(0, len(arns), 100) for task in described(ecs, arns[i : i + 100])]
    return [task for task in found if task["tags"].get(key) == value]


def tasks_left(ecs: Ecs, value: str, key: str = "aiocluster:cluster") -> list[str]:
    """The ids of those that have not ended."""
    return [id_of(task) for task in tasks_of(ecs, value, key) if task["lastStatus"] not in ENDING]


def id_of(task: dict[str, Any]) -> str:
    return str(task["taskArn"]).rpartition("/")[2]


def output_of(ecs: Ecs, task: str) -> list[str]:
    """What a task has written by now."""
    return ecs.log_lines(ecs.log_group, f"{ecs.log_prefix}/{ecs.container}/{task}")
