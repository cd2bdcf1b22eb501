"""Manager jobs: submitted once, seen with all that they have started, ended by those who may."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aiocluster.cloud import submission
from aiocluster.cloud.jobs import JOB, MANAGER_JOB, SCRIPT, SUBMITTER, Job, Stream, find_job, managers, tree
from aiocluster.cloud.submission import Manager, cancel, identity, name_of, submit
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import AwsError, Fault
from aiocluster.launch.marks import MANAGER
from tests.unit.cloud.fake_account import ME, FakeAccount
from tests.unit.launch.fake_batch import LOST

MINE = {JOB: MANAGER_JOB, SUBMITTER: ME}


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


def manager(**more: Any) -> Manager:
    return Manager(**{"script": "demo/run it.py", "queue": "managers", "definition": "manager", **more})


async def submitted(account: FakeAccount, **more: Any) -> submission.Submitted:
    return await submit(account, manager(**more), pause=no_pause, draw=lambda: 0.5)


# --- submitting --------------------------------------------------------------------------------------------------------------


async def test_a_manager_is_told_where_its_workers_and_results_go() -> None:
    account = FakeAccount()
    found = await submitted(
        account,
        arguments=("--n", "5"),
        workers="2,8",
        worker_queue="workers",
        bucket="mine",
        env={"MODEL": "small"},
        timeout_s=90.4,
    )
    (asked,) = account.arguments("submit_job")
    assert asked["jobName"] == found.name
    assert found.name.startswith("run-it-")
    assert found.results == f"s3://mine/results/{found.name}"
    assert (asked["jobQueue"], asked["jobDefinition"]) == ("managers", "manager")
    assert asked["containerOverrides"]["command"] == ["python", "demo/run it.py", "--n", "5"]
    variables = {one["name"]: one["value"] for one in asked["containerOverrides"]["environment"]}
    assert variables == {
        "AIOCLUSTER_LAUNCHER": "batch",
        "AIOCLUSTER_WORKERS": "2,8",
        "WORKER_JOB_QUEUE": "workers",
        "AIOCLUSTER_RESULTS": found.results,
        "MODEL": "small",
    }
    assert asked["tags"] == {**MINE, SCRIPT: "demo/run it.py", "aiocluster:results": found.results}
    assert asked["timeout"] == {"attemptDurationSeconds": 90}


async def test_what_the_script_knows_itself_is_not_told() -> None:
    account = FakeAccount()
    found = await submitted(account, name="my name!", results="s3://other/place")
    (asked,) = account.arguments("submit_job")
    assert found.name.startswith("my-name-")
    assert [one["name"] for one in asked["containerOverrides"]["environment"]] == ["AIOCLUSTER_LAUNCHER", "AIOCLUSTER_RESULTS"]
    assert "timeout" not in asked
    assert (await submitted(account)).results == ""


async def test_the_main_node_of_a_multi_node_job_runs_the_script() -> None:
    account = FakeAccount()
    account.definitions = [
        {"jobDefinitionName": "manager", "revision": 1, "type": "container"},
        {"jobDefinitionName": "manager", "revision": 2, "type": "multinode", "nodeProperties": {"mainNode": 1, "numNodes": 3}},
    ]
    await submitted(account)
    (asked,) = account.arguments("submit_job")
    (node,) = asked["nodeOverrides"]["nodePropertyOverrides"]
    assert node["targetNodes"] == "1:1"
    assert node["containerOverrides"]["command"][0] == "python"
    assert {"name": "AIOCLUSTER_LAUNCHER", "value": "batch-nodes"} in node["containerOverrides"]["environment"]
    assert "containerOverrides" not in asked


async def test_a_tag_holds_what_a_tag_may_hold() -> None:
    account = FakeAccount()
    await submitted(account, script="a*b" + "c" * 300 + ".py")
    (asked,) = account.arguments("submit_job")
    assert asked["tags"][SCRIPT] == "a_b" + "c" * 253


async def test_a_definition_that_is_not_there_is_named() -> None:
    with pytest.raises(LaunchError, match="there is no job definition other:3 here: `aiocluster job register`"):
        await submitted(FakeAccount(), definition="other:3")


async def test_what_is_too_large_for_aws_is_refused_before_it_is_asked() -> None:
    account = FakeAccount()
    with pytest.raises(LaunchError, match=r"LARGE \(9000 bytes\)"):
        await submitted(account, env={"LARGE": "x" * 9000})
    assert account.count("submit_job") == 0


async def test_a_lost_answer_makes_no_second_job() -> None:
    account = FakeAccount()
    account.fail("submit_job", LOST, done=True)
    found = await submitted(account)
    assert account.live() == [found.id]


async def test_whoever_stops_waiting_for_the_answer_leaves_no_job() -> None:
    account = FakeAccount()
    account.hold = asyncio.Event()
    submitting = asyncio.ensure_future(submitted(account))
    await account.until(lambda: account.jobs)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert account.live() == []


async def test_whoever_stops_waiting_is_told_of_a_job_that_may_run_and_still_stops(caplog: pytest.LogCaptureFixture) -> None:
    account = FakeAccount()
    account.hold = asyncio.Event()
    submitting = asyncio.ensure_future(submitted(account, name="mine"))
    await account.until(lambda: account.jobs)
    account.fail("list_jobs", *[AwsError("no answer", Fault.UNREACHABLE)] * 20)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert "whether there is a job mine-" in caplog.text
    assert "may run: no answer" in caplog.text


@pytest.mark.parametrize(("given", "name"), [("sweep-lr0.01", "sweep-lr0-01"), ("a/b", "a-b"), ("run 1.5.py", "run-1-5-py")])
async def test_a_name_that_is_given_is_kept_as_far_as_aws_allows(given: str, name: str) -> None:
    assert (await submitted(FakeAccount(), name=given)).name.startswith(f"{name}-")


async def test_a_place_that_no_tag_can_hold_is_in_the_variable_alone() -> None:
    account = FakeAccount()
    await submitted(account, results="s3://b/it's (1)")
    (asked,) = account.arguments("submit_job")
    assert "aiocluster:results" not in asked["tags"]
    assert {"name": "AIOCLUSTER_RESULTS", "value": "s3://b/it's (1)"} in asked["containerOverrides"]["environment"]


async def test_a_multi_node_job_has_the_output_and_the_exit_code_of_its_main_node() -> None:
    account = FakeAccount()
    options = {"logConfiguration": {"options": {"awslogs-group": "/mine"}}}
    parent = account.add("m", status="FAILED", nodeProperties={"mainNode": 1, "numNodes": 2}, tags=MINE)
    for i, code in enumerate((0, 7)):
        container = {"exitCode": code, "logStreamName": f"stream {i}", "reason": f"reason {i}", **options}
        account.add(f"m#{i}", status="FAILED", container=container, nodeProperties={"isMainNode": i == 1, "nodeIndex": i})
    job = await find_job(account, parent)
    assert (job.code, job.exit_code, job.reason) == (7, 7, "reason 1")
    assert job.streams == (Stream(group="/mine", name="stream 1"),)
    whole = await tree(account, job)
    assert [(child.id, child.exit_code) for child in whole.children] == [("m#0", 0), ("m#1", 7)]
    account.jobs.pop("m#1")
    assert (await find_job(account, parent)).code == 1, "its nodes are not there yet"


@pytest.mark.parametrize(
    ("script", "name"),
    [("a.py", "a"), ("x/y z.py", "y-z"), ("ünï.py", "n"), ("---.py", "job"), ("a" * 200, "a" * 100), ("-m", "m")],
)
def test_a_job_is_called_after_its_script(script: str, name: str) -> None:
    assert name_of(script) == name


@pytest.mark.parametrize(
    ("arn", "who"),
    [
        (ME, ME),
        ("arn:aws:sts::1:assumed-role/dev/botocore-session-17", "arn:aws:sts::1:assumed-role/dev"),
        ("arn:aws:sts::1:assumed-role/dev/ann@example.org", "arn:aws:sts::1:assumed-role/dev/ann@example.org"),
    ],
)
async def test_a_session_that_the_sdk_made_up_is_nobody(arn: str, who: str) -> None:
    account = FakeAccount()
    account.arn = arn
    assert await identity(account) == who


# --- looking -----------------------------------------------------------------------------------------------------------------


def family(account: FakeAccount) -> None:
    """A manager, an array of two that it has started, one that has ended, a stranger's, and one from before."""
    mark = {MANAGER: "batch:m"}
    account.add("old", createdAt=10, tags={**MINE})
    account.add("m", createdAt=1000, startedAt=2000, tags={**MINE})
    account.add("w", createdAt=3000, tags=mark, arrayProperties={"size": 2})
    account.add("w:1", createdAt=3000, status="RUNNING")
    account.add("w:0", createdAt=3000, status="FAILED", statusReason="Host EC2 terminated", container={"exitCode": 137})
    account.add("v", createdAt=2500, status="SUCCEEDED", tags=mark, container={"exitCode": 0})
    account.add("stranger", createdAt=4000, tags={MANAGER: "batch:other"})


