"""Workers that are tasks of Amazon ECS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiocluster import Cluster, LaunchError
from aiocluster.launch.ecs import end, leftovers
from aiocluster.launch.marks import CLUSTER, CREATED, MANAGER
from tests.online.commands import aiocluster
from tests.online.ecs_tasks import described, id_of, output_of, tasks_left, tasks_of
from tests.online.emulators import Emulator
from tests.online.engine import Engine
from tests.online.ground import Ecs
from tests.online.waiting import until

pytestmark = pytest.mark.online("ecs")

SOON_S = 60.0
WAIT = ["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"]
"""It never joins, and ends when it is told to."""
INSIDE = """
import asyncio, json, os
import aiocluster
from aiocluster.launch.own_container import own_container_id

async def main():
    async with aiocluster.Cluster.ecs(3, output="quiet") as cluster:
        containers = await cluster.everywhere(own_container_id)
        print(json.dumps({"cluster": cluster.id, "containers": list(containers.values())}), flush=True)

aiocluster.run(main())
"""
"""A manager that is a task itself: where and of what its workers are it takes from there."""
STAYS = """
import asyncio, json
import aiocluster

async def main():
    async with aiocluster.Cluster.ecs(2, output="quiet") as cluster:
        print(json.dumps({"cluster": cluster.id}), flush=True)
        await asyncio.Event().wait()

aiocluster.run(main())
"""
"""The same, until it is ended."""
OUTSIDE = """
import asyncio, json, sys
import aiocluster

async def main():
    async with aiocluster.Cluster.ecs(2, output="quiet", **json.loads(sys.argv[1])) as cluster:
        print(cluster.id, flush=True)
        await asyncio.Event().wait()

