"""The properties of a job's container, as a definition has them and a submission overrides them. See moto_patch.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moto.batch.exceptions import ClientException


def required(container: dict[str, Any], kind: str) -> str | None:
    return next((str(one["value"]) for one in container.get("resourceRequirements", []) if one["type"] == kind), None)


def variables_of(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container.get("environment", [])}


def of_node(i: int, ranges: Iterable[dict[str, Any]] | None) -> dict[str, Any]:
    """What is said last of the node with this index, in ranges like "0:3", "2:", ":3" and "1"."""
    said: dict[str, Any] = {}
    for one in ranges or []:
        first, colon, last = one["targetNodes"].partition(":")
        if int(first or 0) <= i <= (int(last) if last else 10**9 if colon else int(first)):
            said = one
    return said


def overridden(container: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """A container's properties, with those of `containerOverrides` in their place; variables and requirements by name."""
    overrides = override.get("containerOverrides") or {}
    if any(name.startswith("AWS_BATCH") for name in variables_of(overrides)):
        raise ClientException("environment variables that begin with AWS_BATCH are reserved")
    variables = variables_of(container) | variables_of(overrides)
    requirements = {
        one["type"]: one for one in [*container.get("resourceRequirements", []), *overrides.get("resourceRequirements", [])]
    }
    for old, new in (("vcpus", "VCPU"), ("memory", "MEMORY")):
        value = overrides.get(old) or container.get(old)
        if value and new not in requirements:
            requirements[new] = {"type": new, "value": str(value)}
    return {
        **container,
        **({"command": overrides["command"]} if overrides.get("command") else {}),
        "environment": [{"name": name, "value": value} for name, value in variables.items()],
        "resourceRequirements": list(requirements.values()),
    }