async def test_a_manager_is_shown_with_all_that_it_has_started() -> None:
    account = FakeAccount()
    family(account)
    found = await tree(account, await find_job(account, "m"))
    assert [child.id for child in found.children] == ["v", "w"]
    array = found.children[1]
    assert array.size == 2
    assert [(leaf.id, leaf.exit_code) for leaf in array.children] == [("w:0", 137), ("w:1", None)]
    assert "spot" in array.children[0].reason
    (few, more) = (await tree(account, found, children=False)).children
    assert (few.children, more.children) == ((), ())


async def test_nodes_of_a_multi_node_job_are_its_children() -> None:
    account = FakeAccount()
    account.add("n", tags=MINE, nodeProperties={"numNodes": 2, "mainNode": 0})
    account.add("n#0")
    account.add("n#1")
    found = await tree(account, await find_job(account, "n"))
    assert (found.nodes, found.size) == (True, 2)
    assert [child.id for child in found.children] == ["n#0", "n#1"]


async def test_managers_are_listed_and_nothing_else() -> None:
    account = FakeAccount()
    family(account)
    since = datetime.fromtimestamp(0.5, UTC)
    assert [job.id async for job in managers(account, since)] == ["m"]
    assert [job.id async for job in managers(account, datetime.fromtimestamp(0, UTC))] == ["m", "old"]


