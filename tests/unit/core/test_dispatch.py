"""Dispatch: where calls run and in which order, how each ends, and that each ends once, whatever happens."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiocluster.config import Settings
from aiocluster.core.calls import MAX_KILLS, Call, CallOptions, CallState, PreparingCall
from aiocluster.core.dispatch import Dispatch, Ended
from aiocluster.core.functions import FunctionTable
from aiocluster.core.places import LaneKind
from aiocluster.core.verdicts import Verdict
from aiocluster.errors import CallTimeout, ClusterClosed, Overloaded, Unschedulable, WorkerLost
from aiocluster.wire.messages import Mode

TINY_S = 1e-6
LONG_S = 5.0
GONE = Verdict("its node is lost")


class Desk:
    """A dispatch, its workers and its calls; the functions are named for how they run."""

    def __init__(self, workers: int = 1, settings: Settings | None = None, **resources: float) -> None:
        self.now = 0.0
        self.functions = FunctionTable()
        self.core = Dispatch(settings or Settings(), self.functions)
        self.sent: list[tuple[int, Call]] = []
        self._ids = 0
        for id in range(1, workers + 1):
            self.join(id, **resources)

    def join(self, id: int, **resources: float) -> None:
        self.core.add_worker(id, resources, self.now)
        self.core.open_worker(id)

    def call(
        self,
        name: str = "f",
        *,
        is_async: bool = False,
        takes_s: float | None = None,
        payload: bytes = b"",
        origin: int = 0,
        items: int = 1,
        mode: int = 0,
        deadline: float | None = None,
        workers: set[int] | None = None,
        prepares: int = 0,
        **options: Any,
    ) -> Call:
        self._ids += 1
        entry = self.functions.intern(f"{name}{is_async}".encode(), b"code", name, is_async)
        entry.estimate_s = takes_s
        chosen = CallOptions(workers=None if workers is None else frozenset(workers), **options)
        make = partial(PreparingCall, prepares) if prepares else Call
        call = make(self._ids, entry, payload, (), chosen, mode, items, origin)
        call.deadline = deadline
        return call

    def submit(self, *args: Any, **kwargs: Any) -> Call:
        call = self.call(*args, **kwargs)
        assert self.core.submit(call) is None
        return call

    def run(self, *args: Any, **kwargs: Any) -> Call:
        """A call that is submitted and placed, if there is room."""
        call = self.submit(*args, **kwargs)
        self.place()
        return call

    def place(self) -> list[tuple[int, list[int]]]:
        batches = self.core.assign(self.now)
        self.sent.extend((place.id, call) for place, calls in batches for call in calls)
        return [(place.id, [call.id for call in calls]) for place, calls in batches]

    def on(self, id: int) -> list[Call]:
        """What the worker holds, in the order sent."""
        return list(self.core.places[id].inflight.values())

    def homes(self, call: Call) -> list[int]:
        return [id for id, one in self.sent if one is call]

    def finish(self, id: int, *calls: Call) -> list[Call | None]:
        found, honest = self.core.finished(id, [call.id for call in calls], self.now)
        assert honest
        return found

    def lose(self, id: int, verdict: Verdict = GONE) -> list[Ended]:
        return self.core.worker_lost(id, verdict, self.now)


def lost(ended: list[Ended], call: Call) -> WorkerLost:
    (error,) = [one.error for one in ended if one.call is call]
    assert isinstance(error, WorkerLost)
    return error


# --- where calls go ------------------------------------------------------------------------------------------------------


def test_tiny_calls_pipeline_deeply_up_to_the_window_of_calls() -> None:
    desk = Desk(1, Settings(window_calls=1000))
    for _ in range(1500):
        desk.submit(takes_s=TINY_S)
    desk.place()
    assert len(desk.on(1)) == 1000


def test_tiny_calls_are_sent_ahead_up_to_the_window_of_work() -> None:
    desk = Desk(1, Settings(window_s=0.002))
    for _ in range(1000):
        desk.submit(takes_s=1e-4)
    desk.place()
    assert 20 <= len(desk.on(1)) < 100


@pytest.mark.parametrize("takes_s", [None, LONG_S])
def test_nothing_is_queued_behind_a_call_that_is_long_or_unknown(takes_s: float | None) -> None:
    desk = Desk(2)
    for _ in range(5):
        desk.submit(takes_s=takes_s)
    desk.place()
    assert [len(desk.on(id)) for id in (1, 2)] == [1, 1]
    assert desk.core.waiting_calls == 3


def test_least_loaded_worker_is_filled_first() -> None:
    desk = Desk(3)
    desk.run("long", takes_s=0.001, workers={1})
    desk.run("short", takes_s=TINY_S, workers={2})
    assert desk.homes(desk.run("next", takes_s=TINY_S)) == [3]
    assert desk.homes(desk.run("more", takes_s=LONG_S)) != [1]


def test_async_calls_run_side_by_side_up_to_their_number() -> None:
    desk = Desk(1, Settings(async_calls=3))
    for _ in range(5):
        desk.submit(is_async=True)
    desk.place()
    assert len(desk.on(1)) == 3


def test_nested_async_calls_are_not_bounded() -> None:
    desk = Desk(1, Settings(async_calls=1))
    for _ in range(5):
        desk.submit(is_async=True, origin=1)
    desk.place()
    assert len(desk.on(1)) == 5


def test_worker_with_its_bytes_full_takes_no_more_until_a_call_ends() -> None:
    desk = Desk(1, Settings(window_bytes=10_000))
    calls = [desk.submit(takes_s=TINY_S, payload=bytes(6000)) for _ in range(4)]
    desk.place()
    assert desk.on(1) == calls[:2]
    desk.finish(1, calls[0])
    desk.place()
    assert desk.on(1) == calls[1:3]


def test_higher_priority_goes_first_then_the_older_one() -> None:
    desk = Desk(1)
    first = desk.run()
    low, high, old = desk.submit(priority=-1), desk.submit(priority=5), desk.submit()
    order = []
    running = first
    for _ in range(3):
        desk.finish(1, running)
        desk.place()
        (running,) = desk.on(1)
        order.append(running)
    assert order == [high, old, low]


def test_pools_that_compete_for_a_worker_go_by_priority_then_age() -> None:
    desk = Desk(1, gpu=1.0)
    running = desk.run()
    general = desk.submit()
    urgent = desk.submit(priority=1, resources={"gpu": 1.0})
    desk.finish(1, running)
    desk.place()
    assert desk.on(1) == [urgent]
    assert general.state is CallState.WAITING


def test_withdrawn_call_at_the_head_of_a_pool_does_not_hold_up_another_pool() -> None:
    desk = Desk(1, gpu=1.0)
    withdrawn = desk.submit(resources={"gpu": 1.0})
    other = desk.submit()
    assert desk.core.cancel(withdrawn) is None
    desk.place()
    assert desk.on(1) == [other]


def test_targeted_calls_start_in_the_order_of_submission_sync_and_async_alike() -> None:
    desk = Desk(2)
    calls = [desk.submit(workers={1}, is_async=bool(index % 2), takes_s=TINY_S) for index in range(6)]
    assert desk.place() == [(1, [call.id for call in calls])]
    assert [call.serial for call in calls] == [1, 2, 3, 4, 5, 6]


def test_nested_targeted_calls_keep_their_order_among_themselves() -> None:
    desk = Desk(1)
    calls = [desk.submit(workers={1}, origin=1, is_async=bool(index % 2), takes_s=TINY_S) for index in range(4)]
    assert desk.place() == [(1, [call.id for call in calls])]


def test_targeted_calls_keep_their_order_behind_a_long_one() -> None:
    desk = Desk(2)
    first = desk.run(workers={1})
    second = desk.submit(workers={1})
    third = desk.submit(workers={1}, is_async=True)
    assert desk.place() == []
    desk.finish(1, first)
    assert desk.place() == [(1, [second.id, third.id])]
    assert desk.on(2) == []


def test_worker_opened_twice_counts_once() -> None:
    desk = Desk(1)
    desk.core.open_worker(1)
    desk.lose(1)
    assert isinstance(desk.core.submit(desk.call()), Unschedulable)


def test_opened_worker_takes_only_the_waiting_calls_that_it_is_eligible_for() -> None:
    desk = Desk(0)
    desk.core.expect(True)
    elsewhere, fits, too_much = desk.submit(workers={2, 3}), desk.submit(workers={1, 2}), desk.submit(resources={"gpu": 2.0})
    desk.join(1, gpu=1.0)
    desk.place()
    assert desk.on(1) == [fits]
    assert elsewhere.state is too_much.state is CallState.WAITING


def test_worker_whose_link_is_full_takes_nothing_until_it_accepts_again() -> None:
    desk = Desk(1)
    desk.core.set_accepting(1, False)
    call = desk.run()
    assert desk.homes(call) == []
    desk.core.set_accepting(1, True)
    assert desk.place() == [(1, [call.id])]


def test_there_is_no_work_without_calls() -> None:
    desk = Desk(1)
    assert not desk.core.has_work
    assert desk.core.assign(desk.now) == []
    desk.submit()
    assert desk.core.has_work
    desk.place()
    assert not desk.core.has_work


# --- resources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_resources_are_never_oversubscribed(is_async: bool) -> None:
    desk = Desk(2, gpu=2.0)
    calls = [desk.submit(is_async=is_async, takes_s=TINY_S, resources={"gpu": 1.0}) for _ in range(7)]
    done = 0
    while done < len(calls):
        desk.place()
        for id in (1, 2):
            assert len(desk.on(id)) <= 2
            held = desk.on(id)
            done += len(desk.finish(id, *held))
    assert [place.free for place in desk.core.places.values()] == [{"gpu": 2.0}] * 2


def test_targeted_call_waits_for_its_resources_and_gets_them_when_they_are_free() -> None:
    desk = Desk(1, gpu=1.0)
    holder = desk.run(is_async=True, resources={"gpu": 1.0})
    own = desk.submit(is_async=True, workers={1}, resources={"gpu": 1.0})
    nested = desk.submit(is_async=True, workers={1}, resources={"gpu": 1.0}, origin=1)
    desk.place()
    assert desk.on(1) == [holder]
    desk.finish(1, holder)
    desk.place()
    assert desk.on(1) == [nested]  # nested calls first: somebody waits for them inside a call
    desk.finish(1, nested)
    desk.place()
    assert desk.on(1) == [own]


def test_resources_come_back_with_a_call_that_is_given_back() -> None:
    desk = Desk(1, gpu=1.0)
    call = desk.run(resources={"gpu": 1.0})
    desk.core.returned(1, [call.id], desk.now)
    assert desk.core.places[1].free == {"gpu": 1.0}
    desk.place()
    assert desk.on(1) == [call]


# --- what is not accepted ------------------------------------------------------------------------------------------------


def test_one_call_too_many_is_refused_as_overload() -> None:
    desk = Desk(1, Settings(max_pending_calls=2))
    first = desk.run()
    desk.submit()
    assert isinstance(desk.core.submit(desk.call()), Overloaded)
    desk.finish(1, first)
    desk.submit()


def test_too_many_bytes_are_refused_but_one_large_call_alone_is_not() -> None:
    desk = Desk(1, Settings(max_pending_bytes=100))
    large = desk.run(payload=bytes(1000))
    refusal = desk.core.submit(desk.call(payload=b"x"))
    assert isinstance(refusal, Overloaded)
    assert "max_pending_bytes" in refusal.reason
    desk.finish(1, large)
    assert desk.core.pending_bytes == 0
    desk.submit(payload=b"x")


def test_call_in_a_cluster_without_workers_waits_only_if_some_are_expected() -> None:
    desk = Desk(0)
    refusal = desk.core.submit(desk.call())
    assert isinstance(refusal, Unschedulable)
    assert "no workers" in refusal.reason
    assert desk.core.expect(True) == []
    call = desk.submit()
    (ended,) = desk.core.expect(False)
    assert ended.call is call
    assert isinstance(ended.error, Unschedulable)
    assert desk.core.pending_calls == 0


def test_call_for_resources_that_no_worker_has_waits_only_if_workers_are_expected() -> None:
    desk = Desk(1, gpu=1.0)
    refusal = desk.core.submit(desk.call(resources={"gpu": 4.0}))
    assert isinstance(refusal, Unschedulable)
    assert "gpu=4" in refusal.reason
    desk.core.expect(True)
    call = desk.submit(resources={"gpu": 4.0})
    desk.join(2, gpu=4.0)
    assert desk.core.expect(False) == []
    desk.place()
    assert desk.on(2) == [call]


def test_call_for_a_worker_that_has_too_little_of_a_resource_is_refused() -> None:
    desk = Desk(1, gpu=1.0)
    refusal = desk.core.submit(desk.call(workers={1}, resources={"gpu": 2.0}))
    assert isinstance(refusal, Unschedulable)
    assert "none of the workers 1" in refusal.reason


def test_call_for_a_worker_that_never_was_is_refused_unless_workers_are_expected() -> None:
    desk = Desk(1)
    assert isinstance(desk.core.submit(desk.call(workers={2})), Unschedulable)
    desk.core.expect(True)
    call = desk.submit(workers={2})
    desk.join(2)
    desk.place()
    assert desk.on(2) == [call]


def test_call_for_a_lost_worker_is_refused_with_the_cause() -> None:
    desk = Desk(2)
    desk.lose(1, Verdict("killed by signal 9"))
    desk.core.expect(True)
    refusal = desk.core.submit(desk.call(workers={1}))
    assert isinstance(refusal, WorkerLost)
    assert refusal.cause == "killed by signal 9"
    assert not refusal.maybe_executed


def test_call_is_refused_when_all_workers_are_ending() -> None:
    desk = Desk(2)
    for id in (1, 2):
        assert desk.core.close_worker(id) == []
    refusal = desk.core.submit(desk.call())
    assert isinstance(refusal, Unschedulable)
    assert "are ending" in refusal.reason


def test_closed_worker_keeps_what_it_has_and_takes_no_more() -> None:
    desk = Desk(2)
    running = desk.run(workers={1})
    own, nested = desk.submit(workers={1}), desk.submit(workers={1}, origin=2)
    ended = desk.core.close_worker(1)
    assert {one.call for one in ended} == {own, nested}
    assert all(isinstance(one.error, Unschedulable) for one in ended)
    other = desk.run()
    assert desk.homes(other) == [2]
    assert desk.finish(1, running) == [running]


# --- results -------------------------------------------------------------------------------------------------------------


def test_results_of_calls_in_several_lanes_empty_each_of_them() -> None:
    desk = Desk(1)
    calls = [desk.run(takes_s=TINY_S), desk.run(is_async=True), desk.run(is_async=True, origin=1), desk.run(takes_s=TINY_S)]
    assert desk.finish(1, *calls) == calls
    assert [(lane.count, lane.load, lane.level) for lane in desk.core.places[1].lanes] == [(0, 0.0, 0)] * 3
    assert desk.core.ended_calls == 4


def test_result_of_a_call_that_the_worker_does_not_hold_is_no_result() -> None:
    desk = Desk(1)
    call = desk.run()
    assert desk.core.finished(1, [99, call.id, call.id], desk.now) == ([None, call, None], False)
    assert desk.core.pending_calls == 0
    assert desk.core.finished(1, [], desk.now) == ([], True)


def test_result_of_a_cancelled_call_is_for_nobody_and_frees_its_place() -> None:
    desk = Desk(1)
    call = desk.run()
    place = desk.core.cancel(call)
    assert place is desk.core.places[1]
    assert desk.core.cancel(call) is None
    assert desk.core.pending_calls == 1
    assert desk.finish(1, call) == [None]
    assert desk.core.cancel(call) is None
    assert desk.core.pending_calls == 0


def test_arguments_are_let_go_when_a_call_ends() -> None:
    desk = Desk(1)
    done, waiting = desk.run(payload=b"abc"), desk.run(payload=b"abc")
    desk.finish(1, done)
    desk.core.cancel(waiting)
    assert done.payload == waiting.payload == b""
    assert done.function.uses == 0


# --- calls that come back ------------------------------------------------------------------------------------------------


def test_calls_that_come_back_go_to_the_head_in_their_old_order() -> None:
    desk = Desk(1)
    calls = [desk.submit(takes_s=TINY_S) for _ in range(4)]
    desk.place()
    late = desk.submit(takes_s=TINY_S)
    dropped, honest = desk.core.returned(1, [call.id for call in (calls[3], calls[1], calls[2])], desk.now)
    assert (dropped, honest) == ([], True)
    desk.place()
    assert desk.on(1) == [*calls, late]


def test_call_for_some_workers_that_comes_back_goes_before_those_that_wait_for_the_same() -> None:
    desk = Desk(1)
    first, second = desk.submit(workers={1, 2}), desk.submit(workers={1, 2})
    desk.place()
    desk.core.returned(1, [first.id], desk.now)
    desk.place()
    assert desk.on(1) == [first]
    assert second.state is CallState.WAITING


def test_call_given_back_after_it_was_cancelled_is_dropped() -> None:
    desk = Desk(1)
    call = desk.run()
    desk.core.cancel(call)
    assert desk.core.returned(1, [call.id], desk.now) == ([call], True)
    assert desk.core.pending_calls == 0
    assert desk.place() == []


def test_worker_that_gives_back_what_it_does_not_hold_is_not_honest() -> None:
    desk = Desk(1)
    assert desk.core.returned(1, [7], desk.now) == ([], False)


def test_calls_behind_a_slow_one_are_recalled_for_an_idle_worker() -> None:
    desk = Desk(1)
    calls = [desk.submit(takes_s=1e-4) for _ in range(10)]
    desk.place()
    assert desk.core.recalls(desk.now) == []  # nobody is idle
    desk.join(2)
    ((place, count),) = desk.core.recalls(desk.now)
    assert (place.id, count) == (1, 5)
    desk.core.returned(1, [call.id for call in calls[5:]], desk.now)
    desk.place()
    assert {call.id for call in desk.on(2)} <= {call.id for call in calls[5:]}
    assert desk.on(2)


def test_recall_of_little_work_waits_until_the_worker_makes_no_progress() -> None:
    desk = Desk(1)
    for _ in range(2):
        desk.submit(takes_s=TINY_S)
    desk.place()
    desk.join(2)
    assert desk.core.recalls(desk.now) == []
    due = desk.core.next_deadline
    assert due is not None
    assert desk.core.has_work
    (asked,) = desk.core.recalls(due)
    assert asked[0].id == 1


def test_next_deadline_is_that_of_a_call_or_of_a_recall_whichever_is_first() -> None:
    desk = Desk(1)
    assert desk.core.next_deadline is None
    desk.run(takes_s=TINY_S, deadline=9.0)
    assert desk.core.next_deadline == 9.0
    desk.run(takes_s=TINY_S, deadline=9.0)
    desk.join(2)
    desk.core.recalls(desk.now)
    due = desk.core.next_deadline
    assert due is not None
    assert due < 9.0


# --- sync calls that wait for others ---------------------------------------------------------------------------------------


def test_sync_call_that_waits_gives_its_place_free_and_takes_it_again() -> None:
    desk = Desk(1)
    outer = desk.run()
    inner = desk.run(origin=1)
    assert inner.state is CallState.WAITING
    assert desk.core.yielded(1, outer.id, waiting=True)
    assert not desk.core.yielded(1, outer.id, waiting=True)
    desk.place()
    assert desk.on(1) == [outer, inner]
    desk.finish(1, inner)
    assert desk.core.yielded(1, outer.id, waiting=False)
    behind = desk.run()
    assert behind.state is CallState.WAITING
    desk.finish(1, outer)
    desk.place()
    assert desk.on(1) == [behind]


def test_word_of_a_call_that_is_not_held_changes_nothing() -> None:
    desk = Desk(1)
    assert not desk.core.yielded(1, 99, waiting=True)


@pytest.mark.parametrize("how", ["finished", "returned"])
def test_waiting_sync_call_that_leaves_its_worker_leaves_no_trace_in_the_lane(how: str) -> None:
    desk = Desk(1)
    call = desk.run()
    desk.core.yielded(1, call.id, waiting=True)
    getattr(desk.core, how)(1, [call.id], desk.now)
    lane = desk.core.places[1].lanes[LaneKind.SYNC]
    assert (lane.count, lane.yielded, lane.load) == (0, 0, 0.0)
    assert not call.yielded or call.state is CallState.ENDED


# --- time ----------------------------------------------------------------------------------------------------------------


def test_waiting_call_ends_at_its_deadline() -> None:
    desk = Desk(1)
    desk.run()
    call = desk.run(deadline=2.0, timeout_s=2.0)
    assert desk.core.expire(1.9) == []
    ((ended, told),) = desk.core.expire(2.0)
    assert ended.call is call
    assert told is None
    assert isinstance(ended.error, CallTimeout)
    assert ended.error.timeout_s == 2.0
    assert desk.core.pending_calls == 1


def test_running_call_ends_at_its_deadline_and_its_worker_is_told() -> None:
    desk = Desk(1)
    call = desk.run(deadline=2.0)
    ((ended, told),) = desk.core.expire(2.5)
    assert (ended.call, told) == (call, desk.core.places[1])
    assert desk.core.expire(3.0) == []
    assert desk.finish(1, call) == [None]


def test_call_that_ends_in_time_or_is_cancelled_does_not_time_out() -> None:
    desk = Desk(1)
    done, waiting = desk.run(deadline=2.0), desk.run(deadline=2.0)
    desk.finish(1, done)
    desk.core.cancel(waiting)
    assert desk.core.expire(5.0) == []
    assert desk.core.deadlines.dead == 0


# --- workers that are lost -----------------------------------------------------------------------------------------------


def test_calls_that_never_started_move_and_the_one_that_ran_is_lost() -> None:
    desk = Desk(1)
    calls = [desk.submit(takes_s=TINY_S) for _ in range(4)]
    desk.place()
    desk.core.expect(True)
    ended = desk.lose(1, Verdict("crashed", recorded=True, crashed=True, sync_started=2, sync_finished=1))
    assert [one.call for one in ended] == calls[:2]
    assert lost(ended, calls[0]).running is False
    assert lost(ended, calls[1]).running is True
    desk.join(2)
    desk.place()
    assert desk.on(2) == calls[2:]


def test_without_a_recorder_every_call_may_have_run() -> None:
    desk = Desk(2)
    calls = [desk.run(workers={1, 3}, takes_s=TINY_S), desk.run(workers={1, 3}, is_async=True)]
    ended = desk.lose(1)
    assert all(lost(ended, call).maybe_executed and not lost(ended, call).running for call in calls)


def test_async_calls_are_judged_by_the_last_that_started() -> None:
    desk = Desk(1)
    desk.core.expect(True)
    started, not_started = desk.run(is_async=True), desk.run(is_async=True)
    ended = desk.lose(1, Verdict("crashed", recorded=True, async_started=started.serial))
    assert [one.call for one in ended] == [started]
    assert not_started.state is CallState.WAITING


def test_retries_are_used_up_one_by_one() -> None:
    desk = Desk(1)
    desk.core.expect(True)
    call = desk.run(retries=2)
    for id in (2, 3):
        assert desk.lose(id - 1) == []
        desk.join(id)
        desk.place()
        assert desk.on(id) == [call]
    assert lost(desk.lose(3), call).maybe_executed


def test_idempotent_call_runs_again_as_often_as_its_workers_are_lost_without_its_fault() -> None:
    desk = Desk(1)
    desk.core.expect(True)
    call = desk.run(idempotent=True)
    for id in range(2, 12):
        assert desk.lose(id - 1) == []
        desk.join(id)
        desk.place()
    assert call.kills == 0


def test_idempotent_call_is_blamed_after_three_workers_and_says_so() -> None:
    desk = Desk(1)
    desk.core.expect(True)
    call = desk.run(idempotent=True)
    for id in range(1, MAX_KILLS + 1):
        ended = desk.lose(id, Verdict("crashed", recorded=True, crashed=True, sync_started=call.serial))
        desk.join(id + 1)
        desk.place()
    assert f"killed {MAX_KILLS} workers" in lost(ended, call).cause


@pytest.mark.parametrize("options", [{"retries": 1}, {"idempotent": True}], ids=str)
@pytest.mark.parametrize("ran", [True, False])
def test_call_that_was_to_run_again_and_cannot_be_placed_says_whether_it_may_have_run(options: Any, ran: bool) -> None:
    desk = Desk(1)
    call = desk.run(**options)
    desk.core.expect(True)
    assert desk.lose(1, GONE if ran else Verdict("gone", recorded=True)) == []
    (ended,) = desk.core.expect(False)
    assert ended.call is call
    assert isinstance(ended.error, Unschedulable)
    assert ended.error.maybe_executed is ran
    assert ("MAY have run" in str(ended.error)) is ran


def test_chunk_of_several_items_is_not_repeated_but_says_how_far_it_came() -> None:
    desk = Desk(1)
    chunk = desk.run(items=10, mode=Mode.CHUNK, idempotent=True)
    ended = desk.lose(
        1, Verdict("crashed", recorded=True, crashed=True, sync_started=chunk.serial, item=4, item_call=chunk.serial)
    )
    assert lost(ended, chunk).items_started == 4
    assert chunk.kills == 1


def test_of_two_chunks_that_ran_side_by_side_only_the_one_whose_items_are_counted_says_how_far_it_came() -> None:
    desk = Desk(1)
    first = desk.run(items=2, mode=Mode.CHUNK, takes_s=TINY_S)
    second = desk.run(items=5, mode=Mode.CHUNK, takes_s=TINY_S)
    verdict = Verdict("crashed", recorded=True, sync_started=second.serial, item=1, item_call=first.serial)
    ended = desk.lose(1, verdict)
    assert lost(ended, first).items_started == 1
    assert lost(ended, second).items_started is None


def test_chunk_whose_items_were_counted_says_so_also_when_another_call_has_started_since() -> None:
    desk = Desk(1)
    chunk = desk.run(items=2, mode=Mode.CHUNK, takes_s=TINY_S)
    last = desk.run(takes_s=TINY_S)
    verdict = Verdict(
        "crashed", recorded=True, sync_started=last.serial, sync_finished=chunk.serial, item=2, item_call=chunk.serial
    )
    assert lost(desk.lose(1, verdict), chunk).items_started == 2


def test_targeted_calls_are_never_moved() -> None:
    desk = Desk(2)
    sent = [desk.submit(workers={1}, takes_s=TINY_S, idempotent=True) for _ in range(2)]
    desk.place()
    desk.core.set_accepting(1, False)
    waiting = desk.submit(workers={1})
    ended = desk.lose(1, Verdict("crashed", recorded=True, crashed=True, sync_started=1))
    assert {one.call for one in ended} == {*sent, waiting}
    assert [lost(ended, call).maybe_executed for call in (*sent, waiting)] == [True, False, False]
    assert desk.place() == []


def test_cancelled_call_of_a_lost_worker_is_forgotten() -> None:
    desk = Desk(1)
    call = desk.run()
    desk.core.cancel(call)
    assert desk.lose(1) == []
    assert (desk.core.pending_calls, desk.core.pending_bytes) == (0, 0)


def test_lost_worker_with_calls_ready_to_go_leaves_nothing_to_assign() -> None:
    desk = Desk(1)
    own, nested = desk.submit(workers={1}), desk.submit(workers={1}, origin=1)
    assert {one.call for one in desk.lose(1)} == {own, nested}
    assert not desk.core.has_work


def test_waiting_calls_end_with_the_last_worker_if_none_is_expected() -> None:
    desk = Desk(1)
    running, waiting = desk.run(), desk.run()
    ended = desk.lose(1)
    assert [one.call for one in ended] == [running, waiting]
    assert isinstance(ended[1].error, Unschedulable)


def test_lost_sync_call_that_was_waiting_runs_again_as_one_that_computes() -> None:
    desk = Desk(1)
    desk.core.expect(True)
    call = desk.run(retries=1)
    desk.core.yielded(1, call.id, waiting=True)
    assert desk.lose(1) == []
    desk.join(2)
    desk.place()
    assert desk.core.places[2].lanes[LaneKind.SYNC].computing == 1


# --- close ---------------------------------------------------------------------------------------------------------------


def test_close_ends_every_call_once_and_takes_no_more() -> None:
    desk = Desk(2)
    sent, own_sent = desk.run(), desk.run(workers={2})
    abandoned = desk.run(is_async=True)
    desk.core.cancel(abandoned)
    waiting = [desk.submit(), desk.submit(workers={1}), desk.submit(workers={2}, origin=1), desk.submit(workers={1, 2})]
    closed = ClusterClosed()
    ended = desk.core.close(closed)
    assert {one.call for one in ended} == {sent, own_sent, *waiting}
    assert len(ended) == 6
    assert all(one.error is closed for one in ended)
    assert desk.core.submit(desk.call()) is closed
    assert desk.place() == []
    (holder,) = desk.homes(sent)
    assert desk.finish(holder, sent) == [None]
    assert desk.core.close(closed) == []
    for id in (1, 2):
        assert desk.lose(id) == []
    assert desk.core.pending_calls == 0


# --- any order -----------------------------------------------------------------------------------------------------------

ASYNC_CALLS, WINDOW_CALLS, MAX_PENDING, GPUS = 3, 5, 25, 2.0


class AnyOrder(RuleBasedStateMachine):
    """Dispatch beside the simplest model: the calls that are open, and the place that each one has."""

    @initialize(workers=st.integers(0, 3))
    def begin(self, workers: int) -> None:
        self.desk = Desk(0, Settings(async_calls=ASYNC_CALLS, window_calls=WINDOW_CALLS, max_pending_calls=MAX_PENDING))
        self.core = self.desk.core
        self.next_worker = 1
        self.waits: dict[int, Call] = {}
        self.runs: dict[int, tuple[int, Call]] = {}
        self.outcomes: dict[int, int] = {}
        """How often each call has ended for its caller."""
        self.accepted = 0
        self.over = 0
        self.expecting = False
        for _ in range(workers):
            self.add_worker()

    def end(self, call: Call) -> None:
        self.outcomes[call.id] = self.outcomes.get(call.id, 0) + 1

    def ended(self, calls: list[Ended]) -> None:
        for one in calls:
            self.end(one.call)
            assert one.call.state is CallState.ENDED
            self.leave(one.call)

    def leave(self, call: Call) -> None:
        """The call is held no more."""
        self.waits.pop(call.id, None)
        self.runs.pop(call.id, None)
        self.over += 1

    def some(self, data: st.DataObject, calls: list[Call]) -> list[Call]:
        return data.draw(st.lists(st.sampled_from(calls), unique=True, max_size=4)) if calls else []

    def held_by(self, id: int) -> list[Call]:
        return [call for worker, call in self.runs.values() if worker == id]

    @precondition(lambda self: len(self.core.places) < 4)
    @rule()
    def add_worker(self) -> None:
        self.core.add_worker(self.next_worker, {"gpu": GPUS}, self.desk.now)
        self.core.open_worker(self.next_worker)
        self.next_worker += 1

    @rule(expecting=st.booleans())
    def expect(self, expecting: bool) -> None:
        self.expecting = expecting
        self.ended(self.core.expect(expecting))

    @rule(
        is_async=st.booleans(),
        takes_s=st.sampled_from([None, TINY_S, 1e-4, LONG_S]),
        nested=st.booleans(),
        workers=st.none() | st.sets(st.integers(1, 6), min_size=1, max_size=3),
        gpus=st.sampled_from([0.0, 0.0, 1.0, 2.0]),
        priority=st.integers(-1, 1),
        retries=st.integers(0, 1),
        idempotent=st.booleans(),
        lasts_s=st.none() | st.floats(0.0, 5.0),
        size=st.sampled_from([0, 10, 5000]),
    )
    def submit(
        self,
        is_async: bool,
        takes_s: float | None,
        nested: bool,
        workers: set[int] | None,
        gpus: float,
        priority: int,
        retries: int,
        idempotent: bool,
        lasts_s: float | None,
        size: int,
    ) -> None:
        call = self.desk.call(
            f"f{takes_s}",
            is_async=is_async,
            takes_s=takes_s,
            origin=int(nested),
            workers=workers,
            resources={"gpu": gpus} if gpus else {},
            priority=priority,
            retries=retries,
            idempotent=idempotent,
            deadline=None if lasts_s is None else self.desk.now + lasts_s,
            payload=bytes(size),
        )
        refusal = self.core.submit(call)
        if refusal is None:
            self.accepted += 1
            self.waits[call.id] = call
        elif len(self.waits) + len(self.runs) >= MAX_PENDING:
            assert isinstance(refusal, Overloaded)
        else:
            assert isinstance(refusal, Unschedulable | WorkerLost)

    @rule()
    def assign(self) -> None:
        for place, calls in self.core.assign(self.desk.now):
            assert calls == sorted(calls, key=lambda call: call.serial)
            for call in calls:
                assert call.options.workers is None or place.id in call.options.workers
                del self.waits[call.id]
                self.runs[call.id] = (place.id, call)
        for place, count in self.core.recalls(self.desk.now):
            assert place.id in self.core.places
            assert count > 0
        self.no_idle_worker_is_left_without_a_call_that_it_may_take()

    def no_idle_worker_is_left_without_a_call_that_it_may_take(self) -> None:
        for call in self.waits.values():
            workers = call.options.workers
            if workers is not None and len(workers) == 1:
                continue  # it keeps its turn
            for place in self.core.places.values():
                if place.accepting and (workers is None or place.id in workers) and place.fits_now(call.options.demand):
                    assert place.lanes[LaneKind.of(call)].computing > 0

    @precondition(lambda self: self.core.places)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.core.places)))
        calls = self.some(data, self.held_by(id))
        abandoned = [call.state is CallState.ABANDONED for call in calls]
        found = self.desk.finish(id, *calls)
        assert found == [None if gone else call for gone, call in zip(abandoned, calls, strict=True)]
        for call, gone in zip(calls, abandoned, strict=True):
            self.leave(call)
            if not gone:
                self.end(call)

    @precondition(lambda self: self.core.places)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.core.places)))
        calls = self.some(data, self.held_by(id))
        dropped, honest = self.core.returned(id, [call.id for call in calls], self.desk.now)
        assert honest
        for call in calls:
            if call in dropped:
                self.leave(call)
            else:
                del self.runs[call.id]
                self.waits[call.id] = call

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), waiting=st.booleans())
    def wait_or_compute(self, data: st.DataObject, waiting: bool) -> None:
        id, call = self.runs[data.draw(st.sampled_from(sorted(self.runs)))]
        if not call.function.is_async:
            self.core.yielded(id, call.id, waiting)

    @precondition(lambda self: self.waits or self.runs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted([*self.waits, *self.runs])))
        call = self.waits.get(id) or self.runs[id][1]
        before = call.state
        told = self.core.cancel(call)
        assert (told is not None) is (before is CallState.SENT)
        if before is not CallState.ABANDONED:
            self.end(call)
        if before is CallState.WAITING:
            self.leave(call)

    @rule(seconds=st.floats(0.0, 3.0))
    def expire(self, seconds: float) -> None:
        self.desk.now += seconds
        for ended, told in self.core.expire(self.desk.now):
            assert isinstance(ended.error, CallTimeout)
            self.end(ended.call)
            if told is None:
                self.leave(ended.call)

    @precondition(lambda self: self.core.places)
    @rule(data=st.data(), recorded=st.booleans(), crashed=st.booleans())
    def lose(self, data: st.DataObject, recorded: bool, crashed: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.core.places)))
        held = self.held_by(id)
        serials = st.sampled_from([0, *(call.serial for call in held)])
        sync, finished, run_async = data.draw(serials), data.draw(serials), data.draw(serials)
        verdict = Verdict("gone", recorded, crashed, sync, min(sync, finished), run_async)
        abandoned = [call for call in held if call.state is CallState.ABANDONED]
        ended = self.core.worker_lost(id, verdict, self.desk.now)
        self.ended(ended)
        for call in abandoned:
            self.leave(call)
        for call in self.held_by(id):
            assert call.state is CallState.WAITING
            del self.runs[call.id]
            self.waits[call.id] = call

    @precondition(lambda self: self.core.places)
    @rule(data=st.data(), accepting=st.booleans())
    def block_or_let_go_on(self, data: st.DataObject, accepting: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.core.places)))
        if not self.core.places[id].ending:
            self.core.set_accepting(id, accepting)

    @precondition(lambda self: self.core.places)
    @rule(data=st.data())
    def close_worker(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.core.places)))
        self.ended(self.core.close_worker(id))
        self.ended(self.core.expect(self.expecting))

    @invariant()
    def counters_match(self) -> None:
        assert self.core.pending_calls == len(self.waits) + len(self.runs)
        assert self.core.pending_bytes == sum(
            call.size for call in [*self.waits.values(), *(one for _, one in self.runs.values())]
        )
        assert self.core.ended_calls == self.over
        assert self.core.waiting_calls == len(self.waits)
        assert self.accepted == self.over + len(self.waits) + len(self.runs)

    @invariant()
    def each_call_ends_once(self) -> None:
        assert set(self.outcomes.values()) <= {1}
        for call in self.waits.values():
            assert call.state is CallState.WAITING
            assert call.id not in self.outcomes
        for _, call in self.runs.values():
            assert call.state is (CallState.ABANDONED if call.id in self.outcomes else CallState.SENT)

    @invariant()
    def lanes_hold_what_is_in_flight_and_no_more_than_they_may(self) -> None:
        for place in self.core.places.values():
            held = self.held_by(place.id)
            assert sorted(place.inflight) == sorted(call.id for call in held)
            assert place.bytes == sum(call.size for call in held)
            for lane in place.lanes:
                here = [call for call in held if call.lane is lane]
                computing = [call for call in here if not call.yielded]
                assert (lane.count, lane.computing) == (len(here), len(computing))
                assert math.isclose(lane.load, sum(call.weight for call in computing), abs_tol=1e-6)
                assert lane.count <= lane.limit or lane.yielded
            used = sum(call.options.resources.get("gpu", 0.0) for call in held)
            assert place.free["gpu"] == GPUS - used
            assert place.free["gpu"] >= 0.0

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for ended in self.core.close(ClusterClosed()):
            self.end(ended.call)
        for id in sorted(self.core.places):
            self.desk.finish(id, *self.desk.on(id))
            assert [(lane.count, lane.yielded, lane.load) for lane in self.core.places[id].lanes] == [(0, 0, 0.0)] * 3
        assert (self.core.pending_calls, self.core.pending_bytes, self.core.waiting_calls) == (0, 0, 0)
        assert list(self.outcomes.values()) == [1] * self.accepted
        assert all(
            self.desk.functions.intern(f"f{takes_s}{is_async}".encode(), b"", "", is_async).uses == 0
            for takes_s in (None, TINY_S, 1e-4, LONG_S)
            for is_async in (False, True)
        )


TestAnyOrder = AnyOrder.TestCase
