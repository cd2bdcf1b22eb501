"""The gate before everything else: both ends prove that they know the cluster's token, in messages of fixed size.

    server  48 bytes  b"aiocluster/2" padded with zeros to 16, nonce S of 32
    client  64 bytes  nonce C of 32, HMAC-SHA256(token, b"aiocluster/2 client" + S + C + mode)
    server  64 bytes  certificate F of 32, HMAC-SHA256(token, b"aiocluster/2 server" + C + S + F)
    client  32 bytes  HMAC-SHA256(token, b"aiocluster/2 inside" + S + C + F)

The mode is one byte: 1 if the client goes on with TLS, 0 if in plain text. F is the SHA-256 of the certificate that the server
shows in TLS, or zeros if it speaks plain text. The last message, the seal, is the first thing that is said inside TLS, and is
left out in plain text: it shows that the end of the TLS session is the end that has passed the gate.

A gate has no socket, no clock and no random source: it is fed bytes in any splits and handed its nonce. Nothing of a peer is
decoded here, and nothing after the gate is before it has been passed. The proofs differ in text, and those of the two ends in
the order of nonces, so that none can be reflected; a nonce that comes back as the peer's own is refused all the same. `Hello`
is checked here too.
"""

from __future__ import annotations

import hmac
import sys
from typing import NamedTuple

from aiocluster._version import __version__
from aiocluster.errors import AuthenticationError, ProtocolError, VersionMismatch
from aiocluster.ids import Token
from aiocluster.wire.messages import Hello, Refused

__all__ = [
    "CLIENT_READS",
    "NONCE_BYTES",
    "PLAIN",
    "PROTOCOL",
    "SEAL_BYTES",
    "SERVER_READS",
    "ClientGate",
    "ServerGate",
    "Versions",
    "check_hello",
    "hello",
    "versions",
]

PROTOCOL = 2
"""Counts the changes after which the two ends do not understand each other any more."""
NONCE_BYTES = 32
_MAC_BYTES = 32
_FAMILY = b"aiocluster/"
_MAGIC = _FAMILY + str(PROTOCOL).encode()
_MAGIC_BYTES = 16
_GREETING_BYTES = _MAGIC_BYTES + NONCE_BYTES
_REPLY_BYTES = NONCE_BYTES + _MAC_BYTES
_CERTIFICATE_BYTES = 32
_PROOF_BYTES = _CERTIFICATE_BYTES + _MAC_BYTES
_REJECTION = bytes(_PROOF_BYTES)

SERVER_READS = (_REPLY_BYTES,)
CLIENT_READS = (_GREETING_BYTES, _GREETING_BYTES + _PROOF_BYTES)
"""Up to where each end reads before it has to say something, or is through."""
SEAL_BYTES = _MAC_BYTES
PLAIN = bytes(_CERTIFICATE_BYTES)
"""In place of a certificate: what follows the gate is not encrypted."""


def _proof(token: Token, side: bytes, *parts: bytes) -> bytes:
    return hmac.digest(token.reveal(), b"".join((_MAGIC, b" ", side, *parts)), "sha256")


def _mode(tls: bool) -> bytes:
    return b"\1" if tls else b"\0"


