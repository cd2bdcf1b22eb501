"""The ledger of a link: its rules one by one, then two ends with losses at any point."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiocluster.core.link import (
    ACK_AFTER_BYTES,
    ACK_AFTER_FRAMES,
    TRANSITIONS,
    LinkEvent,
    LinkLedger,
    LinkPhase,
)
from aiocluster.errors import ProtocolError


def ledger_up(*, limit_bytes: int = 1000, resume_within_s: float = 10.0) -> LinkLedger:
    ledger = LinkLedger(resume_within_s=resume_within_s, limit_bytes=limit_bytes)
    assert ledger.resume(0, 0.0) == []
    return ledger


def send(ledger: LinkLedger, *names: bytes) -> None:
    for name in names:
        ledger.send([name], len(name))


def test_new_link_is_down_without_a_deadline_and_keeps_what_is_sent() -> None:
    ledger = LinkLedger(resume_within_s=1.0)
    assert (ledger.phase, ledger.deadline) == (LinkPhase.DOWN, None)
    assert not ledger.expired(1e9)
    send(ledger, b"a", b"b")
    assert ledger.resume(0, 5.0) == [[b"a"], [b"b"]]
    assert ledger.phase is LinkPhase.UP


def test_resumption_sends_again_exactly_what_the_peer_lacks() -> None:
    ledger = ledger_up()
    send(ledger, b"a", b"b", b"c", b"d")
    ledger.peer_received(1)
    ledger.lost(1.0)
    send(ledger, b"e")
    assert ledger.resume(3, 2.0) == [[b"d"], [b"e"]]
    assert (ledger.sent, ledger.acked, ledger.unacked_bytes, ledger.deadline) == (5, 3, 2, None)


@pytest.mark.parametrize("count", [0, 1, 4, 2**64 - 1])
def test_peer_that_claims_an_impossible_count_is_a_protocol_error(count: int) -> None:
    ledger = ledger_up()
    send(ledger, b"a", b"b", b"c")
    ledger.peer_received(2)
    with pytest.raises(ProtocolError, match="more frames than were sent" if count > 3 else "fewer frames"):
        ledger.peer_received(count)
    assert ledger.acked == 2
    ledger.lost(0.0)
    with pytest.raises(ProtocolError):
        ledger.resume(count, 0.0)
    assert ledger.phase is LinkPhase.DOWN


def test_link_can_be_resumed_until_its_deadline_and_not_later() -> None:
    ledger = ledger_up(resume_within_s=10.0)
    ledger.lost(5.0)
    assert ledger.deadline == 15.0
    assert not ledger.expired(14.9)
    assert ledger.expired(15.0)
    with pytest.raises(ProtocolError, match="too long"):
        ledger.resume(0, 15.0)
    assert ledger.resume(0, 14.9) == []
    assert not ledger.expired(100.0)


def test_writable_ends_above_the_limit_and_returns_at_half_of_it() -> None:
    ledger = ledger_up(limit_bytes=4)
    send(ledger, b"a", b"b", b"c", b"d")
    assert ledger.writable
    send(ledger, b"e")
    assert not ledger.writable
    ledger.peer_received(2)
    assert not ledger.writable
    ledger.peer_received(3)
    assert ledger.writable


def test_frame_larger_than_the_limit_is_kept_and_writable_returns_with_its_acknowledgement() -> None:
    ledger = ledger_up(limit_bytes=0)
    ledger.send([b"header", memoryview(b"body")], 10)
    assert not ledger.writable
    ledger.lost(0.0)
    assert ledger.resume(0, 1.0) == [[b"header", b"body"]]
    ledger.peer_received(1)
    assert ledger.writable
    assert ledger.unacked_bytes == 0


@pytest.mark.parametrize(
    ("frames", "size", "due"),
    [
        (1, 100, False),
        (ACK_AFTER_FRAMES - 1, 100, False),
        (ACK_AFTER_FRAMES, 100, True),
        (1, ACK_AFTER_BYTES - 1, False),
        (1, ACK_AFTER_BYTES, True),
        (0, ACK_AFTER_BYTES, False),
    ],
)
def test_acknowledgement_is_due_after_so_many_frames_or_bytes(frames: int, size: int, due: bool) -> None:
    ledger = ledger_up()
    assert ledger.receive(frames, size) is due
    assert ledger.ack_owed is (frames > 0)
    assert ledger.acknowledge() == frames
    assert not ledger.ack_owed
    assert ledger.receive(1, 10) is False


def test_resumption_owes_no_acknowledgement_as_both_ends_have_told_their_counts() -> None:
    ledger = ledger_up()
    ledger.receive(3, 10)
    ledger.lost(0.0)
    ledger.resume(0, 1.0)
    assert not ledger.ack_owed
    assert ledger.received == 3


@pytest.mark.parametrize("phase", LinkPhase)
@pytest.mark.parametrize("event", LinkEvent)
def test_what_is_not_in_the_table_of_transitions_is_a_protocol_error(phase: LinkPhase, event: LinkEvent) -> None:
    ledger = LinkLedger(resume_within_s=1.0)
    if phase is not LinkPhase.DOWN:
        ledger.resume(0, 0.0)
    if phase is LinkPhase.CLOSED:
        ledger.close()
    send(ledger, b"a")
    perform = {
        LinkEvent.RESUMED: lambda: ledger.resume(1, 0.0),
        LinkEvent.LOST: lambda: ledger.lost(0.0),
        LinkEvent.CLOSED: ledger.close,
    }[event]
    after = TRANSITIONS.get((phase, event))
    if after is not None:
        perform()
        assert ledger.phase is after
    elif event is LinkEvent.CLOSED:  # the only one that may be repeated
        perform()
        assert ledger.phase is LinkPhase.CLOSED
    else:
        with pytest.raises(ProtocolError, match="cannot be"):
            perform()
        assert ledger.phase is phase
        assert ledger.acked == 0, "an impossible move forgets nothing"


def test_closed_link_keeps_nothing() -> None:
    ledger = ledger_up()
    send(ledger, b"a" * 500)
    ledger.lost(0.0)
    ledger.close()
    assert ledger.unacked_bytes == 0
    assert ledger.deadline is None


@pytest.mark.parametrize(("resume_within_s", "limit_bytes"), [(-1.0, 0), (float("nan"), 0), (1.0, -1)])
def test_negative_settings_are_refused(resume_within_s: float, limit_bytes: int) -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        LinkLedger(resume_within_s=resume_within_s, limit_bytes=limit_bytes)


class _End:
    """One end: its ledger, what it has sent and got, and what is under way to it on the present connection."""

    def __init__(self) -> None:
        self.ledger = LinkLedger(resume_within_s=1e9, limit_bytes=20)
        self.sent: list[bytes] = []
        self.got: list[bytes] = []
        self.arriving: deque[bytes | int] = deque()


class TwoEnds(RuleBasedStateMachine):
    """Two ends over connections that lose, at any moment, any tail of what is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (_End(), _End())
        self.now = 0.0
        self.meet()

    def meet(self) -> None:
        counts = [end.ledger.received for end in self.ends]
        for index, end in enumerate(self.ends):
            other = self.ends[1 - index]
            other.arriving.extend(bytes(pieces[0]) for pieces in end.ledger.resume(counts[1 - index], self.now))

    @property
    def up(self) -> bool:
        return self.ends[0].ledger.phase is LinkPhase.UP

    @rule(index=st.integers(0, 1), size=st.integers(1, 30))
    def send(self, index: int, size: int) -> None:
        end, other = self.ends[index], self.ends[1 - index]
        frame = len(end.sent).to_bytes(4, "big") + bytes(size)
        end.sent.append(frame)
        end.ledger.send([frame], len(frame))
        if self.up:
            other.arriving.append(frame)

    @precondition(lambda self: self.up)
    @rule(index=st.integers(0, 1), count=st.integers(1, 40))
    def arrive(self, index: int, count: int) -> None:
        end, other = self.ends[index], self.ends[1 - index]
        for _ in range(min(count, len(end.arriving))):
            item = end.arriving.popleft()
            if isinstance(item, int):
                end.ledger.peer_received(item)
                continue
            end.got.append(item)
            if end.ledger.receive(1, len(item)):
                other.arriving.append(end.ledger.acknowledge())

    @precondition(lambda self: self.up)
    @rule(index=st.integers(0, 1))
    def acknowledge_by_timer(self, index: int) -> None:
        end = self.ends[index]
        if end.ledger.ack_owed:
            self.ends[1 - index].arriving.append(end.ledger.acknowledge())

    @precondition(lambda self: self.up)
    @rule()
    def break_connection(self) -> None:
        self.now += 1.0
        for end in self.ends:
            end.arriving.clear()
            end.ledger.lost(self.now)

    @precondition(lambda self: not self.up)
    @rule()
    def resume(self) -> None:
        self.now += 1.0
        self.meet()

    @invariant()
    def each_frame_has_arrived_once_and_in_order(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            assert end.got == other.sent[: len(end.got)]
            assert end.ledger.received == len(end.got)
            assert other.ledger.acked <= len(end.got)

    @invariant()
    def what_is_kept_is_what_was_not_acknowledged(self) -> None:
        for end in self.ends:
            ledger = end.ledger
            assert ledger.unacked_bytes == sum(map(len, end.sent[ledger.acked :]))
            assert ledger.writable or ledger.unacked_bytes > 10
            assert not ledger.writable or ledger.unacked_bytes <= 20

    def teardown(self) -> None:
        if not self.up:
            self.meet()
        for index in (0, 1):
            self.arrive(index, 10**9)
        for end, other in (self.ends, self.ends[::-1]):
            assert end.got == other.sent, "nothing is lost"


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
