"""The ledger of one resumable link: which numbered frames were sent, acknowledged and received, and what a resumption owes.

Both ends of a link keep the same kind of ledger. A frame is kept from the moment it is sent until the peer says that it has
it; when a connection breaks and another takes its place, each end tells the count of frames it has received, and the other
sends again exactly those that came after. So each frame arrives once and in order, over as many connections as it takes.

The ledger holds encoded frames without looking into them. It never touches a socket, a clock or an event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final

from aiocluster.errors import ProtocolError

__all__ = [
    "ACK_AFTER_BYTES",
    "ACK_AFTER_FRAMES",
    "DEFAULT_UNACKED_BYTES",
    "LinkEvent",
    "LinkLedger",
    "LinkPhase",
    "Pieces",
]

Pieces = Sequence[bytes | memoryview]
"""One encoded frame: its header, then its buffers as they are."""

ACK_AFTER_FRAMES: Final = 32
"""An acknowledgement costs about as much as a small frame: one for 32 of them hardly shows."""
ACK_AFTER_BYTES: Final = 256 * 2**10
"""Large frames are acknowledged each: what the peer holds for us is memory."""
DEFAULT_UNACKED_BYTES: Final = 64 * 2**20
"""Enough for what a fast network has under way; the price of a link that broke, in memory of its sender."""


class LinkPhase(Enum):
    """Where a link is in its life."""

    DOWN = "down"
    """No connection carries it: it has none yet, or lost the one it had and may be resumed."""
    UP = "up"
    CLOSED = "closed"
    """Final."""


class LinkEvent(Enum):
    """What moves a link from one phase to another."""

    RESUMED = "resumed"
    LOST = "lost"
    CLOSED = "closed"


TRANSITIONS: Final[dict[tuple[LinkPhase, LinkEvent], LinkPhase]] = {
    (LinkPhase.DOWN, LinkEvent.RESUMED): LinkPhase.UP,
    (LinkPhase.UP, LinkEvent.LOST): LinkPhase.DOWN,
    (LinkPhase.DOWN, LinkEvent.CLOSED): LinkPhase.CLOSED,
    (LinkPhase.UP, LinkEvent.CLOSED): LinkPhase.CLOSED,
}


class LinkLedger:
    """Keeps the promise that every numbered frame arrives exactly once and in order, or the link is closed.

    Attributes:
        phase: where the link is in its life; a new one is down until its first connection.
        sent: numbered frames sent, ever.
        acked: how many of them the peer has said to have.
        received: numbered frames received, ever.
        unacked_bytes: the size of the frames that are kept for sending again.
        deadline: when a link that is down can be resumed no more; None if it is up, or was never up.
        writable: False while more is kept than the limit; True again at half of it. One frame of any size is always
            allowed, and nothing is ever refused here: to stop is the sender's part.
    """

    __slots__ = (
        "_kept",
        "_limit_bytes",
        "_resume_within_s",
        "_since_bytes",
        "_told",
        "acked",
        "deadline",
        "phase",
        "received",
        "sent",
        "unacked_bytes",
        "writable",
    )

    def __init__(self, *, resume_within_s: float, limit_bytes: int = DEFAULT_UNACKED_BYTES) -> None:
        if not resume_within_s >= 0 or limit_bytes < 0:
            raise ValueError("resume_within_s and limit_bytes cannot be negative")
        self.phase = LinkPhase.DOWN
        self.sent = 0
        self.acked = 0
        self.received = 0
        self.unacked_bytes = 0
        self.deadline: float | None = None
        self.writable = True
        self._kept: deque[tuple[int, Pieces]] = deque()
        self._limit_bytes = limit_bytes
        self._resume_within_s = resume_within_s
        self._told = 0
        self._since_bytes = 0

    # --- frames out ------------------------------------------------------------------------------------------------------

    def send(self, pieces: Pieces, size: int) -> None:
        """Keep a numbered frame until the peer has it, whether or not there is a connection to write it to now."""
        self._kept.append((size, pieces))
        self.sent += 1
        self.unacked_bytes += size
        if self.unacked_bytes > self._limit_bytes:
            self.writable = False

    def peer_received(self, count: int) -> None:
        """Forget the frames that the peer says to have.

        Raises:
            ProtocolError: it claims more than was sent, or less than it said before.
        """
        if not self.acked <= count <= self.sent:
            what = "fewer frames than it acknowledged before" if count < self.acked else "more frames than were sent"
            raise ProtocolError(f"the peer of a link says that it received {what}")
        kept = self._kept
        while self.acked < count:
            self.unacked_bytes -= kept.popleft()[0]
            self.acked += 1
        if not self.writable and (not kept or self.unacked_bytes <= self._limit_bytes // 2):
            self.writable = True

    # --- frames in -------------------------------------------------------------------------------------------------------

    def receive(self, frames: int, size: int) -> bool:
        """Count numbered frames that arrived, and the bytes read with them; True if an acknowledgement is due at once."""
        self.received += frames
        self._since_bytes += size
        owed = self.received - self._told
        return owed >= ACK_AFTER_FRAMES or (owed > 0 and self._since_bytes >= ACK_AFTER_BYTES)

    @property
    def ack_owed(self) -> bool:
        """True if the peer keeps frames that have arrived here: it must be told, if not at once then soon."""
        return self._told < self.received

    def acknowledge(self) -> int:
        """The count to tell the peer now; nothing is owed after it."""
        self._told = self.received
        self._since_bytes = 0
        return self.received

    # --- the life of the link --------------------------------------------------------------------------------------------

    def lost(self, now: float) -> None:
        """The connection is gone: the link can be resumed until `deadline`, and what is sent meanwhile is kept."""
        self._move(LinkEvent.LOST)
        self.deadline = now + self._resume_within_s

    def expired(self, now: float) -> bool:
        """True if the link is down and the time to resume it has passed."""
        return self.deadline is not None and now >= self.deadline

    def resume(self, peer_received: int, now: float) -> list[Pieces]:
        """A connection carries the link from now on; these frames have to be written to it first, in this order.

        Both ends have told their counts when they met, so no acknowledgement is owed either.

        Raises:
            ProtocolError: the peer's count is impossible, or it is too late. The ledger is as it was.
        """
        if self.expired(now):
            raise ProtocolError("the link was down for too long to be resumed")
        if (self.phase, LinkEvent.RESUMED) in TRANSITIONS:  # an impossible move must not forget frames first
            self.peer_received(peer_received)
        self._move(LinkEvent.RESUMED)
        self.deadline = None
        self.acknowledge()
        return [pieces for _, pieces in self._kept]

    def close(self) -> None:
        """Nothing is kept any more; the link is not resumed. Closing a closed link changes nothing."""
        if self.phase is not LinkPhase.CLOSED:
            self._move(LinkEvent.CLOSED)
        self._kept.clear()
        self.unacked_bytes = 0
        self.deadline = None

    def _move(self, event: LinkEvent) -> None:
        phase = TRANSITIONS.get((self.phase, event))
        if phase is None:
            raise ProtocolError(f"a link that is {self.phase.value} cannot be {event.value}")
        self.phase = phase
