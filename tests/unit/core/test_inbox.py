"""A worker's calls between their arrival and their end."""

from __future__ import annotations

from typing import Any

from aiocluster.core.inbox import Inbox
from aiocluster.wire.messages import Calls, Mode


def frame(*modes: int, first_id: int = 1, first_serial: int = 1, **rows: Any) -> Calls:
    count = len(modes)
    ids = list(range(first_id, first_id + count))
    return Calls(
        first_serial,
        ids,
        [7] * count,
        bytes(modes),
        [b"p%d" % id for id in ids],
        rows.get("timeouts", []),
        rows.get("buffers", []),
        rows.get("names", []),
    )


def test_sync_calls_wait_in_order_and_async_ones_start_now() -> None:
    inbox = Inbox()
    started = inbox.receive(frame(0, Mode.ASYNC, 0), [])
    assert [call.id for call in started] == [2]
    first, second = inbox.take(), inbox.take()
    assert first is not None
    assert second is not None
    assert (first.id, first.serial, first.payload, first.started) == (1, 1, b"p1", True)
    assert (second.id, second.serial) == (3, 3)
    assert inbox.take() is None


def test_names_and_buffers_find_their_calls() -> None:
    inbox = Inbox()
    inbox.receive(frame(0, 0, 0, buffers=[[0, 2], [2, 1]], names=[[2, "last"]]), ["a", "b", "c"])
    calls = [call for call in (inbox.take(), inbox.take(), inbox.take()) if call is not None]
    assert [list(call.buffers) for call in calls] == [["a", "b"], [], ["c"]]
    assert [call.name for call in calls] == [None, None, "last"]


def test_the_latest_that_have_not_started_are_given_back_first() -> None:
    inbox = Inbox()
    inbox.receive(frame(0, 0, 0, 0), [])
    inbox.take()
    assert inbox.recall(2) == [4, 3]
    assert inbox.recall(5) == [2]
    assert inbox.recall(1) == []
    assert set(inbox.held) == {1}


def test_ordered_and_cancelled_calls_are_not_given_back_and_keep_their_places() -> None:
    inbox = Inbox()
    inbox.receive(frame(0, Mode.ORDERED, 0, 0), [])
    assert inbox.cancel(3) is None
    assert inbox.recall(10) == [4, 1]
    assert [call.id for call in inbox.waiting] == [2, 3]


def test_an_ordered_async_call_waits_for_sync_ones_that_have_not_started() -> None:
    inbox = Inbox()
    ordered_async = Mode.ORDERED | Mode.ASYNC
    assert inbox.receive(frame(Mode.ORDERED, ordered_async), []) == []
    assert [call.id for call in inbox.waiting] == [1, 2]
    inbox.take()
    inbox.take()
    (alone,) = inbox.receive(frame(ordered_async, first_id=3, first_serial=3), [])
    assert alone.id == 3


def test_an_ordered_call_knows_the_async_one_that_must_begin_before_it() -> None:
    inbox = Inbox()
    (first,) = inbox.receive(frame(Mode.ORDERED | Mode.ASYNC, Mode.ORDERED), [])
    second = inbox.take()
    assert second is not None
    assert second.after is first
    first.begun = True
    inbox.receive(frame(Mode.ORDERED, Mode.ORDERED, first_id=3, first_serial=3), [])
    third, fourth = inbox.take(), inbox.take()
    assert third is not None
    assert fourth is not None
    assert third.after is None
    assert fourth.after is None


def test_a_cancelled_call_is_marked_and_named_only_if_it_has_started() -> None:
    inbox = Inbox()
    inbox.receive(frame(0, 0), [])
    running = inbox.take()
    assert inbox.cancel(1) is running
    assert inbox.cancel(2) is None
    assert inbox.cancel(99) is None
    waiting = inbox.take()
    assert waiting is not None
    assert waiting.cancelled


def test_a_finished_call_is_held_no_more() -> None:
    inbox = Inbox()
    inbox.receive(frame(0), [])
    call = inbox.take()
    assert call is not None
    inbox.finish(call)
    inbox.finish(call)
    assert not inbox.held
    assert inbox.cancel(1) is None
