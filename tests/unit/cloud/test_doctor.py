"""What the doctor finds: on an AWS and an engine of tables, in which one thing at a time is broken on purpose."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from aiocluster import __version__
from aiocluster.cli.main import app
from aiocluster.cloud import doctor
from aiocluster.cloud.doctor import Finding, Outcome, Plan, examine
from aiocluster.cloud.stack import Stack
from aiocluster.launch.aws import AwsError, Fault
from aiocluster.launch.engine import GONE, EngineError

USER = "arn:aws:iam::123456789012:user/ada"
JOB = "0a1b2c3d-0000-4000-8000-123456789abc"
QUEUE = "arn:aws:batch:eu-west-1:123456789012:job-queue/workers"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/lab/sim:v1"
OURS = f"aiocluster {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}.9\n"
BATCH = Plan(launcher="batch", queue=QUEUE, definition="sim", workers=8, advertise="10.0.0.1", results="s3://lab/run")
ECS = Plan(launcher="ecs", ecs_cluster="lab", definition="sim", subnets=("subnet-1",), advertise="10.0.0.1")
DOCKER = Plan(launcher="docker", image="sim:v1", advertise="127.0.0.1")


def denied(operation: str) -> AwsError:
    return AwsError(f"access denied: needs {operation}", Fault.DENIED, "AccessDenied")


def refused(text: str) -> AwsError:
    return AwsError(text, Fault.REJECTED, "ClientException")


class FakeAws:
    """All is well, but for what a test changes: `answers` by operation, each an answer or an error."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.decisions: dict[str, dict[str, Any]] = {}
        """What IAM says of an action, other than that it is allowed."""
        task = {
            "family": "sim", "revision": 2, "status": "ACTIVE", "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::1:role/t",
            "containerDefinitions": [{"image": IMAGE, "logConfiguration": {"options": {"awslogs-group": "/lab"}}}],
        }  # fmt: skip
        self.job = {
            "jobDefinitionName": "sim", "revision": 3, "status": "ACTIVE", "type": "container",
            "containerProperties": {"image": IMAGE},
        }  # fmt: skip
        self.task = task
        self.queue: dict[str, Any] = {
            "state": "ENABLED", "status": "VALID", "computeEnvironmentOrder": [{"order": 1, "computeEnvironment": "spot"}],
        }  # fmt: skip
        self.environment = {"computeEnvironmentName": "spot", "state": "ENABLED", "computeResources": {"maxvCpus": 16}}
        self.answers: dict[str, dict[str, Any] | Exception] = {
            "get_caller_identity": {"Arn": USER, "Account": "123456789012"},
            "describe_job_queues": {"jobQueues": [self.queue]},
            "describe_compute_environments": {"computeEnvironments": [self.environment]},
            "describe_job_definitions": {"jobDefinitions": [{**self.job, "revision": 1}, self.job]},
            "describe_clusters": {"clusters": [{"status": "ACTIVE", "registeredContainerInstancesCount": 2}]},
            "describe_task_definition": {"taskDefinition": task},
            "describe_images": {"imageDetails": [{"imagePushedAt": "yesterday"}]},
            "describe_jobs": {"jobs": []},
            "list_jobs": {"jobSummaryList": []},
            "describe_tasks": {"tasks": []},
            "list_tasks": {"taskArns": []},
            "get_log_events": refused("the log stream does not exist"),
            "list_objects_v2": {},
            "describe_stacks": AwsError("Stack with id aiocluster does not exist", Fault.REJECTED, "ValidationError"),
            "get_role": {"Role": {"Arn": "arn:aws:iam::123456789012:role/path/jobs"}},
        }

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        self.asked.append((operation, arguments))
        if operation == "simulate_principal_policy" and operation not in self.answers:
            (action,) = arguments["ActionNames"]
            return {"EvaluationResults": [self.decisions.get(action, {"EvalDecision": "allowed"})]}
        answer = self.answers[operation]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def region(self) -> str:
        return "eu-west-1"

    async def close(self) -> None:
        raise AssertionError("who was handed it does not own it")


