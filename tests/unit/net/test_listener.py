"""The listener against strangers: whatever they send or fail to send, they are dropped, named in the log, and hurt nobody."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from aiocluster.errors import AuthenticationError, ProtocolError, VersionMismatch
from aiocluster.ids import Token
from aiocluster.net.address import parse_address
from aiocluster.net.errors import LinkLost, LinkRefused, ManagerGone
from aiocluster.net.sockets import connect
from aiocluster.wire.frames import encode
from aiocluster.wire.handshake import ClientGate
from aiocluster.wire.messages import Beat, Message, Refused

from .harness import (
    TOKEN,
    Recorder,
    joined,
    linked,
    managing,
    on_both_loops,
    seeded,
    until,
    worker_hello,
)

GREETING_BYTES = 48
REJECTED = bytes(64)


@pytest.fixture
def unix(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/manager"


class Stranger:
    """A raw socket at the manager's door."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def at(cls, address: str) -> Stranger:
        return cls(await connect(asyncio.get_running_loop(), parse_address(address)))

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def hear(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size and (data := await self._hear(size - len(heard))):
            heard += data
        return heard

    async def hear_all(self) -> bytes:
        """What comes until the manager closes."""
        return await self.hear(2**30)

    async def _hear(self, size: int) -> bytes:
        try:
            return await self._loop.sock_recv(self._sock, min(size, 65536))
        except ConnectionError:
            return b""

    async def pass_the_gate(self, token: Token = TOKEN) -> None:
        gate = ClientGate(token, os.urandom(32))
        await self.say(gate.feed(await self.hear(GREETING_BYTES)))
        gate.feed(await self.hear(64))
        assert gate.passed

    def leave(self) -> None:
        self._sock.close()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("aiocluster.net")]


# --- before the gate -----------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            b"GET / HTTP/1.1\r\nHost: manager.example.org\r\nAccept: */*\r\nUser-Agent: curl/8\r\n\r\n",
            "looks like HTTP",
        ),
        (b"SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13.5 with some words behind it so that it is long", "looks like SSH"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), "looks like TLS"),
        (b"aiocluster/2" + bytes(100), "aiocluster's own greeting"),
        (bytes(range(256)) * 100, "it sent 64 bytes"),
    ],
)
async def test_garbage_is_dropped_with_one_line_and_others_are_unhurt(
    unix: str, caplog: pytest.LogCaptureFixture, said: bytes, words: str
) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        stranger = await Stranger.at(unix)
        await stranger.say(said)
        answer = await stranger.hear_all()
        assert answer[GREETING_BYTES:] in (REJECTED, b"")
        stranger.leave()
        (line,) = complaints(caplog)
        assert words in line
        assert f"process {os.getpid()}" in line
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)
        assert manager.listener.pending == 0


@on_both_loops
@pytest.mark.parametrize(
    ("said", "words"), [(b"", "it sent nothing"), (b"GET / HTTP/1.0\r\n\r\n", "HTTP"), (b"\0" * 63, "63 bytes")]
)
async def test_silent_peer_is_dropped_after_the_time_for_the_challenge(
    unix: str, caplog: pytest.LogCaptureFixture, said: bytes, words: str
) -> None:
    async with managing(unix, challenge_timeout_s=0.05) as manager:
        stranger = await Stranger.at(unix)
        await stranger.say(said)
        assert len(await stranger.hear_all()) == GREETING_BYTES
        stranger.leave()
        (line,) = complaints(caplog)
        assert "no proof within 0.05 s" in line
        assert words in line
        assert manager.listener.pending == 0


@on_both_loops
async def test_peer_that_sends_byte_by_byte_gains_no_time(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix, challenge_timeout_s=0.2) as manager:
        stranger = await Stranger.at(unix)
        ended = asyncio.ensure_future(stranger.hear_all())
        while not ended.done():
            try:
                await stranger.say(b"\0")
            except ConnectionError:
                break
            await asyncio.wait([ended], timeout=0.02)  # its own pace: it is what is tested
        await ended
        stranger.leave()
        (line,) = complaints(caplog)
        assert "no proof within 0.2 s" in line
        assert manager.listener.pending == 0


