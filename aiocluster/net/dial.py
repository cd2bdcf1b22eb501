"""The dialling end of a link: it makes the first connection, and every other one that the link needs later.

It tells apart a manager that cannot be reached, which may come back, from an address where nobody listens any more. It never
gives up a link without telling its handler why, and never dials for a link that has ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Final

from aiocluster.core.link import DEFAULT_UNACKED_BYTES, LinkLedger
from aiocluster.errors import AioclusterError, ProtocolError
from aiocluster.ids import Token
from aiocluster.net.address import Address, TcpAddress, UnixAddress, parse_address
from aiocluster.net.connection import Connection
from aiocluster.net.errors import LinkLost, ManagerGone, refusal_error
from aiocluster.net.gate import ConnectionDropped, pass_client_gate
from aiocluster.net.link import Link, LinkHandler
from aiocluster.net.sockets import connect
from aiocluster.net.tls import ClientTls
from aiocluster.wire.frames import Frame, FrameLimits, encode
from aiocluster.wire.messages import Hello, Refused, Welcome

__all__ = ["dial"]

ATTEMPT_TIMEOUT_S: Final = 10.0
"""For one attempt to connect and be welcomed: as long as the listener allows for it."""
SHORTEST_ATTEMPT_S: Final = 1.0
"""Even `retry_for_s=0` means one attempt, which may have to wait for a busy manager."""
GONE_AFTER_S: Final = 0.5
"""A manager whose address refuses for so long has ended: its own backlog never makes the system refuse."""
FIRST_DELAY_S: Final = 0.01
LONGEST_DELAY_S: Final = 2.0
LONGEST_REFUSED_DELAY_S: Final = 0.1


async def dial(
    address: str,
    hello: Hello,
    token: Token,
    handler: LinkHandler,
    *,
    retry_for_s: float,
    resume_within_s: float,
    refused_means_gone: bool = True,
    limits: FrameLimits | None = None,
    unacked_limit_bytes: int = DEFAULT_UNACKED_BYTES,
    attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
) -> tuple[Link, Welcome]:
    """A link to the manager that is kept alive: when its connection breaks, it is dialled again and resumed.

    Frames that arrive with the manager's welcome are delivered one loop tick after this has returned.

    Args:
        address: `unix:/path`, `tcp://host:port`, or `tcp+plain://host:port` without TLS.
        hello: who dials; its `link_id` is new and random, `received` 0 and `resuming` False.
        token: the cluster's secret.
        handler: who the link reports to.
        retry_for_s: for how long to try again if the manager does not answer the first time; a Unix socket that refuses is
            given up after half a second (see `refused_means_gone`), for a manager listens before it starts anybody.
        resume_within_s: for how long to try if the link breaks later; then it is closed with `LinkLost`.
        refused_means_gone: close a link with `ManagerGone` when its address has refused for half a second.
        limits: what the manager may send in one frame.
        unacked_limit_bytes: above so much unacknowledged the link says that it is not writable.
        attempt_timeout_s: how long one attempt to connect may take.

    Raises:
        ValueError: the address is none.
        ManagerGone: nobody listens there, for `retry_for_s`.
        LinkLost: somebody does, but gave no answer, for `retry_for_s`.
        AuthenticationError: the token is another than the manager's, or something else listens there, or stands between.
        VersionMismatch, LinkRefused, ProtocolError: the manager does not want this link, or not with TLS, or not without.

    Cancelling closes what was opened.
    """
    dialler = _Dialler(
        parse_address(address),
        hello,
        token,
        handler,
        LinkLedger(resume_within_s=resume_within_s, limit_bytes=unacked_limit_bytes),
        FrameLimits() if limits is None else limits,
        refused_means_gone,
        attempt_timeout_s,
    )
    await dialler.connect(retry_for_s)
    link = dialler.link
    assert link.welcome is not None
    return link, link.welcome


def _delays() -> Iterator[float]:
    """Doubling, and each between half and all of itself: whoever lost the manager together does not come back together."""
    delay = FIRST_DELAY_S
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, LONGEST_DELAY_S)


class _Dialler:
    """The keeper of one link at its dialling end."""

    def __init__(
        self,
        address: Address,
        hello: Hello,
        token: Token,
        handler: LinkHandler,
        ledger: LinkLedger,
        limits: FrameLimits,
        refused_means_gone: bool,
        attempt_timeout_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._tls = ClientTls() if isinstance(address, TcpAddress) and address.tls else None
        self._token = token
        self._limits = limits
        self._refused_means_gone = refused_means_gone
        self._attempt_timeout_s = attempt_timeout_s
        self._task: asyncio.Task[None] | None = None
        self.link = Link(self._loop, hello, handler, self, ledger, limits)

    async def connect(self, retry_for_s: float) -> None:
        self.link.hold()
        try:
            await self._connect(self._loop.time() + retry_for_s)
        except BaseException:
            self.link.abort()
            raise
        self._loop.call_soon(self.link.release)

    async def _connect(self, deadline: float) -> None:
        began = self._loop.time()
        refused_since: float | None = None
        for delay in _delays():
            try:
                await self._attempt(max(deadline, self._loop.time() + SHORTEST_ATTEMPT_S))
                break
            except (OSError, ConnectionDropped) as error:
                now = self._loop.time()
                until = deadline
                gone = isinstance(error, ConnectionRefusedError | FileNotFoundError)
                if gone and self._refused_means_gone and isinstance(self._address, UnixAddress):
                    # The manager made this socket before it told anybody of it: if it refuses, the manager has ended.
                    refused_since = now if refused_since is None else refused_since
                    until = min(deadline, refused_since + GONE_AFTER_S)
                    delay = min(delay, LONGEST_REFUSED_DELAY_S)
                else:
                    refused_since = None
                if now + delay >= until:
                    text = f"no manager answered at {self._address} for {now - began:.3g} s: {_words(error)}"
                    raise (ManagerGone if gone else LinkLost)(text) from error
            await asyncio.sleep(delay)

    # --- the link's keeper -----------------------------------------------------------------------------------------------

    def link_down(self, link: Link) -> None:
        if self._task is not None:
            self._task.cancel()  # it has done its work, and only did not get to its end before the link broke again
        self._task = self._loop.create_task(self._resume(), name=f"aiocluster: resume the link to {self._address}")

    def link_ended(self, link: Link) -> None:
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()
        self._task = None

    async def _resume(self) -> None:
        """Dial until the link is up again, or has ended."""
        link = self.link
        try:
            await self._dial_again()
        except AioclusterError as error:
            if not link.closed:
                link.fail(error)
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _dial_again(self) -> None:
        deadline = self.link.deadline
        assert deadline is not None
        refused_since: float | None = None
        for delay in _delays():
            try:
                await self._attempt(deadline)
                break
            except (ConnectionRefusedError, FileNotFoundError) as error:
                now = self._loop.time()
                refused_since = now if refused_since is None else refused_since
                if self._refused_means_gone:
                    if now - refused_since >= GONE_AFTER_S:
                        raise ManagerGone(f"the manager at {self._address} is gone: {_words(error)}") from error
                    delay = min(delay, LONGEST_REFUSED_DELAY_S)
                failure: Exception = error
            except (OSError, ConnectionDropped) as error:
                refused_since = None
                failure = error
            if self._loop.time() + delay >= deadline:
                raise LinkLost(f"the link to {self._address} broke and could not be resumed: {_words(failure)}")
            await asyncio.sleep(delay)

    # --- one attempt -----------------------------------------------------------------------------------------------------

    async def _attempt(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(min(self._loop.time() + self._attempt_timeout_s, deadline)):
                await self._greet()
        except TimeoutError as error:
            if not self.link.connected:  # else the answer came in the very tick in which the time was over
                raise TimeoutError("the manager did not answer in time") from error

    async def _greet(self) -> None:
        """Connect, pass the gate, start TLS, say hello and be welcomed; the link is attached when this returns.

        Raises:
            OSError, ConnectionDropped: it may be worth another attempt.
            AioclusterError: it is not.
        """
        sock = await connect(self._loop, self._address)
        transport, gate = await pass_client_gate(self._loop, sock, self._token, tls=self._tls is not None)
        if self._tls is not None:
            transport = await self._tls.start(transport, gate)
        if transport.is_closing():
            raise ConnectionDropped("the manager closed the connection before it was greeted")
        link = self.link
        greeting = _Greeting(link, self._loop.create_future())
        connection = Connection(self._loop, transport, greeting, self._limits, str(self._address))
        try:
            pieces = encode(link.hello._replace(received=link.received, resuming=link.welcome is not None))
            connection.write(pieces, len(pieces[0]))
            connection.resume_reading()
            await greeting.answered
        except BaseException:
            if connection.owner is greeting:
                connection.abort()
            raise


class _Greeting:
    """Owns a connection from the hello until the manager's answer, which takes effect at once: frames may follow it closely."""

    def __init__(self, link: Link, answered: asyncio.Future[None]) -> None:
        self.answered = answered
        self._link = link

    def frames_arrived(self, connection: Connection, frames: list[Frame], size: int) -> None:
        if self.answered.done():
            return
        answer = frames[0].message
        if isinstance(answer, Refused):
            self.answered.set_exception(refusal_error(answer))
        elif not isinstance(answer, Welcome):
            self.answered.set_exception(ProtocolError("the manager answered a hello with something else than a welcome"))
        else:
            try:
                self._link.attach(connection, answer.received, answer, answer=False)
            except ProtocolError as error:
                self.answered.set_exception(error)
                return
            self.answered.set_result(None)
            if len(frames) > 1:
                self._link.frames_arrived(connection, frames[1:], size)

    def connection_writable(self, connection: Connection, writable: bool) -> None:
        """A hello is small."""

    def connection_failed(self, connection: Connection, error: ProtocolError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionDropped("the manager closed the connection before it answered"))


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
