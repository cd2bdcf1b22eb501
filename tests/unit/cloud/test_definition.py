"""Job definitions: like the stack's, and no new one where there is the same already."""

from __future__ import annotations

from typing import Any

import pytest

from aiocluster.cloud.definition import Definition, register, stem_of
from aiocluster.errors import LaunchError

STACKS: dict[str, Any] = {
    "jobDefinitionName": "stack",
    "revision": 4,
    "type": "container",
    "containerProperties": {
        "image": "old",
        "command": [],
        "jobRoleArn": "arn:role",
        "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "2048"}],
        "environment": [{"name": "WORKER_JOB_QUEUE", "value": "workers"}],
        "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "/aiocluster/stack"}},
        "mountPoints": [],
    },
    "retryStrategy": {"attempts": 1, "evaluateOnExit": []},
    "timeout": {"attemptDurationSeconds": 86400},
    "platformCapabilities": ["EC2"],
}


class Account:
    """Describes what was registered as AWS does: with much that nobody asked for."""

    def __init__(self, *definitions: dict[str, Any]) -> None:
        self.definitions = list(definitions)
        self.registered: list[dict[str, Any]] = []

    async def call(self, service: str, operation: str, *, patient: bool = True, **asked: Any) -> dict[str, Any]:
        if operation == "describe_job_definitions":
            name = asked.get("jobDefinitionName") or asked["jobDefinitions"][0]
            return {"jobDefinitions": [one for one in self.definitions if one["jobDefinitionName"] == name]}
        assert operation == "register_job_definition"
        self.registered.append(asked)
        same = [one for one in self.definitions if one["jobDefinitionName"] == asked["jobDefinitionName"]]
        revision = max([one["revision"] for one in same], default=0) + 1
        self.definitions.append({**asked, "revision": revision, "containerOrchestrationType": "ECS", "parameters": {}})
        return {"jobDefinitionName": asked["jobDefinitionName"], "revision": revision}

    async def close(self) -> None: ...


async def test_all_but_the_image_is_as_in_the_stack() -> None:
    account = Account(STACKS)
    assert await register(account, Definition(name="mine", image="new@sha256:1", like="stack")) == "mine:1"
    (asked,) = account.registered
    assert asked["type"] == "container"
    assert asked["containerProperties"] == {
        **{key: value for key, value in STACKS["containerProperties"].items() if key not in ("command", "mountPoints")},
        "image": "new@sha256:1",
    }
    assert asked["retryStrategy"] == {"attempts": 1}
    assert asked["timeout"] == STACKS["timeout"]
    assert asked["platformCapabilities"] == ["EC2"]


async def test_what_is_the_same_already_is_used() -> None:
    account = Account(STACKS)
    wanted = Definition(name="mine", image="new", like="stack", env={"A": "1"})
    assert await register(account, wanted) == await register(account, wanted) == "mine:1"
    other = Definition(name="mine", image="newer", like="stack", env={"A": "1"})
    assert await register(account, other) == "mine:2"
    assert len(account.registered) == 2


async def test_what_else_the_stacks_says_is_taken_over_and_makes_a_difference() -> None:
    like = {**STACKS, "propagateTags": True, "schedulingPriority": 3, "platformCapabilities": ["FARGATE"]}
    account = Account(like)
    wanted = Definition(name="mine", image="new", like="stack")
    assert await register(account, wanted) == await register(account, wanted) == "mine:1"
    (asked,) = account.registered
    assert {key: asked[key] for key in ("propagateTags", "schedulingPriority", "platformCapabilities")} == {
        "propagateTags": True,
        "schedulingPriority": 3,
        "platformCapabilities": ["FARGATE"],
    }
    for changed in ({"propagateTags": False}, {"schedulingPriority": 4}, {"platformCapabilities": ["EC2"]}):
        account.definitions[0] = like | changed
        assert await register(account, wanted) != "mine:1"
        account.definitions = account.definitions[:2]


async def test_figures_and_variables_may_be_others() -> None:
    account = Account(STACKS)
    wanted = Definition(
        name="mine", image="new", like="stack", vcpus=0.5, memory=512, env={"WORKER_JOB_QUEUE": "others"}, timeout_s=30
    )
    await register(account, wanted)
    container = account.registered[0]["containerProperties"]
    assert container["resourceRequirements"] == [{"type": "VCPU", "value": "0.5"}, {"type": "MEMORY", "value": "512"}]
    assert container["environment"] == [{"name": "WORKER_JOB_QUEUE", "value": "others"}]
    assert account.registered[0]["timeout"] == {"attemptDurationSeconds": 60}


@pytest.mark.parametrize(("nodes", "targets"), [(1, ["0:0"]), (4, ["0:0", "1:3"])])
async def test_nodes_of_a_multi_node_job_run_agents(nodes: int, targets: list[str]) -> None:
    account = Account(STACKS)
    wanted = Definition(name="mine", image="new", like="stack", nodes=nodes)
    assert await register(account, wanted) == await register(account, wanted) == "mine:1"
    (asked,) = account.registered
    assert (asked["type"], asked["nodeProperties"]["numNodes"], asked["nodeProperties"]["mainNode"]) == ("multinode", nodes, 0)
    ranges = asked["nodeProperties"]["nodeRangeProperties"]
    assert [one["targetNodes"] for one in ranges] == targets
    assert {tuple(one["container"]["command"]) for one in ranges} == {("aiocluster", "agent")}
    assert "platformCapabilities" not in asked
    again = Definition(name="plain", image="new", like="mine")
    assert await register(account, again) == "plain:1"
    assert account.registered[-1]["containerProperties"]["jobRoleArn"] == "arn:role"


async def test_one_revision_may_be_meant() -> None:
    older = {**STACKS, "revision": 3, "containerProperties": {**STACKS["containerProperties"], "jobRoleArn": "arn:older"}}
    account = Account(STACKS, older)
    await register(account, Definition(name="mine", image="new", like="stack:3"))
    assert account.registered[0]["containerProperties"]["jobRoleArn"] == "arn:older"
    with pytest.raises(LaunchError, match="no job definition stack:9"):
        await register(account, Definition(name="mine", image="new", like="stack:9"))


@pytest.mark.parametrize("given", ["stack", "stack:3", "arn:aws:batch:us-east-1:1:job-definition/stack:3"])
def test_a_revision_or_an_arn_is_not_part_of_a_name(given: str) -> None:
    assert stem_of(given) == "stack"


@pytest.mark.parametrize(("told", "asked"), [({"team": "lab"}, {"team": "lab"}), ({}, None)])
async def test_tags_that_only_aws_may_set_stay_behind(told: dict[str, str], asked: dict[str, str] | None) -> None:
    account = Account({**STACKS, "tags": {"aws:cloudformation:stack-name": "stack", **told}})
    await register(account, Definition(name="mine", image="new", like="stack"))
    assert account.registered[0].get("tags") == asked


async def test_a_definition_without_a_container_is_no_example() -> None:
    account = Account({"jobDefinitionName": "odd", "revision": 1, "type": "container"})
    with pytest.raises(LaunchError, match="odd has no container"):
        await register(account, Definition(name="mine", image="new", like="odd"))
