"""What a fleet of jobs waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from aiocluster.launch.batch_fleet import Fleet, Submission
from aiocluster.launch.batch_jobs import JobState
from aiocluster.launch.poller import Poller
from tests.unit.launch.fake_batch import SAFETY_S, FakeAws, Told


async def ask(_ids: Sequence[str]) -> dict[str, JobState]:
    return {}


def fleet() -> Fleet:
    poller: Poller[JobState] = Poller(ask, lambda _id, _state: None, name="jobs")
    return Fleet(FakeAws(), poller, pause=asyncio.sleep, random=lambda: 0.5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_another_attempt_is_seen_whichever_node_is_waited_for_first(order: tuple[int, int]) -> None:
    one, names = fleet(), ["batch-1", "batch-2"]
    submission = Submission({"jobName": "n", "jobQueue": "q"}, Told().request(*names))
    one.record(submission, names)
    nodes = list(one.submissions[submission])
    waiting = asyncio.ensure_future(one.wait_for(nodes, 3600.0))
    await asyncio.sleep(0)
    for index in order:
        nodes[index].changed.set()
        nodes[index].changed = asyncio.Event()  # as with each attempt
        await asyncio.sleep(0)
    async with asyncio.timeout(SAFETY_S):
        await waiting
