"""TLS 1.3 behind the gate: the manager's certificate, made in memory, and TLS on a transport as a transport again.

The gate tells the dialler which certificate the manager will show, in a message that only who knows the token can have made.
So nothing is looked up, no name and no date is checked, and no authority is believed: that certificate, or none. The manager asks
for no certificate; the dialler proves inside TLS that it is the end which has passed the gate, with the gate's seal.

It is done with `ssl.MemoryBIO` and not with `loop.start_tls`: transports of the latter cannot end their writing only (a
connection then loses what the peer has not read yet), differ from loop to loop, and are slower with much data.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import hmac
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from aiocluster.errors import AuthenticationError, ProtocolError
from aiocluster.net.gate import ConnectionDropped
from aiocluster.wire.handshake import SEAL_BYTES, ClientGate

__all__ = ["ClientTls", "ServerTls", "TlsTransport"]

READ_BYTES: Final = 256 * 2**10
"""At once from the socket; the memory for it is shared by all connections of a listener, for it is emptied at once."""
SEND_BYTES: Final = 256 * 2**10
"""What is encrypted is handed on from here on: OpenSSL's own buffers grow, and never shrink."""
VALID_BEFORE: Final = datetime.timedelta(days=1)
VALID_AFTER: Final = datetime.timedelta(days=365)
"""Neither end looks at the dates: the pin decides, so that no clock that is wrong can keep a worker out."""

Opened = Callable[["TlsTransport"], None]
Failed = Callable[[ProtocolError | ConnectionDropped], None]


class ServerTls:
    """The manager's side: a key and a certificate of its own, which are nowhere but in the memory of this process.

    Making it takes some milliseconds.

    Attributes:
        fingerprint: the SHA-256 of the certificate, for the gate.
    """

    def __init__(self) -> None:
        certificate, pem = _new_certificate()
        self.fingerprint = hashlib.sha256(certificate).digest()
        self._context = _context(ssl.PROTOCOL_TLS_SERVER)
        self._context.num_tickets = 0  # nothing is resumed: each connection passes the gate
        with _as_file(pem) as path:
            self._context.load_cert_chain(path)
        self._buffer = memoryview(bytearray(READ_BYTES))

    def wrap(self, transport: asyncio.Transport, seal: bytes, opened: Opened, failed: Failed) -> TlsTransport:
        """TLS on a transport whose dialler has passed the gate; see `TlsTransport` for the two callbacks."""
        return TlsTransport(transport, self._context, self._buffer, None, seal, opened, failed)


