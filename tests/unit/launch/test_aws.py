"""Requests to AWS: which region, what is tried again, and what errors say."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import botocore.exceptions as sdk
import pytest
from aiohttp import web
from botocore.retries.standard import ExponentialBackoff, RetryContext

from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId
from aiocluster.launch.aws import (
    ATTEMPTS,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Aws,
    AwsError,
    Fault,
    items,
    region_of_arn,
    translate,
)
from aiocluster.launch.base import agent_environment
from aiocluster.launch.secret_store import SecretStore, fetch_token
from tests.unit.launch.fake_batch import Told


def client_error(code: str, message: str = "so it is", status: int = 400) -> Exception:
    told = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = sdk.ClientError(told, "SubmitJob")
    return error


@pytest.mark.parametrize(
    ("error", "fault", "text"),
    [
        (client_error("TooManyRequestsException", status=429), Fault.THROTTLED, "batch:SubmitJob: AWS is throttling requests"),
        (client_error("ThrottlingException"), Fault.THROTTLED, "throttling"),
        (client_error("Odd", status=429), Fault.THROTTLED, "throttling"),
        (client_error("ExpiredTokenException", status=403), Fault.CREDENTIALS, "have expired.*renew them"),
        (client_error("UnrecognizedClientException", status=403), Fault.CREDENTIALS, "does not accept the credentials"),
        (client_error("AccessDeniedException", status=403), Fault.DENIED, "needs batch:SubmitJob in its policy"),
        (
            client_error("AccessDeniedException", "User: arn:x is not authorized to perform: batch:TagResource on resource: y"),
            Fault.DENIED,
            "needs batch:TagResource in its policy",
        ),
        (client_error("ServerException", status=500), Fault.UNAVAILABLE, "error on AWS's side"),
        (client_error("Odd", status=504), Fault.UNAVAILABLE, "error on AWS's side"),
        (client_error("ClientException", "Job queue q does not exist"), Fault.REJECTED, "batch:SubmitJob: Job queue q does not"),
        (sdk.NoRegionError(), Fault.NO_REGION, "no region: pass region="),
        (sdk.NoCredentialsError(), Fault.CREDENTIALS, "no AWS credentials: set AWS_PROFILE"),
        (sdk.ProfileNotFound(profile="p"), Fault.CREDENTIALS, "cannot be had: .*p.*; set AWS_PROFILE"),
        (sdk.UnauthorizedSSOTokenError(), Fault.CREDENTIALS, "cannot be had"),
        (sdk.EndpointConnectionError(endpoint_url="https://x"), Fault.UNREACHABLE, "https://x.*is the region right"),
        (sdk.ConnectTimeoutError(endpoint_url="https://x"), Fault.UNREACHABLE, "NAT or VPC endpoints"),
        (sdk.ReadTimeoutError(endpoint_url="https://x"), Fault.UNAVAILABLE, "AWS did not answer"),
        (sdk.ConnectionClosedError(endpoint_url="https://x"), Fault.UNAVAILABLE, "AWS did not answer"),
        (ConnectionResetError(), Fault.UNAVAILABLE, "AWS did not answer: ConnectionResetError"),
        (TimeoutError(), Fault.UNAVAILABLE, "AWS did not answer: TimeoutError"),
        (sdk.ParamValidationError(report="size must be"), Fault.REJECTED, "size must be"),
    ],
)
def test_errors_say_what_to_try(error: Exception, fault: Fault, text: str) -> None:
    told = translate(error, "batch", "submit_job")
    assert told.fault is fault
    with pytest.raises(LaunchError, match=text):
        raise told


@pytest.mark.parametrize(
    ("service", "operation", "code", "action"),
    [
        ("resourcegroupstaggingapi", "get_resources", "AccessDeniedException", "tag:GetResources"),
        ("s3", "list_objects_v2", "AccessDenied", "s3:ListBucket"),
        ("s3", "head_object", "403", "s3:GetObject"),
        ("s3", "upload_part", "AccessDenied", "s3:PutObject"),
        ("logs", "get_log_events", "AccessDeniedException", "logs:GetLogEvents"),
    ],
)
def test_the_action_that_is_missing_is_named_as_policies_name_it(service: str, operation: str, code: str, action: str) -> None:
    told = translate(client_error(code, "Forbidden"), service, operation)
    assert told.fault is Fault.DENIED
    assert f"needs {action} in its policy" in told.reason


@pytest.mark.parametrize("fault", list(Fault))
def test_only_what_may_have_reached_aws_may_have_been_done(fault: Fault) -> None:
    error = AwsError("", fault)
    assert error.maybe_done == (fault is Fault.UNAVAILABLE)
    assert error.passing == (fault in (Fault.THROTTLED, Fault.UNAVAILABLE, Fault.UNREACHABLE))


class Pages:
    """Three pages, as AWS gives them."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        page = int(arguments.get("nextToken", 0))
        return {"found": [page * 2, page * 2 + 1], **({"nextToken": str(page + 1)} if page < 2 else {})}

    async def close(self) -> None:
        pass


