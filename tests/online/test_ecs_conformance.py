"""`ECS` passes what every launcher must pass, with tasks that run."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

import aiocluster
from aiocluster.testing import Check, Ground, launcher_conformance
from tests.online.ecs_tasks import tasks_left
from tests.online.ground import Ecs

pytestmark = [pytest.mark.online("ecs"), pytest.mark.timeout(300)]


@pytest.mark.parametrize("check", launcher_conformance, ids=lambda check: check.__name__)
async def test_ecs_conforms(check: Check, ecs: Ecs) -> None:
    place: dict[str, Any] = {"cluster": ecs.cluster, "task_definition": ecs.task_definition, "launch_type": ecs.launch_type}
    place["subnets"] = ecs.subnets

    async def left(cluster_id: str) -> Collection[str]:
        return await asyncio.to_thread(tasks_left, ecs, cluster_id)

    def launcher(**arguments: Any) -> aiocluster.ECS:
        return aiocluster.ECS(**place, **arguments)

    command = ["sh", "-c", "echo out of order >&2; exit 3"]
    ground = Ground(
        launcher=launcher,
        broken=lambda: aiocluster.ECS(**place, command=command),
        broken_says="out of order",
        left=left,
    )
    await check(ground)
