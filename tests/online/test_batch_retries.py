"""Jobs of AWS Batch that are started again, and those that are not."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from aiocluster import Cluster
from aiocluster.launch.batch_shape import RECLAIMED_CODE
from tests.online.batch_jobs import ENDED, SOON_S, described, given, jobs_named, kill, nothing_left, take_away
from tests.online.engine import Engine
from tests.online.ground import Batch
from tests.online.waiting import until

pytestmark = pytest.mark.online("batch")


class Instance:
    """The metadata service of an instance that will be taken away, and a page that a call waits for."""

    def __init__(self) -> None:
        self.url = ""
        self.visited = asyncio.Event()
        self.let_go = asyncio.Event()
        self._notices: list[str] = []

    def reclaim(self) -> None:
        """Who asks next is told so; whoever comes after is on another instance."""
        time = datetime.now(UTC) + timedelta(minutes=2)
        self._notices.append(json.dumps({"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ")}))

    def call(self) -> Callable[[], str]:
        url = f"{self.url}/call"

        def visit() -> str:
            import urllib.request

            with urllib.request.urlopen(url) as answer:  # noqa: S310 - of this test
                return str(answer.read().decode())

        return visit

    async def on_call(self, _request: web.Request) -> web.Response:
        self.visited.set()
        await self.let_go.wait()
        return web.Response(text="done")

    async def on_token(self, _request: web.Request) -> web.Response:
        return web.Response(text="token")

    async def on_action(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._notices.pop()) if self._notices else web.Response(status=404)


@pytest.fixture
async def instance() -> AsyncIterator[Instance]:
    instance = Instance()
    app = web.Application()
    app.router.add_put("/latest/api/token", instance.on_token)
    app.router.add_get("/latest/meta-data/spot/instance-action", instance.on_action)
    app.router.add_get("/call", instance.on_call)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    instance.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield instance
    await runner.cleanup()


async def heard(cluster: Cluster, *news: tuple[str, str]) -> None:
    """Returns when the cluster has told all of these, as kind and node, in whatever order."""
    missing = set(news)
    try:
        async with asyncio.timeout(SOON_S):
            async for event in cluster.events():
                missing.discard((event.kind, event.node))
                if not missing:
                    return
    except TimeoutError:
        raise AssertionError(f"never heard of {missing}, but of {list(cluster.events())}") from None


async def test_a_job_that_loses_its_instance_comes_back_as_another_node(batch: Batch, docker_engine: Engine) -> None:
    if not batch.emulated:
        pytest.skip("containers of a stack are out of reach")
    async with Cluster.batch(2, **given(batch, retry=1)) as cluster:
        (job,) = await asyncio.to_thread(jobs_named, batch, f"aiocluster-{cluster.id}")
        await asyncio.to_thread(take_away, docker_engine, f"{job['jobId']}:0")
        # The end of the first attempt may be told after the second has joined: its last lines are asked for before.
        await heard(cluster, ("worker_joined", "batch-1.2"), ("node_lost", "batch-1"))
        assert {worker.node for worker in cluster.workers.values()} == {"batch-1.2", "batch-2"}
        assert len(await cluster.everywhere(os.getpid)) == 2
    await nothing_left(batch, cluster.id)


async def test_a_job_that_hears_a_spot_notice_lets_its_call_finish_and_comes_back_as_another_node(
    batch: Batch, instance: Instance
) -> None:
    if not batch.emulated:
        pytest.skip("the instances of a stack have their own notices")
    variables = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": instance.url}
    async with Cluster.batch(1, **given(batch, retry=1, env=variables)) as cluster:
        (job,) = await asyncio.to_thread(jobs_named, batch, f"aiocluster-{cluster.id}")
        running = cluster.submit(instance.call())
        await instance.visited.wait()
        instance.reclaim()
        await heard(cluster, ("node_draining", "batch-1"))
        instance.let_go.set()
        assert await running == "done"
        await heard(cluster, ("worker_joined", "batch-1.2"), ("node_lost", "batch-1"))
        assert [worker.node for worker in cluster.workers.values()] == ["batch-1.2"]
        attempts = (await asyncio.to_thread(described, batch, job["jobId"]))["attempts"]
        assert attempts[0]["container"]["exitCode"] == RECLAIMED_CODE
    await nothing_left(batch, cluster.id)


async def test_a_job_that_ends_otherwise_does_not_come_back(batch: Batch, docker_engine: Engine) -> None:
    if not batch.emulated:
        pytest.skip("containers of a stack are out of reach")
    async with Cluster.batch(1, **given(batch, retry=1)) as cluster:
        (job,) = await asyncio.to_thread(jobs_named, batch, f"aiocluster-{cluster.id}")
        await asyncio.to_thread(kill, docker_engine, job["jobId"])
        ended = await until(lambda: described(batch, job["jobId"]), lambda told: told["status"] in ENDED, timeout=SOON_S)
        assert (ended["status"], len(ended["attempts"])) == ("FAILED", 1)
        await heard(cluster, ("node_lost", "batch-1"))
        assert not cluster.workers
