"""Tasks of ECS: how they are found, described and stopped, and what their states mean.

These are the requests; which of them are made, and when, is decided by the launcher.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NamedTuple

from aiocluster.launch.aws import Api, AwsError, Fault, items

__all__ = ["REQUEST", "Definition", "TaskState", "definition_of", "described", "explained", "find_tasks", "is_over", "stop_task"]

logger = logging.getLogger("aiocluster")

REQUEST = "aiocluster:request"
"""The tag that tells which call of RunTask a task was started by."""
OVER = ("DEPROVISIONING", "STOPPED")
"""The containers have ended; what is left is the network's."""
AT_ONCE = 100
"""Tasks in one DescribeTasks."""

_HINTS = (
    ("RESOURCE:MEMORY", "no container instance has so much memory free: add instances, or ask for less with memory="),
    ("RESOURCE:CPU", "no container instance has so many CPU units free: add instances, or ask for less with cpu="),
    ("RESOURCE:GPU", "no container instance has a GPU free"),
    ("RESOURCE:PORTS", "a port of the task definition is taken on every container instance: use dynamic ports, or none"),
    ("RESOURCE:ENI", "no container instance has a network interface free: larger instances and ENI trunking have more"),
    ("RESOURCE", "no container instance has room: add instances, or let a capacity provider do so, launch_type="),
    ("AGENT", "the ECS agent of the container instances is not connected"),
    ("ATTRIBUTE", "no container instance has what the task definition asks for"),
    ("EMPTY CAPACITY", "the cluster has no container instances: launch_type='FARGATE', or a capacity provider, need none"),
    ("No Container Instances", "launch_type='FARGATE', or a capacity provider that starts instances, need none"),
    ("LOCATION", "no container instance is in the zones of the subnets"),
    ("INACTIVE", "the cluster has been deleted"),
    ("MISSING", "it is not there"),
    ("Capacity is unavailable", "AWS has no such capacity in these zones now: subnets= of more zones help"),
    ("CannotPullContainer", "is the image's name right, may the execution role pull it, and does the subnet lead to ECR?"),
    ("pull image", "is the image's name right, may the execution role pull it, and does the subnet lead to ECR?"),
    ("ResourceInitializationError", "does the subnet lead to ECR, CloudWatch Logs and the secrets (NAT or VPC endpoints)?"),
    ("OutOfMemory", "memory= gives more"),
    ("Spot", "AWS has taken the spot capacity back"),
    ("Host EC2", "the container instance was terminated, as spot instances are"),
)  # fmt: skip


def explained(reason: str) -> str:
    """AWS's reason, with what to do about it where that is known."""
    return reason + next((f" ({text})" for sign, text in _HINTS if sign in reason), "")


class TaskState(NamedTuple):
    """What DescribeTasks says of one task, as far as it matters here."""

    status: str
    reason: str = ""
    """Why it stopped: the task's own reason, and those of its containers."""
    exit_code: int | None = None
    """Of the agent's container."""
    runtime_id: str = ""
    """The agent's container, as its engine calls it."""

    @property
    def over(self) -> bool:
        """Its containers have ended."""
        return self.status in OVER

    @classmethod
    def of(cls, task: Mapping[str, Any], container: str) -> TaskState:
        """The state in one element of an answer; `container` is the agent's."""
        reasons, code, runtime_id = [str(task.get("stoppedReason") or "")], None, ""
        for one in task.get("containers", ()):
            if one.get("name") == container:
                code, runtime_id = one.get("exitCode"), str(one.get("runtimeId") or "")
                reasons.append(str(one.get("reason") or ""))
            elif one.get("reason") or one.get("exitCode"):
                why = one.get("reason") or f"exit code {one['exitCode']}"
                reasons.append(f"container {one.get('name')}: {why}")
        if not any(reasons):
            reasons.append(str(task.get("stopCode") or ""))
        status = str(task["lastStatus"])
        return cls(status, "; ".join(dict.fromkeys(reason for reason in reasons if reason)), code, runtime_id)

    def end(self) -> str:
        """Why a task that is over has ended, for people."""
        code = "" if self.exit_code is None else f"; exit code {self.exit_code}"
        return f"its task has STOPPED: {explained((self.reason or 'no reason given') + code)}"


