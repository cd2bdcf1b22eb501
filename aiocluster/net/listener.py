"""The listening end of links: it opens the manager's addresses, lets in whoever knows the token, and keeps links until resumed.

A stray, slow, silent or hostile connection has a place in front of the gate for two seconds at most, and only while nobody else
needs it. No frame is read from a peer that has not proven itself, and no large one before it is welcomed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from aiocluster.core.link import DEFAULT_UNACKED_BYTES, LinkLedger
from aiocluster.errors import ProtocolError
from aiocluster.ids import ClusterId, Token
from aiocluster.net.address import TcpAddress, UnixAddress, parse_address
from aiocluster.net.complaints import Complaints
from aiocluster.net.door import Door
from aiocluster.net.errors import LinkLost
from aiocluster.net.link import Link, LinkHandler
from aiocluster.net.sockets import listening_address, listening_sockets, tune
from aiocluster.net.tls import ServerTls
from aiocluster.net.visitor import Visitor
from aiocluster.wire.frames import FrameLimits
from aiocluster.wire.handshake import check_hello
from aiocluster.wire.messages import Hello, Refused, Welcome

__all__ = ["Accepted", "Listener"]

CHALLENGE_TIMEOUT_S: Final = 2.0
"""For a peer to answer the challenge: many round trips anywhere on earth, and one packet lost."""
HELLO_TIMEOUT_S: Final = 10.0
"""In all, until a peer has said who it is: a process that starts on a busy machine can stop for seconds."""
PENDING_LIMIT: Final = 128
PENDING_PER_ADDRESS: Final = 16
RESUME_WITHIN_S: Final = 30.0
ACCEPT_PAUSE_S: Final = 0.1
ACCEPT_AT_ONCE: Final = 16
"""So a burst is taken fast, and yet each visitor has several turns of the loop before others can have taken all places."""
_OUT_OF_RESOURCES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

logger = logging.getLogger(__name__)


class Accepted(NamedTuple):
    """The answer to a hello that is welcome: who its link reports to, and the settings that the peer needs."""

    handler: LinkHandler
    settings: dict[str, Any]


class Listener:
    """Accepts links on several addresses, and resumes those whose connection broke.

    Args:
        addresses: `unix:/path`, `tcp://host:port`, or `tcp+plain://host:port` each; port 0 takes a free one. What is said at
            `tcp://` is encrypted, with a certificate that is made for this listener and pinned by whoever dials.
        token: the cluster's secret.
        cluster_id: peers of another cluster are refused.
        accept: called with the hello of each new link, which has been checked; what it refuses gets its reason.
        resume_within_s: for how long a link without a connection waits; then it is closed with `LinkLost`.
        challenge_timeout_s: for a peer to prove that it knows the token.
        hello_timeout_s: for a peer to say hello, from its connecting on.
        pending_limit: connections that are not welcomed yet.
        pending_per_address: of them from one TCP address.
        limits: what a welcomed peer may send in one frame.
        unacked_limit_bytes: above so much unacknowledged a link says that it is not writable.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        token: Token,
        cluster_id: ClusterId,
        accept: Callable[[Hello], Accepted | Refused],
        *,
        resume_within_s: float = RESUME_WITHIN_S,
        challenge_timeout_s: float = CHALLENGE_TIMEOUT_S,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        pending_limit: int = PENDING_LIMIT,
        pending_per_address: int = PENDING_PER_ADDRESS,
        limits: FrameLimits | None = None,
        unacked_limit_bytes: int = DEFAULT_UNACKED_BYTES,
    ) -> None:
        self.token = token
        self.cluster_id = cluster_id
        self.challenge_timeout_s = challenge_timeout_s
        self.hello_timeout_s = hello_timeout_s
        self._wanted = [parse_address(text) for text in addresses]
        self._accept = accept
        self._resume_within_s = resume_within_s
        self._limits = FrameLimits() if limits is None else limits
        self._unacked_limit_bytes = unacked_limit_bytes
        self._door: Door[Visitor] = Door(pending_limit, pending_per_address)
        self._sockets: list[tuple[socket.socket, ServerTls | None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._links: dict[bytes, Link] = {}
        self._timers: dict[Link, asyncio.TimerHandle] = {}
        self._complaints: Complaints | None = None
        self.closed = False

    async def start(self) -> None:
        """Open all addresses; either all of them are open after this, or none.

        Raises:
            OSError: one is in use, or not ours.
        """
        self._loop = asyncio.get_running_loop()
        self._complaints = Complaints(logger, self._loop.time())
        try:
            tls: ServerTls | None = None
            for address in self._wanted:
                wants_tls = isinstance(address, TcpAddress) and address.tls
                if wants_tls and tls is None:
                    tls = ServerTls()
                for sock in await listening_sockets(self._loop, address):
                    self._sockets.append((sock, tls if wants_tls else None))
        except BaseException:
            self.close()
            raise
        for (sock, tls), where in zip(self._sockets, self.addresses):
            self._tasks.append(self._loop.create_task(self._accept_all(sock, tls), name=f"aiocluster: accept at {where}"))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it really listens, with the ports that were free; nowhere after `close`."""
        return tuple(str(listening_address(sock, tls=tls is not None)) for sock, tls in self._sockets)

    @property
    def pending(self) -> int:
        """Connections that are not welcomed yet."""
        return len(self._door)

    @property
    def links(self) -> int:
        """Links that stand, or wait to be resumed."""
        return len(self._links)

    def close(self) -> None:
        """Listen no more, drop whoever waits to be welcomed, and refuse every resumption; links that stand stay their owners'.

        A link that waits to be resumed is closed.
        """
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for sock, _tls in self._sockets:
            address = listening_address(sock)
            sock.close()
            if isinstance(address, UnixAddress):
                with contextlib.suppress(OSError):  # its folder may have been removed before us
                    os.unlink(address.path)
        self._sockets.clear()
        for visitor in self._door.visitors():
            visitor.drop(None)
        for link in list(self._timers):
            link.fail(LinkLost("the listener closed while the link waited to be resumed"))

    async def wait_closed(self) -> None:
        """Returns when nothing of a closed listener runs any more; cancelling this changes nothing."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- new connections -------------------------------------------------------------------------------------------------

    async def _accept_all(self, listening: socket.socket, tls: ServerTls | None) -> None:
        """Takes a few connections at once; then the loop serves those that came before, however many wait here."""
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    logger.error("cannot accept connections now: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                continue  # else it went away before it was accepted
            visitors = [visitor for each in (sock, *_accept_more(listening)) if (visitor := self._admit(each, tls))]
            if len(visitors) == 1:
                await self._start(visitors[0])
                continue
            async with asyncio.TaskGroup() as group:
                for visitor in visitors:
                    group.create_task(self._start(visitor), name=f"aiocluster: accept {visitor.peername}")

    async def _start(self, visitor: Visitor) -> None:
        if not visitor.gone:
            try:
                await self._loop.connect_accepted_socket(visitor.start, visitor.sock)
            except OSError:
                visitor.drop("it went away at once")

    def _admit(self, sock: socket.socket, tls: ServerTls | None) -> Visitor | None:
        """A visitor that counts from now on, unless there is no place for it."""
        try:
            tune(sock)
            visitor = Visitor(self, sock, tls)
        except OSError:
            sock.close()  # it is gone already
            return None
        victim = self._door.enter(visitor, visitor.host)
        if victim is visitor:
            visitor.drop("too many connections wait to be welcomed")
            return None
        if victim is not None:
            victim.drop("it had not proven that it knows the token when its place was needed")
        return visitor

    def proven(self, visitor: Visitor) -> None:
        """The visitor knows the token."""
        self._door.prove(visitor)

    def left(self, visitor: Visitor, complaint: str | None) -> None:
        """The visitor is not pending any more; with a complaint, it was dropped."""
        self._door.leave(visitor)
        if complaint is not None and self._complaints is not None:
            self._complaints.dropped(visitor.peername, complaint, self._loop.time())

    # --- links -----------------------------------------------------------------------------------------------------------

    def greet(self, visitor: Visitor, hello: Hello) -> Refused | None:
        """A link for this visitor: a new one, or the one that it resumes; or why there is none."""
        if self.closed:
            return Refused("closing", "the cluster is closing", "", "")
        refused = check_hello(hello, self.cluster_id)
        if refused is not None:
            return refused
        link = self._links.get(hello.link_id)
        if link is not None:
            return self._resume(visitor, hello, link)
        if hello.resuming or hello.received:
            return Refused("stale", "the manager does not know the link, or gave it up", "", "")
        answer = self._accept(hello)
        if isinstance(answer, Refused):
            return answer
        ledger = LinkLedger(resume_within_s=self._resume_within_s, limit_bytes=self._unacked_limit_bytes)
        link = Link(self._loop, hello, answer.handler, self, ledger, self._limits)
        self._links[hello.link_id] = link
        assert visitor.connection is not None
        link.attach(visitor.connection, 0, Welcome(0, answer.settings), answer=True)
        return None

    def _resume(self, visitor: Visitor, hello: Hello, link: Link) -> Refused | None:
        """The link goes on over a new connection, also if this end had not noticed that the old one is gone."""
        if hello._replace(received=0, resuming=False) != link.hello or link.closed or link.welcome is None:
            return Refused("stale", "the link is not this peer's, or closed", "", "")
        if not hello.resuming and hello.received:
            return Refused("protocol", "a new link cannot have received anything", "", "")
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
        assert visitor.connection is not None
        try:
            welcome = link.welcome._replace(received=link.received)
            link.attach(visitor.connection, hello.received, welcome, answer=True)
        except ProtocolError as error:
            link.fail(error)
            return Refused("protocol", error.reason, "", "")
        return None

    def link_down(self, link: Link) -> None:
        if self.closed:
            link.fail(LinkLost("the connection broke, and the listener is closed"))
            return
        assert link.deadline is not None
        self._timers[link] = self._loop.call_at(link.deadline, self._expire, link)

    def _expire(self, link: Link) -> None:
        del self._timers[link]
        link.fail(LinkLost(f"the connection broke and was not resumed within {self._resume_within_s:g} s"))

    def link_ended(self, link: Link) -> None:
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
        self._links.pop(link.hello.link_id, None)


def _accept_more(listening: socket.socket) -> list[socket.socket]:
    """The connections that wait already, up to what is taken at once."""
    found: list[socket.socket] = []
    with contextlib.suppress(OSError):  # none waits any more; what is worse comes again, where it is waited for
        while len(found) < ACCEPT_AT_ONCE - 1:
            found.append(listening.accept()[0])
    return found