class _Gate:
    """Collects what comes in fixed sizes; what comes after the last of them is kept for the next layer."""

    def __init__(self, token: Token, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self._token = token
        self._nonce = nonce
        self._received = bytearray()
        self._failure: ProtocolError | None = None
        self.passed = False
        """True once the peer has proved that it knows the token."""

    @property
    def trailing(self) -> bytes:
        """What arrived behind the gate's own bytes: the begin of what the next layer reads. Empty until the gate is passed."""
        return bytes(self._received) if self.passed else b""

    def _take(self, size: int) -> bytes | None:
        if len(self._received) < size:
            return None
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _collect(self, data: bytes | bytearray | memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        self._received += data

    def _fail(self, error: ProtocolError) -> ProtocolError:
        self._failure = error
        self._received.clear()
        return error


class ServerGate(_Gate):
    """The manager's end: greets first, lets nobody pass who does not know the token, then proves that it knows it too.

    Args:
        token: the cluster's secret.
        nonce: 32 random bytes that are never used twice.
        certificate: the SHA-256 of the certificate that is shown after the gate, or `PLAIN`.

    Attributes:
        parting: what is to be sent to a client that failed. One that knows the token, and only wants TLS where there is none or
            the other way round, gets the proof, from which it sees that; any other gets as many zeros.
        seal: what the client has to say first inside TLS; empty until the gate is passed.
    """

    def __init__(self, token: Token, nonce: bytes, certificate: bytes = PLAIN) -> None:
        super().__init__(token, nonce)
        if len(certificate) != _CERTIFICATE_BYTES:
            raise ValueError(f"the hash of a certificate has {_CERTIFICATE_BYTES} bytes, not {len(certificate)}")
        self._certificate = certificate
        self.parting = _REJECTION
        self.seal = b""

    @property
    def greeting(self) -> bytes:
        """What is sent first, at once."""
        return _MAGIC.ljust(_MAGIC_BYTES, b"\0") + self._nonce

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """Takes what the client sent; gives what is to be sent: nothing yet, or the proof, with which the gate is passed.

        Raises:
            AuthenticationError: the client does not know the token.
            ProtocolError: it does, but one end wants TLS and the other plain text.
        """
        self._collect(data)
        if self.passed:
            return b""
        reply = self._take(_REPLY_BYTES)
        if reply is None:
            return b""
        nonce, proof = reply[:NONCE_BYTES], reply[NONCE_BYTES:]
        tls = self._certificate != PLAIN
        right, other = (
            hmac.compare_digest(proof, _proof(self._token, b"client", self._nonce, nonce, _mode(mode))) for mode in (tls, not tls)
        )
        if nonce == self._nonce:
            raise self._fail(AuthenticationError("a peer sent our own nonce back"))
        if not right and not other:
            raise self._fail(AuthenticationError("a peer did not prove that it knows the token of this cluster"))
        answer = self._certificate + _proof(self._token, b"server", nonce, self._nonce, self._certificate)
        if other:
            self.parting = answer
            theirs, ours = ("plain text", "TLS") if tls else ("TLS", "plain text")
            raise self._fail(ProtocolError(f"a peer that knows the token wants {theirs}, and this address speaks {ours}"))
        self.passed = True
        self.seal = _proof(self._token, b"inside", self._nonce, nonce, self._certificate)
        return answer


class ClientGate(_Gate):
    """The end that dials: sends nothing but its proof, and goes on only with a manager that gives its own.

    Args:
        token: the cluster's secret.
        nonce: 32 random bytes that are never used twice.
        tls: what is spoken after the gate.

    Attributes:
        certificate: the SHA-256 of the only certificate to accept; `PLAIN` until the gate is passed, and without TLS.
        seal: what is to be said first inside TLS, and only to the owner of that certificate; empty until the gate is passed.
    """

    def __init__(self, token: Token, nonce: bytes, *, tls: bool = False) -> None:
        super().__init__(token, nonce)
        self._tls = tls
        self._server_nonce: bytes | None = None
        self.certificate = PLAIN
        self.seal = b""

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """Takes what the server sent; gives what is to be sent: nothing, or this end's proof. Then see `passed`.

        Raises:
            VersionMismatch: the server speaks another version of this protocol.
            AuthenticationError: the server is no manager of aiocluster, or does not know the token.
            ProtocolError: it is the manager, but one end wants TLS and the other plain text.
        """
        self._collect(data)
        if self.passed:
            return b""
        if self._server_nonce is None:
            return self._answer()
        proof = self._take(_PROOF_BYTES)
        if proof is not None:
            self._check(self._server_nonce, proof[:_CERTIFICATE_BYTES], proof[_CERTIFICATE_BYTES:])
        return b""

    def _check(self, server_nonce: bytes, certificate: bytes, proof: bytes) -> None:
        if not hmac.compare_digest(proof, _proof(self._token, b"server", self._nonce, server_nonce, certificate)):
            raise self._fail(AuthenticationError("the manager did not prove that it knows the token of this cluster"))
        if self._tls and certificate == PLAIN:
            raise self._fail(
                ProtocolError("the manager speaks plain text at this address, and TLS is wanted (tcp+plain:// is not)")
            )
        if not self._tls and certificate != PLAIN:
            raise self._fail(ProtocolError("the manager speaks TLS at this address, and plain text is wanted (tcp:// is TLS)"))
        self.passed = True
        self.certificate = certificate
        self.seal = _proof(self._token, b"inside", server_nonce, self._nonce, certificate)

    def _answer(self) -> bytes:
        begin = bytes(self._received[: len(_FAMILY)])
        if not _FAMILY.startswith(begin):  # said at once: what is no manager may never send 48 bytes
            raise self._fail(AuthenticationError("what answered is not an aiocluster manager"))
        greeting = self._take(_GREETING_BYTES)
        if greeting is None:
            return b""
        magic, nonce = greeting[:_MAGIC_BYTES].rstrip(b"\0"), greeting[_MAGIC_BYTES:]
        if magic != _MAGIC:
            version = magic[len(_FAMILY) :]
            if not version.isdigit():
                raise self._fail(AuthenticationError("what answered is not an aiocluster manager"))
            raise self._fail(VersionMismatch(ours=f"protocol {version.decode()}", theirs=f"protocol {PROTOCOL}"))
        if nonce == self._nonce:
            raise self._fail(AuthenticationError("the manager sent our own nonce"))
        self._server_nonce = nonce
        return self._nonce + _proof(self._token, b"client", nonce, self._nonce, _mode(self._tls))


# --- who it is, once it may speak ----------------------------------------------------------------------------------------


class Versions(NamedTuple):
    """What must be the same at both ends: pickles and functions by value depend on Python's minor version, too."""

    protocol: int
    aiocluster: str
    python: str

    def __str__(self) -> str:
        return f"protocol {self.protocol}, aiocluster {self.aiocluster}, Python {self.python}"


def versions() -> Versions:
    """The versions of this process."""
    return Versions(PROTOCOL, __version__, f"{sys.version_info.major}.{sys.version_info.minor}")


def hello(
    *,
    role: str,
    cluster_id: str,
    node: str,
    worker_id: int,
    host: str,
    pid: int,
    link_id: bytes,
    received: int = 0,
    resuming: bool = False,
) -> Hello:
    """A `Hello` with the versions of this process."""
    ours = versions()
    return Hello(
        role=role,
        cluster_id=cluster_id,
        protocol=ours.protocol,
        version=ours.aiocluster,
        python=ours.python,
        node=node,
        worker_id=worker_id,
        host=host,
        pid=pid,
        link_id=link_id,
        received=received,
        resuming=resuming,
    )


def check_hello(message: Hello, cluster_id: str, ours: Versions | None = None) -> Refused | None:
    """The refusal that the manager must answer, or None if this peer may join.

    The code is "protocol" or "version" where the versions differ, and "cluster" for a peer of another cluster.
    """
    ours = versions() if ours is None else ours
    theirs = Versions(message.protocol, message.version, message.python)
    theirs_text = str(theirs)[:256]  # what fits into the field, whatever the peer made up
    if theirs.protocol != ours.protocol:
        return Refused("protocol", "the two ends speak different versions of the protocol", str(ours), theirs_text)
    if theirs != ours:
        return Refused("version", "the two ends run different versions", str(ours), theirs_text)
    if message.cluster_id != cluster_id:
        return Refused("cluster", "this manager has another cluster", cluster_id, message.cluster_id)
    return None
