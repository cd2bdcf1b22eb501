"""The line of waiting calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiocluster.core.calls import Call, CallOptions, CallState
from aiocluster.core.functions import FunctionTable
from aiocluster.core.queues import CallQueue, rank_of

ENTRY = FunctionTable().intern(b"h", b"", "f", False)


def make(id: int, priority: int = 0, origin: int = 0) -> Call:
    return Call(id, ENTRY, b"", options=CallOptions(priority=priority), origin=origin)


def test_calls_leave_by_priority_then_nested_first_then_in_order() -> None:
    queue = CallQueue()
    for call in (make(1), make(2, 5), make(3, -5), make(4), make(5, 0, origin=2), make(6, 5)):
        queue.append(call)
    assert len(queue) == 6
    assert [call.id for call in queue.drain()] == [2, 6, 5, 1, 4, 3]
    assert len(queue) == 0
    assert queue.pop() is None
    assert queue.head() is None


def test_a_call_that_is_put_back_is_the_next_of_its_rank() -> None:
    queue = CallQueue()
    queue.append(make(1))
    queue.append_left(make(2))
    queue.append_left(make(3, -1))
    head = queue.head()
    assert head is not None
    assert head.id == 2
    assert [call.id for call in queue.drain()] == [2, 1, 3]


def test_withdrawn_calls_are_passed_over_and_their_marks_are_cleared_away() -> None:
    queue = CallQueue()
    calls = [make(n, n % 2) for n in range(400)]
    for call in calls:
        queue.append(call)
    for call in calls[:300]:
        call.state = CallState.ENDED
        queue.withdrew(call)
    assert len(queue) == 100
    assert sum(len(line) for line in queue._lines.values()) < 200, "marks outnumber the calls"
    assert sorted(call.id for call in queue.drain()) == list(range(300, 400))


def test_marks_of_an_empty_queue_are_cleared_too() -> None:
    queue = CallQueue()
    calls = [make(n) for n in range(100)]
    for call in calls:
        queue.append(call)
    for call in calls:
        call.state = CallState.ENDED
        queue.withdrew(call)
    assert len(queue) == 0
    assert queue.pop() is None
    for call in (make(1), make(2)):
        queue.append(call)
    assert [call.id for call in queue.drain()] == [1, 2]


@given(st.lists(st.tuples(st.sampled_from(["append", "left", "pop", "withdraw"]), st.integers(-2, 2), st.booleans())))
def test_it_behaves_like_a_sorted_list(steps: list[tuple[str, int, bool]]) -> None:
    queue, model, next_id = CallQueue(), list[Call](), 0
    for step, priority, nested in steps:
        if step in ("append", "left"):
            next_id += 1
            call = make(next_id, priority, 1 if nested else 0)
            ranks = [rank_of(one) for one in model]
            if step == "append":
                queue.append(call)
                model.insert(sum(rank >= rank_of(call) for rank in ranks), call)
            else:
                queue.append_left(call)
                model.insert(sum(rank > rank_of(call) for rank in ranks), call)
        elif step == "pop":
            assert queue.pop() is (model.pop(0) if model else None)
        elif model:
            call = model.pop(priority % len(model))
            call.state = CallState.ENDED
            queue.withdrew(call)
        assert len(queue) == len(model)
        assert queue.head() is (model[0] if model else None)
    assert queue.drain() == model
