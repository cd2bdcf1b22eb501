"""What the layer over aiodocker makes of an engine's replies: a server on a Unix socket that has a table of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster.errors import LaunchError
from aiocluster.launch import engine as engine_module
from aiocluster.launch.docker import end, leftovers
from aiocluster.launch.engine import GONE, UNREACHABLE, ContainerEvent, ContainerState, Engine, EngineError, Listed

SAFETY_S = 30.0
API = "/v1.41"
Reply = tuple[int, Any]


class Server:
    """Replies to each request by its table, and with 404 to what is not in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "docker.sock"
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.table: dict[str, Reply | bytes] = {
            "GET /version": (200, {"ApiVersion": "1.41"}),
            f"GET {API}/info": (200, {"SystemTime": "2026-01-02T03:04:05.123456789Z"}),
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                return
            method, target, _version = head.split("\r\n", 1)[0].split(" ")
            length = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
            self.bodies.append(await reader.readexactly(length))
            path = target.partition("?")[0]
            self.asked.append(f"{method} {path}")
            reply = self.table.get(f"{method} {path}", (404, {"message": f"no such thing: {path}"}))
            if isinstance(reply, tuple):
                status, content = reply
                body = b"" if content is None else json.dumps(content).encode()
                reply = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n".encode()
                reply += f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            writer.write(reply)
            with contextlib.suppress(ConnectionError):
                await writer.drain()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    it = Server(tmp_path)
    listening = await asyncio.start_unix_server(it.serve, it.path)
    yield it
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[Engine]:
    it = Engine(f"unix://{server.path}")
    await it.open()
    yield it
    await it.close()


# --- reaching it ---------------------------------------------------------------------------------------------------------


async def test_it_is_reached_and_its_clock_is_known(engine: Engine, server: Server) -> None:
    assert engine.host == f"unix://{server.path}"
    assert engine.started_at == pytest.approx(1767323045.123456)


async def test_a_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nothing\.sock") as caught:
        await Engine(f"unix://{tmp_path}/nothing.sock").open()
    assert caught.value.status == UNREACHABLE


async def test_an_address_that_makes_no_sense_is_told() -> None:
    with pytest.raises(EngineError):
        await Engine("nonsense").open()


async def test_no_address_at_all_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("aiodocker.docker._sock_search_paths", [])
    engine = Engine()
    assert engine.host == "its usual address on this machine"
    with pytest.raises(EngineError, match="no socket of an engine was found"):
        await engine.open()


@pytest.mark.parametrize(
    ("request_line", "reply"),
    [
        ("GET /version", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("GET /version", b""),
        ("GET /version", (200, {})),
        (f"GET {API}/info", (200, {"SystemTime": "noon"})),
        (f"GET {API}/info", (200, [])),
        (f"GET {API}/info", (500, {"message": "out of order"})),
    ],
)
async def test_what_is_no_engine_is_told(server: Server, request_line: str, reply: Any) -> None:
    server.table[request_line] = reply
    with pytest.raises(EngineError):
        await Engine(f"unix://{server.path}").open()


async def test_nothing_is_asked_of_an_engine_that_was_closed(server: Server) -> None:
    engine = Engine(f"unix://{server.path}")
    for _ in range(2):
        with pytest.raises(EngineError, match="closed"):
            await engine.image_id("x")
        with pytest.raises(EngineError, match="closed"):
            await engine.stop("x", 0.0)
        with pytest.raises(EngineError, match="closed"):
            await anext(engine.events("x", 0.0))
        await engine.close()


async def test_an_engine_that_does_not_answer_is_given_up(
    engine: Engine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "REQUEST_TIMEOUT_S", 0.0)
    with pytest.raises(EngineError, match="did not answer within 0 s"):
        await engine.image_id("x")


# --- what there is -------------------------------------------------------------------------------------------------------


async def test_an_image_is_told_by_its_id(engine: Engine, server: Server) -> None:
    server.table[f"GET {API}/images/mine:1/json"] = (200, {"Id": "sha256:01"})
    assert await engine.image_id("mine:1") == "sha256:01"
    with pytest.raises(EngineError, match="no such thing") as caught:
        await engine.image_id("other")
    assert caught.value.status == GONE


async def test_a_network_is_described(engine: Engine, server: Server) -> None:
    server.table[f"GET {API}/networks/net"] = (200, {"Id": "7", "IPAM": {"Config": []}})
    server.table[f"GET {API}/networks/7"] = (200, {"Id": "7", "IPAM": {"Config": []}})
    assert (await engine.network("net"))["IPAM"] == {"Config": []}


async def test_the_state_of_a_container_is_told(engine: Engine, server: Server) -> None:
    state = {"Status": "exited", "ExitCode": 137, "OOMKilled": True}
    server.table[f"GET {API}/containers/one/json"] = (200, {"State": state})
    assert await engine.state("one") == ContainerState("exited", 137, out_of_memory=True)
    assert await engine.state("two") is None
    server.table[f"GET {API}/containers/one/json"] = (500, {"message": "out of order"})
    with pytest.raises(EngineError, match="out of order"):
        await engine.state("one")


async def test_containers_are_listed_by_label(engine: Engine, server: Server) -> None:
    server.table[f"GET {API}/containers/json"] = (
        200,
        [
            {"Id": "1", "Names": ["/one", "/alias"], "State": "running", "Labels": {"a": "b"}},
            {"Id": "2", "Names": None, "State": "dead", "Labels": None},
        ],
    )
    assert await engine.labelled("a") == [
        Listed(id="1", name="one", state="running", labels={"a": "b"}),
        Listed(id="2", name="2", state="dead", labels={}),
    ]


async def test_events_come_until_the_connection_ends(engine: Engine, server: Server) -> None:
    def event(action: str, at: int, **more: str) -> bytes:
        actor = {"ID": "1", "Attributes": {"name": "one", **more}}
        return json.dumps({"Action": action, "Actor": actor, "time": at, "timeNano": at * 10**9}).encode() + b"\n"

    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    server.table[f"GET {API}/events"] = head + event("start", 5) + event("die", 6, exitCode="3")
    async with asyncio.timeout(SAFETY_S):
        seen = [one async for one in engine.events("a=b", 4.0)]
    assert seen == [ContainerEvent("one", "start", None, 5.0), ContainerEvent("one", "die", 3, 6.0)]


async def test_an_event_that_cannot_be_understood_hides_no_other(
    engine: Engine, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    actor = {"ID": "1", "Attributes": {"name": "one", "exitCode": "3"}}
    good = json.dumps({"Action": "die", "Actor": actor, "time": 6, "timeNano": 6 * 10**9}).encode() + b"\n"
    odd = json.dumps({"Action": "die", "Actor": {"ID": "2"}, "time": 6}).encode() + b"\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    server.table[f"GET {API}/events"] = head + odd + good
    async with asyncio.timeout(SAFETY_S):
        assert [one async for one in engine.events("a=b", 4.0)] == [ContainerEvent("one", "die", 3, 6.0)]
    assert "cannot be understood" in caplog.text


async def test_events_that_are_refused_are_an_error(engine: Engine, server: Server) -> None:
    server.table[f"GET {API}/events"] = (500, {"message": "out of order"})
    async with asyncio.timeout(SAFETY_S):
        with pytest.raises(EngineError, match="out of order"):
            await anext(engine.events("a=b", 4.0))


# --- what is done --------------------------------------------------------------------------------------------------------


async def test_a_container_is_made_by_its_name(engine: Engine, server: Server) -> None:
    server.table[f"POST {API}/containers/create"] = (201, {"Id": "1"})
    await engine.create("one", {"Image": "x"})
    assert json.loads(server.bodies[-1]) == {"Image": "x"}
    server.table[f"POST {API}/containers/one/start"] = (204, None)
    await engine.start("one")
    assert server.asked[-1] == f"POST {API}/containers/one/start"


@pytest.mark.parametrize("reply", [(400, {"message": "no such program"}), b"", b"HTTP/1.1 2"])
async def test_a_start_that_fails_is_told(engine: Engine, server: Server, reply: Reply | bytes) -> None:
    server.table[f"POST {API}/containers/one/start"] = reply
    with pytest.raises(EngineError):
        await engine.start("one")


async def test_output_comes_from_both_descriptors(engine: Engine, server: Server) -> None:
    def frame(descriptor: int, data: bytes) -> bytes:
        return struct.pack(">BxxxL", descriptor, len(data)) + data

    server.table[f"GET {API}/containers/one/json"] = (200, {"Config": {"Tty": False}})
    head = (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    server.table[f"POST {API}/containers/one/attach"] = head + frame(2, b"err\n") + frame(1, b"out\n")
    async with asyncio.timeout(SAFETY_S), engine.output("one") as output:
        assert [item async for item in output] == [(2, b"err\n"), (1, b"out\n")]


@pytest.mark.parametrize("reply", [(404, {"message": "gone"}), (500, {"message": "out of order"}), b""])
async def test_output_that_cannot_be_had_is_told(engine: Engine, server: Server, reply: Reply | bytes) -> None:
    server.table[f"GET {API}/containers/one/json"] = (200, {"Config": {"Tty": False}})
    server.table[f"POST {API}/containers/one/attach"] = reply
    with pytest.raises(EngineError):
        async with asyncio.timeout(SAFETY_S), engine.output("one"):
            raise AssertionError("there is no output")


@pytest.mark.parametrize("status", [204, 304, 404, 409])
async def test_stopping_what_has_ended_is_no_matter(engine: Engine, server: Server, status: int) -> None:
    server.table[f"POST {API}/containers/one/stop"] = (status, {"message": "m"} if status >= 400 else None)
    await engine.stop("one", 1.0)


async def test_stopping_that_fails_is_told(engine: Engine, server: Server) -> None:
    server.table[f"POST {API}/containers/one/stop"] = (500, {"message": "out of order"})
    with pytest.raises(EngineError, match="out of order"):
        await engine.stop("one", 1.0)


@pytest.mark.parametrize("waited", [(200, {"StatusCode": 0}), (404, {"message": "gone"})])
async def test_a_removal_that_is_under_way_is_waited_for(engine: Engine, server: Server, waited: Reply) -> None:
    server.table[f"DELETE {API}/containers/one"] = (409, {"message": "removal is already in progress"})
    server.table[f"POST {API}/containers/one/wait"] = waited
    await engine.remove("one")
    assert server.asked[-1] == f"POST {API}/containers/one/wait"


@pytest.mark.parametrize("reply", [(204, None), (404, {"message": "gone"})])
async def test_what_is_removed_is_gone(engine: Engine, server: Server, reply: Reply) -> None:
    server.table[f"DELETE {API}/containers/one"] = reply
    await engine.remove("one")


async def test_a_removal_that_fails_is_told(engine: Engine, server: Server) -> None:
    server.table[f"DELETE {API}/containers/one"] = (409, {"message": "removal is already in progress"})
    server.table[f"POST {API}/containers/one/wait"] = (500, {"message": "out of order"})
    with pytest.raises(EngineError, match="out of order"):
        await engine.remove("one")
    server.table[f"DELETE {API}/containers/one"] = (500, {"message": "device is busy"})
    with pytest.raises(EngineError, match="device is busy"):
        await engine.remove("one")


# --- what is left over ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manager", "reply", "alive"),
    [
        ("container:m", (200, {"State": {"Status": "running", "ExitCode": 0, "OOMKilled": False}}), True),
        ("container:m", (200, {"State": {"Status": "exited", "ExitCode": 0, "OOMKilled": False}}), False),
        ("container:m", (404, {"message": "gone"}), None),
        ("container:m:0-0:1:1", (200, {"State": {"Status": "running", "ExitCode": 0, "OOMKilled": False}}), None),
        ("container:m:0-0:1:1", (200, {"State": {"Status": "exited", "ExitCode": 0, "OOMKilled": False}}), False),
        ("batch:m", (500, {"message": "it is not asked"}), None),
    ],
)
async def test_what_is_left_is_listed_with_its_manager(server: Server, manager: str, reply: Reply, alive: bool | None) -> None:
    labels = {"aiocluster:cluster": "c-1", "aiocluster:manager": manager, "aiocluster:created": "2026-01-02T03:04:05Z"}
    listed = [{"Id": "1", "Names": ["/one"], "State": "created", "Labels": labels}]
    server.table[f"GET {API}/containers/json"] = (200, listed)
    server.table[f"GET {API}/containers/m/json"] = reply
    (found,) = await leftovers(f"unix://{server.path}")
    assert (found.id, found.name, found.state, found.cluster, found.alive) == ("1", "one", "created", "c-1", alive)
    assert found.where == f"unix://{server.path}"
    server.table[f"DELETE {API}/containers/1"] = (204, None)
    await end(found)
    assert server.asked[-1] == f"DELETE {API}/containers/1"
    server.table[f"DELETE {API}/containers/1"] = (500, {"message": "device is busy"})
    with pytest.raises(LaunchError, match="device is busy"):
        await end(found)


async def test_no_engine_has_no_leftovers_to_tell(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"cannot reach a Docker engine at .*nothing\.sock.*set DOCKER_HOST"):
        await leftovers(f"unix://{tmp_path}/nothing.sock")
