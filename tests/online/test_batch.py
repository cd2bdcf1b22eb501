"""Workers that are jobs of AWS Batch."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from typing import Any

import pytest

from aiocluster import Cluster, LaunchError
from aiocluster.launch.batch import end, leftovers
from tests.online.batch_jobs import (
    ENDED,
    SOON_S,
    container_of,
    described,
    given,
    jobs_named,
    kill,
    nodes_left,
    nothing_left,
    output_of,
)
from tests.online.emulators import Emulator
from tests.online.engine import Engine
from tests.online.ground import Batch, named
from tests.online.waiting import until

pytestmark = pytest.mark.online("batch")

WAIT = ["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"]
"""It never joins, and ends when it is told to."""
MANAGER = """
import asyncio, json, os, sys
import aiocluster
from aiocluster.launch.own_container import own_container_id

async def main():
    async with aiocluster.Cluster.batch(int(sys.argv[1]), output="quiet") as cluster:
        jobs = await cluster.everywhere(os.getenv, "AWS_BATCH_JOB_ID")
        containers = await cluster.everywhere(own_container_id)
        told = {"cluster": cluster.id, "jobs": list(jobs.values()), "containers": list(containers.values())}
        print(json.dumps(told), flush=True)
        if sys.argv[2] == "stay":
            await asyncio.Event().wait()

