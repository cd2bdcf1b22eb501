"""A launcher's module that has a bug."""

from __future__ import annotations

from aiocluster.launch.marks import Leftover


async def leftovers() -> list[Leftover]:
    raise KeyError("jobs")