@on_both_loops
async def test_peer_that_leaves_during_the_handshake_leaves_nothing_behind(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix) as manager:
        for size in (0, 1, 31, 32, 63):
            stranger = await Stranger.at(unix)
            await stranger.hear(GREETING_BYTES)
            await stranger.say(bytes(size))
            stranger.leave()
            await until(lambda: manager.listener.pending == 0)
        assert len(complaints(caplog)) == 5
        assert all("went away before it had proven" in line for line in complaints(caplog))


@on_both_loops
async def test_proof_with_one_wrong_bit_is_rejected(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix):
        for bit in (0, 255, 256, 511):
            stranger = await Stranger.at(unix)
            proof = int.from_bytes(ClientGate(TOKEN, os.urandom(32)).feed(await stranger.hear(GREETING_BYTES)), "big")
            await stranger.say((proof ^ (1 << bit)).to_bytes(64, "big"))
            assert await stranger.hear_all() == REJECTED
            stranger.leave()
        assert all("did not prove that it knows the token" in line for line in complaints(caplog))


@on_both_loops
async def test_wrong_token_is_an_authentication_error_at_once(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix) as manager:
        recorder = Recorder()
        with pytest.raises(AuthenticationError):
            async with joined(unix, recorder=recorder, token=Token(bytes(32)), retry_for_s=1e6):
                pass
        assert recorder.story == []
        assert not manager.recorders
        assert len(complaints(caplog)) == 1


@on_both_loops
async def test_what_strangers_send_never_shows_in_the_log(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix):
        stranger = await Stranger.at(unix)
        await stranger.say(b"GET /\x1b[2Jsecret HTTP/1.1\r\n" + bytes(64))
        await stranger.hear_all()
        stranger.leave()
    assert "secret" not in "".join(complaints(caplog))


# --- between the gate and the welcome ------------------------------------------------------------------------------------


async def refusal_after(address: str, *messages: Message | bytes) -> bytes:
    stranger = await Stranger.at(address)
    await stranger.pass_the_gate()
    await stranger.say(b"".join(m if isinstance(m, bytes) else bytes(encode(m)[0]) for m in messages))
    answer = await stranger.hear(4)
    answer = await stranger.hear(int.from_bytes(answer, "big"))
    stranger.leave()
    return answer


@on_both_loops
@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([Beat(1)], "one hello has to come first"),
        ([worker_hello(), Beat(1)], "one hello has to come first, and alone"),
        ([worker_hello(), worker_hello()], "one hello has to come first, and alone"),
        ([b"\0\0\0\0"], "frame without a header"),
        ([b"\0\0\x10\x01"], "larger than is allowed"),
        ([b"\x7f\xff\xff\xff"], "larger than is allowed"),
        ([b"\xff\xff\xff\xff"], "larger than is allowed"),
        ([b"\0\0\0\x01\xc1"], "header"),
        ([worker_hello(cluster_id="c-other")], "another cluster"),
        ([worker_hello(received=1)], "does not know the link"),
        ([worker_hello(resuming=True)], "does not know the link"),
    ],
)
async def test_proven_peer_that_does_not_say_a_proper_hello_is_refused(
    unix: str, caplog: pytest.LogCaptureFixture, messages: list[Any], words: str
) -> None:
    async with managing(unix) as manager:
        assert words.encode() in await refusal_after(unix, *messages)
        (line,) = complaints(caplog)
        assert words in line
        assert not manager.recorders
        await until(lambda: manager.listener.pending == 0)


@on_both_loops
async def test_proven_peer_without_a_hello_is_dropped_in_time(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix, hello_timeout_s=0.1) as manager:
        stranger = await Stranger.at(unix)
        await stranger.pass_the_gate()
        await stranger.say(b"\0\0")
        assert await stranger.hear_all() == b""
        stranger.leave()
        leaving = await Stranger.at(unix)
        await leaving.pass_the_gate()
        leaving.leave()
        await until(lambda: manager.listener.pending == 0)
        assert ["no hello within 0.1 s" in line for line in complaints(caplog)] == [True, False]


@on_both_loops
async def test_refusal_reaches_the_dialler_with_its_meaning(unix: str) -> None:
    async with managing(unix) as manager:
        for hello, error, words in (
            (worker_hello(python="2.7"), VersionMismatch, "Python 2.7"),
            (worker_hello(protocol=99), VersionMismatch, "protocol 99"),
            (worker_hello(cluster_id="c-old"), LinkRefused, "another cluster"),
        ):
            with pytest.raises(error, match=words):
                async with joined(unix, hello=hello):
                    pass
        manager.refuse = Refused("unknown", "no such worker was started", "", "")
        with pytest.raises(LinkRefused, match="no such worker"):
            async with joined(unix):
                pass


