"""The ECS task that this process runs in: what its metadata endpoint tells, and what AWS tells beside.

Tasks of AWS Batch are ECS tasks too, of a cluster that is not for others: who asks must look for a job first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, AwsError, Fault
from aiocluster.launch.metadata import METADATA, read_metadata

__all__ = ["METADATA", "OwnTask", "OwnTaskDetail", "describe_own_task", "own_task", "read_own_task", "task_id"]

logger = logging.getLogger("aiocluster")

TRIES = 5
PAUSE_S = 0.5
"""Before the second try, and twice as long before each later one: it may not be there yet when a container starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTask:
    """What the metadata of a task say."""

    arn: str
    cluster: str
    """Name or ARN of its ECS cluster."""
    definition: str
    """Its task definition as `family:revision`."""
    container: str
    """The name of the container that this process runs in."""

    @property
    def id(self) -> str:
        return task_id(self.arn)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTaskDetail:
    """What AWS says of this process's task."""

    launch_type: str | None
    """ "EC2", "FARGATE" or "EXTERNAL"."""
    capacity_provider: str | None
    """The capacity provider that it was started by, if it was."""
    subnets: tuple[str, ...]
    """Where its network interface is; none if it has no interface of its own."""
    security_groups: tuple[str, ...]


def task_id(arn: str) -> str:
    """The last part of a task's ARN, which names it within its cluster."""
    return arn.rpartition("/")[2]


def read_own_task(
    environ: Mapping[str, str] | None = None, *, tries: int = TRIES, pause: Callable[[float], None] = time.sleep
) -> OwnTask | None:
    """The task that this process runs in; None outside of ECS. It blocks, for a few seconds at most if nobody answers.

    Raises:
        LaunchError: the metadata endpoint does not answer, or makes no sense.
    """
    address = (os.environ if environ is None else environ).get(METADATA)
    if not address:
        return None
    wait_s = PAUSE_S
    for number in range(1, tries + 1):
        try:
            task, container = read_metadata(f"{address}/task"), read_metadata(address)
            return OwnTask(
                arn=str(task["TaskARN"]),
                cluster=str(task["Cluster"]),
                definition=f"{task['Family']}:{task['Revision']}",
                container=str(container["Name"]),
            )
        except (OSError, ValueError, KeyError) as error:
            if number == tries:
                why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
                raise LaunchError(f"the metadata of this ECS task cannot be read from {METADATA}: {why}") from error
            pause(wait_s)
            wait_s *= 2
    raise ValueError(f"tries must be at least 1, not {tries}")


async def own_task(environ: Mapping[str, str] | None = None) -> OwnTask | None:
    """As `read_own_task`, in a thread. Cancelling leaves the thread to end by itself, within seconds."""
    return await asyncio.to_thread(read_own_task, environ)


async def describe_own_task(api: Api, task: OwnTask) -> OwnTaskDetail:
    """How and where it was started.

    Raises:
        AwsError: AWS does not tell, or does not know such a task in this account and region.
    """
    answer = await api.call("ecs", "describe_tasks", cluster=task.cluster, tasks=[task.arn])
    for told in answer.get("tasks", ()):
        details = {
            detail["name"]: detail.get("value", "")
            for attachment in told.get("attachments", ())
            if attachment.get("type") in ("ElasticNetworkInterface", "eni")
            for detail in attachment.get("details", ())
        }
        return OwnTaskDetail(
            launch_type=told.get("launchType") or None,
            capacity_provider=told.get("capacityProviderName") or None,
            subnets=(details["subnetId"],) if details.get("subnetId") else (),
            security_groups=await _security_groups(api, details.get("networkInterfaceId", "")),
        )
    raise AwsError(
        f"ECS does not know {task.arn}, the task that this process runs in: is the region another one?", Fault.REJECTED
    )


async def _security_groups(api: Api, interface: str) -> tuple[str, ...]:
    """Those of a network interface; none if we may not ask, which is said."""
    if not interface:
        return ()
    try:
        answer = await api.call("ec2", "describe_network_interfaces", NetworkInterfaceIds=[interface])
    except AwsError as error:
        if error.fault is not Fault.DENIED:
            raise
        logger.warning(
            "workers get the default security group of the VPC, as that of this task is not known: %s; security_groups= names it",
            error.reason,
        )
        return ()
    found = (group["GroupId"] for one in answer.get("NetworkInterfaces", ()) for group in one.get("Groups", ()))
    return tuple(dict.fromkeys(str(id) for id in found))
