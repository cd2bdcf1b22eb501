"""The command `aiocluster stack`, each time in a process of its own, and jobs on what it has made."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.online.batch_jobs import ENDED, described
from tests.online.ground import Batch, Ecs, named, stack_batch, stack_ecs
from tests.online.stack_command import command, delete, outputs_of
from tests.online.waiting import until

pytestmark = pytest.mark.online("batch")

EVERY = {"Ecr", "EcrUri", "LogGroup", "ResultsBucket", "SecurityGroup", "Subnets"}
OUTPUTS = {
    "batch": EVERY
    | {"JobName", "JobDefinitionName", "ComputeEnvironmentArn", "ManagerJobQueueArn", "WorkerJobQueueArn", "JobRoleArn"}
    | {"TestBatchNodeJobRoleArn"},
    "ecs": EVERY | {"EcsClusterArn", "TaskDefinitionArn", "TaskContainerName", "TaskLogGroup", "TaskLogPrefix", "TaskRoleArn"},
}
MANAGER = """
import json, os
import aiocluster

async def main():
    async with aiocluster.Cluster.batch(2, memory=512, output="quiet") as cluster:
        print(json.dumps(sorted((await cluster.everywhere(os.getenv, "AWS_BATCH_JQ_NAME")).values())), flush=True)

aiocluster.run(main())
"""
"""A manager that is a job itself, and knows nothing but what its definition tells."""


@pytest.fixture
def aws(batch: Batch) -> Batch:
    """The emulator: these tests make and delete what costs money elsewhere."""
    if not batch.emulated:
        pytest.skip("no stack of an account is made or deleted by tests")
    return batch


@pytest.fixture
def name(aws: Batch) -> Iterator[str]:
    """The name of a stack that is not there afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    delete(name)


# --- templates ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["batch", "ecs"])
@pytest.mark.parametrize(
    "parameters",
    [
        [],
        ["SubnetType=Public", "ResultsExpireDays=7"],
        ["ExternalNetworking=false", "AutomaticTeardown=true", "VPCCidrBlock=172.20.0.0/18"],
    ],
    ids=["as it is", "public", "isolated"],
)
def test_a_stack_is_made_tells_of_itself_and_is_deleted(name: str, template: str, parameters: list[str]) -> None:
    made = command("deploy", "--template", template, "--stack", name, *parameters)
    assert made.returncode == 0, made.stderr
    assert f"CREATE_COMPLETE      AWS::CloudFormation::Stack {name}\n" in made.stderr
    assert made.stderr.endswith(f"the stack {name} is created\n")
    outputs = outputs_of(name)
    assert OUTPUTS[template] <= set(outputs)
    assert all(outputs.values())
    ground: Batch | Ecs = stack_batch(outputs) if template == "batch" else stack_ecs(outputs)
    assert ground.image == f"{outputs['EcrUri']}:latest"
    deleted = command("delete", "--yes", "--stack", name)
    assert deleted.returncode == 0, deleted.stderr
    gone = command("outputs", "--stack", name)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == f"aiocluster stack outputs: no stack {name} in us-east-1: make it with `aiocluster stack deploy`\n"


def test_a_stack_on_instances_and_spot_is_made(name: str) -> None:
    made = command("deploy", "--stack", name, "ProvisioningModel=SPOT", "MinVCPUs=2", "InstanceTypes=c5,m5.large", "MaxVCPUs=8")
    assert made.returncode == 0, made.stderr


def test_tasks_on_instances_have_instances(name: str) -> None:
    made = command("deploy", "--template", "ecs", "--stack", name, "MaxInstances=3", "Capacity=EC2")
    assert made.returncode == 0, made.stderr
    assert outputs_of(name)["LaunchType"] == "EC2"


def test_what_is_deployed_again_is_changed_or_left_alone(aws: Batch, name: str) -> None:
    assert command("deploy", "--stack", name, "MaxVCPUs=9").returncode == 0
    environment = outputs_of(name)["ComputeEnvironmentArn"]
    same = command("deploy", "--stack", name)
    assert (same.returncode, same.stderr.splitlines()[-1]) == (0, f"the stack {name} is as it was")
    changed = command("deploy", "--stack", name, "ManagerMaxVCPUs=10")
    assert (changed.returncode, changed.stderr.splitlines()[-1]) == (0, f"the stack {name} is updated")
    with aws.client("batch") as client:
        (told,) = client.describe_compute_environments(computeEnvironments=[environment])["computeEnvironments"]
    assert told["computeResources"]["maxvCpus"] == 9
    other = command("deploy", "--template", "ecs", "--stack", name)
    assert other.returncode == 1
    assert "made from the template 'batch', and 'ecs' would replace all it has" in other.stderr


@pytest.mark.parametrize(
    ("parameter", "why"),
    [
        ("VPCCidrBlock=10.0.0.0", "a private network such as 10.0.0.0/16; it must be a /16, /17 or /18"),
        ("ProvisioningModel=CHEAP", "[EC2, SPOT]"),
        ("Colour=red", "the template has no parameter Colour; it has VPCCidrBlock, SubnetType"),
    ],
)
def test_a_broken_parameter_is_refused_and_leaves_no_stack(aws: Batch, name: str, parameter: str, why: str) -> None:
    ran = command("deploy", "--stack", name, parameter)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert why in ran.stderr
    assert "Traceback" not in ran.stderr
    assert command("outputs", "--stack", name).returncode == 1


def test_a_stack_with_results_is_deleted_only_when_they_may_go_too(aws: Batch, name: str) -> None:
    assert command("deploy", "--stack", name).returncode == 0
    outputs = outputs_of(name)
    bucket = outputs["ResultsBucket"]
    with aws.client("s3") as s3:
        for i in range(3):
            s3.put_object(Bucket=bucket, Key=f"results/{i}", Body=b"result")
    refused = command("delete", "--yes", "--stack", name)
    assert refused.returncode == 1
    assert f"results in the bucket {bucket} (results/0, results/1, …); --empty deletes it, too" in refused.stderr
    assert outputs_of(name) == outputs
    assert command("delete", "--yes", "--empty", "--stack", name).returncode == 0
    with aws.client("s3") as s3:
        assert bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]


# --- jobs --------------------------------------------------------------------------------------------------------------------


def submit(batch: Batch, queue: str, definition: str) -> str:
    overrides = {"command": ["python", "-c", MANAGER], "environment": named(batch.job_environ)}
    with batch.client("batch") as client:
        answer = client.submit_job(jobName="manager", jobQueue=queue, jobDefinition=definition, containerOverrides=overrides)
        return str(answer["jobId"])


async def test_a_manager_and_its_workers_run_on_the_queues_of_the_stack(aws: Batch, name: str) -> None:
    made = command("deploy", "--stack", name, f"Image={aws.image}", "JobMemoryMiB=512")
    assert made.returncode == 0, made.stderr
    outputs = outputs_of(name)
    ours = dataclasses.replace(stack_batch(outputs), environ=aws.environ, job_environ=aws.job_environ, emulated=True)
    manager = await asyncio.to_thread(submit, aws, ours.manager_queue, ours.definition)
    job: dict[str, Any] = await until(lambda: described(ours, manager), lambda job: job["status"] in ENDED)
    lines = await asyncio.to_thread(ours.log_lines, outputs["LogGroup"], job["container"]["logStreamName"])
    assert job["status"] == "SUCCEEDED", lines
    assert job["container"]["jobRoleArn"] == outputs["JobRoleArn"]
    assert json.loads(lines[-1]) == [outputs["WorkerJobQueueArn"].rpartition("/")[2]] * 2