class FakeEngine:
    """An engine with one image, whose containers print their versions, or connect to where they are told."""

    host = "unix:///fake.sock"

    def __init__(self) -> None:
        self.down = False
        self.images = {"sim:v1": "sha256:0123", IMAGE: "sha256:4567"}
        self.printed = OURS
        self.codes = {"aiocluster": 0, "python": 0}
        self.error: EngineError | None = None
        self.containers: set[str] = set()
        self.run: list[dict[str, Any]] = []
        self.opened = 0

    async def open(self) -> None:
        if self.down:
            raise EngineError(900, "no socket of an engine was found")
        self.opened += 1

    async def close(self) -> None:
        self.opened -= 1

    async def image_id(self, name: str) -> str:
        if name not in self.images:
            raise EngineError(GONE, f"no such image: {name}")
        return self.images[name]

    async def create(self, name: str, config: dict[str, Any]) -> None:
        self.containers.add(name)
        self.run.append(config)

    @asynccontextmanager
    async def output(self, name: str) -> AsyncIterator[AsyncIterator[tuple[int, bytes]]]:
        async def lines() -> AsyncIterator[tuple[int, bytes]]:
            yield 1, self.printed.encode()

        yield lines()

    async def start(self, name: str) -> None:
        if self.error is not None:
            raise self.error

    async def ended(self, name: str) -> int:
        return self.codes[self.run[-1]["Cmd"][0]]

    async def remove(self, name: str) -> None:
        self.containers.discard(name)


async def found(
    plan: Plan, aws: FakeAws | None = None, engine: FakeEngine | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Finding]:
    """The findings by their checks; nothing is left of the examination."""
    engine = FakeEngine() if engine is None else engine
    told: list[Finding] = []
    findings = await examine(
        plan,
        api=aws or FakeAws(),
        engine=lambda: engine,  # type: ignore[arg-type, return-value]
        tell=told.append,
        environ=environ or {},
    )
    assert findings == told
    assert engine.containers == set()
    assert engine.opened == 0
    for finding in findings:
        assert finding.detail
        assert not finding.hint or finding.outcome is Outcome.FAILED
    return {finding.check: finding for finding in findings}


def of(findings: dict[str, Finding], outcome: Outcome) -> set[str]:
    return {name for name, finding in findings.items() if finding.outcome is outcome}


# --- all is well -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [Plan(), DOCKER, BATCH, ECS], ids=lambda plan: plan.launcher)
async def test_nothing_is_found_where_all_is_well(plan: Plan) -> None:
    findings = await found(plan)
    assert of(findings, Outcome.FAILED) | of(findings, Outcome.SKIPPED) == set()


async def test_all_that_batch_needs_is_looked_at() -> None:
    aws = FakeAws()
    assert list(await found(BATCH, aws)) == [
        "python", "packages", "credentials", "queue", "definition", "image", "versions", "batch:SubmitJob", "batch:TagResource",
        "batch:TerminateJob", "batch:DescribeJobs", "batch:ListJobs", "batch:DescribeJobQueues",
        "batch:DescribeComputeEnvironments", "logs:GetLogEvents", "results", "address",
    ]  # fmt: skip
    asked = {arguments["ActionNames"][0]: arguments for name, arguments in aws.asked if name == "simulate_principal_policy"}
    assert asked["batch:SubmitJob"]["ResourceArns"] == [
        QUEUE, "arn:aws:batch:eu-west-1:123456789012:job-definition/sim:1",
    ]  # fmt: skip
    assert {arguments["PolicySourceArn"] for arguments in asked.values()} == {USER}


async def test_nothing_is_asked_of_aws_that_changes_anything() -> None:
    for plan in (BATCH, ECS):
        aws = FakeAws()
        await found(plan, aws)
        assert {name.partition("_")[0] for name, _ in aws.asked} <= {"describe", "get", "list", "simulate"}


async def test_all_that_ecs_needs_is_looked_at() -> None:
    aws = FakeAws()
    names = list(await found(ECS, aws))
    assert names[3:] == [
        "cluster", "definition", "image", "versions", "ecs:RunTask", "ecs:TagResource", "ecs:StopTask", "iam:PassRole",
        "ecs:DescribeTasks", "ecs:ListTasks", "ecs:DescribeTaskDefinition", "logs:GetLogEvents", "address",
    ]  # fmt: skip


# --- one thing is broken -----------------------------------------------------------------------------------------------------

Break = Callable[[FakeAws, FakeEngine], object]


