"""Frames on one transport, after the gate: what was decoded goes to the owner, what is to be sent goes out once a loop tick.

A connection knows nothing of numbered frames, of resuming or of who is at the other end. It never holds back a small frame
for longer than the loop tick in which it was sent, and never makes a task or a future for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from aiocluster.core.link import Pieces
from aiocluster.errors import ProtocolError
from aiocluster.wire.frames import Frame, FrameDecoder, FrameLimits

__all__ = ["Connection", "ConnectionOwner"]

JOIN_BYTES: Final = 64 * 2**10
"""Frames up to this size are joined: copying them costs less than a system call, or an entry of a vector, for each."""
SLICE_BYTES: Final = 2**20
"""Large pieces are handed over in slices: plain asyncio copies what the socket does not take, and moves it with each write."""
HIGH_WATER_BYTES: Final = 4 * 2**20
"""What the transport may hold: enough to keep the socket busy while the loop does something else for a few milliseconds."""
LINGER_S: Final = 5.0
"""How long a closed connection tries to write what it still has to a peer that does not read."""


class ConnectionOwner(Protocol):
    """Who a connection reports to."""

    def frames_arrived(self, connection: Connection, frames: list[Frame], size: int) -> None:
        """These frames are complete; `size` bytes were read since the last ones."""

    def connection_writable(self, connection: Connection, writable: bool) -> None:
        """The peer does not read as fast as is sent, or does again."""

    def connection_failed(self, connection: Connection, error: ProtocolError) -> None:
        """The peer sent what is no frame, or none that is allowed; the owner has to end the connection."""

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """The transport is gone, for good. Called once, also after `close` and `abort`."""


class Connection(asyncio.BufferedProtocol):
    """Frames in and out on one transport that has passed the gate.

    Attributes:
        owner: who is told what happens; may change at any time.
        last_heard: when bytes last arrived, in loop time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        owner: ConnectionOwner,
        limits: FrameLimits,
        peername: str,
    ) -> None:
        self.owner = owner
        self.peername = peername
        self.last_heard = loop.time()
        self.unsent_bytes = 0  # handed to `write`, and not yet to the transport
        self._loop = loop
        self._transport = transport
        self._decoder = FrameDecoder(limits)
        self._unreported_bytes = 0
        self._queue: deque[bytes | memoryview] = deque()
        self._has_large = False
        self._flush_due = False
        self._paused = False
        self._closing = False
        self._closed = False
        self._linger: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        transport.set_protocol(self)

    @property
    def limits(self) -> FrameLimits:
        """What the peer may send from now on."""
        return self._decoder.limits

    @limits.setter
    def limits(self, limits: FrameLimits) -> None:
        self._decoder.limits = limits

    @property
    def writable(self) -> bool:
        return not self._paused

    # --- in --------------------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.last_heard = self._loop.time()
        if self._closing:
            return
        self._unreported_bytes += nbytes
        try:
            frames = self._decoder.received(nbytes)
        except ProtocolError as error:
            self.owner.connection_failed(self, error)
            return
        if frames:
            size, self._unreported_bytes = self._unreported_bytes, 0
            # What is sent in answer is written when the owner is done, not a turn of the loop later.
            self._flush_due = True
            try:
                self.owner.frames_arrived(self, frames, size)
            finally:
                self._flush()

    def eof_received(self) -> bool:
        # A peer that has sent all it had expects nothing more: without this, what it never reads would keep the transport.
        self._transport.abort()
        return False

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel's buffers, so that the peer cannot send without end."""
        if not self._closing and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._closing and not self._transport.is_reading():
            self._transport.resume_reading()

    # --- out -------------------------------------------------------------------------------------------------------------

    def write(self, pieces: Pieces, size: int) -> None:
        """Send one frame with all others of this loop tick."""
        if self._closing:
            return
        self._queue.extend(pieces)
        self.unsent_bytes += size
        if size > JOIN_BYTES:
            self._has_large = True
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def flush(self) -> None:
        """Write now what waits for the end of the loop tick."""
        if self._queue:
            self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        if self._paused or self._closed:
            return
        queue = self._queue
        if self._has_large or self.unsent_bytes > HIGH_WATER_BYTES:
            self._flush_large()
        elif queue:
            self.unsent_bytes = 0
            if len(queue) == 1:
                self._transport.write(queue.popleft())
            else:
                data = b"".join(queue)
                queue.clear()
                self._transport.write(data)
        if self._closing and not queue:
            self._end_writing()

    def _flush_large(self) -> None:
        """Hand over as much as the transport takes: runs of small pieces joined, large ones in slices and never copied here."""
        queue = self._queue
        while queue and not self._paused:
            piece = queue.popleft()
            if len(piece) > SLICE_BYTES:
                rest = memoryview(piece)
                queue.appendleft(rest[SLICE_BYTES:])
                piece = rest[:SLICE_BYTES]
            elif len(piece) < JOIN_BYTES:
                run, size = [piece], len(piece)
                while queue and size + len(queue[0]) <= JOIN_BYTES:
                    run.append(queue.popleft())
                    size += len(run[-1])
                piece = b"".join(run) if len(run) > 1 else piece
            self.unsent_bytes -= len(piece)
            self._transport.write(piece)
        self._has_large = bool(queue)

    def pause_writing(self) -> None:
        self._paused = True
        self.owner.connection_writable(self, False)

    def resume_writing(self) -> None:
        self._paused = False
        if self._closing:
            # Not from in here: plain asyncio does not expect a transport to be closed by what it calls when it has written all.
            self._loop.call_soon(self._flush)
            return
        if self._queue:
            self._flush()
        if not self._paused:
            self.owner.connection_writable(self, True)

    # --- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take nothing more, write what was sent, then close; a peer that does not read is given up after 5 s."""
        if self._closing:
            return
        self.resume_reading()  # to see the peer's end of the stream; what it still says is not heard any more
        self._closing = True
        self._linger = self._loop.call_later(LINGER_S, self._transport.abort)
        if not self._flush_due:
            self._flush()

    def _end_writing(self) -> None:
        # Closing while anything unread has arrived would reset the connection, and so take from the peer what it has not read
        # yet. So only writing ends here; the peer's own end of the stream, or the linger timer, closes the transport.
        if not self._transport.can_write_eof():
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """Close at once; what was not written is lost."""
        self._closing = True
        self._queue.clear()
        self.unsent_bytes = 0
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = self._closed = True
        self._queue.clear()
        self.unsent_bytes = 0
        if self._linger is not None:
            self._linger.cancel()
        self.owner.connection_lost(self, exc)
