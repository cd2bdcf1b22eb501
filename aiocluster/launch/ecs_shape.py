"""What tasks of ECS are to be like, and the request of RunTask that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId
from aiocluster.launch.ecs_tasks import REQUEST, Definition

__all__ = ["LARGEST_CALL", "Place", "TaskShape"]

LARGEST_CALL = 10
"""Tasks in one RunTask."""
LARGEST_OVERRIDES = 8192
"""Characters. Source: `overrides` in the API reference of RunTask."""
LAUNCH_TYPES = ("EC2", "FARGATE", "EXTERNAL")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where tasks run, and what they are made of."""

    cluster: str
    definition: Definition
    launch_type: str | None
    """A launch type or the name of a capacity provider; None: what the cluster has for a default."""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskShape:
    """The same for all tasks of a launcher. Arguments as for `ECS`.

    Raises:
        ValueError: AWS would refuse it later, or it makes no sense.
    """

    cpu: int | None
    memory: int | None
    tags: Mapping[str, str]
    command: Sequence[str]
    env: Mapping[str, str]
    assign_public_ip: bool

    def __post_init__(self) -> None:
        for what, value, least in (("cpu", self.cpu, 1), ("memory", self.memory, 6)):
            if value is not None and value < least:
                raise ValueError(f"{what} must be at least {least}, not {value}")
        if isinstance(self.command, str) or not self.command:
            raise ValueError(f"command must be a list of strings, not {self.command!r}")

    def run_task(
        self,
        place: Place,
        cluster_id: ClusterId,
        environment: Mapping[str, str],
        *,
        marks: Mapping[str, str],
        key: str,
        token: str,
        count: int,
    ) -> dict[str, Any]:
        """The arguments of RunTask.

        Args:
            marks: by which they are found.
            key: by which the tasks of this call are known.
            token: with it AWS carries the call out once, however often it hears it.

        Raises:
            LaunchError: they are larger than AWS allows.
        """
        overrides = self._overrides(place.definition, environment)
        tags = {**self.tags, **marks, REQUEST: key}
        arguments: dict[str, Any] = {
            "cluster": place.cluster,
            "taskDefinition": place.definition.arn,
            "count": count,
            "clientToken": token,
            "startedBy": cluster_id,
            "overrides": overrides,
            "tags": [{"key": name, "value": value} for name, value in tags.items()],
        }
        if place.launch_type in LAUNCH_TYPES:
            arguments["launchType"] = place.launch_type
        elif place.launch_type is not None:
            arguments["capacityProviderStrategy"] = [{"capacityProvider": place.launch_type, "weight": 1}]
        if place.definition.own_network:
            network: dict[str, Any] = {
                "subnets": list(place.subnets),
                "assignPublicIp": "ENABLED" if self.assign_public_ip else "DISABLED",
            }
            if place.security_groups:
                network["securityGroups"] = list(place.security_groups)
            arguments["networkConfiguration"] = {"awsvpcConfiguration": network}
        return arguments

    def _overrides(self, definition: Definition, environment: Mapping[str, str]) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": definition.container,
            "command": list(self.command),
            "environment": [{"name": name, "value": value} for name, value in {**self.env, **environment}.items()],
        }
        overrides: dict[str, Any] = {"containerOverrides": [container]}
        for what, value in (("cpu", self.cpu), ("memory", self.memory)):
            if value is None:
                continue
            if what in definition.task_limits:
                overrides[what] = str(value)
            # A smaller limit of the container would stay in force below that of the task.
            if what in definition.container_limits or what not in definition.task_limits:
                container[what] = value
        _check_size(overrides)
        return overrides


def _check_size(overrides: Mapping[str, Any]) -> None:
    size = len(json.dumps(overrides))
    if size <= LARGEST_OVERRIDES:
        return
    (container,) = overrides["containerOverrides"]
    largest = sorted(container["environment"], key=lambda one: -len(one["value"]))[:3]
    names = ", ".join(f"{one['name']} ({len(one['value'])} characters)" for one in largest)
    raise LaunchError(
        f"command and environment take {size} characters, and ECS allows {LARGEST_OVERRIDES}; the largest variables: {names}. "
        "Put large values into the task definition, or into S3"
    )