@pytest.mark.parametrize(
    ("plan", "breaking", "check", "text"),
    [
        (BATCH, lambda aws, _: aws.queue.update(state="DISABLED"), "queue", "is DISABLED"),
        (BATCH, lambda aws, _: aws.queue.update(status="INVALID", statusReason="no role"), "queue", "INVALID: no role"),
        (BATCH, lambda aws, _: aws.environment.update(state="DISABLED"), "queue", "compute environment spot is DISABLED"),
        (
            BATCH,
            lambda aws, _: aws.environment.update(computeResources={"maxvCpus": 7}),
            "queue",
            "7 vCPUs at most, too few for 8 workers",
        ),
        (BATCH, lambda aws, _: aws.answers.update(describe_job_queues={"jobQueues": []}), "queue", "there is no job queue"),
        (
            BATCH,
            lambda aws, _: aws.answers.update(describe_job_definitions={"jobDefinitions": []}),
            "definition",
            "no active job definition sim",
        ),
        (BATCH, lambda aws, _: aws.job.update(type="multinode"), "definition", "is of type multinode"),
        (BATCH, lambda aws, _: aws.answers.update(describe_images=refused("ImageNotFound")), "image", "ECR does not have"),
        (
            BATCH,
            lambda _, engine: setattr(engine, "printed", "aiocluster 0.0.1, Python 3.11.2"),
            "versions",
            "0.0.1 on Python 3.11",
        ),
        (BATCH, lambda aws, _: aws.answers.update(list_objects_v2=refused("no such bucket")), "results", "no such bucket"),
        (
            BATCH,
            lambda aws, _: aws.decisions.update({"batch:SubmitJob": {"EvalDecision": "implicitDeny", "EvalResourceName": QUEUE}}),
            "batch:SubmitJob",
            f"denied to {USER} for {QUEUE} .implicitDeny.",
        ),
        (
            BATCH,
            lambda aws, _: aws.decisions.update(
                {"batch:TerminateJob": {"EvalDecision": "explicitDeny", "MissingContextValues": ["aws:x"]}}
            ),
            "batch:TerminateJob",
            "explicitDeny",
        ),
        (BATCH, lambda aws, _: aws.answers.update(describe_jobs=denied("x")), "batch:DescribeJobs", f"denied to {USER}"),
        (BATCH, lambda aws, _: aws.answers.update(list_jobs=denied("x")), "batch:ListJobs", f"denied to {USER}"),
        (ECS, lambda aws, _: aws.answers.update(describe_clusters={"clusters": []}), "cluster", "lab is missing"),
        (
            ECS,
            lambda aws, _: aws.answers.update(describe_clusters={"clusters": [{"status": "INACTIVE"}]}),
            "cluster",
            "lab is INACTIVE",
        ),
        (ECS, lambda aws, _: aws.task.update(status="INACTIVE"), "definition", "sim is INACTIVE"),
        (
            ECS,
            lambda aws, _: aws.decisions.update({"iam:PassRole": {"EvalDecision": "implicitDeny"}}),
            "iam:PassRole",
            "denied to",
        ),
        (ECS, lambda aws, _: aws.decisions.update({"ecs:RunTask": {"EvalDecision": "implicitDeny"}}), "ecs:RunTask", "denied to"),
        (DOCKER, lambda _, engine: setattr(engine, "down", True), "engine", "no Docker engine answers at unix:///fake.sock"),
        (DOCKER, lambda _, engine: engine.images.clear(), "image", "the engine does not have sim:v1"),
        (DOCKER, lambda _, engine: setattr(engine, "printed", "no such command"), "versions", "ended with 0: no such command"),
        (DOCKER, lambda _, engine: engine.codes.update(aiocluster=127), "versions", "ended with 127"),
        (
            DOCKER,
            lambda _, engine: setattr(engine, "error", EngineError(400, "executable file not found")),
            "versions",
            "does not run `aiocluster --version`: executable file not found",
        ),
        (
            DOCKER,
            lambda _, engine: engine.codes.update(python=1),
            "address",
            "a container does not reach this process at 127.0.0.1",
        ),
    ],
)
async def test_what_is_broken_is_named_and_nothing_else(plan: Plan, breaking: Break, check: str, text: str) -> None:
    aws, engine = FakeAws(), FakeEngine()
    breaking(aws, engine)
    findings = await found(plan, aws, engine)
    assert of(findings, Outcome.FAILED) == {check}
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(findings[check].detail)


@pytest.mark.parametrize(
    ("plan", "check", "text"),
    [
        (Plan(launcher="batch", definition="sim"), "queue", "no queue was named"),
        (Plan(launcher="batch", queue=QUEUE), "definition", "no job definition was named"),
        (Plan(launcher="ecs", definition="sim", subnets=("s",)), "cluster", "no ECS cluster was named"),
        (Plan(launcher="ecs", ecs_cluster="lab"), "definition", "no task definition was named"),
        (Plan(launcher="ecs", ecs_cluster="lab", definition="sim"), "definition", "no subnet was named"),
        (Plan(launcher="docker"), "image", "no image was named"),
        (Plan(launcher="batch", queue=QUEUE, definition="sim", advertise="169.254.1.1"), "address", "link-local"),
        (replace(BATCH, network="lab"), "address", "network must be a CIDR"),
        (replace(BATCH, advertise="a:b:c"), "address", "advertise must be a host"),
        (replace(DOCKER, advertise="127.0.0.1:99999"), "address", "port between 1 and 65535"),
        (replace(BATCH, results="gs://lab/run"), "results", "neither a folder nor s3://bucket/prefix"),
        (replace(BATCH, results="s3://UPPER_b/run"), "results", "neither a folder nor s3://bucket/prefix"),
    ],
)
async def test_what_is_not_said_is_named_with_how_to_say_it(plan: Plan, check: str, text: str) -> None:
    findings = await found(plan)
    assert findings[check].outcome is Outcome.FAILED
    assert text in findings[check].detail


