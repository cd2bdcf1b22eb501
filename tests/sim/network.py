"""An in-memory network: connections that delay, stall and break, and the links over them, kept by the real ledgers.

`SimLink` mirrors `net.link.Link`, `Dialler` mirrors `net.dial`, `Listener` mirrors `net.listener`; the bytes, the gate and TLS
are left out. Within one connection frames stay in order; what happens on two of them is ordered by chance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from aiocluster.core.link import LinkLedger
from aiocluster.errors import AioclusterError, ProtocolError
from aiocluster.wire.frames import Frame, FrameDecoder, FrameLimits, encode
from aiocluster.wire.messages import Ack, Hello, Message, Refused, Welcome

from .clock import Process, Timer, Violation, World

__all__ = ["Connection", "Dialler", "Listener", "SimLink"]

ACK_DELAY_S = 0.2
GONE_AFTER_S = 0.5
ATTEMPT_S = 5.0
NOTICED_S = 10.5
"""A connection that takes nothing any more is given up by the kernel by then (TCP_USER_TIMEOUT, keepalive)."""
FRAME_BYTES = 120


class LinkGone(AioclusterError):
    """The link could not be resumed."""


class Item(NamedTuple):
    """One frame under way. `number` counts the numbered frames of its link and direction; 0 for others. No frame: the end."""

    number: int
    pieces: Any


class Owner(Protocol):
    """Who reads from one end of a connection."""

    def items_arrived(self, connection: Connection, items: list[tuple[int, Frame]]) -> None: ...
    def connection_lost(self, connection: Connection) -> None: ...


class Cable:
    """What all connections of one node share: it can stall."""

    __slots__ = ("stalled_until",)

    def __init__(self) -> None:
        self.stalled_until = 0.0


class End:
    """One end of a connection: what travels to it, and who reads it there."""

    __slots__ = ("arrivals", "closed", "decoder", "last", "owner", "process", "waking")

    def __init__(self, process: Process, owner: Owner, decoder: FrameDecoder | None) -> None:
        self.process = process
        self.owner = owner
        self.arrivals: deque[tuple[float, Item]] = deque()
        self.last = 0.0
        self.waking = False
        self.closed = False
        """It reads no more."""
        self.decoder = decoder


class Connection:
    """Two ends: 0 is the dialler's, 1 the manager's."""

    __slots__ = ("broken", "cable", "ends", "name", "world")

    def __init__(self, world: World, cable: Cable, name: str, ends: tuple[tuple[Process, Owner], tuple[Process, Owner]]) -> None:
        self.world = world
        self.cable = cable
        self.name = name
        self.ends = tuple(End(process, owner, FrameDecoder(FrameLimits()) if world.encoded else None) for process, owner in ends)
        self.broken = False

    def write(self, side: int, number: int, pieces: Any) -> None:
        """Send from this side to the other."""
        if not self.broken and not self.ends[side].closed:
            self._send(self.ends[1 - side], Item(number, pieces))

    def _send(self, end: End, item: Item) -> None:
        world = self.world
        arrival = world.now + world.rng.random() ** 3 * world.longest_delay_s + 20e-6
        arrival = max(arrival, end.last, self.cable.stalled_until)
        end.last = arrival
        end.arrivals.append((arrival, item))
        if not end.waking:
            end.waking = True
            world.at(arrival, end.process, self._arrive, end)

    def _arrive(self, end: End) -> None:
        end.waking = False
        now, arrivals = self.world.now, end.arrivals
        items: list[tuple[int, Frame]] = []
        over = False
        while arrivals and arrivals[0][0] <= now:
            item = arrivals.popleft()[1]
            if item.pieces is None:
                over = True
                arrivals.clear()
                break
            items.append((item.number, self._decoded(end, item)))
        if arrivals and not end.waking:
            end.waking = True
            self.world.at(arrivals[0][0], end.process, self._arrive, end)
        if end.closed:
            return
        if items:
            end.owner.items_arrived(self, items)
        if over and not end.closed:
            end.closed = True
            end.owner.connection_lost(self)

    def _decoded(self, end: End, item: Item) -> Frame:
        if end.decoder is None:
            frame: Frame = item.pieces
            return frame
        frames = end.decoder.feed(b"".join(item.pieces))
        if len(frames) != 1:
            raise Violation("wire", f"one frame was sent, {len(frames)} were decoded")
        return frames[0]

    def close(self, side: int) -> None:
        """This side closes: what it has written arrives, then the other side sees the end."""
        end = self.ends[side]
        if not end.closed:
            end.closed = True
            if not self.broken:
                self._send(self.ends[1 - side], Item(0, None))

    def cut(self, seen_after: tuple[float, float]) -> None:
        """The connection breaks: some of what is under way arrives, nothing after it; each end sees it in its own time."""
        if self.broken:
            return
        self.broken = True
        world = self.world
        for end, after in zip(self.ends, seen_after, strict=True):
            waiting = list(end.arrivals)
            end.arrivals.clear()
            kept = waiting[: world.rng.randint(0, len(waiting))]
            end.arrivals.extend(kept)
            end.last = max([world.now + after, end.last if kept else 0.0])
            end.arrivals.append((end.last, Item(0, None)))
            if not end.waking:
                end.waking = True
                world.at(end.arrivals[0][0], end.process, self._arrive, end)


class Handler(Protocol):
    def link_opened(self, link: Any) -> None: ...
    def frames_received(self, link: Any, frames: list[Frame]) -> None: ...
    def link_writable(self, link: Any, writable: bool) -> None: ...
    def link_broken(self, link: Any) -> None: ...
    def link_resumed(self, link: Any) -> None: ...
    def link_closed(self, link: Any, error: Exception | None) -> None: ...


class Keeper(Protocol):
    def link_down(self, link: SimLink) -> None: ...
    def link_ended(self, link: SimLink) -> None: ...


class SimLink:
    """One end of a resumable link: the rules of `net.link.Link`, on a simulated connection."""

    def __init__(
        self, world: World, process: Process, side: int, hello: Hello, handler: Handler, keeper: Keeper, ledger: LinkLedger
    ) -> None:
        self.world = world
        self.process = process
        self.side = side
        self.hello = hello
        self.handler = handler
        self.keeper = keeper
        self.ledger = ledger
        self.connection: Connection | None = None
        self.name = f"w{hello.worker_id}" if hello.worker_id else hello.node
        self.last_heard = world.now
        self.writable = True
        self.opened = False
        self.ended = False
        self._ack_timer: Timer | None = None

    @property
    def connected(self) -> bool:
        return self.connection is not None

    # --- sending ---------------------------------------------------------------------------------------------------------

    def send(self, message: Message, buffers: Sequence[Any] = ()) -> None:
        if self.ended:
            return
        ledger = self.ledger
        pieces: Any
        if self.world.encoded:
            pieces = encode(message, buffers)
            size = sum(map(len, pieces))
        else:
            pieces, size = Frame(message, list(buffers)), FRAME_BYTES
        ledger.send(pieces, size)
        if self.connection is not None:
            self.connection.write(self.side, ledger.sent, pieces)
        if self.world.tracing:
            self.world.say("manager" if self.side else self.name, f"-> {self.name if self.side else 'manager'}: {message}")
        self._check_writable()

    def _write_unnumbered(self, connection: Connection, message: Message) -> None:
        connection.write(self.side, 0, encode(message) if self.world.encoded else Frame(message, []))

    def _check_writable(self) -> None:
        if self.writable != self.ledger.writable and not self.ended:
            self.writable = self.ledger.writable
            self.handler.link_writable(self, self.writable)

    # --- receiving -------------------------------------------------------------------------------------------------------

    def items_arrived(self, connection: Connection, items: list[tuple[int, Frame]]) -> None:
        if connection is not self.connection:
            return
        self.last_heard = self.world.now
        frames: list[Frame] = []
        goodbye: Refused | None = None
        for number, frame in items:
            message = frame.message
            if isinstance(message, Ack):
                self.ledger.peer_received(message.received)
            elif isinstance(message, Refused):
                goodbye = message
                break
            else:
                expected = self.ledger.received + len(frames) + 1
                if number != expected:
                    raise Violation(5, f"the link of {self.name} delivered frame {number} in place of frame {expected}")
                frames.append(frame)
        self._check_writable()
        if frames:
            due = self.ledger.receive(len(frames), FRAME_BYTES * len(frames))
            self.handler.frames_received(self, frames)
            if connection is not self.connection:
                return
            if due:
                self._acknowledge()
            elif self._ack_timer is None:
                self._ack_timer = self.world.after(ACK_DELAY_S, self.process, self._acknowledge)
        if goodbye is not None:
            self.end(None if goodbye.code == "closing" else ProtocolError(goodbye.reason))

    def _acknowledge(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self.connection is not None and self.ledger.ack_owed:
            self._write_unnumbered(self.connection, Ack(self.ledger.acknowledge()))

    # --- its connections -------------------------------------------------------------------------------------------------

    def attach(self, connection: Connection, peer_received: int, welcome: Welcome | None) -> None:
        """Raises: ProtocolError if the link cannot be carried on."""
        if self.ended:
            raise ProtocolError("the link is closed")
        if self.connection is not None:
            self._detach().close(self.side)
            if self.ended:
                raise ProtocolError("the link is closed")
        again = self.ledger.resume(peer_received, self.world.now)
        self.connection = connection
        connection.ends[self.side].owner = self
        if welcome is not None:
            self._write_unnumbered(connection, welcome)
        for offset, pieces in enumerate(again):
            connection.write(self.side, self.ledger.acked + 1 + offset, pieces)
        self._check_writable()
        if self.opened:
            self.handler.link_resumed(self)
        else:
            self.opened = True
            self.handler.link_opened(self)

    def _detach(self) -> Connection:
        connection = self.connection
        assert connection is not None
        self.connection = None
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self.ledger.lost(self.world.now)
        self.handler.link_broken(self)
        return connection

    def connection_lost(self, connection: Connection) -> None:
        if connection is self.connection:
            self._detach()
            if not self.ended and self.connection is None:
                self.keeper.link_down(self)

    # --- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if not self.ended:
            if self.connection is not None:
                self._write_unnumbered(self.connection, Refused("closing", "the other end closed the link", "", ""))
            self.end(None)

    def abort(self) -> None:
        """The shell has forgotten the link; its handler hears of the end as of any other."""
        self.end(None)

    def end(self, error: Exception | None) -> None:
        if self.ended:
            return
        self.ended = True
        connection, self.connection = self.connection, None
        self.ledger.close()
        if connection is not None:
            connection.close(self.side)
        self.keeper.link_ended(self)
        if self.opened:
            self.handler.link_closed(self, error)


class Dialler:
    """Makes a link and keeps it alive, from a worker's or an agent's end."""

    def __init__(
        self,
        world: World,
        process: Process,
        cable: Cable,
        listener: Listener,
        hello: Hello,
        handler: Handler,
        *,
        retry_for_s: float,
        resume_within_s: float,
        failed: Callable[[str], None],
    ) -> None:
        self.world = world
        self.process = process
        self.cable = cable
        self.listener = listener
        self.link = SimLink(world, process, 0, hello, handler, self, LinkLedger(resume_within_s=resume_within_s))
        self._failed = failed
        self._deadline = world.now + retry_for_s
        self._welcomed = False
        self._trying: Connection | None = None
        self._timer: Timer | None = None
        self._delay_s = 0.02
        self._refused_since: float | None = None
        self._attempt()

    # --- the link's keeper -----------------------------------------------------------------------------------------------

    def link_down(self, link: SimLink) -> None:
        assert link.ledger.deadline is not None
        self._deadline = link.ledger.deadline
        self._delay_s, self._refused_since = 0.02, None
        self._again()

    def link_ended(self, link: SimLink) -> None:
        self._stop_trying()

    # --- attempts --------------------------------------------------------------------------------------------------------

    def _stop_trying(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._trying is not None:
            trying, self._trying = self._trying, None
            trying.close(0)

    def _again(self) -> None:
        delay = self._delay_s * self.world.rng.uniform(0.5, 1.0)
        self._delay_s = min(2 * self._delay_s, 1.0)
        if self.world.now + delay >= self._deadline:
            self._give_up("it could not be resumed")
        else:
            self._timer = self.world.after(delay, self.process, self._attempt)

    def _give_up(self, reason: str) -> None:
        if self._welcomed:
            self.link.end(LinkGone(reason))
        else:
            self._failed(reason)

    def _attempt(self) -> None:
        self._timer = None
        if self.link.ended or self.link.connected:
            return
        if self.listener.closed:
            now = self.world.now
            self._refused_since = now if self._refused_since is None else self._refused_since
            if now - self._refused_since >= GONE_AFTER_S:
                self._give_up("the manager is gone")
            else:
                self._again()
            return
        self._refused_since = None
        connection = self._trying = self.listener.connect(self.cable, self.process, self, self.link.name)
        hello = self.link.hello._replace(received=self.link.ledger.received, resuming=self._welcomed)
        connection.write(0, 0, encode(hello) if self.world.encoded else Frame(hello, []))
        self._timer = self.world.after(ATTEMPT_S, self.process, self._too_slow, connection)

    def _too_slow(self, connection: Connection) -> None:
        if connection is self._trying:
            self._stop_trying()
            self._again()

    def items_arrived(self, connection: Connection, items: list[tuple[int, Frame]]) -> None:
        if connection is not self._trying:
            return
        answer = items[0][1].message
        if isinstance(answer, Refused):
            self._stop_trying()
            self._give_up(f"refused: {answer.reason}")
            return
        if not isinstance(answer, Welcome):
            raise Violation("wire", f"a hello was answered with {answer}")
        self._trying = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._welcomed = True
        try:
            self.link.attach(connection, answer.received, None)
        except ProtocolError as error:  # the answer came too late
            connection.close(0)
            self._give_up(error.reason)
            return
        if len(items) > 1:
            self.link.items_arrived(connection, items[1:])

    def connection_lost(self, connection: Connection) -> None:
        if connection is self._trying:
            self._stop_trying()
            self._again()


class Listener:
    """The manager's door: greets new links and resumes known ones."""

    def __init__(self, world: World, process: Process, accept: Callable[[Hello], Handler | str], resume_within_s: float) -> None:
        self.world = world
        self.process = process
        self.closed = False
        self.links: dict[bytes, SimLink] = {}
        self.connections: dict[Connection, None] = {}
        """All that are open, for the fault injector."""
        self._accept = accept
        self._resume_within_s = resume_within_s
        self._timers: dict[SimLink, Timer] = {}

    def connect(self, cable: Cable, process: Process, owner: Owner, name: str) -> Connection:
        connection = Connection(self.world, cable, name, ((process, owner), (self.process, self)))
        self.connections = {one: None for one in self.connections if not (one.broken or one.ends[0].closed or one.ends[1].closed)}
        self.connections[connection] = None
        return connection

    def items_arrived(self, connection: Connection, items: list[tuple[int, Frame]]) -> None:
        if connection.ends[0].closed:
            return  # who does not wait any more would not have passed the gate
        hello = items[0][1].message
        assert isinstance(hello, Hello)
        refused = Refused("closing", "the cluster is closing", "", "") if self.closed else self._greet(connection, hello)
        if refused is not None:
            self.world.say("manager", f"refuses {connection.name}: {refused.reason}")
            connection.write(1, 0, encode(refused) if self.world.encoded else Frame(refused, []))
            connection.close(1)

    def connection_lost(self, connection: Connection) -> None:
        """It had not said hello."""

    def _greet(self, connection: Connection, hello: Hello) -> Refused | None:
        link = self.links.get(hello.link_id)
        if link is not None:
            timer = self._timers.pop(link, None)
            if timer is not None:
                timer.cancel()
            try:
                link.attach(connection, hello.received, Welcome(link.ledger.received, {}))
            except ProtocolError as error:
                link.end(error)
                return Refused("protocol", error.reason, "", "")
            return None
        if hello.resuming or hello.received:
            return Refused("stale", "the manager does not know the link, or gave it up", "", "")
        handler = self._accept(hello)
        if isinstance(handler, str):
            return Refused("stale", handler, "", "")
        link = SimLink(self.world, self.process, 1, hello, handler, self, LinkLedger(resume_within_s=self._resume_within_s))
        self.links[hello.link_id] = link
        link.attach(connection, 0, Welcome(0, {}))
        return None

    def link_down(self, link: SimLink) -> None:
        if self.closed:
            link.end(LinkGone("the listener is closed"))
            return
        assert link.ledger.deadline is not None
        self._timers[link] = self.world.at(link.ledger.deadline, self.process, self._expire, link)

    def _expire(self, link: SimLink) -> None:
        self._timers.pop(link, None)
        link.end(LinkGone("it was not resumed in time"))

    def link_ended(self, link: SimLink) -> None:
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
        self.links.pop(link.hello.link_id, None)

    def close(self) -> None:
        self.closed = True
        for link in list(self._timers):
            link.end(LinkGone("the listener closed"))