async def test_all_pages_of_a_list_are_asked_for() -> None:
    api = Pages()
    assert [item async for item in items(api, "batch", "list_jobs", "found", jobQueue="q")] == [0, 1, 2, 3, 4, 5]
    assert api.asked == [{"jobQueue": "q"}, {"jobQueue": "q", "nextToken": "1"}, {"jobQueue": "q", "nextToken": "2"}]


@pytest.mark.parametrize(
    ("arn", "region"),
    [
        ("arn:aws:ecs:eu-west-1:1:task/c/t", "eu-west-1"),
        ("arn:aws-cn:batch:cn-north-1:1:job/x", "cn-north-1"),
        ("arn:aws:iam::1:role/x", None),
        ("queue", None),
        ("", None),
    ],
)
def test_the_region_of_an_arn(arn: str, region: str | None) -> None:
    assert region_of_arn(arn) == region


# --- against a server that answers as it is told ------------------------------------------------------------------------------


class Server:
    """Gives one answer after the other: a status and a body, or None for a connection that is closed without one."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any]] | None] = []
        self.asked: list[web.Request] = []
        self.bodies: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        self.bodies.append(await request.text())
        answer = self.answers.pop(0) if self.answers else (200, {"jobQueues": []})
        if answer is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        status, body = answer
        headers = {"x-amzn-errortype": body["code"]} if "code" in body else {}
        return web.Response(status=status, text=json.dumps(body), content_type="application/json", headers=headers)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
def account(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The SDK's environment: that server, and nothing of whoever runs the tests."""
    without_account(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    return server


def without_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "ECS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextlib.asynccontextmanager
async def opened(region: str | None = "eu-west-1") -> AsyncIterator[Aws]:
    api = Aws(region)
    try:
        yield api
    finally:
        await api.close()


async def test_a_request_goes_to_the_endpoint_of_the_environment(account: Server) -> None:
    async with opened() as api:
        assert (await api.call("batch", "describe_job_queues", jobQueues=["q"]))["jobQueues"] == []
    (asked,) = account.asked
    assert asked.path == "/v1/describejobqueues"
    assert "/eu-west-1/batch/" in asked.headers["Authorization"]


async def test_requests_at_the_same_time_share_what_is_open(account: Server) -> None:
    async with opened() as api:
        await asyncio.gather(*[api.call("batch", "describe_job_queues") for _ in range(5)])
        await api.close()
        await api.call("batch", "describe_job_queues")
    assert len(account.asked) == 6


async def test_a_patient_request_is_made_again(account: Server) -> None:
    account.answers = [(429, {"code": "TooManyRequestsException", "message": "slow"}), None]
    async with opened() as api:
        assert (await api.call("batch", "describe_job_queues"))["jobQueues"] == []
    assert len(account.asked) == 3


def test_patience_is_as_long_as_it_is_said_to_be() -> None:
    waits = ExponentialBackoff(random=lambda: 1.0)
    contexts = [RetryContext(attempt_number=number) for number in range(1, ATTEMPTS)]
    longest_s = sum(waits.delay_amount(context) for context in contexts)
    assert longest_s == 1 + 2 + 4 + 8 + 16 + 20 + 20
    assert longest_s + ATTEMPTS * (CONNECT_TIMEOUT_S + READ_TIMEOUT_S) == 271


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ((429, {"code": "TooManyRequestsException", "message": "slow"}), Fault.THROTTLED),
        ((500, {"code": "ServerException", "message": "oh"}), Fault.UNAVAILABLE),
        (None, Fault.UNAVAILABLE),
    ],
)
async def test_a_request_that_is_not_patient_is_made_once(
    account: Server, answer: tuple[int, dict[str, Any]] | None, fault: Fault
) -> None:
    account.answers = [answer]
    async with opened() as api:
        with pytest.raises(AwsError) as caught:
            await api.call("batch", "submit_job", patient=False, jobName="n", jobQueue="q", jobDefinition="d")
    assert caught.value.fault is fault
    assert len(account.asked) == 1


async def test_what_aws_rejects_is_not_tried_again(account: Server) -> None:
    account.answers = [(403, {"code": "AccessDeniedException", "message": "no"})]
    async with opened() as api:
        with pytest.raises(AwsError, match="needs batch:DescribeJobQueues in its policy"):
            await api.call("batch", "describe_job_queues")
    assert len(account.asked) == 1


