"""What launchers have started and nobody has released: found by its marks, wherever it runs, and ended on request.

A cluster releases its nodes however it ends, and nodes end themselves when their manager is gone. What is found here is what
neither could see to: containers that are paused, jobs that wait in a queue, records of what has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from aiocluster.errors import LaunchError
from aiocluster.launch.marks import Leftover

__all__ = ["KINDS", "Found", "Leftover", "Reaped", "find", "reap"]

KINDS = ("docker", "batch", "ecs")
_HOMES = {kind: f"aiocluster.launch.{kind}" for kind in KINDS}


class Found(NamedTuple):
    """What is there, and why some places could not be looked at."""

    leftovers: list[Leftover]
    unreachable: dict[str, str]
    """The reason by kind of infrastructure."""


class Reaped(NamedTuple):
    """One leftover that was ended, or that could not be."""

    leftover: Leftover
    error: str
    """Empty if it has been ended."""


async def find(kinds: Collection[str] = KINDS, *, cluster: str | None = None) -> Found:
    """All that carries the marks of a cluster, the latest last.

    Args:
        kinds: where to look: "docker", "batch", "ecs".
        cluster: only what belongs to this one.

    Returns: also what could not be looked at, with the reason: an engine that does not answer, no credentials.
    """
    looks: dict[str, Callable[[], Awaitable[list[Leftover]]]] = {}
    for kind in kinds:
        if kind not in _HOMES:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        looks[kind] = _module(kind).leftovers
    outcomes = await asyncio.gather(*[look() for look in looks.values()], return_exceptions=True)
    found: list[Leftover] = []
    unreachable: dict[str, str] = {}
    for kind, outcome in zip(looks, outcomes, strict=True):
        if isinstance(outcome, LaunchError):
            unreachable[kind] = outcome.reason
        elif isinstance(outcome, Exception):  # one place that fails in a way of its own must not hide what the others have
            unreachable[kind] = f"{type(outcome).__name__}: {outcome}"
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            found += [one for one in outcome if cluster is None or one.cluster == cluster]
    found.sort(key=lambda one: (one.created is not None and one.created.timestamp(), one.cluster, one.id))
    return Found(found, unreachable)


async def reap(leftovers: Sequence[Leftover]) -> list[Reaped]:
    """End all of these; returns what became of each.

    Cancelling leaves those that were not reached as they are.
    """
    return list(await asyncio.gather(*[_end(one) for one in leftovers]))


async def _end(one: Leftover) -> Reaped:
    try:
        await _module(one.kind.split()[0]).end(one)
    except LaunchError as error:
        return Reaped(one, error.reason)
    except Exception as error:  # as above
        return Reaped(one, f"{type(error).__name__}: {error}")
    return Reaped(one, "")


def _module(kind: str) -> Any:
    """Imported when it is needed: Docker's and Amazon's clients take their time."""
    return import_module(_HOMES[kind])