class Definition(NamedTuple):
    """What a task definition says, as far as it matters here."""

    arn: str
    container: str
    """The name of the container that runs the agent."""
    network_mode: str
    task_limits: frozenset[str]
    """Which of "cpu" and "memory" it gives for the task as a whole."""
    container_limits: frozenset[str]
    """Which of them it gives for that container."""
    log_group: str
    """Where that container's output goes in CloudWatch Logs; "" if it does not go there."""
    log_prefix: str

    @property
    def own_network(self) -> bool:
        """Each task has a network interface of its own."""
        return self.network_mode == "awsvpc"

    def log_stream(self, task: str, state: TaskState) -> str:
        """The name of the stream that the container writes to.

        Source: `awslogs-stream-prefix` in "Send Amazon ECS logs to CloudWatch" of the ECS developer guide.
        """
        return f"{self.log_prefix}/{self.container}/{task}" if self.log_prefix else state.runtime_id


async def definition_of(api: Api, name: str, container: str | None) -> Definition:
    """The task definition of this name, or ARN.

    Args:
        container: the name of the agent's container; None: the only one.

    Raises:
        AwsError: AWS does not tell, there is no such definition, or it is not clear which container is meant.
    """
    answer = await api.call("ecs", "describe_task_definition", taskDefinition=name)
    told = answer["taskDefinition"]
    containers = {str(one["name"]): one for one in told.get("containerDefinitions", ())}
    names = ", ".join(containers)
    if container is None and len(containers) != 1:
        raise AwsError(f"container= must say which container of {name} runs the agent: {names}", Fault.REJECTED)
    chosen = next(iter(containers)) if container is None else container
    if chosen not in containers:
        raise AwsError(f"{name} has no container {chosen!r}, but {names}", Fault.REJECTED)
    one = containers[chosen]
    log = one.get("logConfiguration") or {}
    options = log.get("options") or {} if log.get("logDriver") == "awslogs" else {}
    limits = ("cpu", "memory")
    return Definition(
        arn=str(told["taskDefinitionArn"]),
        container=chosen,
        network_mode=str(told.get("networkMode") or "bridge"),
        task_limits=frozenset(limit for limit in limits if told.get(limit)),
        container_limits=frozenset(limit for limit in limits if one.get(limit)),
        log_group=str(options.get("awslogs-group", "")),
        log_prefix=str(options.get("awslogs-stream-prefix", "")),
    )


# --- requests ----------------------------------------------------------------------------------------------------------------


async def described(api: Api, cluster: str, ids: Iterable[str]) -> AsyncIterator[Mapping[str, Any]]:
    """The tasks with these ids or ARNs, with their tags; those that are not known are left out."""
    wanted = list(ids)
    for i in range(0, len(wanted), AT_ONCE):
        answer = await api.call("ecs", "describe_tasks", cluster=cluster, tasks=wanted[i : i + AT_ONCE], include=["TAGS"])
        for task in answer.get("tasks", ()):
            yield {**task, "tags": {tag["key"]: tag.get("value", "") for tag in task.get("tags", ())}}


async def find_tasks(api: Api, cluster: str, started_by: str | None = None) -> list[Mapping[str, Any]]:
    """The tasks of an ECS cluster that have not ended; `started_by`: only those that were started under this name."""
    narrowed = {} if started_by is None else {"startedBy": started_by}  # with it AWS takes no other filter
    arns = [str(arn) async for arn in items(api, "ecs", "list_tasks", "taskArns", cluster=cluster, **narrowed)]
    return [task async for task in described(api, cluster, arns) if not is_over(task)]


def is_over(task: Mapping[str, Any]) -> bool:
    return task["lastStatus"] in OVER


async def stop_task(api: Api, cluster: str, id: str, reason: str) -> None:
    """The task ends, whatever it is doing; one that has ended, or is not known, is no matter.

    Raises:
        AwsError: AWS was not reached, or does not allow it.
    """
    try:
        await api.call("ecs", "stop_task", cluster=cluster, task=id, reason=reason)
    except AwsError as error:
        if error.fault is not Fault.REJECTED:
            raise
        logger.debug("task %s could not be stopped: %s", id, error.reason)
