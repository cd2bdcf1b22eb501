"""`aiocluster stack`: what is asked, shown and said, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

import aiocluster
from aiocluster.cli.main import app
from aiocluster.cloud import stack as cloud
from aiocluster.launch import aws
from tests.unit.cloud.fake_cloudformation import REGION, STACK, FakeCloudFormation

runner = CliRunner()


class FakeAws(FakeCloudFormation):
    """It says where it is."""

    async def region(self) -> str:
        return REGION


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeAws:
    """All requests of a command go to it, and to no AWS."""
    fake = FakeAws()

    class Aws:
        def __new__(cls, region: str | None = None) -> Any:
            return fake

    for module in (aws, cloud):
        monkeypatch.setattr(module, "Aws", Aws)
    monkeypatch.setattr(cloud, "POLL_S", 0)
    monkeypatch.setenv("AIOCLUSTER_STACK", "ours")
    return fake


@pytest.fixture
def coming(api: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps come as AWS is asked."""
    described: Callable[..., dict[str, Any]] = api._describe_stacks

    def next_step(asked: dict[str, Any]) -> dict[str, Any]:
        for stack in api.stacks:
            if stack.coming:
                api.happen(stack, stack.coming.pop(0))
        return described(asked)

    monkeypatch.setattr(api, "_describe_stacks", next_step)


@pytest.mark.usefixtures("coming")
def test_a_stack_is_made_shown_changed_and_deleted(api: FakeAws) -> None:
    api.plans = [[("Vpc", "AWS::EC2::VPC", "CREATE_COMPLETE", ""), ("", STACK, "CREATE_COMPLETE", "")]]
    made = runner.invoke(app, ["stack", "deploy", "Size=2", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout) == {"Ecr": "images", "Subnets": "subnet-1,subnet-2"}
    assert "stack ours in eu-west-1, from the template batch\n" in made.stderr
    assert "CREATE_COMPLETE      AWS::EC2::VPC Vpc\n" in made.stderr
    assert made.stderr.endswith("the stack ours is created\n")
    shown = runner.invoke(app, ["stack", "outputs", "--json"])
    assert (shown.exit_code, json.loads(shown.stdout)) == (0, json.loads(made.stdout))
    same = runner.invoke(app, ["stack", "deploy"])
    assert same.exit_code == 0
    assert same.stderr.endswith("the stack ours is as it was\n")
    assert [line.split() for line in same.stdout.splitlines()] == [
        ["OUTPUT", "VALUE"],
        ["Ecr", "images"],
        ["Subnets", "subnet-1,subnet-2"],
    ]
    gone = runner.invoke(app, ["stack", "delete", "--yes"])
    assert (gone.exit_code, gone.stdout) == (0, "")
    assert gone.stderr.endswith("the stack ours in eu-west-1 is deleted\n")
    again = runner.invoke(app, ["stack", "delete", "--yes"])
    assert (again.exit_code, again.stderr) == (0, "there is no stack ours in eu-west-1\n")


def test_what_cannot_be_is_said_with_exit_code_1(api: FakeAws) -> None:
    result = runner.invoke(app, ["stack", "outputs", "--stack", "theirs"])
    assert result.exit_code == 1
    assert result.stderr == ("aiocluster stack outputs: no stack theirs in eu-west-1: make it with `aiocluster stack deploy`\n")


@pytest.mark.parametrize("wrong", ["Size", "=2"])
def test_a_parameter_without_name_or_value_is_refused_before_anything_is_asked(api: FakeAws, wrong: str) -> None:
    assert runner.invoke(app, ["stack", "deploy", wrong]).exit_code == 2
    assert api.asked == []


def test_a_value_may_have_equals_signs_and_be_empty(api: FakeAws) -> None:
    api.errors["create_stack"] = aws.AwsError("enough seen", aws.Fault.REJECTED)
    assert runner.invoke(app, ["stack", "deploy", "Size=a=b", "Kind="]).exit_code == 1
    (asked,) = api.arguments("create_stack")
    assert {one["ParameterKey"]: one["ParameterValue"] for one in asked["Parameters"]} == {"Size": "a=b", "Kind": ""}


def test_nothing_is_deleted_until_somebody_says_yes(api: FakeAws) -> None:
    api.add("ours")
    result = runner.invoke(app, ["stack", "delete", "--empty"], input="n\n")
    assert result.exit_code == 1
    assert "Delete the stack ours, with its results, images and logs?" in result.stderr
    assert api.asked == []


def test_ctrl_c_says_that_aws_goes_on(api: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: Any) -> int:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setitem(aiocluster.__dict__, "run", interrupted)
    result = runner.invoke(app, ["stack", "deploy"])
    assert result.exit_code == 130
    assert result.stderr == "Interrupted; AWS goes on with what it was told to do; the same command waits for it again.\n"
