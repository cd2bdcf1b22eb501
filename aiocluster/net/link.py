"""One link as the runtime uses it, on both ends: numbered frames that survive the connection which carries them.

The ledger (`core/link.py`) decides what is kept, acknowledged and sent again; a link performs that on whatever connection it
has at the moment. Who finds it a new connection is its keeper: the dialler dials again, the listener waits. A link never
decodes payloads, and never sends or delivers a numbered frame twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from aiocluster.core.link import LinkLedger, LinkPhase
from aiocluster.errors import ProtocolError
from aiocluster.net.connection import Connection
from aiocluster.net.errors import refusal_error
from aiocluster.wire.frames import Frame, FrameLimits, encode
from aiocluster.wire.messages import Ack, Hello, Message, Refused, Welcome

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Link", "LinkHandler", "LinkKeeper"]

ACK_DELAY_S: Final = 0.2
"""A peer that sends little keeps little: telling it later costs nothing, and a timer per frame would."""
_UNNUMBERED: Final = frozenset((Hello, Welcome, Refused, Ack))


class LinkHandler(Protocol):
    """Who a link reports to. Each method is called in the loop and must return soon; it may call any method of the link.

    A `ProtocolError` raised by `frames_received` ends the link and is told to the peer; any other exception ends it too, and goes
    to the loop's exception handler.
    """

    def link_opened(self, link: Link) -> None:
        """The link stands; called once, before everything else."""

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        """All numbered frames that one read completed; over the life of the link each exactly once, and in order."""

    def link_writable(self, link: Link, writable: bool) -> None:
        """The peer takes less than is sent, or has caught up. Called at the change, within `send` too."""

    def link_broken(self, link: Link) -> None:
        """The connection is gone; what is sent now is kept until the link is resumed or closed."""

    def link_resumed(self, link: Link) -> None:
        """Another connection carries the link; nothing was lost."""

    def link_closed(self, link: Link, error: Exception | None) -> None:
        """Final, exactly once for a link that was opened; no error if one of the ends closed it on purpose."""


class LinkKeeper(Protocol):
    """Who finds another connection for a link: the dialler or the listener."""

    def link_down(self, link: Link) -> None:
        """The link has no connection; until its ledger's deadline it can be given another."""

    def link_ended(self, link: Link) -> None:
        """Nothing is to be done for the link any more."""


