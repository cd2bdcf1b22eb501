"""When calls run out of time."""

from __future__ import annotations

from aiocluster.core.calls import Call, CallState
from aiocluster.core.deadlines import Deadlines
from aiocluster.core.functions import FunctionTable

ENTRY = FunctionTable().intern(b"h", b"", "f", False)


def timed(deadlines: Deadlines, id: int, at: float) -> Call:
    call = Call(id, ENTRY, b"")
    call.deadline = at
    deadlines.add(call)
    return call


def test_calls_expire_in_the_order_of_their_deadlines() -> None:
    deadlines = Deadlines()
    calls = [timed(deadlines, id, at) for id, at in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert deadlines.due == 1.0
    assert deadlines.expire(0.9) == []
    assert deadlines.expire(2.0) == [calls[1], calls[2]]
    assert deadlines.due == 3.0
    assert len(deadlines) == 1


def test_only_those_whose_caller_still_waits_expire() -> None:
    deadlines = Deadlines()
    waiting, sent, abandoned, ended = (timed(deadlines, id, 1.0) for id in range(1, 5))
    sent.state, abandoned.state, ended.state = CallState.SENT, CallState.ABANDONED, CallState.ENDED
    deadlines.ended()
    assert deadlines.expire(1.0) == [waiting, sent]
    assert waiting.deadline is None
    assert sent.deadline == 1.0, "calls that it makes meanwhile have it too"
    assert deadlines.due is None
    for call in (sent, abandoned):  # they end later, and are counted then
        call.state = CallState.ENDED
        deadlines.ended()
    assert deadlines.dead == 0


def test_calls_that_end_in_time_leave_nothing_behind() -> None:
    deadlines = Deadlines()
    last = timed(deadlines, 0, 9.0)
    for id in range(1, 10_000):
        timed(deadlines, id, 5.0).state = CallState.ENDED
        deadlines.ended()
        assert deadlines.due is not None
        assert len(deadlines) <= 131
    assert deadlines.expire(9.0) == [last]
    assert deadlines.due is None