async def test_a_job_that_is_not_there_is_named() -> None:
    with pytest.raises(LaunchError, match="AWS Batch has no job gone here"):
        await find_job(FakeAccount(), "gone")


def test_streams_of_all_attempts_are_known_once() -> None:
    told = {
        "jobId": "a",
        "status": "RUNNING",
        "attempts": [{"stoppedAt": 1, "container": {"logStreamName": "one"}}, {"container": {}}],
        "container": {"logStreamName": "two", "logConfiguration": {"options": {"awslogs-group": "g"}}},
    }
    assert Job.of(told).streams == (Stream(group="g", name="one"), Stream(group="g", name="two"))


@pytest.mark.parametrize(
    ("status", "exit_code", "code"), [("SUCCEEDED", 0, 0), ("FAILED", 7, 7), ("FAILED", None, 1), ("FAILED", 0, 1)]
)
def test_the_code_of_who_waited(status: str, exit_code: int | None, code: int) -> None:
    assert Job(id="a", name="a", queue="q", status=status, exit_code=exit_code).code == code


def test_how_long_a_job_has_lasted() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    job = Job(id="a", name="a", queue="q", status="RUNNING")
    assert job.lasted(now) is None
    job = replace(job, created=now - timedelta(hours=3))
    assert job.lasted(now) == timedelta(hours=3)
    job = replace(job, started=now - timedelta(hours=2))
    assert job.lasted(now) == timedelta(hours=2)
    assert replace(job, stopped=now - timedelta(hours=1)).lasted(now) == timedelta(hours=1)


# --- ending ------------------------------------------------------------------------------------------------------------------


async def ended(account: FakeAccount, id: str, **more: Any) -> list[str]:
    return await cancel(account, id, pause=no_pause, **more)


async def test_a_manager_is_ended_before_what_is_left_of_its_workers() -> None:
    account = FakeAccount()
    family(account)
    told: list[str] = []
    assert await ended(account, "m", tell=told.append) == ["m", "w"]
    assert [asked["jobId"] for asked in account.arguments("terminate_job")] == ["m", "w"]
    assert set(account.live()) == {"old", "stranger"}
    assert told == ["told job m to end", "told its job w to end, with 2 children"]
    assert await ended(account, "m") == []


async def test_a_manager_that_does_not_end_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    account = FakeAccount()
    family(account)
    monkeypatch.setattr(account, "_terminate_job", lambda **_asked: {})
    assert await ended(account, "m") == ["m", "w"]


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({}, "was not submitted by `aiocluster job submit`"),
        ({JOB: MANAGER_JOB}, "was submitted by somebody else"),
        ({JOB: MANAGER_JOB, SUBMITTER: "arn:aws:iam::1:user/you"}, "was submitted by arn:aws:iam::1:user/you, and you are"),
    ],
)
async def test_the_jobs_of_others_are_left_alone(tags: dict[str, str], why: str) -> None:
    account = FakeAccount()
    account.add("m", tags=tags)
    with pytest.raises(LaunchError, match=why):
        await ended(account, "m")
    assert account.live() == ["m"]
    assert await ended(account, "m", force=True) == ["m"]


async def test_a_refusal_is_told() -> None:
    account = FakeAccount()
    account.add("m", tags=MINE)
    account.fail("terminate_job", AwsError("not yours", Fault.DENIED, "AccessDeniedException"))
    with pytest.raises(AwsError, match="not yours"):
        await ended(account, "m")
    assert account.live() == ["m"]
