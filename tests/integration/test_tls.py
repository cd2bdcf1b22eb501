"""A cluster whose nodes dial by TCP: who stands at its port, or between it and its nodes, gets nowhere and hurts nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from aiocluster import Cluster, LaunchError
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.local import Local
from aiocluster.launch.reach import Reach
from aiocluster.net.address import TcpAddress, parse_address
from aiocluster.net.tls import ServerTls
from aiocluster.wire.frames import encode
from aiocluster.wire.handshake import ClientGate, hello

from . import work
from .conftest import SAFETY_S

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Change = Callable[[str], Awaitable[str]]


class Elsewhere(Local):
    """Nodes on this machine that reach the manager by TCP, at the address that `change` makes of the manager's."""

    name = "far"
    workers_per_node = 1

    def __init__(self, change: Change | None = None) -> None:
        super().__init__()
        self.reach = Reach(advertise="127.0.0.1")
        self.address = ""
        self._change = change

    async def start(self, request: LaunchRequest) -> None:
        self.address = request.address
        if self._change is not None:
            request = replace(request, address=await self._change(request.address))
        await super().start(request)


async def streams_to(address: str) -> Streams:
    there = parse_address(address)
    assert isinstance(there, TcpAddress)
    return await asyncio.open_connection(there.host, there.port)


def client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="manager")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


@pytest.mark.both_loops
async def test_nodes_join_and_compute_through_strangers_at_the_tcp_port(caplog: pytest.LogCaptureFixture) -> None:
    strangers: list[Streams] = []

    async def crowd(address: str) -> str:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64, client_hello(), os.urandom(10_000)):
            reader, writer = await streams_to(address)
            writer.write(said)
            strangers.append((reader, writer))
        return address

    launcher = Elsewhere(crowd)
    try:
        async with Cluster.start(launcher, 2, output="quiet") as cluster:
            assert launcher.address.startswith("tcp://")
            data = os.urandom(10 * 2**20)
            assert await cluster.submit(work.echo, data) == data
            assert await cluster.map(work.square, range(100)) == [n * n for n in range(100)]
    finally:
        for _, writer in strangers:
            writer.transport.abort()
    assert any("looks like TLS" in record.getMessage() for record in caplog.records)


@pytest.mark.both_loops
async def test_a_peer_with_the_token_that_speaks_plain_text_is_dropped_and_the_cluster_goes_on() -> None:
    launcher = Elsewhere()
    async with Cluster.start(launcher, 1, output="quiet") as cluster:
        greeting = hello(role="agent", cluster_id=cluster.id, node="far-2", worker_id=0, host="h", pid=1, link_id=os.urandom(16))
        reader, writer = await streams_to(launcher.address)
        try:
            gate = ClientGate(cluster._owner.manager.token, os.urandom(32), tls=True)
            writer.write(gate.feed(await reader.readexactly(48)))
            gate.feed(await reader.readexactly(64))
            assert gate.passed
            writer.write(b"".join(encode(greeting)))
            answer = b""
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(SAFETY_S):
                    answer = await reader.read()
            assert not answer or answer.startswith(b"\x15\x03"), "an alert of TLS at most"
        finally:
            writer.transport.abort()
        assert await cluster.submit(work.square, 3) == 9


async def test_nodes_that_were_told_another_mode_say_so_and_the_launch_fails_with_it() -> None:
    async def plain(address: str) -> str:
        return address.replace("tcp://", "tcp+plain://")

    with pytest.raises(LaunchError, match="speaks TLS at this address"):
        await Cluster.start(Elsewhere(plain), 1, output="quiet")


async def test_nodes_do_not_talk_to_a_relay_that_ends_tls_itself() -> None:
    async with relays() as between:
        with pytest.raises(LaunchError, match="not the manager that had passed the gate"):
            await Cluster.start(Elsewhere(between), 1, output="quiet")


@contextlib.asynccontextmanager
async def relays() -> AsyncIterator[Change]:
    """Makes of a manager's address that of somebody who forwards its gate, and then speaks TLS himself."""
    own = ServerTls()
    servers: list[asyncio.Server] = []
    serving: set[asyncio.Task[None]] = set()

    async def between(address: str) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            there_reader, there_writer = await streams_to(address)
            try:
                writer.write(await there_reader.readexactly(48))
                there_writer.write(await reader.readexactly(64))
                writer.write(await there_reader.readexactly(64))
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                session = own._context.wrap_bio(incoming, outgoing, server_side=True)
                while data := await reader.read(65536):
                    incoming.write(data)
                    with contextlib.suppress(ssl.SSLWantReadError):
                        session.do_handshake()
                        pytest.fail("the node has agreed to speak to the relay")
                    writer.write(outgoing.read())
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the node or the manager has gone, as it should
            finally:
                writer.transport.abort()
                there_writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        return f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    try:
        yield between
    finally:
        for server in servers:
            server.close()
        await asyncio.gather(*serving)
    assert serving, "nobody came"