aiocluster.run(main())
"""
"""A manager that is a job itself: it takes its definition from there, and says who its workers are."""


def new_name() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


def submit_manager(batch: Batch, n: int, then: str, *, queue: str | None = None) -> str:
    variables = named({"WORKER_JOB_QUEUE": queue}) if queue else []
    overrides = {"command": ["python", "-c", MANAGER, str(n), then], "environment": variables}
    with batch.client("batch") as client:
        answer = client.submit_job(
            jobName=new_name(), jobQueue=batch.manager_queue, jobDefinition=batch.definition, containerOverrides=overrides
        )
        return str(answer["jobId"])


async def told_by(batch: Batch, manager: str) -> dict[str, Any]:
    lines = await until(lambda: output_of(batch, manager), timeout=SOON_S)
    told: dict[str, Any] = json.loads(lines[0])
    return told


# --- from within and from outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 1, 0])
async def test_a_manager_that_is_a_job_submits_its_workers(batch: Batch, n: int) -> None:
    manager = submit_manager(batch, n, "end", queue=batch.queue)
    job = await until(lambda: described(batch, manager), lambda job: job["status"] in ENDED, timeout=SOON_S)
    assert job["status"] == "SUCCEEDED", await asyncio.to_thread(output_of, batch, manager)
    told = await told_by(batch, manager)
    assert len(set(told["jobs"])) == len(set(told["containers"])) == n
    parents = {id.partition(":")[0] for id in told["jobs"]}
    assert len(parents) == (1 if n else 0)
    assert all((":" in id) == (n > 1) for id in told["jobs"])
    for parent in parents:
        seen = described(batch, parent)
        assert seen["jobQueue"].endswith(batch.queue)
        assert seen["tags"]["aiocluster:manager"] == f"batch:{manager}"
    await nothing_left(batch, told["cluster"])


async def test_two_workers_are_the_children_of_one_array_job(batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "aiocluster")
    async with Cluster.batch(2, **given(batch)) as cluster:
        ids = await cluster.everywhere(os.getenv, "AWS_BATCH_JOB_ID")
        (parent,) = {id.partition(":")[0] for id in ids.values() if id}
        assert sorted(str(id).partition(":")[2] for id in ids.values()) == ["0", "1"]
        assert f"spawned array job ID {parent} (n=2)" in caplog.messages
        assert {worker.node for worker in cluster.workers.values()} == {"batch-1", "batch-2"}
        await cluster.scale(3)
        assert {worker.node for worker in cluster.workers.values()} == {"batch-1", "batch-2", "batch-3"}
        await cluster.scale(1)
    await nothing_left(batch, cluster.id)
    statuses = [job["status"] for job in await asyncio.to_thread(jobs_named, batch, f"aiocluster-{cluster.id}")]
    assert len(statuses) == 2


async def test_workers_share_a_job_as_they_are_told(batch: Batch) -> None:
    async with Cluster.batch(3, **given(batch, workers_per_node=2, env={"TEST_GIVEN": "yes"})) as cluster:
        assert sorted(worker.node for worker in cluster.workers.values()) == ["batch-1", "batch-1", "batch-2"]
        assert set((await cluster.everywhere(os.getenv, "TEST_GIVEN")).values()) == {"yes"}
    await nothing_left(batch, cluster.id)


async def test_two_clusters_at_once_do_not_touch_each_other(batch: Batch) -> None:
    async with Cluster.batch(2, **given(batch)) as one, Cluster.batch(2, **given(batch)) as other:
        await one.close()
        await nothing_left(batch, one.id)
        assert len(await asyncio.to_thread(nodes_left, batch, other.id)) == 2
        assert len(await other.everywhere(os.getpid)) == 2
    await nothing_left(batch, other.id)


@pytest.mark.parametrize("store", ["ssm", "secretsmanager"])
async def test_jobs_are_told_only_where_the_token_is(batch: Batch, store: Any) -> None:
    async with Cluster.batch(2, **given(batch, secret_store=store)) as cluster:
        assert len(await cluster.everywhere(os.getpid)) == 2
        (job,) = await asyncio.to_thread(jobs_named, batch, f"aiocluster-{cluster.id}")
        variables = {one["name"]: one["value"] for one in described(batch, f"{job['jobId']}:0")["container"]["environment"]}
        assert "AIOCLUSTER_TOKEN" not in variables
        assert variables["AIOCLUSTER_TOKEN_FROM"].startswith(f"{store}:")
    with batch.client(store) as client:
        if store == "ssm":
            names = [one["Name"] for one in client.describe_parameters()["Parameters"]]
        else:
            names = [one["Name"] for one in client.list_secrets()["SecretList"]]
    assert not [name for name in names if cluster.id in name]


# --- what cannot be ----------------------------------------------------------------------------------------------------------


async def test_more_workers_than_the_queue_can_ever_run_are_refused_and_nothing_is_submitted(batch: Batch) -> None:
    if batch.small_queue is None:
        pytest.skip("a stack has no small queue")
    name = new_name()
    with pytest.raises(LaunchError, match="3 workers are needed, and only 2 can ever run"):
        await Cluster.batch(3, **given(batch, queue=batch.small_queue, name=name))
    assert await asyncio.to_thread(jobs_named, batch, name) == []


async def test_a_cluster_goes_on_with_as_many_as_fit(batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    if batch.small_queue is None:
        pytest.skip("a stack has no small queue")
    async with Cluster.batch((2, 3), timeout=4.0, **given(batch, queue=batch.small_queue)) as cluster:
        assert len(cluster.workers) == 2
        assert any(message.startswith("only 2 of 3 workers can run at once") for message in caplog.messages)
    await nothing_left(batch, cluster.id)


async def test_a_minimum_that_is_not_met_is_an_error_with_states_and_nothing_is_left(batch: Batch) -> None:
    name = new_name()
    with pytest.raises(LaunchError, match="only 0 of at least 2 workers joined within 3 s") as caught:
        await Cluster.batch(2, timeout=3.0, **given(batch, name=name, command=WAIT))
    assert [(node.name, node.state) for node in caught.value.nodes] == [("batch-1", "RUNNING"), ("batch-2", "RUNNING")]
    (job,) = await until(
        lambda: jobs_named(batch, name), lambda jobs: all(job["status"] in ENDED for job in jobs), timeout=SOON_S
    )
    assert job["arrayProperties"]["size"] == 2


async def test_a_job_that_exits_at_once_is_known_in_seconds_with_its_last_lines(batch: Batch) -> None:
    command = ["python", "-c", "print('no such model'); raise SystemExit(7)"]
    with pytest.raises(LaunchError, match=r"its job has FAILED: .*exit code 7") as caught:
        await Cluster.batch(1, timeout=3600.0, **given(batch, command=command))
    (node,) = caught.value.nodes
    assert node.last_lines == ("no such model",)


async def test_a_queue_and_a_definition_that_are_not_there_are_named(batch: Batch) -> None:
    with pytest.raises(LaunchError, match="there is no job queue nowhere"):
        await Cluster.batch(1, **given(batch, queue="nowhere"))
    with pytest.raises(LaunchError, match="nothing-like-it"):
        await Cluster.batch(1, **given(batch, definition="nothing-like-it"))


# --- ends --------------------------------------------------------------------------------------------------------------------


async def test_workers_of_a_manager_that_is_terminated_end(batch: Batch) -> None:
    manager = submit_manager(batch, 2, "stay", queue=batch.queue)
    told = await told_by(batch, manager)
    with batch.client("batch") as client:
        client.terminate_job(jobId=manager, reason="enough")
    await nothing_left(batch, told["cluster"])
    await until(lambda: described(batch, manager)["status"] in ENDED, timeout=SOON_S)


async def test_workers_of_a_manager_that_is_killed_end(batch: Batch, docker_engine: Engine) -> None:
    if not batch.emulated:
        pytest.skip("containers of a stack are out of reach")
    manager = submit_manager(batch, 2, "stay", queue=batch.queue)
    told = await told_by(batch, manager)
    containers = [container_of(docker_engine, job) for job in told["jobs"]]
    assert sorted(told["containers"]) == sorted(containers)
    kill(docker_engine, manager)
    await nothing_left(batch, told["cluster"])


async def test_what_a_dead_manager_has_left_is_found_and_ended(batch: Batch) -> None:
    dead = f"c-{uuid.uuid4().hex[:12]}"
    marks = {"aiocluster:cluster": dead, "aiocluster:manager": "batch:gone", "aiocluster:created": "2024-01-01T00:00:00Z"}
    with batch.client("batch") as client:
        asked = {"jobQueue": batch.queue, "jobDefinition": batch.definition, "containerOverrides": {"command": WAIT}}
        id = client.submit_job(jobName=new_name(), tags=marks, arrayProperties={"size": 2}, **asked)["jobId"]
    (found,) = [one for one in await leftovers() if one.cluster == dead]
    assert (found.id, found.kind, found.alive) == (id, "batch job", None)
    await end(found)
    await nothing_left(batch, dead)


# --- an API that fails -------------------------------------------------------------------------------------------------------

STEPS = ("DescribeJobQueues", "DescribeComputeEnvironments", "SubmitJob", "DescribeJobs", "ListJobs", "TerminateJob")
FAULTS: dict[str, list[dict[str, Any]]] = {
    "throttling": [{"operation": "SubmitJob", "times": 2, "error": {"code": "TooManyRequestsException", "status": 429}}],
    "an error of the server": [{"operation": "SubmitJob", "times": 1, "error": {"code": "ServerException", "status": 500}}],
    "no answer in time": [{"operation": "SubmitJob", "times": 1, "timeout_ms": 500}],
    "a connection that breaks": [{"operation": "SubmitJob", "times": 1, "reset": True}],
    "a lost answer": [{"operation": "SubmitJob", "times": 1, "response": {"abort_bytes": 1}}],
    "trouble at every step": [
        {"operation": operation, "times": 2, "error": {"code": "ServerException", "status": 500}} for operation in STEPS
    ],
}


@pytest.mark.parametrize("fault", list(FAULTS))
async def test_the_right_number_of_jobs_is_there_whatever_the_api_does(fault: str, batch: Batch, batch_faults: Emulator) -> None:
    await asyncio.to_thread(
        batch_faults.request, "POST", "/_microburst/rules", [{"service": "batch", **rule} for rule in FAULTS[fault]]
    )
    name = new_name()
    async with Cluster.batch(2, timeout=SOON_S, **given(batch, name=name)) as cluster:
        assert len(await cluster.everywhere(os.getpid)) == 2
        assert fired(batch_faults)
        (job,) = await asyncio.to_thread(jobs_named, batch, name)
        assert job["arrayProperties"]["size"] == 2
    await nothing_left(batch, cluster.id)


def fired(faults: Emulator) -> list[Any]:
    answer = faults.request("GET", "/_microburst/fired")
    return list(answer["events"] if isinstance(answer, dict) else answer)


async def test_an_answer_that_is_lost_while_the_start_is_cancelled_leaves_no_job(batch: Batch, batch_faults: Emulator) -> None:
    rule = {"service": "batch", "operation": "SubmitJob", "latency": 500, "response": {"abort_bytes": 1}}
    await asyncio.to_thread(batch_faults.request, "POST", "/_microburst/rules", [rule])
    name = new_name()
    starting = asyncio.ensure_future(_opened(given(batch, name=name)))
    await until(lambda: jobs_named(batch, name))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    jobs = await asyncio.to_thread(jobs_named, batch, name)
    assert len(jobs) == 1
    await until(lambda: [job["status"] in ENDED for job in jobs_named(batch, name)], all, timeout=SOON_S)


async def _opened(arguments: dict[str, Any]) -> Cluster:
    return await Cluster.batch(2, **arguments)


async def test_expired_credentials_are_a_clear_error(batch: Batch, batch_faults: Emulator) -> None:
    rule = {"service": "batch", "error": {"code": "ExpiredTokenException", "status": 403}}
    await asyncio.to_thread(batch_faults.request, "POST", "/_microburst/rules", [rule])
    with pytest.raises(LaunchError, match=r"the AWS credentials have expired \(ExpiredTokenException\).*renew them"):
        await Cluster.batch(2, **given(batch))


async def test_a_permission_that_is_missing_is_named(batch: Batch, batch_faults: Emulator) -> None:
    rule = {"service": "batch", "operation": "SubmitJob", "error": {"code": "AccessDeniedException", "status": 403}}
    await asyncio.to_thread(batch_faults.request, "POST", "/_microburst/rules", [rule])
    with pytest.raises(LaunchError, match="access denied: the role or user needs batch:SubmitJob in its policy"):
        await Cluster.batch(2, **given(batch))
