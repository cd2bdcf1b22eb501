"""Job definitions of AWS Batch for an image: like the stack's, so that a job may do what the stack allows, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, items

__all__ = ["Definition", "latest_definition", "register", "stem_of"]

AGENT = ("aiocluster", "agent")
ALIKE = ("retryStrategy", "timeout", "propagateTags", "schedulingPriority")
"""What a definition has of the one that it is like, beside the container."""
DEFAULT_PLATFORM = ["EC2"]
AWS_TAGS = "aws:"
"""How the names begin of tags that AWS alone may set, as CloudFormation does."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a job definition is to be.

    Args:
        name: its name; a revision is added by AWS.
        image: what jobs run.
        like: the definition that gives the rest: roles, logs, environment, retries. The stack's, as a rule.
        nodes: of a multi-node job; 0: a plain one.
        vcpus, memory: of each container, memory in MiB; None: as in `like`.
        env: more variables.
        timeout_s: when AWS ends an attempt; None: as in `like`.
    """

    name: str
    image: str
    like: str
    nodes: int = 0
    vcpus: float | None = None
    memory: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None


def stem_of(definition: str) -> str:
    """The name alone of a definition that is given as a name, name:revision or ARN."""
    last = definition.rpartition("/")[2] if definition.startswith("arn:") else definition
    return last.partition(":")[0]


async def latest_definition(api: Api, name: str) -> Mapping[str, Any] | None:
    """The definition of this name, name:revision or ARN as AWS describes it, the newest active one; None if there is none."""
    stem, _, revision = name.partition(":") if not name.startswith("arn:") else (name, "", "")
    asked: dict[str, Any] = (
        {"jobDefinitions": [name]} if name.startswith("arn:") else {"jobDefinitionName": stem, "status": "ACTIVE"}
    )
    found = items(api, "batch", "describe_job_definitions", "jobDefinitions", **asked)
    fitting = [one async for one in found if revision in ("", str(one.get("revision")))]
    return max(fitting, key=lambda one: int(one.get("revision", 0)), default=None)


async def register(api: Api, wanted: Definition) -> str:
    """There is a definition that is so; its name and revision. One that is the same already is used.

    Raises:
        LaunchError: there is no definition like which it could be, or that has no container.
        AwsError: AWS refuses.
    """
    like = await latest_definition(api, wanted.like)
    if like is None:
        raise LaunchError(f"there is no job definition {wanted.like} here: `aiocluster stack deploy` makes one")
    asked = _request(wanted, like)
    before = await latest_definition(api, wanted.name)
    if before is not None and _essence(before) == _essence(asked):
        return f"{wanted.name}:{before['revision']}"
    answer = await api.call("batch", "register_job_definition", **asked)
    return f"{answer['jobDefinitionName']}:{answer['revision']}"


def _request(wanted: Definition, like: Mapping[str, Any]) -> dict[str, Any]:
    ranges = (like.get("nodeProperties") or {}).get("nodeRangeProperties") or [{}]
    given = like.get("containerProperties") or ranges[0].get("container")
    if not given:
        raise LaunchError(f"the job definition {wanted.like} has no container that others could be like")
    container = {**_filled(given), "image": wanted.image}
    resources = {one["type"]: one["value"] for one in given.get("resourceRequirements") or ()}
    if wanted.vcpus is not None:
        resources["VCPU"] = f"{wanted.vcpus:g}"
    if wanted.memory is not None:
        resources["MEMORY"] = str(wanted.memory)
    container["resourceRequirements"] = [{"type": kind, "value": value} for kind, value in resources.items()]
    variables = {one["name"]: one["value"] for one in given.get("environment") or ()} | dict(wanted.env)
    container["environment"] = [{"name": name, "value": value} for name, value in variables.items()]
    asked: dict[str, Any] = {"jobDefinitionName": wanted.name}
    if wanted.nodes:
        container["command"] = list(AGENT)
        last = wanted.nodes - 1
        targets = ["0:0", *([f"1:{last}"] if last else [])]  # the first one is the manager, and is told what to run
        asked |= {
            "type": "multinode",
            "nodeProperties": {
                "numNodes": wanted.nodes,
                "mainNode": 0,
                "nodeRangeProperties": [{"targetNodes": target, "container": container} for target in targets],
            },
        }
    else:
        asked |= {"type": "container", "containerProperties": container}
        if like.get("platformCapabilities"):  # multi-node jobs run on EC2 alone
            asked["platformCapabilities"] = like["platformCapabilities"]
    for key in ALIKE:
        if like.get(key):
            asked[key] = _filled(like[key]) if isinstance(like[key], Mapping) else like[key]
    tags = {name: value for name, value in (like.get("tags") or {}).items() if not name.startswith(AWS_TAGS)}
    if tags:
        asked["tags"] = tags
    if wanted.timeout_s is not None:
        asked["timeout"] = {"attemptDurationSeconds": max(60, round(wanted.timeout_s))}
    return asked


def _essence(told: Mapping[str, Any]) -> Any:
    """What makes two definitions the same: all that says something, in an order of its own."""
    keys = ("type", "containerProperties", "nodeProperties", *ALIKE)
    essence = _ordered({key: told[key] for key in keys if told.get(key)})
    return essence, told.get("platformCapabilities") or DEFAULT_PLATFORM


def _filled(told: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing: AWS describes much that nobody has asked for."""
    return {key: value for key, value in told.items() if value not in (None, [], {}, "")}


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _ordered(value[key]) for key in sorted(value) if value[key] not in (None, [], {}, "")}
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        return sorted((_ordered(one) for one in value), key=repr)
    return value
