"""Stands in for a launcher's module: what it has left over is a list."""

from __future__ import annotations

from aiocluster.errors import LaunchError
from aiocluster.launch.marks import Leftover

left: list[Leftover] = []
unreachable: str = ""
stubborn: set[str] = set()


async def leftovers() -> list[Leftover]:
    if unreachable:
        raise LaunchError(unreachable)
    return list(left)


async def end(one: Leftover) -> None:
    if one.id in stubborn:
        raise LaunchError("it will not go")
    left.remove(one)
