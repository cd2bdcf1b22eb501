"""Peers that lie, babble, stall or speak out of turn: one clear line in the log, they are dropped, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

import pytest

from aiocluster import Cluster, WorkerLost
from aiocluster.config import Settings
from aiocluster.ids import Token, new_link_id
from aiocluster.launch.base import Launcher, LaunchRequest
from aiocluster.runtime.owner import Owner
from aiocluster.wire import messages as wire
from aiocluster.wire.frames import Frame, FrameDecoder, FrameLimits, encode
from aiocluster.wire.handshake import NONCE_BYTES, PROTOCOL, ClientGate, hello
from aiocluster.wire.payloads import pack

from . import work
from .conftest import SAFETY_S, Fifos

GREETING_BYTES = 48
PROOF_BYTES = 64


def owner_of(cluster: Cluster) -> Owner:
    return cluster._owner


class Peer:
    """One raw connection to the manager of a cluster."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._decoder = FrameDecoder(FrameLimits())
        self._frames: list[Frame] = []

    async def __aenter__(self) -> Self:
        listener = self._owner._listener
        assert listener is not None
        await self._loop.sock_connect(self._socket, listener.addresses[0].removeprefix("unix:"))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it has been dropped already
            await self._loop.sock_sendall(self._socket, data)

    async def receive(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(SAFETY_S):
            while len(data) < size and (more := await self._loop.sock_recv(self._socket, size - len(data))):
                data += more
        return data

    async def dropped(self) -> bytes:
        """What else the manager says before it closes the connection."""
        data = b""
        async with asyncio.timeout(SAFETY_S):
            try:
                while more := await self._loop.sock_recv(self._socket, 65536):
                    data += more
            except ConnectionResetError:
                pass  # a rude end is an end
        return data

    async def pass_gate(self) -> None:
        gate = ClientGate(self._owner.manager.token, os.urandom(NONCE_BYTES))
        await self.send(gate.feed(await self.receive(GREETING_BYTES)))
        gate.feed(await self.receive(PROOF_BYTES))
        assert gate.passed

    async def say(self, message: wire.Message, buffers: Sequence[bytes] = ()) -> None:
        await self.send(b"".join(encode(message, buffers)))

    async def hear(self) -> wire.Message:
        """The next message that is no acknowledgement."""
        async with asyncio.timeout(SAFETY_S):
            while True:
                while self._frames:
                    message = self._frames.pop(0).message
                    if not isinstance(message, wire.Ack):
                        return message
                data = await self._loop.sock_recv(self._socket, 65536)
                if not data:
                    raise EOFError
                self._frames += self._decoder.feed(data)

    def greeting(self, role: str = "worker", **changes: Any) -> wire.Hello:
        greeting = hello(
            role=role,
            cluster_id=self._owner.manager.id,
            node="local-1",
            worker_id=0 if role == "agent" else 1,
            host="here",
            pid=os.getpid(),
            link_id=new_link_id(),
        )
        return greeting._replace(**changes)

    async def refused(self, message: wire.Message) -> wire.Refused:
        """The answer to a hello that is not welcome; the connection ends after it."""
        await self.say(message)
        answer = await self.hear()
        assert isinstance(answer, wire.Refused)
        with pytest.raises(EOFError):
            await self.hear()
        return answer


class Log:
    """What the cluster has logged, and a way to wait for more."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records if record.name.startswith("aiocluster")]

    async def line(self, part: str) -> str:
        """The only line that holds this, as soon as it is there."""
        async with asyncio.timeout(SAFETY_S):
            while not (found := [line for line in self.lines if part in line]):  # noqa: ASYNC110  # logging wakes nobody
                await asyncio.sleep(0)
        assert len(found) == 1
        return found[0]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level("WARNING", logger="aiocluster")
    return Log(caplog)


async def works(cluster: Cluster) -> None:
    assert await cluster.map(work.square, range(200)) == [n * n for n in range(200)]
    assert set(cluster.workers) == {1, 2}
    assert [event.kind for event in cluster.events() if "lost" in event.kind] == []


# --- before the gate -----------------------------------------------------------------------------------------------------


def proof(token: bytes, greeting: bytes) -> bytes:
    return ClientGate(Token(token), os.urandom(NONCE_BYTES)).feed(greeting)


def reflected(owner: Owner, greeting: bytes) -> bytes:
    nonce = greeting[16:]
    gate = ClientGate(owner.manager.token, b"\1" * NONCE_BYTES)
    return nonce + gate.feed(greeting)[NONCE_BYTES:]


def a_bit_off(owner: Owner, greeting: bytes) -> bytes:
    reply = bytearray(proof(owner.manager.token.reveal(), greeting))
    reply[-1] ^= 1
    return bytes(reply)


STRANGERS: dict[str, tuple[Callable[[Owner, bytes], bytes], str]] = {
    "random bytes": (lambda _owner, _greeting: b"\xc1\xff" * 5000, "did not prove that it knows the token"),
    "zeros": (lambda _owner, _greeting: bytes(64), "did not prove that it knows the token"),
    "HTTP": (lambda _owner, _greeting: b"GET / HTTP/1.1\r\nHost: manager\r\nAccept: */*\r\nX: " + b"x" * 64, "looks like HTTP"),
    "SSH": (lambda _owner, _greeting: b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(64), "looks like SSH"),
    "TLS": (lambda _owner, _greeting: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), "looks like TLS"),
    "an older protocol": (lambda _owner, _greeting: b"aiocluster/0".ljust(64, b"\0"), "aiocluster's own greeting"),
    "a wrong token": (lambda _owner, greeting: proof(bytes(32), greeting), "did not prove that it knows the token"),
    "our own nonce": (reflected, "sent our own nonce back"),
    "one wrong bit": (a_bit_off, "did not prove that it knows the token"),
}


@pytest.mark.parametrize("kind", STRANGERS)
async def test_a_stranger_is_turned_away(cluster: Cluster, log: Log, kind: str) -> None:
    say, complaint = STRANGERS[kind]
    owner = owner_of(cluster)
    async with Peer(owner) as peer:
        greeting = await peer.receive(GREETING_BYTES)
        assert greeting.startswith(b"aiocluster/2\0")
        await peer.send(say(owner, greeting))
        assert (await peer.dropped()).strip(b"\0") == b"", "a stranger learns nothing"
    assert (await log.line(complaint)).startswith("dropped a connection from ")
    await works(cluster)


@pytest.mark.parametrize("said", [b"", b"h", bytes(63)], ids=["nothing", "one byte", "half a reply"])
async def test_a_silent_peer_is_dropped_in_time(cluster: Cluster, log: Log, said: bytes) -> None:
    async with Peer(owner_of(cluster)) as peer:
        await peer.receive(GREETING_BYTES)
        await peer.send(said)
        await works(cluster)
        assert await peer.dropped() == b""
    assert "no proof within 2 s" in await log.line("dropped a connection")
    await works(cluster)


@pytest.mark.parametrize("said", [b"", bytes(10)], ids=["at once", "in the middle of its reply"])
async def test_a_peer_that_hangs_up_is_forgotten(cluster: Cluster, log: Log, said: bytes) -> None:
    async with Peer(owner_of(cluster)) as peer:
        await peer.receive(GREETING_BYTES)
        await peer.send(said)
    await log.line("went away before it had proven")
    assert owner_of(cluster)._listener.pending == 0  # type: ignore[union-attr]
    await works(cluster)


async def test_300_silent_connections_keep_nobody_out(cluster: Cluster) -> None:
    owner = owner_of(cluster)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            await stack.enter_async_context(Peer(owner))
        calls = cluster.map(work.square, range(10_000))
        scaled = asyncio.ensure_future(cluster.scale(6))
        assert await calls == [n * n for n in range(10_000)]
        await scaled
        assert len(cluster.workers) == 6
        assert owner._listener.pending <= 128  # type: ignore[union-attr]
    assert [event.kind for event in cluster.events() if "lost" in event.kind] == []


# --- hello ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"cluster_id": "c-0123456789"}, "cluster", "another cluster"),
        ({"protocol": PROTOCOL + 1}, "protocol", "different versions"),
        ({"version": "99.0"}, "version", "different versions"),
        ({"python": "2.7"}, "version", "different versions"),
        ({"worker_id": 77}, "stale", "not expected"),
        ({"node": "local-9"}, "stale", "not expected"),
        ({"worker_id": 1}, "stale", "joined already"),
        ({"resuming": True}, "stale", "does not know the link"),
        ({"received": 5}, "stale", "does not know the link"),
        ({"role": "agent", "worker_id": 0}, "stale", "joined already"),
        ({"role": "agent", "worker_id": 0, "node": "nobody"}, "stale", "expected"),
    ],
    ids=str,
)
async def test_a_hello_that_is_not_right_is_refused_with_the_reason(
    cluster: Cluster, log: Log, changes: dict[str, Any], code: str, reason: str
) -> None:
    async with Peer(owner_of(cluster)) as peer:
        await peer.pass_gate()
        refused = await peer.refused(peer.greeting()._replace(**changes))
    assert refused.code == code
    assert reason in refused.reason
    if code == "version":
        assert refused.ours != refused.theirs
        assert str(changes.get("version", changes.get("python"))) in refused.theirs
    await log.line(refused.reason)
    await works(cluster)


async def test_a_worker_that_was_declared_lost_does_not_come_back(cluster: Cluster, log: Log) -> None:
    with pytest.raises(Exception, match="exited with code 3"):
        await cluster.workers[1].submit(os._exit, 3)
    await cluster.wait_for_workers(2)
    async with Peer(owner_of(cluster)) as peer:
        await peer.pass_gate()
        refused = await peer.refused(peer.greeting(worker_id=1))
    assert refused.code == "stale"
    await log.line("declared lost")
    assert await cluster.everywhere(work.own_id) == {2: 2, 3: 3}


def frame(header: bytes) -> bytes:
    return struct.pack(">I", len(header)) + header


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 4097) + bytes(100),
        struct.pack(">I", 2**31),
        struct.pack(">I", 2**32 - 1),
        frame(b"\xc1"),
        frame(b"\x91" * 3000 + b"\xc0"),
        frame(b"\xdd\xff\xff\xff\xff"),
        frame(b"\x93\x01\xa1\xff\x90"),
        frame(b"\x92\xcd\x03\xe7\x90"),
        frame(b"\xc0\xc0"),
        b"".join(encode(wire.Results([1], b"\0", [b""], [], []))),
        b"".join(encode(wire.NodeBeat(1, {}, []))),
    ],
    ids=[
        "length 0",
        "length limit + 1",
        "length 2**31",
        "length 2**32 - 1",
        "no msgpack",
        "deep nesting",
        "a lying length",
        "bad UTF-8",
        "an unknown tag",
        "trailing bytes",
        "results",
        "a beat",
    ],
)
async def test_anything_but_a_hello_is_refused(cluster: Cluster, log: Log, data: bytes) -> None:
    async with Peer(owner_of(cluster)) as peer:
        await peer.pass_gate()
        await peer.send(data)
        answer = await peer.hear()
        assert isinstance(answer, wire.Refused)
        assert answer.code == "protocol"
        await peer.dropped()
    assert answer.reason in await log.line("dropped a connection")
    await works(cluster)


# --- peers that were let in ----------------------------------------------------------------------------------------------


class Impostor(Launcher):
    """A launcher whose nodes are played by the test."""

    name = "fake"
    workers_per_node: int | None = None

    def __init__(self) -> None:
        self.started = asyncio.Event()

    async def start(self, request: LaunchRequest) -> None:
        self.started.set()

    async def stop(self, node: str, *, lost: bool = False) -> None:
        pass

    async def close(self, grace_s: float) -> None:
        pass


class Stage:
    """A real cluster with one more node and one more worker, id 3, that the test plays."""

    def __init__(self, cluster: Cluster, log: Log, agent: Peer, worker: Peer) -> None:
        self.cluster = cluster
        self._log = log
        self.agent = agent
        self.worker = worker

    async def call(self) -> tuple[asyncio.Future[int], wire.Calls]:
        """A call that was sent to the worker."""
        future = self.cluster.workers[3].submit(work.square, 3)
        while not isinstance(message := await self.worker.hear(), wire.Calls):
            pass
        return future, message

    async def dropped_worker(self, text: str) -> None:
        """The worker is lost for that reason, its node is told, and the others go on."""
        event = await self._event("worker_lost")
        assert event.worker_id == 3
        assert text in event.text
        assert text in await self._log.line("worker 3: worker lost")
        await self.worker.dropped()
        await self._others_work()

    async def dropped_node(self, text: str) -> None:
        event = await self._event("node_lost")
        assert event.node == "fake-1"
        assert text in event.text
        assert text in await self._log.line("node fake-1: node lost")
        await self.agent.dropped()
        await self.worker.dropped()
        await self._others_work()

    async def _event(self, kind: str) -> Any:
        async with asyncio.timeout(SAFETY_S):
            async for event in self.cluster.events():
                if event.kind == kind:
                    return event
        raise AssertionError("the cluster closed before it happened")

    async def _others_work(self) -> None:
        assert await self.cluster.options(workers=[1, 2]).map(work.square, range(200)) == [n * n for n in range(200)]
        assert {1, 2} <= set(self.cluster.workers)
        losses = [event for event in self.cluster.events() if event.kind == "worker_lost"]
        assert {event.worker_id for event in losses} == {3}


@pytest.fixture
async def stage(cluster: Cluster, log: Log) -> AsyncIterator[Stage]:
    owner = owner_of(cluster)
    impostor = Impostor()
    adding = asyncio.ensure_future(cluster.add(impostor, 1))
    try:
        async with Peer(owner) as agent, Peer(owner) as worker:
            await agent.pass_gate()
            await impostor.started.wait()
            await agent.say(agent.greeting("agent", node="fake-1"))
            assert isinstance(await agent.hear(), wire.Welcome)
            assert await agent.hear() == wire.StartWorkers([3])
            await agent.say(wire.WorkerStarted(3, os.getpid()))
            await worker.pass_gate()
            await worker.say(worker.greeting(node="fake-1", worker_id=3))
            assert isinstance(await worker.hear(), wire.Welcome)
            await adding
            yield Stage(cluster, log, agent, worker)
    finally:
        adding.cancel()


def result(*ids: int) -> wire.Results:
    return wire.Results(list(ids), bytes(len(ids)), [pack(9)[0]] * len(ids), [], [])


async def test_the_played_worker_works(stage: Stage) -> None:
    future, calls = await stage.call()
    await stage.worker.say(result(*calls.ids))
    assert await future == 9
    await works_too(stage)


async def works_too(stage: Stage) -> None:
    assert await stage.cluster.options(workers=[1, 2]).map(work.square, range(200)) == [n * n for n in range(200)]


async def test_a_result_of_an_unknown_call_drops_the_worker(stage: Stage) -> None:
    await stage.worker.say(result(123_456))
    await stage.dropped_worker("broke the protocol")


async def test_a_result_that_comes_twice_drops_the_worker(stage: Stage) -> None:
    future, calls = await stage.call()
    await stage.worker.say(result(*calls.ids))
    assert await future == 9
    await stage.worker.say(result(*calls.ids))
    await stage.dropped_worker("broke the protocol")


async def test_a_result_that_comes_twice_in_one_frame_drops_the_worker(stage: Stage) -> None:
    _future, calls = await stage.call()
    await stage.worker.say(result(*calls.ids, *calls.ids))
    await stage.dropped_worker("broke the protocol")


async def test_a_result_of_another_workers_call_drops_the_one_who_sent_it(stage: Stage, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    future = stage.cluster.workers[1].submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    call = future._call
    assert call is not None
    await stage.worker.say(result(call.id))
    await stage.dropped_worker("broke the protocol")
    assert not future.done()
    os.close(os.open(go_on, os.O_WRONLY))
    assert await future == 1


async def test_a_call_given_back_that_it_does_not_hold_drops_the_worker(stage: Stage) -> None:
    await stage.worker.say(wire.Returned([123_456]))
    await stage.dropped_worker("broke the protocol")


@pytest.mark.parametrize(
    "message",
    [
        wire.StartWorkers([4]),
        wire.Shutdown(0.0),
        wire.NodeBeat(1, {}, []),
        wire.WorkerExited(1, "liar", False, 0, 0, 0, 0, 0, [], b"", []),
        wire.Calls(1, [1], [1], b"\0", [b""], [], [], []),
        wire.Output(1, 1, [0], ["forged"]),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_a_worker_that_speaks_as_somebody_else_is_dropped(stage: Stage, message: wire.Message) -> None:
    await stage.worker.say(message)
    await stage.dropped_worker(f"must not send {type(message).__name__}")


async def test_a_second_hello_drops_the_worker(stage: Stage) -> None:
    await stage.worker.say(stage.worker.greeting(node="fake-1", worker_id=3))
    await stage.dropped_worker("Hello")


@pytest.mark.parametrize(
    "message",
    [wire.StartWorkers([4]), result(1), wire.Ask(1, "workers", []), wire.Calls(1, [1], [1], b"\0", [b""], [], [], [])],
    ids=lambda message: type(message).__name__,
)
async def test_an_agent_that_speaks_as_somebody_else_is_dropped_with_its_node(stage: Stage, message: wire.Message) -> None:
    await stage.agent.say(message)
    await stage.dropped_node(f"must not send {type(message).__name__}")


async def test_a_second_hello_drops_the_agent_with_its_node(stage: Stage) -> None:
    await stage.agent.say(stage.agent.greeting("agent", node="fake-1"))
    await stage.dropped_node("Hello")


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 2**32 - 1),
        frame(b"\xc1"),
        frame(b"\x91" * 3000 + b"\xc0"),
        frame(b"\xdd\xff\xff\xff\xff"),
        frame(b"\x92\xcd\x03\xe7\x90"),
        frame(b"\xc0\xc0"),
        frame(encode(wire.Returned([1]))[0][4:] + b"\0"),  # type: ignore[operator]
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=[
        "length 0",
        "length over the limit",
        "no msgpack",
        "deep nesting",
        "a lying length",
        "an unknown tag",
        "no message",
        "trailing bytes",
        "HTTP",
    ],
)
async def test_a_worker_whose_frames_make_no_sense_is_dropped(stage: Stage, data: bytes) -> None:
    future, _calls = await stage.call()
    await stage.worker.send(data)
    await stage.dropped_worker("broke the protocol")
    error = await asyncio.wait_for(asyncio.gather(future, return_exceptions=True), SAFETY_S)
    assert "broke the protocol" in str(error[0])


async def test_an_agent_cannot_end_workers_of_another_node(stage: Stage) -> None:
    await stage.agent.say(wire.WorkerExited(1, "liar", False, 0, 0, 0, 0, 0, [], b"", []))
    await stage.agent.say(wire.StartGaveUp([1, 2], "liar", []))
    await stage.agent.say(wire.NodeBeat(1, {}, [[1, "forged", 0.0, 0, 0]]))
    while not isinstance(await stage.agent.hear(), wire.Beat):
        pass
    assert stage.cluster.workers[1].stats.process_state != "forged"
    assert set(stage.cluster.workers) == {1, 2, 3}
    await works_too(stage)


UNHEEDED: dict[str, wire.Message] = {
    "cancels calls that it did not make": wire.CancelCalls([1, 123_456], False),
    "waits in a call that it does not run": wire.Yielded(123_456),
    "goes on with a call that it does not run": wire.Resumed(123_456),
}


@pytest.mark.parametrize("message", UNHEEDED.values(), ids=UNHEEDED)
async def test_a_worker_that_speaks_of_calls_that_have_ended_changes_nothing(stage: Stage, message: wire.Message) -> None:
    """Each of these crosses with the end of a call on the wire, so that it must not be taken for a lie."""
    await stage.worker.say(message)
    future, calls = await stage.call()
    await stage.worker.say(result(*calls.ids))
    assert await future == 9
    await works_too(stage)


NONSENSE: dict[str, tuple[wire.Message, list[bytes]]] = {
    "an unknown question": (wire.Ask(1, "nonsense", []), []),
    "a question with wrong arguments": (wire.Ask(1, "workers", [1, 2, 3]), []),
    "a call of an unknown function": (wire.Submit([1], [0], [999], b"\0", [pack(())[0]], [], []), []),
    "a call by an unknown call": (wire.Submit([1], [123_456], [1], b"\0", [pack(())[0]], [], []), []),
    "a function that is garbage": (wire.Functions([1], [bytes(16)], [b"\x80\x05garbage"], ["fine"]), []),
    "a function to forget that it never sent": (wire.DropFunctions([77]), []),
}


@pytest.mark.parametrize(("message", "buffers"), NONSENSE.values(), ids=NONSENSE)
async def test_a_worker_that_asks_nonsense_is_answered_or_dropped_and_hurts_nobody(
    stage: Stage, log: Log, message: wire.Message, buffers: list[bytes]
) -> None:
    await stage.worker.say(message, buffers)
    with contextlib.suppress(EOFError, ConnectionResetError, WorkerLost, KeyError):
        future, calls = await stage.call()
        await stage.worker.say(result(*calls.ids))
        assert await future == 9
    await works_too(stage)
    assert not [line for line in log.lines if "failed" in line], log.lines


async def test_an_agent_that_answers_what_nobody_asked_changes_nothing(stage: Stage) -> None:
    await stage.agent.say(wire.OutputFlushed(123_456))
    await stage.agent.say(wire.Output(999, 1, [0], ["of nobody"]))
    await stage.agent.say(wire.WorkerStarted(999, 1))
    await stage.agent.say(wire.WorkerExited(999, "who", False, 0, 0, 0, 0, 0, [5], b"\0", [b""]))
    await stage.agent.say(wire.NodeBeat(7, {"cpu": 1}, [[999, "idle", 0.0, 0, 0]]))
    assert await stage.agent.hear() == wire.Beat(7)
    await works_too(stage)


async def test_a_link_is_not_given_to_somebody_else(cluster: Cluster, log: Log) -> None:
    owner = owner_of(cluster)
    theirs = owner.manager.worker_links[1].hello
    async with Peer(owner) as peer:
        await peer.pass_gate()
        refused = await peer.refused(peer.greeting(link_id=theirs.link_id, resuming=True))
    assert refused.code == "stale"
    await log.line("not this peer's")
    await works(cluster)


async def test_a_result_that_cannot_be_loaded_fails_that_call_alone(stage: Stage) -> None:
    future, calls = await stage.call()
    await stage.worker.say(wire.Results(calls.ids, bytes(1), [b"\x80\x05garbage"], [], []))
    outcome = (await asyncio.gather(future, return_exceptions=True))[0]
    assert isinstance(outcome, Exception)
    assert 3 in stage.cluster.workers
    await works_too(stage)


async def test_peers_of_a_closed_cluster_find_nobody() -> None:
    async with Cluster.local(n=0, settings=Settings()) as cluster:
        owner = owner_of(cluster)
        async with Peer(owner) as peer:
            await peer.pass_gate()
            await cluster.close()
            await peer.dropped()