async def test_a_port_that_is_advertised_is_listened_at() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        findings = await found(replace(DOCKER, advertise=f"127.0.0.1:{port}"))
    assert findings["address"].outcome is Outcome.FAILED
    assert "this process cannot listen at 127.0.0.1" in findings["address"].detail
    engine = FakeEngine()
    findings = await found(replace(DOCKER, advertise=f"127.0.0.1:{port}"), engine=engine)
    assert findings["address"].outcome is Outcome.OK
    assert engine.run[-1]["Cmd"][-1] == str(port)


async def test_a_container_that_cannot_be_removed_is_named_beside_what_was_found() -> None:
    engine = FakeEngine()

    async def refuse(name: str) -> None:
        engine.containers.discard(name)
        raise EngineError(500, "device busy")

    engine.remove = refuse  # type: ignore[method-assign]
    told = await found(DOCKER, engine=engine)
    assert of(told, Outcome.FAILED) == {"cleanup"}
    assert "may be left: device busy" in told["cleanup"].detail
    assert told["cleanup"].hint.startswith("docker rm --force aiocluster-doctor-")


async def test_a_manager_that_is_a_job_lends_its_queue_and_definition() -> None:
    aws = FakeAws()
    own = {"jobId": JOB, "jobQueue": QUEUE, "jobDefinition": "arn:aws:batch:eu-west-1:123456789012:job-definition/sim:3"}
    aws.answers["describe_jobs"] = {"jobs": [{**own, "container": {"resourceRequirements": [{"type": "VCPU", "value": "1"}]}}]}
    findings = await found(Plan(launcher="batch", advertise="10.0.0.1"), aws, environ={"AWS_BATCH_JOB_ID": JOB})
    assert of(findings, Outcome.FAILED) | of(findings, Outcome.SKIPPED) == set()
    assert JOB in findings["manager"].detail
    assert ("describe_job_definitions", {"jobDefinitions": [own["jobDefinition"]]}) in aws.asked


async def test_the_default_stack_says_what_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_stack(name: str, api: Any) -> Stack:
        assert name == "lab"
        outputs = {"EcsClusterArn": "lab", "TaskDefinitionArn": "sim", "Subnets": "s", "SecurityGroup": "g"}
        return Stack(name, "eu-west-1", outputs)

    monkeypatch.setattr(doctor, "find_stack", find_stack)
    findings = await found(Plan(launcher="ecs", advertise="10.0.0.1"), environ={"AIOCLUSTER_STACK": "lab"})
    assert of(findings, Outcome.FAILED) == set()
    assert "lab in eu-west-1 is ready, and used" in findings["stack"].detail
    assert of(findings, Outcome.SKIPPED) == {"manager"}


async def test_without_credentials_nothing_more_is_asked_of_aws() -> None:
    aws = FakeAws()
    aws.answers["get_caller_identity"] = AwsError("no AWS credentials: set AWS_PROFILE", Fault.CREDENTIALS)
    findings = await found(BATCH, aws)
    assert of(findings, Outcome.FAILED) == {"credentials"}
    assert "set AWS_PROFILE" in findings["credentials"].detail
    assert of(findings, Outcome.SKIPPED) == {"queue", "definition", "image", "versions", "permissions", "address"}
    assert len(aws.asked) == 1


async def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def lacking(name: str) -> str:
        if name == "aiobotocore":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", lacking)
    findings = await found(BATCH)
    assert (findings["packages"].detail, findings["packages"].hint) == (
        "not installed: aiobotocore",
        "python -m pip install aiobotocore",
    )
    assert "credentials" not in findings


