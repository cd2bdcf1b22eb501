"""Spot notices, from a metadata service on this machine."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from aiocluster.runtime.agent_settings import metadata_endpoint
from aiocluster.runtime.notices import SpotNotice, parse_notice, watch

NOON = datetime.datetime(2030, 1, 2, 12, tzinfo=datetime.UTC)


def test_a_notice_says_how_long_calls_may_run() -> None:
    notice = parse_notice('{"action": "terminate", "time": "2030-01-02T12:02:00Z"}', NOON)
    assert notice == SpotNotice("spot interruption: EC2 will terminate the instance at 2030-01-02T12:02:00Z", 115.0)


def test_a_notice_that_comes_late_leaves_no_time() -> None:
    notice = parse_notice('{"action": "stop", "time": "2030-01-02T11:00:00Z"}', NOON)
    assert notice is not None
    assert notice.grace_s == 0.0


@pytest.mark.parametrize(
    "text", ["", "<html>", "[]", "null", "{}", '{"action": "stop", "time": "soon"}', '{"action": 1, "time": 2}']
)
def test_what_is_no_notice_is_none(text: str) -> None:
    assert parse_notice(text, NOON) is None


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, None),
        ({"AWS_BATCH_JOB_ID": "j"}, "http://169.254.169.254"),
        ({"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/x"}, "http://169.254.169.254"),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1/"}, "http://127.0.0.1:1"),
        ({"AWS_BATCH_JOB_ID": "j", "AWS_EC2_METADATA_DISABLED": "true"}, None),
    ],
)
def test_only_in_aws_is_anybody_asked(environ: dict[str, str], endpoint: str | None) -> None:
    assert metadata_endpoint(environ) == endpoint


class Service:
    """An instance metadata service that wants a token, which it takes back once."""

    def __init__(self) -> None:
        self.notice: str | None = None
        self.asked = 0
        self.tokens = 0
        self.url = ""

    async def token(self, request: web.Request) -> web.Response:
        assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.tokens += 1
        return web.Response(text=f"token-{self.tokens}")

    async def action(self, request: web.Request) -> web.Response:
        self.asked += 1
        if request.headers.get("X-aws-ec2-metadata-token") != f"token-{self.tokens}" or self.asked == 2:
            return web.Response(status=401)
        return web.Response(status=404) if self.notice is None else web.Response(text=self.notice)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_put("/latest/api/token", service.token)
    app.router.add_get("/latest/meta-data/spot/instance-action", service.action)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield service
    await runner.cleanup()


async def test_the_notice_is_told_when_it_comes(service: Service) -> None:
    told: list[SpotNotice] = []
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            service.notice = '{"action": "terminate", "time": "2030-01-02T12:02:00Z"}'

    await watch(service.url, told.append, pause=pause)
    assert [notice.reason for notice in told] == ["spot interruption: EC2 will terminate the instance at 2030-01-02T12:02:00Z"]
    assert pauses == [5.0] * 4
    assert service.tokens == 2, "a token that is too old is asked for anew"


async def test_where_nobody_answers_nobody_is_asked_for_ever() -> None:
    with_port = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = with_port.sockets[0].getsockname()[1]
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async with with_port:
        await watch(f"http://127.0.0.1:{port}", lambda notice: pytest.fail("there was none"), pause=pause)
    assert len(pauses) == 3
