"""`aiocluster ls` and `aiocluster reap` as a person runs them, on what real clusters and dead ones have on an engine."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiocluster import Cluster
from aiocluster.launch.marks import CLUSTER, CREATED, MANAGER, manager_tag
from tests.online.commands import aiocluster
from tests.online.engine import Engine

pytestmark = pytest.mark.online("docker")


@pytest.fixture
async def orphan(docker: Engine) -> AsyncIterator[str]:
    """The cluster id of a container whose manager was a process of this machine that has ended."""
    cluster = f"c-{uuid.uuid4().hex[:12]}"
    labels = {CLUSTER: cluster, MANAGER: f"{(await manager_tag()).rpartition(':')[0]}:1", CREATED: "2030-01-01T00:00:00Z"}
    marks = [f"--label={name}={value}" for name, value in labels.items()]
    id = docker.docker("run", "--detach", *marks, docker.image, "sleep", "600").strip()
    yield cluster
    docker.docker("rm", "--force", id)  # one that is gone is no matter


async def test_a_dead_clusters_container_is_shown_and_ended_and_a_living_ones_spared(docker: Engine, orphan: str) -> None:
    async with Cluster.docker(1, image=docker.image, output="quiet") as living:
        code, printed = await aiocluster("ls", "-k", "docker", "--json")
        rows: list[dict[str, Any]] = json.loads(printed)
        alive = {row["cluster"]: row["manager_alive"] for row in rows}
        assert code == 0
        assert alive[orphan] is False
        assert alive[living.id] is True
        code, printed = await aiocluster("reap", "-k", "docker", "--cluster", orphan, "--dry-run")
        assert code == 0
        assert printed.startswith("would end docker container")
        code, printed = await aiocluster("reap", "-k", "docker", "--cluster", orphan)
        assert code == 0
        assert printed.startswith("ended docker container")
        code, printed = await aiocluster("reap", "-k", "docker", "--cluster", living.id)
        assert code == 0
        assert "1 left alone" in printed
        assert await living.submit(abs, -1) == 1
    code, printed = await aiocluster("ls", "-k", "docker", "--cluster", orphan)
    assert printed == f"nothing is left of cluster {orphan}\n"