@pytest.mark.parametrize(("folder", "text"), [("/nonexistent", "no file can be made"), ("/" + "x" * 90, "would be too long")])
async def test_a_folder_for_temporary_files_that_is_of_no_use_is_named(
    monkeypatch: pytest.MonkeyPatch, folder: str, text: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", folder)
    findings = await found(Plan())
    assert of(findings, Outcome.FAILED) == {"machine"}
    assert text in findings["machine"].detail
    assert "TMPDIR" in findings["machine"].hint


# --- what cannot be known ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("breaking", "check", "text"),
    [
        (
            lambda aws, _: aws.answers.update(simulate_principal_policy=denied("iam:Simulate")),
            "batch:SubmitJob",
            "IAM does not say",
        ),
        (
            lambda aws, _: aws.decisions.update(
                {"batch:SubmitJob": {"EvalDecision": "implicitDeny", "MissingContextValues": ["aws:RequestTag/team"]}}
            ),
            "batch:SubmitJob",
            "depends on aws:RequestTag/team",
        ),
        (
            lambda aws, _: aws.answers.update(get_caller_identity={"Arn": "arn:aws:iam::123456789012:root", "Account": "1"}),
            "batch:SubmitJob",
            "neither a user nor a role",
        ),
        (lambda aws, _: aws.answers.update(describe_job_definitions=denied("x")), "definition", "access denied"),
        (lambda aws, _: aws.answers.update(describe_compute_environments=denied("x")), "queue", "access denied"),
        (lambda aws, _: aws.answers.update(describe_images=denied("x")), "image", "access denied"),
        (lambda aws, _: aws.answers.update(get_log_events=denied("x")), "logs:GetLogEvents", "do not show the last lines"),
        (lambda aws, _: aws.job.update(containerProperties={"image": "docker.io/sim:v1"}), "image", "in no registry of ECR"),
        (
            lambda aws, _: aws.job.update(containerProperties={"image": IMAGE.replace("eu-west-1", "us-east-1")}),
            "image",
            "is in us-east-1, and this looks at eu-west-1",
        ),
        (lambda _, engine: setattr(engine, "down", True), "versions", "no Docker engine answers here"),
        (lambda _, engine: engine.images.clear(), "versions", "is not pulled for this"),
    ],
)
async def test_what_cannot_be_known_has_not_failed(breaking: Break, check: str, text: str) -> None:
    aws, engine = FakeAws(), FakeEngine()
    breaking(aws, engine)
    findings = await found(BATCH, aws, engine)
    assert of(findings, Outcome.FAILED) == set()
    assert findings[check].outcome is Outcome.SKIPPED
    assert text in findings[check].detail


@pytest.mark.parametrize(
    ("role", "principal"),
    [
        ({"Role": {"Arn": "arn:aws:iam::1:role/path/jobs"}}, "arn:aws:iam::1:role/path/jobs"),
        (denied("iam:GetRole"), "arn:aws:iam::123456789012:role/jobs"),
    ],
)
async def test_a_session_is_judged_by_its_role(role: dict[str, Any] | Exception, principal: str) -> None:
    aws = FakeAws()
    aws.answers["get_caller_identity"] = {"Arn": "arn:aws:sts::123456789012:assumed-role/jobs/0123", "Account": "123456789012"}
    aws.answers["get_role"] = role
    await found(BATCH, aws)
    asked = {arguments["PolicySourceArn"] for name, arguments in aws.asked if name == "simulate_principal_policy"}
    assert asked == {principal}


# --- a stack, and the command ------------------------------------------------------------------------------------------------


async def test_a_stack_says_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_stack(name: str, api: Any) -> Stack:
        assert name == "lab"
        return Stack(name, "eu-west-1", {"WorkerJobQueueArn": QUEUE, "JobDefinitionName": "sim"})

    monkeypatch.setattr(doctor, "find_stack", find_stack)
    findings = await found(Plan(launcher="batch", stack="lab", advertise="10.0.0.1"))
    assert of(findings, Outcome.FAILED) == set()
    assert QUEUE in findings["queue"].detail


@pytest.mark.parametrize(("folder", "code"), [("/tmp", 0), ("/nonexistent", 1)])
def test_the_exit_code_tells_whether_anything_failed(monkeypatch: pytest.MonkeyPatch, folder: str, code: int) -> None:
    monkeypatch.setattr(tempfile, "tempdir", folder)
    done = CliRunner().invoke(app, ["doctor", "-l", "local", "--json"])
    assert done.exit_code == code
    rows = json.loads(done.output)
    assert [row["check"] for row in rows] == ["python", "packages", "machine"]
    assert rows[2]["outcome"] == ("failed" if code else "ok")
    done = CliRunner().invoke(app, ["doctor", "-l", "local"])
    assert done.exit_code == code
    assert ("try: make room there" in done.output) == bool(code)
    assert done.output.splitlines()[-1] == ("1 of 3 checks failed" if code else "nothing speaks against it")
