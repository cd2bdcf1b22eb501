"""`aiocluster stack` where AWS takes its steps one by one, and tasks of ECS on what it has made."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocluster.cloud.template import read_template
from tests.online.ecs_tasks import described, id_of, output_of
from tests.online.ground import Ecs, named, stack_ecs
from tests.online.stack_command import command, delete, outputs_of
from tests.online.waiting import until

pytestmark = pytest.mark.online("ecs")

NOT_EMULATED = (
    "AWS::EC2::EIP",
    "AWS::EC2::NatGateway",
    "AWS::EC2::SecurityGroupIngress",
    "AWS::ECS::ClusterCapacityProviderAssociations",
)
MANAGER = """
import json, os
import aiocluster
from aiocluster.launch.own_container import own_container_id

async def main():
    async with aiocluster.Cluster.ecs(2, output="quiet") as cluster:
        containers = await cluster.everywhere(own_container_id)
        print(json.dumps(len({own_container_id(), *containers.values()})), flush=True)

aiocluster.run(main())
"""
"""A manager that is a task itself: where and of what its workers are it takes from there."""
BROKEN = """
Resources:
  Good:
    Type: AWS::SNS::Topic
  Bad:
    Type: AWS::IAM::Policy
    DependsOn: Good
    Properties: { PolicyName: bad, Roles: [nobody], PolicyDocument: { Version: "2012-10-17", Statement: [] } }
"""


@pytest.fixture
def name(ecs: Ecs) -> Iterator[str]:
    """The name of a stack that is not there afterwards."""
    if not ecs.emulated:
        pytest.skip("no stack of an account is made or deleted by tests")
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    delete(name)


def emulated(template: str) -> str:
    """The template without what the emulator does not know; tasks are on the network of the host, whence alone it is reached."""
    head, _, rest = template.partition("\nResources:\n")
    resources, _, outputs = rest.partition("\nOutputs:\n")
    blocks = {block.split(":")[0].strip(): block for block in re.split(r"(?m)^(?=  \w+:\n)", resources)}
    gone = {name for name, block in blocks.items() if any(f"Type: {kind}\n" in block for kind in NOT_EMULATED)}
    gone |= {name for name, block in blocks.items() if any(f"!Ref {one} " in block or f"!Ref {one}\n" in block for one in gone)}
    kept = "".join(block for name, block in blocks.items() if name not in gone)
    for one in gone:
        kept = kept.replace(f", {one}]", "]")
    kept = kept.replace("NetworkMode: awsvpc", "NetworkMode: host").replace("      RequiresCompatibilities: [EC2, FARGATE]\n", "")
    return f"{head}\nResources:\n{kept}\nOutputs:\n{outputs}"


def run_manager(ecs: Ecs) -> str:
    """The id of a task that is a manager."""
    container = {"name": ecs.container, "command": ["python", "-c", MANAGER], "environment": named(ecs.environ)}
    place = {"cluster": ecs.cluster, "taskDefinition": ecs.task_definition, "launchType": "EC2"}
    with ecs.client("ecs") as client:
        (task,) = client.run_task(**place, count=1, overrides={"containerOverrides": [container]})["tasks"]
    return id_of(task)


async def test_a_manager_and_its_workers_are_tasks_of_the_stack(ecs: Ecs, name: str, tmp_path: Path) -> None:
    template = tmp_path / "ecs.yml"
    template.write_text(emulated(read_template("ecs")))
    made = command("deploy", "--template", str(template), "--stack", name, "SubnetType=Public", f"Image={ecs.image}")
    assert made.returncode == 0, made.stderr
    for step in ("CREATE_IN_PROGRESS   AWS::ECS::Cluster Cluster\n", "CREATE_COMPLETE      AWS::ECS::Cluster Cluster\n"):
        assert made.stderr.count(step) == 1
    outputs = outputs_of(name)
    ours = dataclasses.replace(stack_ecs(outputs), environ=ecs.environ, emulated=True)
    manager = await asyncio.to_thread(run_manager, ours)
    (task,) = await until(lambda: described(ours, [manager]), lambda tasks: tasks[0]["lastStatus"] == "STOPPED")
    lines = await asyncio.to_thread(output_of, ours, manager)
    assert task["containers"][0]["exitCode"] == 0, lines
    assert json.loads(lines[-1]) == 3  # the manager and two workers, each in a container of its own
    deleted = command("delete", "--yes", "--stack", name)
    assert deleted.returncode == 0, deleted.stderr
    assert "DELETE_COMPLETE      AWS::ECS::Cluster Cluster\n" in deleted.stderr


def test_a_stack_that_cannot_be_made_says_what_failed_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    template = tmp_path / "broken.yml"
    template.write_text(BROKEN)
    ran = command("deploy", "--template", str(template), "--stack", name)
    assert (ran.returncode, ran.stdout) == (1, "")
    *_, what, why = ran.stderr.splitlines()
    assert what.startswith(f"aiocluster stack deploy: the stack {name} could not be made")
    assert why.startswith("  Bad (AWS::IAM::Policy): ")
    assert "nobody" in why
    assert "DELETE_COMPLETE      AWS::SNS::Topic Good\n" in ran.stderr
    gone = command("outputs", "--stack", name)
    assert gone.returncode == 1
    assert f"no stack {name} in us-east-1" in gone.stderr
