"""An agent whose spot instance will be taken away: how it ends tells whether another node is to come in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from aiocluster.wire.messages import NodeDraining, Shutdown
from tests.unit.launch.harness import manager_and_launcher


@pytest.fixture
async def metadata() -> AsyncIterator[str]:
    """An instance that has got its notice."""

    async def token(_request: web.Request) -> web.Response:
        return web.Response(text="token")

    async def action(_request: web.Request) -> web.Response:
        return web.Response(text='{"action": "terminate", "time": "2099-01-02T12:02:00Z"}')

    app = web.Application()
    app.router.add_put("/latest/api/token", token)
    app.router.add_get("/latest/meta-data/spot/instance-action", action)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(("variables", "code"), [({"AIOCLUSTER_RECLAIMED_CODE": "75"}, 75), ({}, 0)])
async def test_an_agent_that_has_heard_the_notice_ends_with_the_code_that_it_was_given(
    variables: dict[str, str], code: int, metadata: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    for name, value in {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata, **variables}.items():
        monkeypatch.setenv(name, value)
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await manager.said(agent, NodeDraining)
        agent.send(Shutdown(0.0))
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", f"its agent exited with code {code}")]
