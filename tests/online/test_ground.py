"""The ground that the other tests of this folder stand on holds: an engine, and what answers as AWS does."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

import aiocluster
from tests.online.emulators import Emulator
from tests.online.engine import Engine
from tests.online.ground import Batch, Ecs, job_container, named
from tests.online.waiting import until

ENDED = ("SUCCEEDED", "FAILED")
SHOW = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(('AWS_BATCH', 'TEST_'))}))"
"""A program that prints its environment."""
OBEY = (
    "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print('ready', flush=True); "
    "signal.sigwait([signal.SIGTERM]); print('told to end', flush=True)"
)
"""A program that goes on until it is told to end, as process 1 too, which hears only what it asks for."""


def python(program: str) -> list[str]:
    return ["python", "-c", program]


def new_name(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:8]}"


def submit(batch: Batch, command: list[str], **request: Any) -> str:
    """The id of a new job of the definition that is there."""
    overrides = {"command": command, **request.pop("containerOverrides", {})}
    asked = {"jobQueue": batch.queue, "jobDefinition": batch.definition, "containerOverrides": overrides, **request}
    with batch.client("batch") as client:
        return str(client.submit_job(jobName=new_name("ground"), **asked)["jobId"])


def described(batch: Batch, job_id: str) -> dict[str, Any]:
    with batch.client("batch") as client:
        (job,) = client.describe_jobs(jobs=[job_id])["jobs"]
        return dict(job)


def state(job: Mapping[str, Any]) -> str:
    return str(job["status"])


async def ended(batch: Batch, job_id: str) -> dict[str, Any]:
    return await until(lambda: described(batch, job_id), lambda job: state(job) in ENDED)


def output(batch: Batch, job_id: str) -> list[str]:
    stream = described(batch, job_id)["container"].get("logStreamName")
    return batch.log_lines("/aws/batch/job", stream) if stream else []


async def written(batch: Batch, job_id: str, *lines: str) -> None:
    """Returns when these are the lines that the job has written."""
    await until(lambda: output(batch, job_id), lambda seen: seen == list(lines))


def shown(batch: Batch, job_id: str) -> dict[str, str]:
    (line,) = output(batch, job_id)
    return dict(json.loads(line))


@pytest.mark.online("docker")
def test_image_has_the_package_for_a_user_without_rights(docker: Engine) -> None:
    assert docker.docker("run", "--rm", docker.image, "aiocluster", "--version").startswith(
        f"aiocluster {aiocluster.__version__},"
    )
    program = "import aiocluster, os; print(os.getuid(), os.access('.', os.W_OK), aiocluster.__version__)"
    assert docker.docker("run", "--rm", docker.image, *python(program)) == f"1000 True {aiocluster.__version__}\n"


@pytest.mark.online("docker")
def test_image_runs_an_agent_by_default(docker: Engine) -> None:
    assert json.loads(docker.docker("image", "inspect", docker.image, "--format", "{{json .Config.Cmd}}")) == [
        "aiocluster",
        "agent",
    ]
    assert docker.docker("image", "inspect", docker.image, "--format", "{{json .Config.Entrypoint}}").strip() in ("null", "[]")


@pytest.mark.online("docker")
def test_image_keeps_nothing_of_how_it_was_built(docker: Engine) -> None:
    history = docker.docker("history", "--no-trunc", docker.image)
    assert "pip.conf" not in history
    assert "PIP_" not in history
    docker.docker("run", "--rm", docker.image, "sh", "-c", "test ! -e /build")


@pytest.mark.online("docker")
@pytest.mark.parametrize("network", ["bridge", "host"])
def test_containers_reach_this_machine(docker: Engine, network: str) -> None:
    with socket.create_server((docker.address, 0)) as listening:
        program = f"import socket; socket.create_connection({listening.getsockname()!r}).sendall(b'here')"
        docker.docker("run", "--rm", "--network", network, docker.image, *python(program))
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(4) == b"here"


@pytest.mark.online("batch")
async def test_array_children_know_their_place(batch: Batch) -> None:
    variables = {"environment": named({"TEST_GIVEN": "yes"})}
    parent = submit(batch, python(SHOW), arrayProperties={"size": 3}, containerOverrides=variables)
    job = await ended(batch, parent)
    assert state(job) == "SUCCEEDED"
    assert job["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3
    for i in range(3):
        seen = shown(batch, f"{parent}:{i}")
        assert seen["AWS_BATCH_JOB_ID"] == f"{parent}:{i}"
        assert seen["AWS_BATCH_JOB_ARRAY_INDEX"] == str(i)
        assert seen["AWS_BATCH_JOB_ATTEMPT"] == "1"
        assert seen["TEST_GIVEN"] == "yes"


@pytest.mark.online("batch")
async def test_job_has_the_place_of_nobody(batch: Batch) -> None:
    job_id = submit(batch, python(SHOW))
    assert state(await ended(batch, job_id)) == "SUCCEEDED"
    assert "AWS_BATCH_JOB_ARRAY_INDEX" not in shown(batch, job_id)


@pytest.mark.online("batch")
async def test_exit_code_is_told_by_child_and_parent(batch: Batch) -> None:
    parent = submit(
        batch,
        python("import os, sys; sys.exit(7 * (os.environ['AWS_BATCH_JOB_ARRAY_INDEX'] == '1'))"),
        arrayProperties={"size": 2},
    )
    job = await ended(batch, parent)
    assert state(job) == "FAILED"
    assert job["statusReason"] == "Array Child Job failed"
    child = described(batch, f"{parent}:1")
    assert (child["container"]["exitCode"], child["statusReason"]) == (7, "Essential container in task exited")
    assert described(batch, f"{parent}:0")["container"]["exitCode"] == 0


@pytest.mark.online("batch")
async def test_failed_job_is_tried_again(batch: Batch) -> None:
    program = "import os, sys; sys.exit(os.environ['AWS_BATCH_JOB_ATTEMPT'] == '1')"
    job = await ended(batch, submit(batch, python(program), retryStrategy={"attempts": 3}))
    assert state(job) == "SUCCEEDED"
    assert [attempt["container"]["exitCode"] for attempt in job["attempts"]] == [1, 0]


@pytest.mark.online("batch")
async def test_job_that_needs_more_memory_than_it_has_is_killed(batch: Batch) -> None:
    job = await ended(batch, submit(batch, python("bytearray(2**30)[::4096].count(0); b = b'x' * 2**30; print(len(b))")))
    assert state(job) == "FAILED"
    assert job["container"]["exitCode"] == 137
    assert "OutOfMemory" in job["container"]["reason"]


@pytest.mark.online("batch")
async def test_output_is_there_while_the_job_runs_and_its_end_begins_with_sigterm(batch: Batch) -> None:
    job_id = submit(batch, python(OBEY))
    await written(batch, job_id, "ready")
    assert state(described(batch, job_id)) == "RUNNING"
    with batch.client("batch") as client:
        client.terminate_job(jobId=job_id, reason="enough")
    job = await ended(batch, job_id)
    assert (state(job), job["statusReason"]) == ("FAILED", "enough")
    assert output(batch, job_id) == ["ready", "told to end"]


@pytest.mark.online("batch")
async def test_end_of_a_parent_is_the_end_of_its_children(batch: Batch) -> None:
    parent = submit(batch, python(OBEY), arrayProperties={"size": 3})
    for i in range(3):
        await written(batch, f"{parent}:{i}", "ready")
    with batch.client("batch") as client:
        client.terminate_job(jobId=parent, reason="all of you")
    assert state(await ended(batch, parent)) == "FAILED"
    for i in range(3):
        child = described(batch, f"{parent}:{i}")
        assert (state(child), child["statusReason"]) == ("FAILED", "all of you")


@pytest.mark.online("batch")
async def test_job_waits_for_room(batch: Batch) -> None:
    if batch.small_queue is None:
        pytest.skip("a stack has no small queue")
    parent = submit(batch, python(OBEY), arrayProperties={"size": 3}, jobQueue=batch.small_queue)
    await until(lambda: sorted(states(batch, parent)), lambda seen: seen == ["RUNNABLE", "RUNNING", "RUNNING"])
    with batch.client("batch") as client:
        client.terminate_job(jobId=parent, reason="there is no room")
    assert state(await ended(batch, parent)) == "FAILED"


def states(batch: Batch, parent: str) -> list[str]:
    with batch.client("batch") as client:
        summary = described(batch, parent)["arrayProperties"]["statusSummary"]
        listed = {
            job["jobId"] for status in summary for job in client.list_jobs(arrayJobId=parent, jobStatus=status)["jobSummaryList"]
        }
    return [status for status, number in summary.items() for _ in range(number)] if len(listed) == 3 else []


@pytest.mark.online("batch")
async def test_image_that_is_not_there_fails_the_job_with_a_reason(batch: Batch) -> None:
    with batch.client("batch") as client:
        name = new_name("no-image")
        client.register_job_definition(
            jobDefinitionName=name, type="container", containerProperties=job_container("aiocluster-none:none", batch.job_environ)
        )
    job = await ended(batch, submit(batch, ["true"], jobDefinition=name))
    assert state(job) == "FAILED"
    assert "aiocluster-none" in job["container"]["reason"]


@pytest.mark.online("batch")
def test_limits_of_the_interface_are_those_of_aws(batch: Batch) -> None:
    for size in (1, 10_001):
        with pytest.raises(ClientError, match="rray"):
            submit(batch, ["true"], arrayProperties={"size": size})
    with pytest.raises(ClientError, match="AWS_BATCH"):
        submit(batch, ["true"], containerOverrides={"environment": named({"AWS_BATCH_JOB_ID": "mine"})})
    with batch.client("batch") as client, pytest.raises(ClientError):
        client.describe_jobs(jobs=[f"{uuid.UUID(int=i)}" for i in range(101)])


@pytest.mark.online("batch")
async def test_jobs_are_tagged_and_found_by_name(batch: Batch) -> None:
    with batch.client("batch") as client:
        asked = {"jobQueue": batch.queue, "jobDefinition": batch.definition, "containerOverrides": {"command": ["true"]}}
        name = new_name("found")
        job_id = client.submit_job(jobName=name, tags={"aiocluster": "test"}, **asked)["jobId"]
        assert described(batch, job_id)["tags"] == {"aiocluster": "test"}
        filters = [{"name": "JOB_NAME", "values": [f"{name[:-2]}*"]}]
        found = client.list_jobs(jobQueue=batch.queue, filters=filters)["jobSummaryList"]
        assert [job["jobId"] for job in found] == [job_id]
    await ended(batch, job_id)


@pytest.mark.online("batch-node")
async def test_nodes_know_their_place_and_where_the_main_node_is(batch: Batch) -> None:
    nodes, port = 3, 49152
    greet = (
        "import os, socket\n"
        "index, main = os.environ['AWS_BATCH_JOB_NODE_INDEX'], os.environ['AWS_BATCH_JOB_MAIN_NODE_INDEX']\n"
        "place = ' '.join([os.environ['AWS_BATCH_JOB_ID'].rpartition('#')[2], index, os.environ['AWS_BATCH_JOB_NUM_NODES']])\n"
        "if index == main:\n"
        "    assert 'AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS' not in os.environ\n"
        f"    listening = socket.create_server(('', {port}))\n"
        f"    said = [listening.accept()[0].makefile().readline().strip() for _ in range({nodes - 1})]\n"
        "    print(sorted([*said, place]), os.environ['TEST_OF'], flush=True)\n"
        "else:\n"
        "    address, connection = os.environ['AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS'], None\n"
        "    while connection is None:\n"
        "        try:\n"
        f"            connection = socket.create_connection((address, {port}))\n"
        "        except OSError:\n"
        "            pass\n"
        "    import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "    connection.sendall(f'{place}\\n'.encode())\n"
        "    signal.sigwait([signal.SIGTERM]); print('told to end')\n"
    )
    with batch.client("batch") as client:
        name = new_name("nodes")
        container = {**job_container(batch.image, batch.job_environ), "command": python(greet)}
        properties = {"mainNode": 0, "numNodes": nodes, "nodeRangeProperties": [{"targetNodes": "0:", "container": container}]}
        client.register_job_definition(jobDefinitionName=name, type="multinode", nodeProperties=properties)
        override = {"targetNodes": "0", "containerOverrides": {"environment": named({"TEST_OF": "the main node"})}}
        job_id = client.submit_job(
            jobName=name, jobQueue=batch.queue, jobDefinition=name, nodeOverrides={"nodePropertyOverrides": [override]}
        )["jobId"]
        job = await ended(batch, job_id)
        assert state(job) == "SUCCEEDED", job
        assert job["nodeProperties"]["numNodes"] == nodes
        assert output(batch, f"{job_id}#0") == ["['0 0 3', '1 1 3', '2 2 3'] the main node"]
        assert [output(batch, f"{job_id}#{i}") for i in range(1, nodes)] == [["told to end"]] * 2


@pytest.mark.online("ecs")
async def test_tasks_run_with_overrides_and_end_when_told(ecs: Ecs) -> None:
    overrides = {"containerOverrides": [{"name": ecs.container, "command": python(OBEY), "environment": named({"TEST": "1"})}]}
    with ecs.client("ecs") as client:
        answer = client.run_task(count=2, overrides=overrides, **ecs.place)
        assert not answer["failures"]
        arns = [task["taskArn"] for task in answer["tasks"]]
        assert len(arns) == 2
        for arn in arns:
            await until(partial(lines, ecs, arn), lambda seen: seen == ["ready"])
            client.stop_task(cluster=ecs.cluster, task=arn, reason="enough")

        def tasks() -> list[dict[str, Any]]:
            return list(client.describe_tasks(cluster=ecs.cluster, tasks=arns)["tasks"])

        stopped = await until(tasks, lambda seen: all(task["lastStatus"] == "STOPPED" for task in seen))
        assert [task["stoppedReason"] for task in stopped] == ["enough", "enough"]


def lines(ecs: Ecs, task: str) -> list[str]:
    return ecs.log_lines(ecs.log_group, f"{ecs.log_prefix}/{ecs.container}/{task.rpartition('/')[2]}")


@pytest.mark.online("ecs")
async def test_exit_code_of_a_task_is_told(ecs: Ecs) -> None:
    overrides = {"containerOverrides": [{"name": ecs.container, "command": python("raise SystemExit(7)")}]}
    with ecs.client("ecs") as client:
        (task,) = client.run_task(count=1, overrides=overrides, **ecs.place)["tasks"]

        def look() -> dict[str, Any]:
            return dict(client.describe_tasks(cluster=ecs.cluster, tasks=[task["taskArn"]])["tasks"][0])

        seen = await until(look, lambda seen: seen["lastStatus"] == "STOPPED")
        assert seen["containers"][0]["exitCode"] == 7


@pytest.mark.online("batch")
async def test_throttled_call_succeeds_after_tries(batch: Batch, batch_faults: Emulator) -> None:
    rule = {
        "service": "batch",
        "operation": "DescribeJobQueues",
        "times": 1,
        "error": {"code": "TooManyRequestsException", "status": 429},
    }
    batch_faults.request("POST", "/_microburst/rules", [rule])
    assert (await queues()) >= 1
    assert len(fired(batch_faults)) == 1


@pytest.mark.online("batch")
async def test_error_of_the_server_reaches_who_does_not_try_again(batch: Batch, batch_faults: Emulator) -> None:
    rule = {"service": "batch", "error": {"code": "ServerException", "status": 500}}
    batch_faults.request("POST", "/_microburst/rules", [rule])
    with pytest.raises(ClientError, match="ServerException") as caught:
        await queues(max_attempts=1)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert len(fired(batch_faults)) == 1


async def queues(max_attempts: int = 3) -> int:
    """The number of queues there are, as aiobotocore is told by the environment where to ask."""
    config = AioConfig(retries={"mode": "standard", "total_max_attempts": max_attempts})
    async with get_session().create_client("batch", config=config) as client:
        return len((await client.describe_job_queues())["jobQueues"])


def fired(faults: Emulator) -> list[Any]:
    answer = faults.request("GET", "/_microburst/fired")
    return list(answer["events"] if isinstance(answer, dict) else answer)