class Link:
    """A resumable stream of numbered frames both ways.

    Attributes:
        hello: what the dialling end said of itself, when the link was new.
        welcome: what the manager answered; present before `link_opened`.
        writable: False if it is better to stop sending: the peer does not read, or has not acknowledged 64 MiB.
        peername: who is at the other end, for people.
    """

    __slots__ = (
        "_ack_timer",
        "_closing",
        "_connection",
        "_ended",
        "_handler",
        "_held",
        "_keeper",
        "_last_heard",
        "_ledger",
        "_limits",
        "_loop",
        "_opened",
        "_reading_paused",
        "hello",
        "peername",
        "welcome",
        "writable",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hello: Hello,
        handler: LinkHandler,
        keeper: LinkKeeper,
        ledger: LinkLedger,
        limits: FrameLimits,
    ) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        self.writable = True
        self.peername = ""
        self._last_heard = loop.time()
        self._loop = loop
        self._handler = handler
        self._keeper = keeper
        self._ledger = ledger
        self._limits = limits
        self._connection: Connection | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self._held: list[tuple[Connection, list[Frame], int]] | None = None
        self._opened = False
        self._closing = False
        self._ended = False
        self._reading_paused = False

    def __repr__(self) -> str:
        return f"<Link {self.hello.role} {self.hello.worker_id} of {self.hello.node!r} at {self.peername}: {self.phase.value}>"

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def last_heard(self) -> float:
        """When bytes last arrived, in loop time; a large frame that is still arriving counts."""
        connection = self._connection
        return self._last_heard if connection is None else connection.last_heard

    @property
    def closed(self) -> bool:
        """True as soon as the end was asked for, or has come."""
        return self._closing or self._ended

    @property
    def phase(self) -> LinkPhase:
        return self._ledger.phase

    @property
    def received(self) -> int:
        """Numbered frames received, ever."""
        return self._ledger.received

    @property
    def sent(self) -> int:
        """Numbered frames sent, ever."""
        return self._ledger.sent

    @property
    def acked(self) -> int:
        """How many of them the peer has said to have."""
        return self._ledger.acked

    @property
    def deadline(self) -> float | None:
        """When a link that is down can be resumed no more, in loop time."""
        return self._ledger.deadline

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait here: those not handed to the transport, or all that would be sent again while there is none."""
        connection = self._connection
        return self._ledger.unacked_bytes if connection is None else connection.unsent_bytes

    @property
    def unacked_bytes(self) -> int:
        """Bytes kept in case that they must be sent again."""
        return self._ledger.unacked_bytes

    # --- sending ---------------------------------------------------------------------------------------------------------

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send one numbered frame: it arrives exactly once and in order, or the link is closed.

        All frames of one loop tick are written at once, at its end. The message is encoded now; the buffers are not copied
        and must not change any more. On a closed link nothing happens: its handler has been told, or will be.

        Raises:
            ValueError, TypeError, OverflowError, BufferError: the message is none that can be encoded; nothing was sent.
        """
        if self._closing or self._ended:
            return
        pieces = encode(message, buffers)
        size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        ledger = self._ledger
        ledger.send(pieces, size)
        connection = self._connection
        if connection is not None:
            connection.write(pieces, size)
        if self.writable and not ledger.writable:
            self._check_writable()

    def flush(self) -> None:
        """Write now what was sent in this loop tick, for whoever knows that nothing more comes in it: saves one turn of the loop.

        Not needed in `frames_received`: what it sends is written as soon as it returns.
        """
        if self._connection is not None:
            self._connection.flush()

    def _write_unnumbered(self, connection: Connection, message: Message) -> None:
        pieces = encode(message)
        connection.write(pieces, len(pieces[0]))

    def connection_writable(self, connection: Connection, writable: bool) -> None:
        if connection is self._connection:
            self._check_writable()

    def _check_writable(self) -> None:
        connection = self._connection
        writable = self._ledger.writable and (connection is None or connection.writable)
        if writable != self.writable and not self.closed:
            self.writable = writable
            self._handler.link_writable(self, writable)

    # --- receiving -------------------------------------------------------------------------------------------------------

    def frames_arrived(self, connection: Connection, frames: list[Frame], size: int) -> None:
        if connection is not self._connection or self._closing:
            return
        if self._held is not None:
            self._held.append((connection, frames, size))
            return
        goodbye: Refused | None = None
        for frame in frames:
            if type(frame.message) in _UNNUMBERED:
                try:
                    frames, goodbye = self._set_apart(frames)
                except ProtocolError as error:
                    self.fail(error)
                    return
                break
        if frames:
            due = self._ledger.receive(len(frames), size)
            if not self._deliver(frames):
                return
            if connection is not self._connection:
                return  # the handler closed the link; or a resumption has told the count
            if due:
                self._acknowledge()
            elif self._ack_timer is None:
                self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ack_later)
        if goodbye is not None:
            self._end(None if goodbye.code == "closing" else refusal_error(goodbye))

    def _set_apart(self, frames: list[Frame]) -> tuple[list[Frame], Refused | None]:
        """The numbered ones of these frames, and the goodbye that ends them; acknowledgements take effect."""
        numbered: list[Frame] = []
        goodbye: Refused | None = None
        for frame in frames:
            message = frame.message
            if isinstance(message, Ack):
                self._ledger.peer_received(message.received)
            elif isinstance(message, Refused):
                goodbye = message
                break
            elif isinstance(message, Hello | Welcome):
                raise ProtocolError(f"a second {type(message).__name__} on a link that stands")
            else:
                numbered.append(frame)
        if not self.writable:
            self._check_writable()
        return numbered, goodbye

    def _deliver(self, frames: list[Frame]) -> bool:
        try:
            self._handler.frames_received(self, frames)
        except ProtocolError as error:
            self.fail(error)
            return False
        except Exception as error:  # a handler's bug must not leave a link that is half dead
            self._loop.call_exception_handler(
                {"message": f"the handler of {self!r} failed; the link is closed", "exception": error}
            )
            self.fail(error)
            return False
        return True

    def _acknowledge(self) -> None:
        connection = self._connection
        if connection is not None and self._ledger.ack_owed:
            self._write_unnumbered(connection, Ack(self._ledger.acknowledge()))

    def _ack_later(self) -> None:
        self._ack_timer = None
        self._acknowledge()

    def hold(self) -> None:
        """Deliver nothing until `release`: whoever waits for the link is not ready for its frames yet."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Deliver what arrived since `hold`, and whatever comes."""
        held, self._held = self._held, None
        for connection, frames, size in held or ():
            self.frames_arrived(connection, frames, size)

    def pause_reading(self) -> None:
        """Receive nothing more until `resume_reading`, so that the peer has to stop; what has been read is still delivered."""
        self._reading_paused = True
        if self._connection is not None:
            self._connection.pause_reading()

    def resume_reading(self) -> None:
        self._reading_paused = False
        if self._connection is not None:
            self._connection.resume_reading()

    # --- its connections -------------------------------------------------------------------------------------------------

    def attach(self, connection: Connection, peer_received: int, welcome: Welcome, *, answer: bool) -> None:
        """This connection carries the link from now on, in place of one that it may still have.

        Args:
            connection: it has passed the gate, and its peer has shown that it speaks for this link.
            peer_received: the count of numbered frames that the peer says to have received.
            welcome: the manager's answer.
            answer: it is written first; False at the end which received it.

        Raises:
            ProtocolError: the count is impossible, or it is too late; the connection stays its owner's.
        """
        if self.closed:
            raise ProtocolError("the link is closed")
        if self._connection is not None:
            self._detach().abort()
            if self.closed:  # its handler did not want it any more
                raise ProtocolError("the link is closed")
        again = self._ledger.resume(peer_received, self._loop.time())
        self.welcome = welcome
        self.peername = connection.peername
        self._connection = connection
        connection.owner = self
        connection.limits = self._limits
        if answer:
            self._write_unnumbered(connection, welcome)
        for pieces in again:
            connection.write(pieces, sum(map(len, pieces)))
        if self._reading_paused:
            connection.pause_reading()
        if self._opened:
            self._check_writable()
            self._handler.link_resumed(self)
        else:
            self._opened = True
            self._handler.link_opened(self)

    def _detach(self) -> Connection:
        connection = self._connection
        assert connection is not None
        self._connection = None
        self._last_heard = connection.last_heard
        if self._held:
            self._held.clear()  # not counted as received: they come again
        self._cancel_ack()
        self._ledger.lost(self._loop.time())
        self._handler.link_broken(self)
        self._check_writable()
        return connection

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        if connection is not self._connection:
            return
        if self._closing:
            self._end(None)
            return
        self._detach()
        if not self.closed and self._connection is None:
            self._keeper.link_down(self)

    def connection_failed(self, connection: Connection, error: ProtocolError) -> None:
        if connection is self._connection:
            self.fail(error)

    # --- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what was sent, tell the peer that this was all, and end; `link_closed` comes when it is done, within 5 s.

        What the peer says from now on is not heard. Closing again changes nothing.
        """
        if self.closed:
            return
        self._closing = True
        connection = self._connection
        if connection is None:
            self._loop.call_soon(self._end, None)
            return
        self._write_unnumbered(connection, Refused("closing", "the other end closed the link", "", ""))
        connection.close()

    def abort(self) -> None:
        """End at once, without a word to the peer; `link_closed` comes in the next loop tick."""
        if self._ended:
            return
        self._closing = True
        if self._connection is not None:
            self._connection.abort()
        self._loop.call_soon(self._end, None)

    def fail(self, error: Exception) -> None:
        """End because of an error; a peer that is to blame is told why."""
        connection = self._connection
        if connection is not None and not self.closed:
            reason = error.reason if isinstance(error, ProtocolError) else "an internal error of the other end"
            self._write_unnumbered(connection, Refused("protocol", reason[:4096], "", ""))
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._cancel_ack()
        connection, self._connection = self._connection, None
        self._held = None
        self._ledger.close()
        if connection is not None:
            connection.close()
        self._keeper.link_ended(self)
        if self._opened:
            self._handler.link_closed(self, error)

    def _cancel_ack(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
