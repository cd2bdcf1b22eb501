"""What is known about a worker that is gone, and what that says of each call that it held."""

from __future__ import annotations

from typing import NamedTuple

from aiocluster.core.calls import Call
from aiocluster.core.places import LaneKind

__all__ = ["Verdict", "judge"]


class Verdict(NamedTuple):
    """The end of a worker.

    `recorded`: its flight recorder was read, so `sync_started`, `sync_finished`, `async_started` (call serials), `item` and
    `item_call` (so many items had started of the sync chunk that last began one, and its serial) are facts.
    `crashed`: it ended by itself, so the call it ran is to blame.
    """

    cause: str
    recorded: bool = False
    crashed: bool = False
    sync_started: int = 0
    sync_finished: int = 0
    async_started: int = 0
    item: int = 0
    item_call: int = 0


def judge(call: Call, verdict: Verdict) -> tuple[bool, bool]:
    """Whether the call may have started, and whether it is known to have been running when its worker ended."""
    if not verdict.recorded:
        return True, False
    assert call.lane is not None
    if call.lane.kind is not LaneKind.SYNC:
        return call.serial <= verdict.async_started, False
    if call.serial > verdict.sync_started:
        return False, False
    return True, call.serial == verdict.sync_started and verdict.sync_started > verdict.sync_finished