@on_both_loops
async def test_accept_that_fails_refuses_that_peer_only(unix: str) -> None:
    heard: list[object] = []
    async with managing(unix) as manager:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["exception"]))
        failure = RuntimeError("bug")

        def prepare(recorder: Recorder) -> None:
            raise failure

        manager.prepare = prepare
        with pytest.raises(LinkRefused, match="failed to answer"):
            async with joined(unix):
                pass
        assert heard == [failure]
        manager.prepare = lambda recorder: None
        async with joined(unix, hello=worker_hello(2)):
            pass


# --- many of them --------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_silent_peers_beyond_the_limit_make_room_and_do_not_lock_the_door(unix: str) -> None:
    async with managing(unix, pending_limit=8, challenge_timeout_s=1e6, hello_timeout_s=1e6) as manager:
        silent = [await Stranger.at(unix) for _ in range(8)]
        await until(lambda: manager.listener.pending == 8)
        more = [await Stranger.at(unix) for _ in range(20)]
        await until(lambda: manager.listener.pending == 8)
        async with joined(unix) as worker:
            linked(worker).send(Beat(1))
            await manager.recorders[1].until_numbers(1)
        assert len(await silent[0].hear_all()) == GREETING_BYTES, "the oldest had to go"
        assert manager.listener.pending <= 8
        for stranger in (*silent, *more):
            stranger.leave()


@on_both_loops
async def test_proven_peers_are_never_sent_away_for_new_ones(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix, pending_limit=3) as manager:
        proven = [await Stranger.at(unix) for _ in range(3)]
        for stranger in proven:
            await stranger.pass_the_gate()
        late = await Stranger.at(unix)
        assert await late.hear_all() == b"", "closed without a greeting"
        assert "too many connections" in complaints(caplog)[0]
        # A dialler that is turned away comes again, and gets in as soon as there is a place.
        joining = asyncio.ensure_future(_join_once(unix))
        await until(lambda: len(complaints(caplog)) > 2)
        for stranger in (*proven, late):
            stranger.leave()
        await joining
        assert 1 in manager.recorders


async def _join_once(address: str) -> None:
    async with joined(address):
        pass


@on_both_loops
async def test_one_tcp_address_cannot_take_all_places(caplog: pytest.LogCaptureFixture) -> None:
    async with managing("tcp://127.0.0.1:0", pending_limit=100, pending_per_address=4, challenge_timeout_s=1e6) as manager:
        silent = [await Stranger.at(manager.address) for _ in range(30)]
        await until(lambda: len(complaints(caplog)) >= 20)
        assert manager.listener.pending <= 4
        async with joined(manager.address):
            assert 1 in manager.recorders
        for stranger in silent:
            stranger.leave()


