"""The gate on a transport: the handshake of `wire/handshake.py`, before TLS and before any frame.

It reads no byte more than the gate is long, so that whatever comes after it, TLS or frames, finds its first byte on the
transport.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from typing import cast

from aiocluster.errors import AioclusterError, ProtocolError
from aiocluster.ids import Token
from aiocluster.wire.handshake import CLIENT_READS, NONCE_BYTES, SERVER_READS, ClientGate, ServerGate

__all__ = ["ConnectionDropped", "GateProtocol", "pass_client_gate"]


class ConnectionDropped(AioclusterError):
    """The connection ended before it was welcomed; it may be worth another attempt."""


class GateProtocol(asyncio.BufferedProtocol):
    """Passes the gate on one transport, then hands the transport on.

    Args:
        gate: either end of it.
        passed: called once with the transport, which needs another protocol at once.
        failed: called once instead, with `ConnectionDropped` if the transport is gone, or with the error of the gate; then
            the transport is being closed.
    """

    def __init__(
        self,
        gate: ServerGate | ClientGate,
        passed: Callable[[asyncio.Transport], None],
        failed: Callable[[ProtocolError | ConnectionDropped], None],
    ) -> None:
        self._gate = gate
        self._passed = passed
        self._failed = failed
        self._stages = iter(SERVER_READS if isinstance(gate, ServerGate) else CLIENT_READS)
        self._until = next(self._stages)
        self._buffer = memoryview(bytearray(CLIENT_READS[-1]))
        self._got = 0
        self._done = False
        self._transport: asyncio.Transport | None = None

    @property
    def received(self) -> memoryview:
        """What the peer has sent so far."""
        return self._buffer[: self._got]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What carries a stream is such a transport on every loop, whatever class it has.
        self._transport = cast(asyncio.Transport, transport)
        if self._done:
            self._transport.abort()
        elif isinstance(self._gate, ServerGate):
            self._transport.write(self._gate.greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._got : self._until] or memoryview(bytearray(1))  # the latter is never looked at

    def buffer_updated(self, nbytes: int) -> None:
        transport = self._transport
        if self._done or transport is None:
            return
        data = self._buffer[self._got : self._got + nbytes]
        self._got += nbytes
        try:
            reply = self._gate.feed(data)
        except ProtocolError as error:
            self._done = True
            if isinstance(self._gate, ServerGate):
                transport.write(self._gate.parting)  # so it can tell a wrong token from a connection that broke
            transport.close()
            self._failed(error)
            return
        if reply:
            transport.write(reply)
        if self._gate.passed:
            self._done = True
            self._passed(transport)
        elif self._got == self._until:
            self._until = next(self._stages)

    def abort(self) -> None:
        """Give up; neither callback is called any more."""
        self._done = True
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done:
            self._done = True
            self._failed(ConnectionDropped("the connection was closed before the handshake was complete"))


async def pass_client_gate(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, token: Token, *, tls: bool
) -> tuple[asyncio.Transport, ClientGate]:
    """A transport on this socket whose other end has proved that it knows the token; reading is paused until it has a protocol.

    With it comes the gate, which knows what TLS has to begin with.

    Raises:
        ConnectionDropped: the other end closed it.
        AuthenticationError, VersionMismatch: it is no manager that we can speak to.
        ProtocolError: it is, but one end wants TLS and the other does not.
    """
    passed: asyncio.Future[asyncio.Transport] = loop.create_future()

    def succeed(transport: asyncio.Transport) -> None:
        # Whoever waits for it takes it over a turn of the loop later, and uvloop would read on meanwhile.
        transport.pause_reading()
        if not passed.done():
            passed.set_result(transport)

    def fail(error: Exception) -> None:
        if not passed.done():
            passed.set_exception(error)

    proofs = ClientGate(token, secrets.token_bytes(NONCE_BYTES), tls=tls)
    gate = GateProtocol(proofs, succeed, fail)
    try:
        if sock.family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: gate, sock=sock)
        else:
            await loop.create_connection(lambda: gate, sock=sock)
        return await passed, proofs
    except BaseException:
        passed.cancel()
        gate.abort()
        sock.close()
        raise
