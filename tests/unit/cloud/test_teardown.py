"""The function in the templates that deletes a stack when nothing has run for a while: never a stack that is used."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from aiocluster.cloud.template import read_template

MINUTE = 60.0
IDLE_MIN = 120
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ENVIRONMENT = {
    "STACK": "arn:of:the:stack",
    "IDLE_MINUTES": str(IDLE_MIN),
    "QUEUES": "managers,workers",
    "CLUSTER": "cluster",
    "LOG_GROUP": "logs",
}


def code_of(template: str) -> str:
    """What stands in the template behind `ZipFile`."""
    _, _, rest = read_template(template).partition("        ZipFile: |\n")
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith(" " * 10):
            break
        lines.append(line)
    return textwrap.dedent("\n".join(lines))


def ago(minutes: float) -> int:
    """A moment as Batch and CloudWatch tell it, in ms."""
    return round((NOW.timestamp() - minutes * MINUTE) * 1000)


class Account:
    """What the function asks of AWS by boto3."""

    def __init__(self) -> None:
        self.stack: dict[str, Any] = {"StackStatus": "CREATE_COMPLETE", "CreationTime": NOW - timedelta(days=3)}
        self.jobs: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
        """Pages by queue and status."""
        self.tasks: list[str] = []
        self.streams: list[list[dict[str, Any]]] = []
        self.deleted: list[str] = []

    def client(self, service: str) -> Account:
        assert service in ("batch", "cloudformation", "ecs", "logs")
        return self

    def describe_stacks(self, StackName: str) -> dict[str, Any]:  # noqa: N803 - as boto3 has it
        assert StackName == ENVIRONMENT["STACK"]
        return {"Stacks": [self.stack]}

    def delete_stack(self, StackName: str) -> None:  # noqa: N803 - as boto3 has it
        self.deleted.append(StackName)

    def list_tasks(self, cluster: str) -> dict[str, Any]:
        assert cluster == ENVIRONMENT["CLUSTER"]
        return {"taskArns": self.tasks}

    def get_paginator(self, operation: str) -> Pages:
        return Pages(self, operation)


class Pages:
    def __init__(self, account: Account, operation: str) -> None:
        self._account = account
        self._operation = operation

    def paginate(self, **asked: str) -> Iterator[dict[str, Any]]:
        if self._operation == "list_jobs":
            for page in self._account.jobs.get((asked["jobQueue"], asked["jobStatus"]), [[]]):
                yield {"jobSummaryList": page}
        else:
            assert asked == {"logGroupName": "logs", "logStreamNamePrefix": "task/"}
            for page in self._account.streams:
                yield {"logStreams": page}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account()
    boto3 = ModuleType("boto3")
    boto3.__dict__["client"] = account.client
    monkeypatch.setitem(sys.modules, "boto3", boto3)
    monkeypatch.setattr("time.time", NOW.timestamp)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)
    return account


def look(template: str) -> str:
    """What the function says; AWS calls it every few minutes."""
    names: dict[str, Any] = {}
    exec(compile(code_of(template), f"{template}.yml", "exec"), names)  # as AWS runs it
    handler: Callable[[Any, Any], str] = names["handler"]
    return handler({}, None)


@pytest.mark.parametrize("template", ["batch", "ecs"])
def test_it_is_small_enough_for_a_template(template: str) -> None:
    assert 500 < len(code_of(template)) <= 4096


@pytest.mark.parametrize("template", ["batch", "ecs"])
def test_a_stack_that_has_never_been_used_is_deleted_after_the_time_since_it_was_made(account: Account, template: str) -> None:
    account.stack["CreationTime"] = NOW - timedelta(minutes=IDLE_MIN - 1)
    assert look(template) == "left alone: idle for 119 min"
    account.stack["CreationTime"] = NOW - timedelta(minutes=IDLE_MIN)
    assert look(template) == "deleted"
    assert account.deleted == [ENVIRONMENT["STACK"]]


@pytest.mark.parametrize("template", ["batch", "ecs"])
def test_a_stack_that_was_changed_lately_is_left_alone(account: Account, template: str) -> None:
    account.stack |= {"StackStatus": "UPDATE_COMPLETE", "LastUpdatedTime": NOW - timedelta(minutes=5)}
    assert look(template) == "left alone: idle for 5 min"
    assert account.deleted == []


@pytest.mark.parametrize("template", ["batch", "ecs"])
@pytest.mark.parametrize("status", ["UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS", "DELETE_FAILED"])
def test_a_stack_on_its_way_or_stuck_is_left_alone(account: Account, template: str, status: str) -> None:
    account.stack["StackStatus"] = status
    assert look(template) == f"left alone: it is {status}"
    assert account.deleted == []


@pytest.mark.parametrize("queue", ["managers", "workers"])
@pytest.mark.parametrize("status", ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"])
def test_a_job_that_waits_or_runs_keeps_the_stack(account: Account, queue: str, status: str) -> None:
    account.jobs[queue, status] = [[], [{"jobId": "j-1"}]]
    assert look("batch") == f"left alone: j-1 is {status}"
    assert account.deleted == []


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_the_last_job_to_end_counts_on_whatever_page_it_is(account: Account, status: str) -> None:
    jobs: list[dict[str, Any]] = [{"jobId": "j-1", "stoppedAt": ago(900)}, {"jobId": "j-2"}]
    account.jobs["workers", status] = [jobs, [{"jobId": "j-3", "stoppedAt": ago(IDLE_MIN - 30)}], jobs]
    assert look("batch") == "left alone: idle for 90 min"
    account.jobs["workers", status][1][0]["stoppedAt"] = ago(IDLE_MIN + 1)
    assert look("batch") == "deleted"


def test_a_task_that_runs_keeps_the_stack(account: Account) -> None:
    account.tasks = ["arn:of:a:task"]
    assert look("ecs") == "left alone: arn:of:a:task runs"
    assert account.deleted == []


def test_the_last_line_of_a_task_counts_on_whatever_page_it_is(account: Account) -> None:
    old = [{"creationTime": ago(900), "lastIngestionTime": ago(800)}]
    account.streams = [old, [{"creationTime": ago(300), "lastIngestionTime": ago(20)}], old]
    assert look("ecs") == "left alone: idle for 20 min"
    account.streams = [old, [{"creationTime": ago(30)}]]  # it has started, and written nothing yet
    assert look("ecs") == "left alone: idle for 30 min"
    account.streams = [old]
    assert look("ecs") == "deleted"