@on_both_loops
async def test_flood_of_connections_is_logged_in_few_lines_and_good_peers_join_through_it(
    unix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with managing(unix, pending_limit=32) as manager:
        stop = asyncio.Event()

        async def flood() -> None:
            strangers: list[Stranger] = []
            while not stop.is_set():
                try:
                    strangers.append(await Stranger.at(unix))
                except BlockingIOError:
                    await asyncio.sleep(0)
                if len(strangers) > 200:
                    strangers.pop(0).leave()
                await asyncio.sleep(0)
            for stranger in strangers:
                stranger.leave()

        flooding = asyncio.ensure_future(flood())
        await until(lambda: manager.listener.pending == 32)
        for worker_id in range(1, 9):
            async with joined(unix, hello=worker_hello(worker_id)) as worker:
                linked(worker).send(Beat(worker_id))
                await manager.recorders[worker_id].until_numbers(1)
        stop.set()
        await flooding
        assert len(complaints(caplog)) < 100


@on_both_loops
async def test_random_bytes_at_any_stage_never_hurt_the_listener(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = seeded(7)
    async with managing(unix) as manager:
        for turn in range(30):
            stranger = await Stranger.at(unix)
            try:
                if turn % 2:
                    await stranger.pass_the_gate()
                await stranger.say(rng.randbytes(rng.randrange(64, 5000)))
            except ConnectionError:
                pass
            if not turn % 2:
                await stranger.hear_all()
            stranger.leave()
        await until(lambda: manager.listener.pending == 0)
        async with joined(unix):
            assert 1 in manager.recorders


# --- addresses, starting and closing -------------------------------------------------------------------------------------


@on_both_loops
async def test_listens_on_several_addresses_and_tells_the_ports_it_got(unix: str) -> None:
    async with managing(unix, "tcp://127.0.0.1:0", "tcp://[::1]:0") as manager:
        first, second, third = manager.listener.addresses
        assert first == unix
        assert second.startswith("tcp://127.0.0.1:")
        assert not second.endswith(":0")
        assert third.startswith("tcp://[::1]:")
        for worker_id, address in enumerate(manager.listener.addresses, 1):
            async with joined(address, hello=worker_hello(worker_id)):
                assert worker_id in manager.recorders


@on_both_loops
async def test_address_in_use_opens_none(unix: str, tmp_path: Path) -> None:
    async with managing(unix):
        with pytest.raises(OSError, match="in use"):
            async with managing(f"unix:{tmp_path}/other", unix):
                pass
        assert not (tmp_path / "other").exists()
        with pytest.raises(ManagerGone, match="no manager answered"):
            async with joined(f"unix:{tmp_path}/other", retry_for_s=0.0):
                pass


@on_both_loops
async def test_socket_file_of_a_dead_process_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "manager"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with managing(f"unix:{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
        async with joined(f"unix:{path}"):
            pass
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        async with managing(f"unix:{path}"):
            pass
    assert path.read_text() == "precious"


@on_both_loops
async def test_close_drops_who_is_pending_and_keeps_links(unix: str, caplog: pytest.LogCaptureFixture) -> None:
    async with managing(unix) as manager, joined(unix) as worker:
        strangers = [await Stranger.at(unix), await Stranger.at(unix)]
        await strangers[0].pass_the_gate()
        await until(lambda: manager.listener.pending == 2)
        manager.listener.close()
        for stranger in strangers:
            await stranger.hear_all()
            stranger.leave()
        assert manager.listener.pending == 0
        assert manager.listener.addresses == ()
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)
        assert complaints(caplog) == [], "nobody did anything wrong"


# --- the dialler against strange listeners -------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", AuthenticationError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", AuthenticationError),
        (b"aiocluster/9".ljust(16, b"\0") + bytes(32), VersionMismatch),
        (b"aiocluster/2".ljust(16, b"\0") + bytes(range(32)) + bytes(64), AuthenticationError),
    ],
)
async def test_dialler_names_what_is_no_manager_of_its_cluster(tmp_path: Path, said: bytes, error: type[ProtocolError]) -> None:
    async with _impostor(tmp_path, said) as address:
        with pytest.raises(error):
            async with joined(address, retry_for_s=1e6):
                pass


@on_both_loops
async def test_dialler_stops_waiting_for_a_silent_listener(tmp_path: Path) -> None:
    async with _impostor(tmp_path, b"aio") as address:
        with pytest.raises(LinkLost, match="did not answer in time"):
            async with joined(address, retry_for_s=0.0, attempt_timeout_s=0.05):
                pass


@on_both_loops
async def test_cancelled_dial_leaves_nothing_behind(tmp_path: Path) -> None:
    async with _impostor(tmp_path, b"aio") as address:
        dialling = asyncio.ensure_future(_join_once(address))
        await until(lambda: _impostor.greeted > 0)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling


@on_both_loops
async def test_dialler_waits_for_a_manager_that_comes_later(unix: str) -> None:
    joining = asyncio.ensure_future(_join_once(unix))
    await asyncio.sleep(0)
    async with managing(unix) as manager:
        await joining
        assert 1 in manager.recorders


class _impostor:  # reads like the function that it is
    """Listens, and says the same to everybody."""

    greeted = 0

    def __init__(self, tmp_path: Path, said: bytes) -> None:
        self._path = tmp_path / "impostor"
        self._said = said
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> str:
        _impostor.greeted = 0
        self._server = await asyncio.start_unix_server(self._greet, self._path)
        return f"unix:{self._path}"

    def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._said)
        self._writers.append(writer)
        _impostor.greeted += 1

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
