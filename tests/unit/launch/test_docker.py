"""`Docker` on an engine that does what a test wants: what is asked of it, in which order, and what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiocluster.config import Settings
from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId, Token
from aiocluster.launch import container as container_module
from aiocluster.launch import docker as docker_module
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.docker import Docker
from aiocluster.launch.engine import UNREACHABLE, EngineError
from aiocluster.launch.reach import Reach

from .fake_engine import IMAGE, FakeEngine, refusal

CLUSTER = ClusterId("c-1")
ONE = "aiocluster-c-1-docker-1"
TWO = "aiocluster-c-1-docker-2"
SAFETY_S = 30.0


class OnFake(Docker):
    """It knows one engine, and has it from the beginning."""

    def __init__(self, engine: FakeEngine, **arguments: Any) -> None:
        super().__init__(**{"image": "image", **arguments})
        self.fake = engine

    def _connect(self) -> FakeEngine:
        return self.fake


class Heard:
    """What a launcher has told."""

    def __init__(self, *nodes: str) -> None:
        self.observed: list[tuple[str, str, str]] = []
        self.exits: list[tuple[str, str]] = []
        self.changed = asyncio.Event()
        self.token = Token.generate()
        self.request = LaunchRequest(
            cluster_id=CLUSTER,
            token=self.token,
            address="tcp://10.0.0.1:7000",
            nodes=nodes,
            workers=dict.fromkeys(nodes, 1),
            minimum=len(nodes),
            observed=lambda node, state, reason: self._note(self.observed, (node, state, reason)),
            exited=lambda node, reason: self._note(self.exits, (node, reason)),
            expect=lambda node, predecessor: None,
            settings=Settings(),
        )

    def _note(self, to: list[Any], item: Any) -> None:
        to.append(item)
        self.changed.set()

    async def exit(self, number: int = 1) -> tuple[str, str]:
        """The exit with this number, when it has been told."""
        async with asyncio.timeout(SAFETY_S):
            while len(self.exits) < number:
                self.changed.clear()
                await self.changed.wait()
        return self.exits[number - 1]

    def states(self, node: str = "docker-1") -> list[str]:
        return [state for name, state, _reason in self.observed if name == node]


@contextlib.asynccontextmanager
async def running(*nodes: str, **arguments: Any) -> AsyncIterator[tuple[FakeEngine, OnFake, Heard]]:
    engine = FakeEngine()
    launcher = OnFake(engine, **arguments)
    heard = Heard(*nodes)
    try:
        await launcher.start(heard.request)
        await engine.until(lambda: engine.listening)
        yield engine, launcher, heard
    finally:
        await close(launcher)


async def close(launcher: Docker) -> None:
    async with asyncio.timeout(SAFETY_S):
        await launcher.close(0.0)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module, "STOP_GRACE_S", 0.0)
    monkeypatch.setattr(docker_module, "RETRY_S", 0.0)
    monkeypatch.setattr(docker_module, "own_container_id", lambda: None)


# --- what is asked -------------------------------------------------------------------------------------------------------


async def test_a_container_is_listened_to_before_it_starts() -> None:
    async with running("docker-1") as (engine, _launcher, _heard):
        mine = [request for request in engine.asked if request.endswith(ONE)]
        assert mine == [f"create {ONE}", f"output {ONE}", f"start {ONE}"]


async def test_a_container_is_made_as_it_was_asked_for() -> None:
    arguments = {"network": "net", "env": {"COLOUR": "green"}, "labels": {"team": "blue"}, "mounts": ["/data:/data:ro"]}
    async with running("docker-1", command=["agent"], **arguments) as (engine, _launcher, heard):
        config = engine.containers[ONE].config
        assert config["Image"] == IMAGE  # the very image that was looked up, whatever its name will mean later
        assert config["Cmd"] == ["agent"]
        assert config["HostConfig"] == {"AutoRemove": True, "NetworkMode": "net", "Binds": ["/data:/data:ro"]}
        assert config["Labels"]["team"] == "blue"
        assert config["Labels"]["aiocluster:cluster"] == CLUSTER
        assert set(config["Labels"]) == {
            "team",
            "aiocluster:cluster",
            "aiocluster:manager",
            "aiocluster:created",
            "aiocluster:node",
        }
        assert "COLOUR=green" in config["Env"]
        assert "AIOCLUSTER_MANAGER=tcp://10.0.0.1:7000" in config["Env"]
        assert "AIOCLUSTER_NODE=docker-1" in config["Env"]
        secret = heard.token.reveal().hex()
        assert f"AIOCLUSTER_TOKEN={secret}" in config["Env"]
        assert secret not in str([config["Cmd"], config["Labels"]])


async def test_no_more_containers_start_at_once_than_the_bound() -> None:
    engine = FakeEngine()
    launcher = OnFake(engine)
    gate = engine.hold("create")
    heard = Heard(*[f"docker-{n}" for n in range(1, 2 * docker_module.AT_ONCE + 1)])
    starting = asyncio.create_task(launcher.start(heard.request), name="starting")
    await engine.until(lambda: len([one for one in engine.asked if one.startswith("create")]) == docker_module.AT_ONCE)
    gate.set()
    async with asyncio.timeout(SAFETY_S):
        await starting
    assert len(engine.containers) == 2 * docker_module.AT_ONCE
    await close(launcher)
    assert engine.containers == {}


# --- what is told --------------------------------------------------------------------------------------------------------


async def test_states_are_told_in_the_words_of_the_engine() -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        for action in ("pause", "unpause", "exec_start: sh", "attach"):
            engine.emit(ONE, action)
        engine.exit(ONE, 3)
        await heard.exit()
        assert heard.states() == ["created", "running", "paused", "running", "exited"]


async def test_events_of_unknown_containers_are_nobodys() -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.emit("somebody-else", "die", 1)
        engine.exit(ONE, 0)
        assert await heard.exit() == ("docker-1", "its container exited with code 0")
        assert len(heard.exits) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1, "its container exited with code 1"),
        (128, "its container exited with code 128"),
        (137, "its container was killed by signal 9 (SIGKILL)"),
        (143, "its container was killed by signal 15 (SIGTERM)"),
        (255, "its container exited with code 255"),
    ],
)
async def test_how_a_container_ended_is_told(code: int, reason: str) -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.exit(ONE, code)
        assert await heard.exit() == ("docker-1", reason)
        assert ("docker-1", "exited", reason) in heard.observed


async def test_want_of_memory_is_told() -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.emit(ONE, "oom")
        engine.exit(ONE, 137)
        assert await heard.exit() == ("docker-1", "its container was killed by signal 9 (SIGKILL) (out of memory)")


async def test_want_of_memory_long_ago_does_not_explain_an_end() -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.emit(ONE, "oom")  # a worker was killed, and its agent went on
        engine.later(container_module.OOM_RECENT_S)
        engine.exit(ONE, 137)
        assert await heard.exit() == ("docker-1", "its container was killed by signal 9 (SIGKILL)")


async def test_the_last_lines_are_there_when_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with running("docker-1") as (engine, launcher, heard):
        engine.write(ONE, b"first\nsec")
        engine.write(ONE, b"other stream\r\n", 1)
        engine.write(ONE, b"ond\nno end of line \xff")
        engine.exit(ONE, 1)
        await heard.exit()
        assert launcher.last_lines("docker-1") == ("first", "other stream", "second", "no end of line �")
        assert "node docker-1: second" in caplog.text


async def test_lines_that_arrive_after_the_end_are_waited_for() -> None:
    async with running("docker-1") as (engine, launcher, heard):
        output = engine.containers[ONE].output
        engine.emit(ONE, "die", 1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert heard.exits == []
        output.put_nowait((2, b"late\n"))
        output.put_nowait(None)
        await heard.exit()
        assert launcher.last_lines("docker-1") == ("late",)


async def test_lines_that_never_arrive_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_module, "LAST_LINES_S", 0.0)
    async with running("docker-1") as (engine, launcher, heard):
        engine.emit(ONE, "die", 1)
        assert await heard.exit() == ("docker-1", "its container exited with code 1")
        assert launcher.last_lines("docker-1") == ()


async def test_only_the_last_lines_are_kept() -> None:
    async with running("docker-1") as (engine, launcher, heard):
        engine.write(ONE, b"".join(b"%d\n" % n for n in range(1000)))
        engine.exit(ONE, 1)
        await heard.exit()
        assert launcher.last_lines("docker-1") == tuple(str(n) for n in range(950, 1000))


async def test_the_lines_of_old_nodes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module, "REMEMBERED", 1)
    async with running("docker-1", "docker-2") as (engine, launcher, heard):
        engine.write(ONE, b"one\n")
        engine.write(TWO, b"two\n")
        engine.exit(ONE, 1)
        await heard.exit()
        engine.exit(TWO, 1)
        await heard.exit(2)
        assert launcher.last_lines("docker-1") == ()
        assert launcher.last_lines("docker-2") == ("two",)


# --- what fails ----------------------------------------------------------------------------------------------------------


async def test_one_container_that_cannot_be_made_costs_only_its_node() -> None:
    engine = FakeEngine()
    engine.refuses[f"create {ONE}"] = refusal("name is in use")
    launcher, heard = OnFake(engine), Heard("docker-1", "docker-2")
    await launcher.start(heard.request)
    assert heard.exits == [("docker-1", "its container could not be started: name is in use")]
    assert set(engine.containers) == {TWO}
    await close(launcher)


@pytest.mark.parametrize("request_name", ["start", "output"])
async def test_a_container_that_cannot_be_started_is_removed(request_name: str) -> None:
    engine = FakeEngine()
    engine.refuses[request_name] = refusal("executable file not found", 400)
    launcher, heard = OnFake(engine), Heard("docker-1")
    await launcher.start(heard.request)
    assert heard.exits == [("docker-1", "its container could not be started: executable file not found")]
    assert engine.containers == {}
    await close(launcher)


@pytest.mark.parametrize("request_name", ["create", "start"])
async def test_what_was_made_is_removed_when_the_reply_was_lost(request_name: str) -> None:
    engine = FakeEngine()
    engine.loses_replies.add(request_name)
    launcher, heard = OnFake(engine), Heard("docker-1")
    await launcher.start(heard.request)
    assert heard.exits == [("docker-1", "its container could not be started: the connection broke")]
    assert engine.containers == {}
    await close(launcher)


async def test_what_could_not_be_removed_then_is_removed_at_the_close() -> None:
    engine = FakeEngine()
    engine.loses_replies.add("create")
    engine.refuses["remove"] = refusal("the engine is busy", 500)
    launcher, heard = OnFake(engine), Heard("docker-1")
    await launcher.start(heard.request)
    await heard.exit()
    await asyncio.sleep(0)  # what followed it has ended: nothing but its label tells of it
    assert set(engine.containers) == {ONE}
    engine.refuses.clear()
    await close(launcher)
    assert engine.containers == {}


async def test_an_engine_that_is_not_there_is_told_with_what_to_try() -> None:
    engine = FakeEngine()
    engine.refuses["open"] = EngineError(UNREACHABLE, "no such file")
    with pytest.raises(LaunchError, match=r"cannot reach a Docker engine at unix:///fake.sock: no such file; start one, or set"):
        await OnFake(engine).start(Heard("docker-1").request)


async def test_an_image_that_is_not_there_is_told_before_anything_is_made() -> None:
    engine = FakeEngine()
    launcher = OnFake(engine, image="other:1")
    with pytest.raises(LaunchError, match=r"no such image: .* does not have other:1; `docker pull other:1` gets it"):
        await launcher.start(Heard("docker-1").request)
    assert not [one for one in engine.asked if one.startswith("create")]
    await close(launcher)


async def test_an_engine_that_breaks_while_it_is_asked_is_a_launch_error() -> None:
    engine = FakeEngine()
    engine.refuses["image"] = EngineError(UNREACHABLE, "the connection broke")
    launcher = OnFake(engine)
    with pytest.raises(LaunchError, match="the Docker engine: the connection broke"):
        await launcher.start(Heard("docker-1").request)
    await close(launcher)


# --- its own image -------------------------------------------------------------------------------------------------------


async def test_the_image_of_the_managers_container_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module, "own_container_id", lambda: "abc")
    engine = FakeEngine()
    engine.inspected["abc"] = {"Image": "sha256:mine"}
    launcher = OnFake(engine, image=None)
    await launcher.start(Heard("docker-1").request)
    assert engine.containers[ONE].config["Image"] == "sha256:mine"
    await close(launcher)


@pytest.mark.parametrize("own", [None, "of-another-engine"])
async def test_without_a_container_that_the_engine_knows_an_image_is_needed(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_module, "own_container_id", lambda: own)
    launcher = OnFake(FakeEngine(), image=None)
    with pytest.raises(LaunchError, match="image= is needed"):
        await launcher.start(Heard("docker-1").request)
    await close(launcher)


async def test_the_environment_may_name_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOCLUSTER_DOCKER_IMAGE", "image")
    async with running("docker-1", image=None) as (engine, _launcher, _heard):
        assert engine.containers[ONE].config["Image"] == IMAGE


# --- addresses -----------------------------------------------------------------------------------------------------------

NETWORK = {"IPAM": {"Config": [{"Subnet": "fd00::/64"}, {"Subnet": "127.9.0.0/16", "Gateway": "127.0.0.1"}]}}


async def test_a_private_address_is_told_on_the_hosts_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiocluster.launch.reach.interfaces", lambda: {"lo": ["127.0.0.1"], "eth0": ["10.1.2.3"]})
    assert await OnFake(FakeEngine()).find_reach() == Reach()


async def test_loopback_is_told_where_there_is_no_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiocluster.launch.reach.interfaces", lambda: {"lo": ["127.0.0.1"]})
    assert await OnFake(FakeEngine()).find_reach() == Reach(advertise="127.0.0.1")


async def test_who_listens_on_loopback_of_the_hosts_network_tells_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiocluster.launch.reach.interfaces", lambda: {"lo": ["127.0.0.1"], "eth0": ["10.1.2.3"]})
    expected = Reach(advertise="127.0.0.2", host="127.0.0.2")
    assert await OnFake(FakeEngine(), host="127.0.0.2").find_reach() == expected
    assert await OnFake(FakeEngine(), host="10.1.2.3").find_reach() == Reach(host="10.1.2.3")
    with pytest.raises(LaunchError, match="link-local"):
        await OnFake(FakeEngine(), host="169.254.1.1").find_reach()


async def test_who_listens_on_loopback_is_not_told_to_another_network() -> None:
    engine = FakeEngine()
    engine.networks["net"] = NETWORK
    with pytest.raises(LaunchError, match=r"host=127\.0\.0\.1: nodes elsewhere reach no loopback address"):
        await OnFake(engine, network="net", host="127.0.0.1").find_reach()
    assert await OnFake(engine, network="net", host="10.1.2.3").find_reach() == Reach(host="10.1.2.3")


def test_a_network_with_a_slash_is_an_address_and_no_name() -> None:
    with pytest.raises(ValueError, match="network must be a CIDR"):
        Docker(network="10.0.0.1/16")


@pytest.mark.parametrize("arguments", [{"advertise": "10.9.9.9:80"}, {"network": "10.0.0.0/8"}])
async def test_what_is_given_counts(arguments: dict[str, Any]) -> None:
    engine = FakeEngine()
    launcher = OnFake(engine, **arguments)
    assert await launcher.find_reach() == Reach(**arguments)
    await launcher.start(Heard("docker-1").request)
    assert engine.containers[ONE].config["HostConfig"]["NetworkMode"] == "host"
    await close(launcher)


async def test_on_another_network_the_gateway_is_told_where_it_is_this_machine() -> None:
    engine = FakeEngine()
    engine.networks["net"] = NETWORK
    launcher = OnFake(engine, network="net", port=7000)
    assert await launcher.find_reach() == Reach(advertise="127.0.0.1", host="127.0.0.1", port=7000)
    await close(launcher)


async def test_a_manager_that_is_on_the_network_tells_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module, "own_container_id", lambda: "abc")
    engine = FakeEngine()
    engine.inspected["abc"] = {"NetworkSettings": {"Networks": {"net": {"IPAddress": "172.20.0.2"}}}}
    launcher = OnFake(engine, network="net", host="0.0.0.0")  # noqa: S104
    assert await launcher.find_reach() == Reach(advertise="172.20.0.2", host="0.0.0.0")  # noqa: S104
    await close(launcher)


@pytest.mark.parametrize("config", [None, [], [{"Gateway": "203.0.113.1"}]])
async def test_where_nothing_is_known_the_usual_rule_holds(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module, "own_container_id", lambda: "abc")
    engine = FakeEngine()
    engine.inspected["abc"] = {"NetworkSettings": {"Networks": {"host": {"IPAddress": ""}}}}
    engine.networks["net"] = {"IPAM": {"Config": config}}
    launcher = OnFake(engine, network="net")
    assert await launcher.find_reach() == Reach()
    await close(launcher)


@pytest.mark.parametrize(
    ("error", "text"),
    [(None, "no network net: `docker network create net` makes one"), (refusal("busy", 500), "the Docker engine: busy")],
)
async def test_a_network_that_is_not_there_is_told_with_what_to_try(error: EngineError | None, text: str) -> None:
    engine = FakeEngine()
    if error is not None:
        engine.refuses["network"] = error
    launcher = OnFake(engine, network="net")
    with pytest.raises(LaunchError, match=text):
        await launcher.find_reach()
    await close(launcher)


@pytest.mark.parametrize("arguments", [{"network": "none"}, {"workers_per_node": 0}, {"port": -1}])
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Docker(image="image", **arguments)


# --- the end -------------------------------------------------------------------------------------------------------------


async def test_stopping_ends_one_container_without_a_word_of_an_exit() -> None:
    async with running("docker-1", "docker-2") as (engine, launcher, heard):
        await launcher.stop("docker-1")
        await launcher.stop("docker-1")
        await launcher.stop("docker-9")
        assert set(engine.containers) == {TWO}
        assert heard.exits == []


async def test_a_lost_node_is_ended_too() -> None:
    async with running("docker-1") as (engine, launcher, _heard):
        await launcher.stop("docker-1", lost=True)
        assert engine.containers == {}


async def test_stopping_waits_for_a_container_that_is_being_made_and_removes_it() -> None:
    engine = FakeEngine()
    launcher, heard = OnFake(engine), Heard("docker-1")
    gate = engine.hold("create")
    starting = asyncio.create_task(launcher.start(heard.request), name="starting")
    await engine.until(lambda: f"create {ONE}" in engine.asked)
    starting.cancel()
    await asyncio.wait([starting])
    stopping = asyncio.create_task(launcher.stop("docker-1"), name="stopping")
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(SAFETY_S):
        await stopping
    assert engine.containers == {}
    assert f"start {ONE}" not in engine.asked
    assert heard.exits == []
    await close(launcher)


async def test_a_container_that_waits_for_its_turn_is_never_made_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_module, "AT_ONCE", 1)
    engine = FakeEngine()
    launcher, heard = OnFake(engine), Heard("docker-1", "docker-2")
    gate = engine.hold("create")
    starting = asyncio.create_task(launcher.start(heard.request), name="starting")
    await engine.until(lambda: f"create {ONE}" in engine.asked)
    stopping = asyncio.create_task(launcher.stop("docker-2"), name="stopping")
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(SAFETY_S):
        await asyncio.gather(starting, stopping)
    assert f"create {TWO}" not in engine.asked
    await close(launcher)


@pytest.mark.parametrize("turns", range(25))
async def test_a_start_that_is_cancelled_anywhere_leaves_nothing_after_the_close(turns: int) -> None:
    engine = FakeEngine()
    launcher, heard = OnFake(engine), Heard("docker-1", "docker-2")
    starting = asyncio.create_task(launcher.start(heard.request), name="starting")
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    await close(launcher)
    assert engine.containers == {}
    assert heard.exits == []


async def test_cancelling_a_stop_removes_the_container_at_once() -> None:
    async with running("docker-1") as (engine, launcher, _heard):
        engine.hold("stop")
        stopping = asyncio.create_task(launcher.stop("docker-1"), name="stopping")
        await engine.until(lambda: f"stop {ONE}" in engine.asked)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert engine.containers == {}


async def test_closing_waits_for_those_who_end_by_themselves_and_removes_the_others() -> None:
    async with running("docker-1", "docker-2") as (engine, launcher, heard):
        one, two = engine.containers[ONE], engine.containers[TWO]
        engine.exit(ONE, 0)
        await close(launcher)
        assert (one.signals, two.signals) == ([], ["SIGKILL"])
        assert engine.containers == {}
        assert [node for node, _reason in heard.exits if node == "docker-2"] == []
        assert engine.closed == 1
        await close(launcher)
        assert engine.closed == 1


async def test_closing_removes_what_it_can_and_tells_what_it_could_not() -> None:
    engine = FakeEngine()
    launcher, heard = OnFake(engine), Heard("docker-1", "docker-2")
    await launcher.start(heard.request)
    engine.refuses[f"remove {ONE}"] = refusal("device is busy", 500)
    with pytest.raises(LaunchError, match=f"could not be removed .*{ONE}: device is busy.*aiocluster reap"):
        await launcher.close(0.0)
    assert set(engine.containers) == {ONE}
    assert engine.closed == 1


async def test_a_container_that_cannot_be_stopped_is_told_of_in_the_words_of_launchers() -> None:
    async with running("docker-1", "docker-2") as (engine, launcher, _heard):
        engine.refuses[f"remove {ONE}"] = refusal("device is busy", 500)
        with pytest.raises(LaunchError, match="node docker-1 could not be stopped: device is busy"):
            await launcher.stop("docker-1")
        await launcher.stop("docker-2")
        engine.refuses.clear()


async def test_a_removal_that_fails_at_first_is_tried_again_at_the_close() -> None:
    async with running("docker-1") as (engine, launcher, _heard):
        engine.refuses[f"stop {ONE}"] = refusal("not now", 500)
        with pytest.raises(LaunchError, match="not now"):
            await launcher.stop("docker-1")
        engine.refuses.clear()
        await close(launcher)
        assert engine.containers == {}


async def test_containers_of_other_clusters_are_left_alone() -> None:
    async with running("docker-1") as (engine, launcher, _heard):
        await engine.create("aiocluster-c-2-docker-1", {"Labels": {"aiocluster:cluster": "c-2"}})
        await close(launcher)
        assert set(engine.containers) == {"aiocluster-c-2-docker-1"}


# --- an engine that goes away --------------------------------------------------------------------------------------------


async def test_events_are_heard_again_after_the_connection_broke() -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.break_streams()
        await engine.until(lambda: engine.listening == 2)
        engine.exit(ONE, 4)
        assert await heard.exit() == ("docker-1", "its container exited with code 4")
        assert heard.states() == ["created", "running", "exited"]  # none of them twice


async def test_what_ended_while_nobody_listened_is_found() -> None:
    async with running("docker-1", "docker-2") as (engine, _launcher, heard):
        engine.exit(ONE, 4, silently=True)
        engine.containers[TWO].status = "exited"
        engine.containers[TWO].code = 137
        engine.containers[TWO].out_of_memory = True
        engine.containers[TWO].output.put_nowait(None)
        engine.break_streams()
        await heard.exit(2)
        assert dict(heard.exits) == {
            "docker-1": "its container is gone",
            "docker-2": "its container was killed by signal 9 (SIGKILL) (out of memory)",
        }


@pytest.mark.parametrize("request_", ["create", "output", "start"])
async def test_a_start_that_fails_in_a_way_nobody_thought_of_is_told(request_: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    launcher, heard = OnFake(engine), Heard("docker-1")
    engine.refuses[request_] = KeyError("Id")
    await launcher.start(heard.request)
    assert await heard.exit() == ("docker-1", "its container could not be started: 'Id'")
    assert "KeyError" in caplog.text
    await close(launcher)
    assert engine.containers == {}


@pytest.mark.parametrize("error", [EngineError(UNREACHABLE, "the connection broke"), KeyError("Actor")], ids=repr)
async def test_an_end_that_no_event_tells_is_found_however_the_listening_broke(error: Exception) -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.exit(ONE, 4, silently=True)
        engine.refuses["events"] = error
        engine.break_streams(error)
        assert await heard.exit() == ("docker-1", "its container is gone")
        engine.refuses.clear()


async def test_events_that_cannot_be_understood_end_no_watching(caplog: pytest.LogCaptureFixture) -> None:
    async with running("docker-1") as (engine, _launcher, heard):
        engine.break_streams(KeyError("Actor"))
        await engine.until(lambda: engine.listening == 2)
        engine.exit(ONE, 4)
        assert await heard.exit() == ("docker-1", "its container exited with code 4")
        assert caplog.text.count("cannot be understood") == 1


async def test_an_engine_that_goes_away_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with running("docker-1") as (engine, _launcher, heard):
        engine.refuses["events"] = EngineError(UNREACHABLE, "the engine is gone")
        engine.break_streams(EngineError(UNREACHABLE, "the connection broke"))
        await engine.until(lambda: engine.asked.count("events") == 4)
        engine.refuses.clear()
        await engine.until(lambda: engine.listening == 2)
        assert heard.exits == []  # it is not known of any container that it has ended
        assert caplog.text.count("cannot be heard") == 1
