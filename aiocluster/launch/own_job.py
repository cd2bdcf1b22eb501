"""The job of AWS Batch that this process runs in: what its variables tell, and what AWS tells beside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiocluster.launch.aws import Api, AwsError, Fault

__all__ = ["OwnJob", "OwnJobDetail", "describe_own_job", "own_job", "vcpus_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnJob:
    """What the variables of a job say.

    Source: "Job environment variables" of the AWS Batch user guide.
    """

    id: str
    """With `:index` at its end for the child of an array job, with `#index` for a node of a multi-node job."""
    queue: str
    """The name of its queue."""
    attempt: int = 1
    array_index: int | None = None
    node_index: int | None = None
    """Which node of a multi-node job this is; None for other jobs."""
    main_node_index: int | None = None
    nodes: int | None = None
    main_node_address: str | None = None
    """The private IPv4 address of the main node; only the other nodes are told."""

    @property
    def parent_id(self) -> str:
        """The id of the array or multi-node job that it belongs to, or its own."""
        return self.id.partition(":")[0].partition("#")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnJobDetail:
    """What AWS says of this process's job."""

    queue: str
    """The ARN of its queue."""
    definition: str
    """The ARN of its definition, with the revision."""
    vcpus: float
    """What it takes of its queue's compute environments."""


def own_job(environ: Mapping[str, str] | None = None) -> OwnJob | None:
    """The job that this process runs in; None outside of AWS Batch."""
    environ = os.environ if environ is None else environ
    id = environ.get("AWS_BATCH_JOB_ID")
    if not id:
        return None
    array_index = _number(environ, "AWS_BATCH_JOB_ARRAY_INDEX")
    if array_index is None and id.partition(":")[2].isdecimal():
        array_index = int(id.partition(":")[2])
    return OwnJob(
        id=id,
        queue=environ.get("AWS_BATCH_JQ_NAME", ""),
        attempt=_number(environ, "AWS_BATCH_JOB_ATTEMPT") or 1,
        array_index=array_index,
        node_index=_number(environ, "AWS_BATCH_JOB_NODE_INDEX"),
        main_node_index=_number(environ, "AWS_BATCH_JOB_MAIN_NODE_INDEX"),
        nodes=_number(environ, "AWS_BATCH_JOB_NUM_NODES"),
        main_node_address=environ.get("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS") or None,
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else None


async def describe_own_job(api: Api, job: OwnJob) -> OwnJobDetail:
    """Its queue and its definition.

    Raises:
        AwsError: AWS does not tell, or does not know such a job in this account and region.
    """
    answer = await api.call("batch", "describe_jobs", jobs=[job.id])
    for told in answer.get("jobs", ()):
        return OwnJobDetail(
            queue=str(told["jobQueue"]), definition=str(told["jobDefinition"]), vcpus=vcpus_of(told.get("container", {}))
        )
    raise AwsError(
        f"AWS Batch does not know {job.id}, the job that this process runs in: is the region another one?", Fault.REJECTED
    )


def vcpus_of(container: Mapping[str, Any]) -> float:
    """The vCPUs of a job's container, in the older form of the API or the newer."""
    for requirement in container.get("resourceRequirements", ()):
        if requirement.get("type") == "VCPU":
            return float(requirement["value"])
    return float(container.get("vcpus") or 0)
