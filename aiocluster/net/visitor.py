"""One connection at the listener that is not welcomed yet: the gate, TLS, the hello, and the time it has for all of it."""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import Protocol

from aiocluster.errors import ProtocolError
from aiocluster.ids import Token
from aiocluster.net.connection import Connection
from aiocluster.net.gate import ConnectionDropped, GateProtocol
from aiocluster.net.sockets import peer_text
from aiocluster.net.tls import ServerTls, TlsTransport
from aiocluster.wire.frames import BEFORE_WELCOME, Frame, encode
from aiocluster.wire.handshake import NONCE_BYTES, PLAIN, ServerGate
from aiocluster.wire.messages import Hello, Refused

__all__ = ["Reception", "Visitor"]

_STRANGERS = (
    (b"GET ", "HTTP"),
    (b"POST ", "HTTP"),
    (b"HEAD ", "HTTP"),
    (b"PUT ", "HTTP"),
    (b"OPTIONS ", "HTTP"),
    (b"CONNECT ", "HTTP"),
    (b"PRI * HTTP/2", "HTTP"),
    (b"SSH-", "SSH"),
    (b"\x16\x03", "TLS"),
    (b"aiocluster/", "aiocluster's own greeting"),
)


class Reception(Protocol):
    """What a visitor needs of its listener."""

    token: Token
    challenge_timeout_s: float
    hello_timeout_s: float

    def proven(self, visitor: Visitor) -> None:
        """It has passed the gate."""

    def greet(self, visitor: Visitor, hello: Hello) -> Refused | None:
        """It says who it is; unless refused, its connection has another owner after this."""

    def left(self, visitor: Visitor, complaint: str | None) -> None:
        """It is not pending any more."""


class Visitor:
    """Owns a connection from its being accepted until it is a link's, or gone.

    Attributes:
        host: its TCP address, by which connections are counted; None on a Unix socket.
        peername: who it is, for people.
        gone: True once it is not pending any more.
        sock: the socket, before it has a transport.
        connection: present once it may say hello.
    """

    def __init__(self, reception: Reception, sock: socket.socket, tls: ServerTls | None) -> None:
        self.host: str | None = None if sock.family == socket.AF_UNIX else sock.getpeername()[0]
        self.peername = peer_text(sock)
        self.gone = False
        self.connection: Connection | None = None
        self._reception = reception
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._tls = tls
        self._proofs: ServerGate | None = None
        self._gate: GateProtocol | None = None
        self._securing: TlsTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> GateProtocol:
        """The protocol of its transport; its time runs from now on."""
        certificate = PLAIN if self._tls is None else self._tls.fingerprint
        self._proofs = ServerGate(self._reception.token, secrets.token_bytes(NONCE_BYTES), certificate)
        self._gate = GateProtocol(self._proofs, self._passed, self._failed)
        self._timer = self._loop.call_later(self._reception.challenge_timeout_s, self._challenge_missed)
        return self._gate

    # --- the gate --------------------------------------------------------------------------------------------------------

    def _passed(self, transport: asyncio.Transport) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._since + self._reception.hello_timeout_s, self._hello_missed)
        self._reception.proven(self)
        if self._tls is None:
            self._listen_to(transport)
        else:
            assert self._proofs is not None
            self._securing = self._tls.wrap(transport, self._proofs.seal, self._listen_to, self._tls_failed)

    def _failed(self, error: ProtocolError | ConnectionDropped) -> None:
        if isinstance(error, ConnectionDropped):
            self._leave(f"it went away before it had proven that it knows the token{self._said()}")
        else:
            self._leave(f"{error}{self._said()}")

    def _challenge_missed(self) -> None:
        self.drop(f"no proof within {self._reception.challenge_timeout_s:g} s{self._said()}")

    def _said(self) -> str:
        """What it sent before the gate, in our own words."""
        received = b"" if self._gate is None else bytes(self._gate.received)
        if not received:
            return "; it sent nothing"
        for begin, what in _STRANGERS:
            if received.startswith(begin):
                return f"; what it sent looks like {what}"
        return f"; it sent {len(received)} bytes"

    # --- TLS -------------------------------------------------------------------------------------------------------------

    def _tls_failed(self, error: ProtocolError | ConnectionDropped) -> None:
        if isinstance(error, ConnectionDropped):
            self._leave("it went away after the gate, before TLS stood")
        else:
            self._leave(f"{error}; it had passed the gate")

    # --- the hello -------------------------------------------------------------------------------------------------------

    def _listen_to(self, transport: asyncio.Transport) -> None:
        self.connection = Connection(self._loop, transport, self, BEFORE_WELCOME, self.peername)

    def _hello_missed(self) -> None:
        if self.connection is None:
            self.drop(f"no TLS within {self._reception.hello_timeout_s:g} s; it had passed the gate")
            return
        self.drop(f"no hello within {self._reception.hello_timeout_s:g} s")

    def frames_arrived(self, connection: Connection, frames: list[Frame], size: int) -> None:
        hello = frames[0].message
        if not isinstance(hello, Hello) or len(frames) > 1:
            self._refuse(connection, Refused("protocol", "one hello has to come first, and alone", "", ""))
            return
        try:
            refused = self._reception.greet(self, hello)
        except Exception as error:  # whatever `accept` raises, this peer gets an answer
            self._loop.call_exception_handler({"message": "a hello could not be answered", "exception": error})
            refused = Refused("unknown", "the manager failed to answer", "", "")
        if refused is None:
            self._leave(None)
        else:
            self._refuse(connection, refused)

    def _refuse(self, connection: Connection, refused: Refused) -> None:
        pieces = encode(refused)
        connection.write(pieces, len(pieces[0]))
        connection.close()
        # A worker that was on its way when the cluster closed has done nothing wrong.
        self._leave(None if refused.code == "closing" else f"{refused.reason} ({refused.code})")

    def connection_writable(self, connection: Connection, writable: bool) -> None:
        """What is written before the welcome is small."""

    def connection_failed(self, connection: Connection, error: ProtocolError) -> None:
        self._refuse(connection, Refused("protocol", error.reason, "", ""))

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self._leave("it went away before it said hello")

    # --- the end ---------------------------------------------------------------------------------------------------------

    def drop(self, complaint: str | None) -> None:
        """Close its connection without a word."""
        if self.connection is not None:
            self.connection.abort()
        elif self._securing is not None:
            self._securing.abort()
        elif self._gate is not None:
            self._gate.abort()
        else:
            self.sock.close()  # it has no transport yet
        self._leave(complaint)

    def _leave(self, complaint: str | None) -> None:
        if self.gone:
            return
        self.gone = True
        if self._timer is not None:
            self._timer.cancel()
        self._reception.left(self, complaint)