class ClientTls:
    """The dialler's side. It trusts nobody by itself: each connection has its pin."""

    def __init__(self) -> None:
        self._context = _context(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        # The pin is compared before anything is said. A chain that leads nowhere could only be checked in vain, and its dates
        # would make clocks matter. That the peer owns the certificate's key is proved by the handshake all the same.
        self._context.verify_mode = ssl.CERT_NONE
        self._buffer = memoryview(bytearray(READ_BYTES))

    async def start(self, transport: asyncio.Transport, gate: ClientGate) -> TlsTransport:
        """TLS on a transport that has passed this gate, with the owner of the certificate which the gate has told.

        Raises:
            ConnectionDropped: the other end closed it.
            AuthenticationError: the other end is not the manager.
            ProtocolError: what it says is no TLS.

        Cancelling closes the transport.
        """
        if transport.is_closing():
            raise ConnectionDropped("the connection was closed before TLS began")
        opened: asyncio.Future[TlsTransport] = asyncio.get_running_loop().create_future()

        def succeed(tls: TlsTransport) -> None:
            if not opened.done():
                opened.set_result(tls)

        def fail(error: Exception) -> None:
            if not opened.done():
                opened.set_exception(error)

        TlsTransport(transport, self._context, self._buffer, gate.certificate, gate.seal, succeed, fail)
        if not transport.is_closing():  # else the begin of TLS could not be written, and `failed` is called soon
            transport.resume_reading()
        try:
            return await opened
        except BaseException:
            opened.cancel()
            transport.abort()
            raise


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _new_certificate() -> tuple[bytes, bytes]:
    """A certificate in DER, and with its new key in PEM."""
    # Imported here, for it takes longer than all else that a worker imports for its links, and only the manager needs it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aiocluster manager")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - VALID_BEFORE)
        .not_valid_after(now + VALID_AFTER)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding
    private = key.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(encoding.DER), certificate.public_bytes(encoding.PEM) + private


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path for `ssl`, which reads keys from files only: of memory where the system has that, else of a file of our own."""
    if hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd"):
        with open(os.memfd_create("aiocluster"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile(prefix="aiocluster-") as file:  # 0600, and removed at the end of this block
        file.write(data)
        file.flush()
        yield file.name


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """TLS on a connected transport. Nobody is told of it, and nothing is delivered, before both ends have shown who they are.

    Writing is paused and resumed by the transport below it, whose buffer has all that was written.

    Args:
        transport: it has passed the gate, and nothing else was said on it.
        context: TLS 1.3 of one of the ends.
        buffer: where bytes are read to; may be shared with others of the same loop.
        pin: the SHA-256 of the certificate that the peer must show; None at the listening end.
        seal: what the dialler says first inside TLS.
        opened: called once, with this; it needs a protocol at once.
        failed: called once instead, with `ConnectionDropped` if the transport is gone, or with a `ProtocolError`; then it is
            being closed.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        context: ssl.SSLContext,
        buffer: memoryview,
        pin: bytes | None,
        seal: bytes,
        opened: Opened,
        failed: Failed,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._buffer = buffer
        self._pin = pin
        self._seal = seal
        self._sealed = b""
        self._opened = opened
        self._failed = failed
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=pin is None)
        self._agreed = False
        self._protocol: asyncio.BufferedProtocol | None = None
        self._settled = False  # `opened` or `failed` has been called
        self._eof = False  # nothing more arrives
        self._ended = False  # nothing that arrives is looked at any more
        self._reading = True
        self._error: Exception | None = None
        transport.set_protocol(self)
        self._advance()

    # --- until both ends have shown who they are -----------------------------------------------------------------------------

    def _advance(self) -> None:
        """The handshake, and the seal behind it, as far as the bytes that are there allow."""
        try:
            if not self._agreed:
                self._tls.do_handshake()
                self._agreed = True
                if self._pin is not None:
                    self._check_pin(self._pin)
            if self._pin is None:
                self._check_seal()
            else:
                self._tls.write(self._seal)
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError as error:
            self._fail(ProtocolError(f"what came after the gate is no TLS that is accepted ({_reason(error)})"))
            return
        except ProtocolError as error:
            self._fail(error)
            return
        self._send()
        self._settled = True
        self._opened(self)

    def _check_pin(self, pin: bytes) -> None:
        shown = self._tls.getpeercert(binary_form=True) or b""
        if not hmac.compare_digest(hashlib.sha256(shown).digest(), pin):
            # What OpenSSL has ready to send is not sent: an impostor learns nothing, not even that the handshake was right.
            self._outgoing.read()
            raise AuthenticationError("what answered in TLS is not the manager that had passed the gate")

    def _check_seal(self) -> None:
        while len(self._sealed) < SEAL_BYTES:
            data = self._tls.read(SEAL_BYTES - len(self._sealed))
            if not data:
                raise ProtocolError("the peer ended TLS before it had shown that it is who passed the gate")
            self._sealed += data
        if not hmac.compare_digest(self._sealed, self._seal):
            raise AuthenticationError("a peer in TLS is not the one that had passed the gate")

    def _fail(self, error: ProtocolError | ConnectionDropped) -> None:
        self._settled = self._ended = True
        self._send()  # the alert, if TLS has one
        self._transport.close()
        self._failed(error)

    # --- the transport below -------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended:
            return
        self._incoming.write(self._buffer[:nbytes])
        if not self._settled:
            self._advance()
        if self._settled:  # what came behind the seal counts, too
            self._deliver()

    def _deliver(self) -> None:
        """Hand on what has arrived, while somebody reads."""
        while self._reading and not self._ended and not self._transport.is_closing():
            protocol = self._protocol
            if protocol is None:
                return
            buffer = cast(bytearray, protocol.get_buffer(-1))
            try:
                size = self._read_into(buffer)
            except ssl.SSLWantReadError:
                if self._eof:
                    self._end_of_stream()
                    return
                break
            except ssl.SSLError as error:
                self._break(error)
                return
            if not size:  # the peer has said, within TLS, that this was all
                self._end_of_stream()
                return
            protocol.buffer_updated(size)
        if self._outgoing.pending and not self._ended:
            self._send()  # what TLS itself has to say: new keys

    def _read_into(self, buffer: bytearray) -> int:
        return cast(int, self._tls.read(len(buffer), buffer))  # typed as the bytes that it returns without a buffer

    def _break(self, error: ssl.SSLError) -> None:
        self._ended = True
        self._error = ConnectionResetError(f"TLS failed: {_reason(error)}")
        self._transport.abort()

    def _end_of_stream(self) -> None:
        self._ended = True
        if self._protocol is None or not self._protocol.eof_received():
            self._transport.close()

    def eof_received(self) -> bool:
        if self._settled and not self._ended:
            self._eof = True  # told when all that came before it has been handed on, which a pause can hold up
            self._deliver()
            return True
        return self._protocol is not None and bool(self._protocol.eof_received())

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._protocol is not None:
            self._protocol.connection_lost(exc or self._error)
        elif not self._settled:
            self._settled = True
            self._failed(ConnectionDropped("the connection was closed before TLS stood"))

    # --- the transport that this is ------------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.BufferedProtocol, protocol)
        if self._incoming.pending or self._eof:  # it came before there was anybody to hand it to
            asyncio.get_running_loop().call_soon(self._deliver)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False
        if not self._eof:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        if not self._eof:
            self._transport.resume_reading()
        # Not from in here: whoever resumes may not be ready for what has been decrypted or waits to be.
        asyncio.get_running_loop().call_soon(self._deliver)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended or self._transport.is_closing():
            return
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += self._tls.write(view[written:])  # a record each time
                if self._outgoing.pending >= SEND_BYTES:
                    self._send()
        except ssl.SSLError as error:
            self._break(error)
            return
        self._send()

    def _send(self) -> None:
        data = self._outgoing.read()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        """Say that this was all, in TLS and below it; what the peer still says is not heard any more."""
        self._end_tls()
        if self._eof:  # the peer has said so before
            self._transport.close()
        else:
            self._transport.write_eof()

    def _end_tls(self) -> None:
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # it wants the peer's answer, which nobody waits for
            self._tls.unwrap()
        self._send()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._end_tls()
        self._transport.close()

    def abort(self) -> None:
        self._ended = True
        self._transport.abort()


def _reason(error: ssl.SSLError) -> str:
    """In OpenSSL's words, of which none is the peer's."""
    return (error.reason or type(error).__name__).lower().replace("_", " ")