aiocluster.run(main())
"""


def place(ecs: Ecs) -> dict[str, Any]:
    given: dict[str, Any] = {"cluster": ecs.cluster, "task_definition": ecs.task_definition, "launch_type": ecs.launch_type}
    return {**given, "subnets": list(ecs.subnets)} if ecs.subnets else given


def given(ecs: Ecs, **more: Any) -> dict[str, Any]:
    return {**place(ecs), "output": "quiet", **more}


async def nothing_left(ecs: Ecs, cluster_id: str) -> None:
    await until(lambda: tasks_left(ecs, cluster_id), lambda left: left == [], timeout=SOON_S)


def run_task(ecs: Ecs, command: list[str], **more: Any) -> str:
    """Start a task as a person would; its id."""
    overrides = {"containerOverrides": [{"name": ecs.container, "command": command}]}
    with ecs.client("ecs") as client:
        (task,) = client.run_task(**ecs.place, count=1, overrides=overrides, **more)["tasks"]
    return id_of(task)


# --- from outside and from within ---------------------------------------------------------------------------------------------


async def test_three_workers_are_tasks(ecs: Ecs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "aiocluster")
    async with Cluster.ecs(3, **given(ecs, env={"TEST_GIVEN": "yes"})) as cluster:
        assert {worker.node for worker in cluster.workers.values()} == {"ecs-1", "ecs-2", "ecs-3"}
        assert set((await cluster.everywhere(os.getenv, "TEST_GIVEN")).values()) == {"yes"}
        tasks = await asyncio.to_thread(tasks_of, ecs, cluster.id)
        assert len(tasks) == 3
        assert all(task["startedBy"] == cluster.id for task in tasks)
        assert any(message.startswith("spawned tasks ") and message.endswith("(n=3)") for message in caplog.messages)
        await cluster.scale(4)
        assert len(cluster.workers) == 4
        await cluster.scale(1)
        assert len(cluster.workers) == 1
    await nothing_left(ecs, cluster.id)


async def test_no_workers_are_no_tasks(ecs: Ecs) -> None:
    async with Cluster.ecs(0, **given(ecs)) as cluster:
        assert cluster.workers == {}
        assert await asyncio.to_thread(tasks_of, ecs, cluster.id) == []
        await cluster.scale(1)
        assert await cluster.submit(os.getpid) > 0
    await nothing_left(ecs, cluster.id)


async def test_a_manager_that_is_a_task_has_its_workers_where_it_is(ecs: Ecs) -> None:
    manager = await asyncio.to_thread(run_task, ecs, ["python", "-c", INSIDE])
    (task,) = await until(lambda: described(ecs, [manager]), lambda tasks: tasks[0]["lastStatus"] == "STOPPED", timeout=SOON_S)
    lines = await asyncio.to_thread(output_of, ecs, manager)
    assert task["containers"][0].get("exitCode") == 0, lines
    told = json.loads(lines[0])
    assert len(set(told["containers"])) == 3
    workers = await asyncio.to_thread(tasks_of, ecs, told["cluster"])
    assert {worker["tags"]["aiocluster:manager"] for worker in workers} == {f"ecs:{task['taskArn']}"}
    await nothing_left(ecs, told["cluster"])


async def test_a_manager_with_a_network_of_its_own_has_its_workers_in_its_subnet(vpc_ecs: Ecs) -> None:
    manager = await asyncio.to_thread(run_task, vpc_ecs, ["python", "-c", INSIDE])
    (task,) = await until(
        lambda: described(vpc_ecs, [manager]), lambda tasks: tasks[0]["lastStatus"] == "STOPPED", timeout=SOON_S
    )
    lines = await asyncio.to_thread(output_of, vpc_ecs, manager)
    assert task["containers"][0].get("exitCode") == 0, lines
    told = json.loads(lines[0])
    tasks = [task, *await asyncio.to_thread(tasks_of, vpc_ecs, told["cluster"])]
    assert len(tasks) == 4
    assert len({detail_of(one, "subnetId") for one in tasks}) == 1
    assert len({detail_of(one, "privateIPv4Address") for one in tasks}) == 4
    assert {(one["launchType"], one["taskDefinitionArn"]) for one in tasks} == {("FARGATE", task["taskDefinitionArn"])}
    await nothing_left(vpc_ecs, told["cluster"])


def detail_of(task: dict[str, Any], name: str) -> str:
    """Of its network interface."""
    (interface,) = [one for one in task["attachments"] if one["type"] == "ElasticNetworkInterface"]
    (value,) = [detail["value"] for detail in interface["details"] if detail["name"] == name]
    return str(value)


@pytest.mark.parametrize("store", ["ssm", "secretsmanager"])
async def test_tasks_are_told_only_where_the_token_is(ecs: Ecs, store: Any) -> None:
    async with Cluster.ecs(2, **given(ecs, secret_store=store)) as cluster:
        assert len(await cluster.everywhere(os.getpid)) == 2
        for task in await asyncio.to_thread(tasks_of, ecs, cluster.id):
            (override,) = task["overrides"]["containerOverrides"]
            variables = {one["name"]: one["value"] for one in override["environment"]}
            assert "AIOCLUSTER_TOKEN" not in variables
            assert variables["AIOCLUSTER_TOKEN_FROM"].startswith(f"{store}:")
    with ecs.client(store) as client:
        if store == "ssm":
            names = [one["Name"] for one in client.describe_parameters()["Parameters"]]
        else:
            names = [one["Name"] for one in client.list_secrets()["SecretList"]]
    assert not [name for name in names if cluster.id in name]
    await nothing_left(ecs, cluster.id)


async def test_two_clusters_at_once_do_not_touch_each_other(ecs: Ecs) -> None:
    async with Cluster.ecs(2, **given(ecs)) as one, Cluster.ecs(2, **given(ecs)) as other:
        await one.close()
        await nothing_left(ecs, one.id)
        assert len(await asyncio.to_thread(tasks_left, ecs, other.id)) == 2
        assert len(await other.everywhere(os.getpid)) == 2
    await nothing_left(ecs, other.id)


async def test_a_task_that_is_stopped_lets_its_call_finish(ecs: Ecs) -> None:
    """By somebody else, as AWS stops tasks of a Spot instance: SIGTERM, and SIGKILL half a minute later."""
    begun = asyncio.Event()

    def print_and_sleep(seconds: float) -> str:  # defined here, it travels: a task cannot import this module
        print("begun", flush=True)
        time.sleep(seconds)
        return "finished"

    async with Cluster.ecs(1, **{**given(ecs), "output": lambda _worker, _stream, _line: begun.set()}) as cluster:
        call = cluster.submit(print_and_sleep, 2.0)
        await begun.wait()
        (task,) = await asyncio.to_thread(tasks_of, ecs, cluster.id)
        with ecs.client("ecs") as client:
            stopping = asyncio.to_thread(client.stop_task, cluster=ecs.cluster, task=task["taskArn"], reason="as Spot does")
            finished, _ = await asyncio.gather(call, stopping)
        assert finished == "finished"
        async for event in cluster.events():
            if (event.kind, event.node) == ("node_lost", "ecs-1"):
                break
        assert cluster.workers == {}
    await nothing_left(ecs, cluster.id)


# --- what cannot be ----------------------------------------------------------------------------------------------------------


async def test_a_task_that_exits_at_once_is_known_in_seconds_with_its_last_lines(ecs: Ecs) -> None:
    command = ["python", "-c", "print('no such model'); raise SystemExit(7)"]
    with pytest.raises(LaunchError, match=r"its task has STOPPED: .*exit code 7") as caught:
        await Cluster.ecs(1, timeout=3600.0, **given(ecs, command=command))
    (node,) = caught.value.nodes
    assert node.last_lines == ("no such model",)


async def test_an_image_that_is_not_there_is_known_in_seconds(ecs: Ecs) -> None:
    family = f"test-{uuid.uuid4().hex[:8]}"
    container = {"name": ecs.container, "image": "127.0.0.1:9/nothing-like-it:none", "memory": 128, "essential": True}
    with ecs.client("ecs") as client:
        made = client.register_task_definition(family=family, networkMode="host", containerDefinitions=[container])
    try:
        with pytest.raises(LaunchError, match="image"):
            await Cluster.ecs(1, timeout=3600.0, **given(ecs, task_definition=family))
    finally:
        with ecs.client("ecs") as client:
            client.deregister_task_definition(taskDefinition=made["taskDefinition"]["taskDefinitionArn"])


async def test_a_minimum_that_is_not_met_is_an_error_with_states_and_nothing_is_left(ecs: Ecs) -> None:
    mark = uuid.uuid4().hex
    with pytest.raises(LaunchError, match="only 0 of at least 2 workers joined within 3 s") as caught:
        await Cluster.ecs(2, timeout=3.0, **given(ecs, command=WAIT, tags={"test": mark}))
    assert [(node.name, node.state) for node in caught.value.nodes] == [("ecs-1", "RUNNING"), ("ecs-2", "RUNNING")]
    assert len(await asyncio.to_thread(tasks_of, ecs, mark, "test")) == 2
    await until(lambda: tasks_left(ecs, mark, "test"), lambda left: left == [], timeout=SOON_S)


async def test_a_cluster_and_a_definition_that_are_not_there_are_named(ecs: Ecs) -> None:
    with pytest.raises(LaunchError, match="nothing-like-it"):
        await Cluster.ecs(1, **given(ecs, task_definition="nothing-like-it"))


async def test_what_ecs_has_no_room_for_is_told_in_its_words(ecs: Ecs, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ecs.emulated:
        pytest.skip("an account has room")
    async with full_cluster(ecs.environ["AWS_ENDPOINT_URL"]) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        mark = uuid.uuid4().hex
        with pytest.raises(LaunchError, match="RESOURCE:MEMORY") as caught:
            await Cluster.ecs((2, 3), timeout=3600.0, **given(ecs, tags={"test": mark}))
        assert len(caught.value.nodes) == 3
        assert len(await asyncio.to_thread(tasks_of, ecs, mark, "test")) == 1
        await until(lambda: tasks_left(ecs, mark, "test"), lambda left: left == [], timeout=SOON_S)
        async with Cluster.ecs((1, 3), timeout=3600.0, **given(ecs)) as cluster:
            assert await cluster.submit(os.getpid) > 0
            assert len(await asyncio.to_thread(tasks_of, ecs, cluster.id)) == 1
    await nothing_left(ecs, cluster.id)


@contextlib.asynccontextmanager
async def full_cluster(url: str) -> AsyncIterator[str]:
    """Before the emulator, which always has room: one that says of every task but the first that no instance can take it."""

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        refused = 0
        if request.headers.get("X-Amz-Target", "").endswith(".RunTask"):
            refused, asked["count"] = asked["count"] - 1, 1
        headers = {name: value for name, value in request.headers.items() if name not in ("Content-Length", "Host")}
        async with session.post(url + request.path, json=asked, headers=headers) as answered:
            told = await answered.json(content_type=None)
            if refused:
                told["failures"] = [{"arn": "arn:aws:ecs:instance", "reason": "RESOURCE:MEMORY"}] * refused
            return web.json_response(told, status=answered.status, content_type="application/x-amz-json-1.1")

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    async with aiohttp.ClientSession() as session:
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def test_an_answer_that_is_lost_starts_no_task_twice(ecs: Ecs, ecs_faults: Emulator) -> None:
    rule = {"service": "ecs", "operation": "RunTask", "times": 1, "response": {"abort_bytes": 1}}
    await asyncio.to_thread(ecs_faults.request, "POST", "/_microburst/rules", [rule])
    async with Cluster.ecs(2, **given(ecs)) as cluster:
        assert len(await cluster.everywhere(os.getpid)) == 2
        await until(lambda: tasks_left(ecs, cluster.id), lambda left: len(left) == 2, timeout=SOON_S)
    await nothing_left(ecs, cluster.id)


async def test_a_permission_that_is_missing_is_named(ecs: Ecs, ecs_faults: Emulator) -> None:
    rule = {"service": "ecs", "operation": "RunTask", "error": {"code": "AccessDeniedException", "status": 403}}
    await asyncio.to_thread(ecs_faults.request, "POST", "/_microburst/rules", [rule])
    with pytest.raises(LaunchError, match="access denied: the role or user needs ecs:RunTask in its policy"):
        await Cluster.ecs(1, **given(ecs))


# --- ends --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_a_manager_that_ends_leaves_no_task(ecs: Ecs, number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "manager.py"
    script.write_text(OUTSIDE)
    command = [sys.executable, str(script), json.dumps(place(ecs))]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        cluster_id = (await process.stdout.readline()).decode().strip()
        assert len(await asyncio.to_thread(tasks_left, ecs, cluster_id)) == 2
        process.send_signal(number)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await nothing_left(ecs, cluster_id)


@pytest.mark.parametrize("way", ["stopped", "killed"])
async def test_a_manager_that_is_a_task_leaves_none_however_it_ends(ecs: Ecs, docker_engine: Engine, way: str) -> None:
    if way == "killed" and not ecs.emulated:
        pytest.skip("containers of a stack are out of reach")
    manager = await asyncio.to_thread(run_task, ecs, ["python", "-c", STAYS])
    try:
        lines = await until(lambda: output_of(ecs, manager), timeout=SOON_S)
        cluster_id = json.loads(lines[0])["cluster"]
        assert len(await asyncio.to_thread(tasks_left, ecs, cluster_id)) == 2
    finally:
        await asyncio.to_thread(stop if way == "stopped" else kill, ecs, docker_engine, manager)
    await nothing_left(ecs, cluster_id)
    await until(lambda: described(ecs, [manager]), lambda tasks: tasks[0]["lastStatus"] == "STOPPED", timeout=SOON_S)


def stop(ecs: Ecs, _engine: Engine, task: str) -> None:
    with ecs.client("ecs") as client:
        client.stop_task(cluster=ecs.cluster, task=task, reason="enough")


def kill(ecs: Ecs, engine: Engine, task: str) -> None:
    """Its container, behind the back of ECS."""
    (told,) = described(ecs, [task])
    label = f"label=com.amazonaws.ecs.task-arn={told['taskArn']}"
    (container,) = engine.docker("ps", "--quiet", "--filter", label).split()
    engine.docker("kill", "--signal", "KILL", container)


async def test_what_a_dead_manager_has_left_is_found_and_ended(ecs: Ecs) -> None:
    dead = f"c-{uuid.uuid4().hex[:12]}"
    marks = {
        "aiocluster:cluster": dead,
        "aiocluster:manager": "process:gone:1:1",
        "aiocluster:created": "2024-01-01T00:00:00Z",
    }
    tags = [{"key": key, "value": value} for key, value in marks.items()]
    id = await asyncio.to_thread(run_task, ecs, WAIT, tags=tags)
    (found,) = [one for one in await leftovers() if one.cluster == dead]
    assert (found.name, found.kind) == (id, "ecs task")
    await end(found)
    await nothing_left(ecs, dead)


async def test_reap_ends_what_a_manager_that_was_a_task_has_left_and_spares_what_others_have(ecs: Ecs) -> None:
    manager = await asyncio.to_thread(run_task, ecs, ["true"])
    (ended,) = await until(lambda: described(ecs, [manager]), lambda tasks: tasks[0]["lastStatus"] == "STOPPED", timeout=SOON_S)
    cluster_id = f"c-{uuid.uuid4().hex[:12]}"
    marks = {CLUSTER: cluster_id, MANAGER: f"ecs:{ended['taskArn']}", CREATED: "2024-01-01T00:00:00Z"}
    id = await asyncio.to_thread(run_task, ecs, WAIT, tags=[{"key": key, "value": value} for key, value in marks.items()])
    async with Cluster.ecs(1, **given(ecs)) as living:
        code, printed = await aiocluster("ls", "-k", "ecs", "--json")
        alive = {row["cluster"]: (row["kind"], row["manager_alive"]) for row in json.loads(printed)}
        assert (code, alive[cluster_id], alive[living.id]) == (0, ("ecs task", False), ("ecs task", True))
        assert await aiocluster("reap", "-k", "ecs", "--cluster", living.id) == (
            0,
            "1 left alone: the manager runs (--all ends them too) or cannot be judged from here (--unknown)\n",
        )
        code, printed = await aiocluster("reap", "-k", "ecs", "--cluster", cluster_id)
        assert code == 0
        assert printed.startswith(f"ended ecs task {id} (")
        await nothing_left(ecs, cluster_id)
        assert await living.submit(abs, -1) == 1
    await nothing_left(ecs, living.id)
