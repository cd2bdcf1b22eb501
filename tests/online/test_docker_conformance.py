"""`Docker` passes what every launcher must pass, on an engine."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from aiocluster.launch.docker import Docker
from aiocluster.testing import Check, Ground, launcher_conformance
from tests.online.engine import Engine

pytestmark = [pytest.mark.online("docker"), pytest.mark.timeout(300)]


@pytest.mark.parametrize("network", ["host", "bridge"])
@pytest.mark.parametrize("check", launcher_conformance, ids=lambda check: check.__name__)
async def test_docker_conforms(check: Check, network: str, docker: Engine) -> None:
    image = docker.image

    async def containers(cluster_id: str) -> Collection[str]:
        return docker.docker(
            "ps", "--all", "--filter", f"label=aiocluster:cluster={cluster_id}", "--format", "{{.Names}}"
        ).split()

    def launcher(**arguments: object) -> Docker:
        return Docker(image=image, network=network, **arguments)  # type: ignore[arg-type]

    ground = Ground(
        launcher=launcher,
        broken=lambda: Docker(image=image, network=network, command=["sh", "-c", "echo out of order >&2; exit 3"]),
        broken_says="out of order",
        left=containers,
        states=["created", "running"],
    )
    await check(ground)
