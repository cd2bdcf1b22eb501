"""Which node of several an agent is, where all of them were started by one request and so have the same environment."""

from __future__ import annotations

from collections.abc import Mapping

from aiocluster.errors import LaunchError

__all__ = ["ECS", "PATTERN", "batch_index", "node_name"]

PATTERN = "*"
"""Stands for the part of a node's name that its surroundings tell."""
ECS = "ecs/"
"""How the names begin by which agents in tasks of ECS call themselves; their launcher knows which nodes they are."""


def node_name(given: str, environ: Mapping[str, str]) -> str:
    """The name of this node: as given, or with its index in the place of the star.

    "batch-*" with `AIOCLUSTER_NODE_FIRST=4` is "batch-6" for the child of an array job with index 2, and "batch-6.2" for the
    second attempt of that child, which is another node. "ecs/1f2e3d4c/*" has the id of the ECS task in the place of the star.

    Raises:
        ValueError: the surroundings do not tell.
    """
    if PATTERN not in given:
        return given
    if given.startswith(ECS):
        return given.replace(PATTERN, _task_id(given, environ))
    index = batch_index(environ)
    if index is None:
        raise ValueError(
            f"AIOCLUSTER_NODE={given}: neither AWS_BATCH_JOB_ARRAY_INDEX nor AWS_BATCH_JOB_ID tells which node this is"
        )
    first = int(environ.get("AIOCLUSTER_NODE_FIRST", "0"))
    attempt = int(environ.get("AWS_BATCH_JOB_ATTEMPT", "1"))
    name = given.replace(PATTERN, str(first + index))
    return name if attempt == 1 else f"{name}.{attempt}"


def _task_id(given: str, environ: Mapping[str, str]) -> str:
    from aiocluster.launch import own_task  # only there: few agents are tasks

    try:
        task = own_task.read_own_task(environ)
    except LaunchError as error:
        raise ValueError(f"AIOCLUSTER_NODE={given}: {error.reason}") from error
    if task is None:
        raise ValueError(f"AIOCLUSTER_NODE={given}: {own_task.METADATA} is not set, which tells a task its id")
    return task.id


def batch_index(environ: Mapping[str, str]) -> int | None:
    """The index of this child of an array job or node of a multi-node job, 0 for a job that is neither; None outside AWS Batch.

    Source: "Job environment variables" of the AWS Batch user guide; a child's id is that of its parent with `:index`, a node's
    with `#index`.
    """
    for variable in ("AWS_BATCH_JOB_NODE_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX"):
        text = environ.get(variable, "")
        if text.isdecimal():
            return int(text)
    id = environ.get("AWS_BATCH_JOB_ID")
    if not id:
        return None
    for separator in (":", "#"):
        _parent, found, index = id.partition(separator)
        if found and index.isdecimal():
            return int(index)
    return 0
