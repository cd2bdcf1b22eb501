"""`aiocluster run` as a person runs it: one script, with workers wherever the options say."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.online.engine import Engine
from tests.online.ground import Batch, Ecs

SCRIPT = """
import asyncio, json, os, sys
from aiocluster import Cluster

class Here:
    def __init__(self, _):
        self.job = os.environ.get("AWS_BATCH_JOB_ID", "")

def where(_):
    return Here(_).job

async def main():
    async with Cluster.from_env() as cluster:
        await cluster.map(where, range(4))
        nodes = sorted({worker.node for worker in cluster.workers.values()})
        jobs = await cluster.everywhere(where, 0)
        print(json.dumps({"nodes": nodes, "jobs": list(jobs.values()), "arguments": sys.argv[1:]}))

asyncio.run(main())
"""


async def ran(folder: Path, *options: str) -> dict[str, Any]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "aiocluster.cli.main", "run", "--workers", "2", "--output", "quiet", *options]
    process = await asyncio.create_subprocess_exec(
        *command, str(script), "--steps", "3", stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(printed)
    assert seen.pop("arguments") == ["--steps", "3"]
    return seen


@pytest.mark.online("docker")
async def test_a_script_with_containers(docker: Engine, tmp_path: Path) -> None:
    seen = await ran(tmp_path, "--launcher", "docker", "--image", docker.image)
    assert len(seen["nodes"]) == 2


@pytest.mark.online("batch")
async def test_a_script_with_jobs(batch: Batch, tmp_path: Path) -> None:
    seen = await ran(tmp_path, "--launcher", "batch", "--queue", batch.queue, "--definition", batch.definition)
    assert len(set(seen["jobs"])) == 2
    assert "" not in seen["jobs"]


@pytest.mark.online("ecs")
async def test_a_script_with_tasks(ecs: Ecs, tmp_path: Path) -> None:
    where = ["--ecs-cluster", ecs.cluster, "--definition", ecs.task_definition, "--launch-type", ecs.launch_type]
    subnets = [word for subnet in ecs.subnets for word in ("--subnet", subnet)]
    seen = await ran(tmp_path, "--launcher", "ecs", *where, *subnets)
    assert len(seen["nodes"]) == 2
