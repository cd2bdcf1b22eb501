"""`aiocluster doctor` as a person runs it, where things are well, and where one is broken on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from typing import Any

import pytest

from tests.online.engine import Engine
from tests.online.ground import Batch, Ecs


async def doctor(*arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the findings by their checks."""
    command = [sys.executable, "-m", "aiocluster.cli.main", "doctor", "--json", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environ})
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, {row["check"]: row for row in json.loads(printed)}


def failed(findings: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["detail"] for name, row in findings.items() if row["outcome"] == "failed"}


# --- an engine ---------------------------------------------------------------------------------------------------------------


@pytest.mark.online("docker")
async def test_an_engine_with_this_image_is_well(docker: Engine) -> None:
    code, findings = await doctor("-l", "docker", "--image", docker.image)
    assert failed(findings) == {}
    assert code == 0
    assert "has the same: aiocluster" in findings["versions"]["detail"]
    assert "a container has reached this process" in findings["address"]["detail"]
    assert docker.docker("ps", "--all", "--quiet", "--filter", "name=aiocluster-doctor").split() == []


@pytest.mark.online("docker")
async def test_an_image_that_is_missing_is_named(docker: Engine) -> None:
    name = f"nobody/{uuid.uuid4().hex}"
    code, findings = await doctor("-l", "docker", "--image", name)
    assert code == 1
    assert failed(findings) == {"image": f"the engine does not have {name}"}


@pytest.mark.online("docker")
async def test_an_image_without_this_package_is_named(docker: Engine) -> None:
    name = f"aiocluster-test-empty:{uuid.uuid4().hex[:8]}"
    id = docker.docker("create", docker.image, "true").strip()
    docker.docker("commit", "--change", "ENV PATH=/usr/local/bin:/usr/bin:/bin", id, name)
    try:
        code, findings = await doctor("-l", "docker", "--image", name)
    finally:
        docker.docker("rm", id)
        docker.docker("rmi", name)
    assert code == 1
    assert list(failed(findings)) == ["versions"]


@pytest.mark.online("docker")
async def test_an_address_that_containers_do_not_reach_is_named(docker: Engine) -> None:
    there = ("--network", "bridge", "--advertise", "127.0.0.1")
    code, findings = await doctor("-l", "docker", "--image", docker.image, *there)
    assert code == 1
    assert list(failed(findings)) == ["address"]
    assert "a container does not reach this process at 127.0.0.1: ConnectionRefusedError" in findings["address"]["detail"]


@pytest.mark.online("docker")
async def test_an_engine_that_is_not_there_is_named(docker: Engine) -> None:
    code, findings = await doctor("-l", "docker", "--image", docker.image, DOCKER_HOST="unix:///nonexistent.sock")
    assert code == 1
    assert list(failed(findings)) == ["engine"]


# --- AWS ---------------------------------------------------------------------------------------------------------------------


def of_batch(batch: Batch) -> list[str]:
    return ["-l", "batch", "--queue", batch.queue, "--definition", batch.definition]


@pytest.mark.online("batch")
async def test_a_queue_and_a_definition_are_well(batch: Batch) -> None:
    code, findings = await doctor(*of_batch(batch))
    assert failed(findings) == {}
    assert code == 0
    assert {name for name, row in findings.items() if row["outcome"] == "ok"} >= {
        "credentials", "queue", "definition", "batch:DescribeJobs", "batch:ListJobs", "address",
    }  # fmt: skip


@pytest.mark.online("batch")
async def test_a_queue_that_is_disabled_is_named(batch: Batch) -> None:
    if not batch.emulated:
        pytest.skip("a queue of the emulator is disabled")
    with batch.client("batch") as client:
        client.update_job_queue(jobQueue=batch.small_queue, state="DISABLED")
        try:
            code, findings = await doctor("-l", "batch", "--queue", str(batch.small_queue), "--definition", batch.definition)
        finally:
            client.update_job_queue(jobQueue=batch.small_queue, state="ENABLED")
    assert code == 1
    assert list(failed(findings)) == ["queue"]
    assert "DISABLED" in findings["queue"]["detail"]


@pytest.mark.online("batch")
async def test_a_queue_without_room_and_a_definition_and_a_bucket_that_are_missing_are_named(batch: Batch) -> None:
    arguments = [*of_batch(batch)[:-1], "nothing", "--workers", "100000", "--results", f"s3://aiocluster-{uuid.uuid4().hex}/x"]
    code, findings = await doctor(*arguments)
    assert code == 1
    assert set(failed(findings)) == {"queue", "definition", "results"}


@pytest.mark.online("batch")
async def test_an_account_that_does_not_answer_is_named(batch: Batch) -> None:
    code, findings = await doctor(*of_batch(batch), AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_EC2_METADATA_DISABLED="true")
    assert code == 1
    assert list(failed(findings)) == ["credentials"]


@pytest.mark.online("batch")
async def test_a_process_without_credentials_is_told_so(batch: Batch) -> None:
    if not batch.emulated:
        pytest.skip("the caller's credentials may come from anywhere")
    code, findings = await doctor(*of_batch(batch), AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert code == 1
    assert list(failed(findings)) == ["credentials"]
    assert "no AWS credentials" in findings["credentials"]["detail"]


@pytest.mark.online("ecs")
async def test_a_cluster_and_a_task_definition_are_well_and_missing_ones_named(ecs: Ecs) -> None:
    subnets = [word for subnet in ecs.subnets for word in ("--subnet", subnet)]
    code, findings = await doctor("-l", "ecs", "--ecs-cluster", ecs.cluster, "--definition", ecs.task_definition, *subnets)
    assert failed(findings) == {}
    assert code == 0
    code, findings = await doctor("-l", "ecs", "--ecs-cluster", "nothing", "--definition", "nothing", *subnets)
    assert code == 1
    assert {"cluster", "definition"} <= set(failed(findings))
