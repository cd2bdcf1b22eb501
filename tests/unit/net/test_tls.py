"""TLS behind the gate: nobody between the two ends can read, change or take over what they say, nor talk them out of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from aiocluster.errors import AuthenticationError, ProtocolError
from aiocluster.net import tls as tls_module
from aiocluster.net.address import TcpAddress, parse_address
from aiocluster.net.gate import ConnectionDropped, pass_client_gate
from aiocluster.net.sockets import connect
from aiocluster.net.tls import ClientTls, ServerTls, TlsTransport
from aiocluster.wire.frames import FrameDecoder, FrameLimits, encode
from aiocluster.wire.handshake import PLAIN, ClientGate, ServerGate
from aiocluster.wire.messages import Beat, Welcome

from .harness import TOKEN, Recorder, bulk, joined, linked, managing, on_both_loops, open_streams, until, worker_hello

TLS = "tcp://127.0.0.1:0"
WITHOUT = "tcp+plain://127.0.0.1:0"
GATE_BYTES = (48, 64, 64)
HELLO = b"".join(encode(worker_hello()))

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def tcp(address: str) -> TcpAddress:
    parsed = parse_address(address)
    assert isinstance(parsed, TcpAddress)
    return parsed


def transport_of(recorder: Recorder) -> TlsTransport:
    connection = linked(recorder)._connection
    assert connection is not None
    transport = connection._transport
    assert isinstance(transport, TlsTransport)
    return transport


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("aiocluster.net")]


@contextlib.asynccontextmanager
async def listening(serve: Callable[[Streams], Awaitable[None]], *, like: str = TLS) -> AsyncIterator[str]:
    """An address where somebody else than the manager answers; `serve` is done with everybody at the end."""
    serving: set[asyncio.Task[None]] = set()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve((reader, writer))
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield str(replace(tcp(like), port=server.sockets[0].getsockname()[1]))
    finally:
        server.close()
        await asyncio.gather(*serving)


@contextlib.asynccontextmanager
async def visiting(address: str) -> AsyncIterator[Streams]:
    reader, writer = await open_streams(parse_address(address))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def pass_gate(streams: Streams, *, tls: bool = True) -> ClientGate:
    reader, writer = streams
    gate = ClientGate(TOKEN, os.urandom(32), tls=tls)
    writer.write(gate.feed(await reader.readexactly(48)))
    gate.feed(await reader.readexactly(64))
    assert gate.passed
    return gate


async def keep_gate(streams: Streams, certificate: bytes) -> ServerGate:
    reader, writer = streams
    gate = ServerGate(TOKEN, os.urandom(32), certificate)
    writer.write(gate.greeting)
    writer.write(gate.feed(await reader.readexactly(64)))
    assert gate.passed
    return gate


async def forward_gate(client: Streams, manager: Streams) -> None:
    """What somebody in between can do without the token: the gate's messages are the ends' own."""
    client[1].write(await manager[0].readexactly(GATE_BYTES[0]))
    manager[1].write(await client[0].readexactly(GATE_BYTES[1]))
    client[1].write(await manager[0].readexactly(GATE_BYTES[2]))


async def heard_until_end(reader: asyncio.StreamReader) -> bytes:
    heard = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            heard += data
    return heard


class Session:
    """One end of TLS in the hands of a test."""

    def __init__(self, context: ssl.SSLContext, streams: Streams, *, server_side: bool = False) -> None:
        self._reader, self._writer = streams
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)

    async def _do(self, action: Callable[[], Any]) -> Any:
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                pass
            finally:
                self._writer.write(self._outgoing.read())
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionResetError
            self._incoming.write(data)

    async def agree(self) -> None:
        await self._do(self.tls.do_handshake)

    async def say(self, data: bytes) -> None:
        await self._do(lambda: self.tls.write(data))

    async def hear(self) -> bytes:
        heard: bytes = await self._do(lambda: self.tls.read(65536))
        return heard


def careless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# --- somebody in between -------------------------------------------------------------------------------------------------


@on_both_loops
async def test_relay_with_a_certificate_of_its_own_hears_nothing() -> None:
    heard: list[bytes] = []
    own = ServerTls()
    async with managing(TLS) as manager:

        async def relay(client: Streams) -> None:
            async with visiting(manager.address) as upstream:
                await forward_gate(client, upstream)
                session = Session(own._context, client, server_side=True)
                await session.agree()
                heard.append(await session.hear())

        async with listening(relay) as address:
            with pytest.raises(AuthenticationError, match="not the manager that had passed the gate"):
                async with joined(address, retry_for_s=1e6):
                    pass
        assert heard == []
        assert not manager.recorders


@on_both_loops
@pytest.mark.parametrize("seal", [b"", bytes(32), b"random", b"another connection's"])
async def test_relay_that_speaks_tls_to_the_manager_in_the_dialler_s_place_is_dropped(
    caplog: pytest.LogCaptureFixture, seal: bytes
) -> None:
    dropped = asyncio.Event()
    async with managing(TLS) as manager:
        if seal == b"another connection's":
            async with visiting(manager.address) as streams:
                seal = (await pass_gate(streams)).seal
            await until(lambda: manager.listener.pending == 0)
            caplog.clear()
        elif seal == b"random":
            seal = secrets.token_bytes(32)

        async def relay(client: Streams) -> None:
            async with visiting(manager.address) as upstream:
                await forward_gate(client, upstream)
                session = Session(careless(), upstream)
                await session.agree()
                await session.say(seal + HELLO)
                with pytest.raises(ConnectionError):
                    await session.hear()
                dropped.set()

        async with listening(relay) as address, visiting(address) as victim:
            await pass_gate(victim)
            await dropped.wait()
        assert not manager.recorders, "nobody was welcomed"
        assert manager.listener.pending == 0
        (line,) = complaints(caplog)
        assert "a peer in TLS is not the one that had passed the gate" in line


@on_both_loops
async def test_relay_that_changes_a_byte_breaks_the_connection_and_nothing_else() -> None:
    data = os.urandom(2**20)
    tampered = 0
    async with managing(TLS) as manager:

        async def relay(client: Streams) -> None:
            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spoil_at: int) -> None:
                nonlocal tampered
                seen = 0
                with contextlib.suppress(ConnectionError):
                    while part := bytearray(await reader.read(65536)):
                        if seen <= spoil_at < seen + len(part):
                            part[spoil_at - seen] ^= 0x10
                            tampered += 1
                        seen += len(part)
                        writer.write(part)
                        await writer.drain()
                writer.transport.abort()

            async with visiting(manager.address) as upstream:
                spoil_at = -1 if tampered else 500_000
                async with asyncio.TaskGroup() as group:
                    group.create_task(pump(client[0], upstream[1], spoil_at))
                    group.create_task(pump(upstream[0], client[1], -1))

        async with listening(relay) as address, joined(address) as worker:
            linked(worker).send(bulk(1), [data])
            linked(worker).send(Beat(2))
            there = manager.recorders[1]
            await there.until_numbers(2)
            assert there.numbers == [1, 2]
            assert there.frames[0].buffers[0] == data
            assert there.story.count("resumed") == tampered == 1


@on_both_loops
async def test_nothing_that_is_said_can_be_read_on_the_way() -> None:
    secret = b"the sentence that nobody else may read"
    carried = bytearray()
    async with managing(TLS) as manager:

        async def relay(client: Streams) -> None:
            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    while part := await reader.read(65536):
                        carried.extend(part)
                        writer.write(part)
                writer.transport.abort()

            async with visiting(manager.address) as upstream, asyncio.TaskGroup() as group:
                group.create_task(pump(client[0], upstream[1]))
                group.create_task(pump(upstream[0], client[1]))

        async with listening(relay) as address, joined(address) as worker:
            linked(worker).send(bulk(1), [secret])
            linked(manager.recorders[1]).send(bulk(2), [secret])
            await manager.recorders[1].until_numbers(1)
            await worker.until_numbers(1)
            session = transport_of(worker).get_extra_info("ssl_object")
            assert session.version() == "TLSv1.3"
            assert not session.session.has_ticket, "nothing is there to resume, so nothing can be said early"
    assert len(carried) > sum(GATE_BYTES)
    for words in (secret, b"c-test", b"worker", TOKEN.reveal()):
        assert words not in carried


# --- peers that do not do what comes next --------------------------------------------------------------------------------


@on_both_loops
async def test_tls_before_the_gate_is_garbage_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    async with managing(TLS) as manager:
        async with visiting(manager.address) as streams:
            greeting = await streams[0].readexactly(48)
            assert greeting.startswith(b"aiocluster/2")
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = careless().wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                session.do_handshake()
            streams[1].write(outgoing.read())
            assert await heard_until_end(streams[0]) in (bytes(64), b"")
        (line,) = complaints(caplog)
        assert "looks like TLS" in line
        assert not manager.recorders


@on_both_loops
@pytest.mark.parametrize(
    "stage", ["before TLS", "within its handshake", "before the seal", "within the seal", "before the hello"]
)
async def test_peer_that_falls_silent_behind_the_gate_is_dropped_in_time(caplog: pytest.LogCaptureFixture, stage: str) -> None:
    async with managing(TLS, hello_timeout_s=0.2) as manager:
        async with visiting(manager.address) as streams:
            gate = await pass_gate(streams)
            session = Session(careless(), streams)
            if stage == "within its handshake":
                streams[1].write(b"\x16\x03\x01")
            elif stage != "before TLS":
                await session.agree()
                seal = {"before the seal": b"", "within the seal": gate.seal[:31], "before the hello": gate.seal}[stage]
                if seal:
                    await session.say(seal)
            await heard_until_end(streams[0])
        (line,) = complaints(caplog)
        assert ("no hello within 0.2 s" if stage == "before the hello" else "no TLS within 0.2 s; it had passed") in line
        assert manager.listener.pending == 0
        assert not manager.recorders


@on_both_loops
@pytest.mark.parametrize(
    "said",
    [HELLO, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"\x16\x03\x01\x00\x05hello"],
    ids=["frame", "HTTP", "noise", "record"],
)
async def test_plain_text_behind_the_gate_is_dropped_with_one_line(caplog: pytest.LogCaptureFixture, said: bytes) -> None:
    async with managing(TLS) as manager, joined(manager.address, hello=worker_hello(2)) as bystander:
        async with visiting(manager.address) as streams:
            await pass_gate(streams)
            streams[1].write(said)
            await heard_until_end(streams[0])
        (line,) = complaints(caplog)
        assert "what came after the gate is no TLS that is accepted" in line
        assert "it had passed the gate" in line
        assert manager.listener.pending == 0
        linked(bystander).send(Beat(1))
        await manager.recorders[2].until_numbers(1)
        assert 1 not in manager.recorders


@on_both_loops
async def test_older_tls_is_not_spoken(caplog: pytest.LogCaptureFixture) -> None:
    old = careless()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with managing(TLS) as manager:
        async with visiting(manager.address) as streams:
            await pass_gate(streams)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await Session(old, streams).agree()
        (line,) = complaints(caplog)
        assert "no TLS that is accepted" in line


@on_both_loops
@pytest.mark.parametrize("stage", ["before TLS", "before the seal", "with an end instead of a seal"])
async def test_peer_that_leaves_behind_the_gate_leaves_nothing(caplog: pytest.LogCaptureFixture, stage: str) -> None:
    async with managing(TLS) as manager:
        async with visiting(manager.address) as streams:
            await pass_gate(streams)
            session = Session(careless(), streams)
            if stage != "before TLS":
                await session.agree()
            if stage == "with an end instead of a seal":
                with pytest.raises(ConnectionError):
                    await session._do(session.tls.unwrap)
        await until(lambda: manager.listener.pending == 0)
        (line,) = complaints(caplog)
        assert ("ended TLS before" if "instead" in stage else "it went away after the gate, before TLS stood") in line


@on_both_loops
@pytest.mark.parametrize("said", [b"\0\0\0\1\xc0", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["frame", "SSH"])
async def test_dialler_wants_tls_from_whoever_passed_the_gate(said: bytes) -> None:
    async def no_tls(client: Streams) -> None:
        await keep_gate(client, b"f" * 32)
        client[1].write(said)
        await heard_until_end(client[0])

    async with listening(no_tls) as address:
        with pytest.raises(ProtocolError, match="no TLS that is accepted"):
            async with joined(address, retry_for_s=1e6):
                pass


@on_both_loops
async def test_dialler_tries_again_where_the_connection_broke_before_tls_stood() -> None:
    broken: list[int] = []
    async with managing(TLS) as manager:

        async def relay(client: Streams) -> None:
            async with visiting(manager.address) as upstream:
                await forward_gate(client, upstream)
                if len(broken) < 2:
                    broken.append(len(await client[0].readexactly(1)))
                    return
                async with asyncio.TaskGroup() as group:
                    group.create_task(pump(client[0], upstream[1]))
                    group.create_task(pump(upstream[0], client[1]))

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(65536):
                    writer.write(part)
            writer.transport.abort()

        async with listening(relay) as address, joined(address) as worker:
            assert worker.story == ["opened"]
        assert broken == [1, 1]


@on_both_loops
async def test_cancelled_dial_leaves_nothing_behind_in_the_midst_of_tls() -> None:
    waiting = asyncio.Event()

    async def silent(client: Streams) -> None:
        await keep_gate(client, b"f" * 32)
        await client[0].readexactly(1)
        waiting.set()
        await heard_until_end(client[0])

    async def join(address: str) -> None:
        async with joined(address):
            pass

    async with listening(silent) as address:
        dialling = asyncio.ensure_future(join(address))
        await waiting.wait()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling


# --- both ends want the same ---------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    ("listens", "dials", "at_manager", "at_dialler"),
    [
        (TLS, "tcp+plain", "wants plain text, and this address speaks TLS", "speaks TLS at this address"),
        (WITHOUT, "tcp", "wants TLS, and this address speaks plain text", "speaks plain text at this address"),
    ],
)
async def test_ends_that_disagree_about_tls_both_say_so_at_once(
    caplog: pytest.LogCaptureFixture, listens: str, dials: str, at_manager: str, at_dialler: str
) -> None:
    async with managing(listens) as manager:
        assert manager.address.split(":")[0] == listens.split(":")[0]
        with pytest.raises(ProtocolError, match=at_dialler) as caught:
            async with joined(f"{dials}://127.0.0.1:{tcp(manager.address).port}", retry_for_s=1e6):
                pass
        assert not isinstance(caught.value, AuthenticationError)
        await until(lambda: manager.listener.pending == 0)
        (line,) = complaints(caplog)
        assert at_manager in line


@on_both_loops
async def test_one_listener_serves_unix_sockets_tls_and_plain_text_by_name_and_by_number(tmp_path: Path) -> None:
    wanted = [f"unix:{tmp_path}/manager", TLS, "tcp://[::1]:0", "tcp://localhost:0", WITHOUT, "tcp+plain://[::1]:0"]
    async with managing(*wanted) as manager:
        addresses = manager.listener.addresses
        kinds = [address.split(":")[0] for address in addresses]
        assert kinds[0] == "unix"
        assert set(kinds[1:-2]) == {"tcp"}
        assert kinds[-2:] == ["tcp+plain", "tcp+plain"]
        for worker_id, address in enumerate(addresses, 1):
            async with joined(address, hello=worker_hello(worker_id)) as worker:
                connection = linked(worker)._connection
                assert connection is not None
                encrypted = connection._transport.get_extra_info("ssl_object") is not None
                assert encrypted is (address.startswith("tcp://"))
                linked(worker).send(Beat(worker_id))
                await manager.recorders[worker_id].until_numbers(1)


# --- the transport -------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_ten_megabytes_travel_both_ways_and_again_after_a_pause() -> None:
    data = os.urandom(10 * 2**20)
    async with managing(TLS) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        linked(there).pause_reading()
        linked(worker).send(bulk(1), [data])
        linked(there).send(bulk(2), [data])
        await worker.until_numbers(1)
        assert there.numbers == []
        linked(there).resume_reading()
        await there.until_numbers(1)
        assert worker.frames[0].buffers[0] == there.frames[0].buffers[0] == data
        assert worker.story.count("broken") == there.story.count("broken") == 0


@on_both_loops
async def test_reading_that_is_paused_while_frames_are_handed_on_stops_there() -> None:
    """One read of the socket holds many records: those behind the pause wait, and none is lost."""

    def pause(recorder: Recorder) -> None:
        recorder.on_frames = lambda link, frames: link.pause_reading()

    async with managing(TLS) as manager:
        manager.prepare = pause
        async with joined(manager.address) as worker:
            there = manager.recorders[1]
            for number in range(20):
                linked(worker).send(bulk(number), [bytes(50_000)])
            while len(there.numbers) < 20:
                before = len(there.numbers)
                linked(there).resume_reading()
                await there.until(lambda before=before: len(there.numbers) > before)  # type: ignore[misc]
                assert len(there.numbers) - before < 10, "one record's frames at a time"
            assert there.numbers == list(range(20))


@on_both_loops
async def test_reader_that_pauses_all_the_time_still_hears_everything_up_to_the_goodbye() -> None:
    def pause(recorder: Recorder) -> None:
        recorder.on_frames = lambda link, frames: link.pause_reading()

    async with managing(TLS) as manager:
        manager.prepare = pause
        async with joined(manager.address) as worker:
            there = manager.recorders[1]
            for number in range(20):
                linked(worker).send(bulk(number), [bytes(3_000)])
            linked(worker).close()
            while "closed" not in there.story:
                before = len(there.numbers)
                linked(there).resume_reading()
                await there.until(lambda before=before: len(there.numbers) > before or "closed" in there.story)  # type: ignore[misc]
            assert there.numbers == list(range(20))
            assert there.story == ["opened", "closed"]
            assert there.error is None


@on_both_loops
async def test_hello_in_one_record_with_the_seal_is_welcomed() -> None:
    async with managing(TLS) as manager, visiting(manager.address) as streams:
        gate = await pass_gate(streams)
        session = Session(careless(), streams)
        await session.agree()
        await session.say(gate.seal + HELLO)
        decoder = FrameDecoder(FrameLimits())
        (welcome,) = decoder.feed(await session.hear())
        assert welcome.message == Welcome(0, {"worker": 1})
        assert manager.recorders[1].story == ["opened"]


@on_both_loops
async def test_link_stands_though_every_byte_comes_by_itself() -> None:
    async with managing(TLS) as manager:

        async def relay(client: Streams) -> None:
            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    while part := await reader.read(1):
                        writer.write(part)
                        await asyncio.sleep(0)
                writer.transport.abort()

            async with visiting(manager.address) as upstream, asyncio.TaskGroup() as group:
                group.create_task(pump(client[0], upstream[1]))
                group.create_task(pump(upstream[0], client[1]))

        async with listening(relay) as address, joined(address) as worker:
            linked(worker).send(bulk(1), [b"there"])
            linked(manager.recorders[1]).send(bulk(2), [b"back"])
            await manager.recorders[1].until_numbers(1)
            await worker.until_numbers(1)
            assert worker.story == ["opened"]


@on_both_loops
async def test_what_was_written_before_the_end_is_read_though_the_other_end_still_sends() -> None:
    """Without an end of writing only, the system would throw away what its reader has not read yet."""
    async with managing(TLS) as manager, joined(manager.address) as worker:
        there = manager.recorders[1]
        linked(worker).send(bulk(1), [bytes(4 * 2**20)])
        for number in range(2, 100):
            linked(there).send(Beat(number))
        linked(there).send(bulk(100), [bytes(4 * 2**20)])
        linked(there).close()
        await worker.until_said("closed")
        assert worker.numbers == list(range(2, 101))
        assert worker.error is None
        await there.until_said("closed")


@on_both_loops
async def test_garbage_in_mid_session_breaks_the_connection_and_the_link_goes_on() -> None:
    async with managing(TLS) as manager, joined(manager.address) as worker:
        transport_of(worker)._transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # below TLS
        await manager.recorders[1].until_said("resumed")
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)


@on_both_loops
async def test_session_that_cannot_encrypt_any_more_breaks_the_connection_and_the_link_goes_on() -> None:
    async with managing(TLS) as manager, joined(manager.address) as worker:
        session = transport_of(worker).get_extra_info("ssl_object")
        with pytest.raises(ssl.SSLWantReadError):
            session.unwrap()
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)
        assert worker.story == ["opened", "broken", "resumed"]


@on_both_loops
async def test_closed_transport_says_so_within_tls_and_the_link_goes_on() -> None:
    async with managing(TLS) as manager, joined(manager.address) as worker:
        transport = transport_of(worker)
        transport.close()
        assert transport.is_closing()
        transport.write(b"nothing of this is sent")
        await manager.recorders[1].until_said("resumed")
        linked(worker).send(Beat(1))
        await manager.recorders[1].until_numbers(1)


@on_both_loops
async def test_dialler_whose_connection_ends_in_the_moment_before_tls_knows_it() -> None:
    async with managing(TLS) as manager:
        loop = asyncio.get_running_loop()
        sock = await connect(loop, parse_address(manager.address))
        transport, gate = await pass_client_gate(loop, sock, TOKEN, tls=True)
        transport.abort()
        with pytest.raises(ConnectionDropped, match="before TLS began"):
            await ClientTls().start(transport, gate)
        await until(lambda: manager.listener.pending == 0)


# --- the certificate -----------------------------------------------------------------------------------------------------


def test_each_certificate_is_new_valid_since_yesterday_and_its_own() -> None:
    (first, pem), (second, _) = tls_module._new_certificate(), tls_module._new_certificate()
    one, other = x509.load_der_x509_certificate(first), x509.load_der_x509_certificate(second)
    assert one.serial_number != other.serial_number
    assert one.public_key() != other.public_key()
    assert one.not_valid_after_utc - one.not_valid_before_utc == tls_module.VALID_BEFORE + tls_module.VALID_AFTER
    assert x509.load_pem_x509_certificate(pem) == one
    assert ServerTls().fingerprint != ServerTls().fingerprint
    assert PLAIN not in (hashlib.sha256(first).digest(), hashlib.sha256(second).digest())


def test_key_is_never_in_a_file_where_the_system_has_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    before = os.listdir("/proc/self/fd")
    ServerTls()
    assert os.listdir("/proc/self/fd") == before


def test_elsewhere_the_key_is_in_a_private_file_for_a_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tls_module._as_file(b"secret") as path:
        assert Path(path).parent == tmp_path
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert Path(path).read_bytes() == b"secret"
    assert list(tmp_path.iterdir()) == []
    assert len(ServerTls().fingerprint) == 32
    assert list(tmp_path.iterdir()) == []


@on_both_loops
async def test_nothing_secret_shows_in_what_stands_for_it() -> None:
    async with managing(TLS) as manager, joined(manager.address) as worker:
        connection = linked(worker)._connection
        assert connection is not None
        transport = transport_of(worker)
        gate = ClientGate(TOKEN, bytes(32), tls=True)
        shown = [
            ServerTls(),
            ClientTls(),
            transport,
            connection,
            linked(worker),
            manager.listener,
            gate,
            ServerGate(TOKEN, bytes(32)),
        ]
        seal = transport._seal
        assert len(seal) == 32
        for thing in shown:
            for text in (repr(thing), str(thing)):
                for secret in (TOKEN.reveal(), seal):
                    assert repr(secret)[2:-1] not in text
                    assert secret.hex() not in text
                assert "PRIVATE" not in text