async def test_without_a_region_there_is_none(account: Server) -> None:
    async with opened(None) as api:
        with pytest.raises(LaunchError, match="no region: pass region=, set AWS_REGION"):
            await api.call("batch", "describe_job_queues")
    assert account.asked == []


async def test_without_credentials_it_says_so(account: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    async with opened() as api:
        with pytest.raises(LaunchError, match="no AWS credentials"):
            await api.call("batch", "describe_job_queues")
    assert account.asked == []


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
async def test_the_region_is_that_of_the_environment(account: Server, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "ap-south-1")
    async with opened(None) as api:
        assert await api.region() == "ap-south-1"


async def test_the_region_is_that_of_the_profile(account: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile mine]\nregion = sa-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    async with opened(None) as api:
        assert await api.region() == "sa-east-1"


async def test_a_container_that_is_told_no_region_works_where_its_task_runs(
    account: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", f"{account.url}/v4/x")
    account.answers = [(200, {"TaskARN": "arn:aws:ecs:eu-north-1:1:task/c/t"})]
    async with opened(None) as api:
        assert await api.region() == "eu-north-1"
    assert [asked.path for asked in account.asked] == ["/v4/x/task"]


@pytest.mark.parametrize("answer", [(500, {}), (200, {}), None])
async def test_metadata_that_do_not_tell_leave_no_region(
    account: Server, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, dict[str, Any]] | None
) -> None:
    monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", f"{account.url}/v4/x")
    account.answers = [answer] * 2
    async with opened(None) as api:
        with pytest.raises(LaunchError, match="no region"):
            await api.region()


# --- what is logged ----------------------------------------------------------------------------------------------------------


async def ask_batch(api: Aws, told: Told) -> None:
    environment = [{"name": name, "value": value} for name, value in agent_environment(told.request("n-1"), "n-1").items()]
    overrides = {"environment": environment}
    await api.call("batch", "submit_job", jobName="n", jobQueue="q", jobDefinition="d", containerOverrides=overrides)


async def ask_ecs(api: Aws, told: Told) -> None:
    environment = [{"name": name, "value": value} for name, value in agent_environment(told.request("n-1"), "n-1").items()]
    overrides = {"containerOverrides": [{"name": "main", "environment": environment}]}
    await api.call("ecs", "run_task", taskDefinition="d", overrides=overrides)


async def put_into_ssm(api: Aws, told: Told) -> None:
    await SecretStore("ssm", api).put(ClusterId("c-1"), told.token)


async def put_into_secretsmanager(api: Aws, told: Told) -> None:
    await SecretStore("secretsmanager", api).put(ClusterId("c-1"), told.token)


async def fetch_from_ssm(api: Aws, told: Told) -> None:
    assert await fetch_token("ssm:/x", api) == told.token


async def fetch_from_secretsmanager(api: Aws, told: Told) -> None:
    assert await fetch_token("secretsmanager:x", api) == told.token


@pytest.mark.parametrize(
    ("ask", "sent"),
    [
        (ask_batch, True),
        (ask_ecs, True),
        (put_into_ssm, True),
        (put_into_secretsmanager, True),
        (fetch_from_ssm, False),
        (fetch_from_secretsmanager, False),
    ],
)
async def test_the_token_is_in_no_log(account: Server, caplog: pytest.LogCaptureFixture, ask: Any, sent: bool) -> None:
    caplog.set_level(logging.DEBUG)
    told = Told()
    raw, hexed = told.token.reveal(), told.token.reveal().hex()
    answer = {"jobId": "j", "tasks": [], "Parameter": {"Value": hexed}, "SecretString": hexed}
    account.answers = [(500, {"code": "ServerException", "message": hexed}), (200, answer)]
    async with opened() as api:
        await ask(api, told)
    assert len(account.asked) == 2
    if sent:
        assert all(hexed in body for body in account.bodies)
    forms = [hexed, hexed.upper(), repr(raw), str(list(raw)), *(base64.b64encode(one).decode() for one in (raw, hexed.encode()))]
    for record in caplog.records:
        text = logging.Formatter().format(record)  # with its traceback
        assert not any(form in text for form in forms), record.name


async def test_requests_of_others_are_logged_as_ever(account: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as api:
        await api.call("batch", "describe_job_queues")
        caplog.set_level(logging.DEBUG)
        logging.getLogger("botocore.endpoint").debug("a request of theirs")
        assert caplog.messages == ["a request of theirs"]
