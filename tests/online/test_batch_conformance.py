"""`Batch` passes what every launcher must pass, with jobs that run."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

import aiocluster
from aiocluster.testing import Check, Ground, launcher_conformance
from tests.online.batch_jobs import nodes_left
from tests.online.ground import Batch

pytestmark = [pytest.mark.online("batch"), pytest.mark.timeout(300)]


@pytest.mark.parametrize("check", launcher_conformance, ids=lambda check: check.__name__)
async def test_batch_conforms(check: Check, batch: Batch) -> None:
    queue, definition = batch.queue, batch.definition

    async def left(cluster_id: str) -> Collection[str]:
        return await asyncio.to_thread(nodes_left, batch, cluster_id)

    def launcher(**arguments: object) -> aiocluster.Batch:
        return aiocluster.Batch(queue=queue, definition=definition, **arguments)  # type: ignore[arg-type]

    command = ["sh", "-c", "echo out of order >&2; exit 3"]
    ground = Ground(
        launcher=launcher,
        broken=lambda: aiocluster.Batch(queue=queue, definition=definition, command=command),
        broken_says="out of order",
        left=left,
    )
    await check(ground)
