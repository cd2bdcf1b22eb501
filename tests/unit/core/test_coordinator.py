"""The manager's brain: nodes, workers and calls together, and what it asks of its shell."""

from __future__ import annotations

from typing import Any

import pytest

from aiocluster.config import Settings
from aiocluster.core.calls import CallState
from aiocluster.core.constraints import IDLE_POOLS
from aiocluster.core.coordinator import SETTLE_S, Coordinator
from aiocluster.core.effects import (
    DropNode,
    DropWorker,
    EndCall,
    PublishEvent,
    ReleaseNode,
    ResolveCalls,
    RunJoinCalls,
    SendToNode,
    SendToWorker,
)
from aiocluster.core.roster import NodeState, WorkerState
from aiocluster.errors import ClusterClosed, Overloaded, ProtocolError, Unschedulable, WorkerLost
from aiocluster.wire.messages import (
    Ack,
    Beat,
    CancelCalls,
    DropFunctions,
    KillWorker,
    NodeBeat,
    NodeDraining,
    Recall,
    Results,
    Returned,
    Shutdown,
    StartGaveUp,
    StartWorkers,
    StopWorker,
    WorkerExited,
    WorkerStarted,
)

from .test_dispatch_found import Bench


def to_node(bench: Bench, kind: type) -> list[Any]:
    return [one.message for one in bench.effects if isinstance(one, SendToNode) and isinstance(one.message, kind)]


def to_worker(bench: Bench, kind: type, id: int | None = None) -> list[Any]:
    return [
        one.message
        for one in bench.effects
        if isinstance(one, SendToWorker) and isinstance(one.message, kind) and id in (None, one.worker_id)
    ]


def events(bench: Bench) -> list[str]:
    return [one.event.kind for one in bench.effects if isinstance(one, PublishEvent)]


def result(
    bench: Bench, worker: int, *ids: int, buffers: list[list[int]] | None = None, beside: list[bytes] | None = None
) -> None:
    message = Results(list(ids), bytes(len(ids)), [b"value"] * len(ids), buffers or [], [[1, len(ids), 1000 * len(ids)]])
    bench.core.results(worker, message, beside or [], bench.now)
    bench.take()


def exited(id: int, cause: str = "crashed", *, expected: bool = False) -> WorkerExited:
    return WorkerExited(id, cause, expected, 0, 0, 0, 0, 0, [], b"", [])


def tick(bench: Bench, *, until: float) -> None:
    """Time passes as for a manager that looks as often as it should."""
    while bench.now < until:
        bench.now = min(until, bench.now + 0.5)
        bench.core.tick(bench.now)
        bench.take()


# --- joining -------------------------------------------------------------------------------------------------------------


def test_a_node_that_joins_is_told_to_start_its_workers_and_they_join_one_by_one() -> None:
    core = Coordinator(Settings(), 0.0)
    core.expect_node("n", 2, {}, 0.0)
    assert core.refuse_node("n") is None
    core.node_joined("n", "host", 7, 1.0)
    effects = core.take_effects()
    assert SendToNode("n", StartWorkers([1, 2])) in effects
    assert core.refuse_worker(1, "n") is None
    core.worker_joined(1, 99, 2.0)
    assert core.take_effects() == [RunJoinCalls(1)]
    assert core.roster.ready() == []
    core.open_worker(1, 3.0)
    core.open_worker(1, 3.0)
    (event,) = core.take_effects()
    assert isinstance(event, PublishEvent)
    assert (event.event.kind, event.event.worker_id, event.event.at) == ("worker_joined", 1, 3.0)
    assert core.deadline == 1.0


def test_who_is_not_expected_is_refused_with_the_reason() -> None:
    bench = Bench(1)
    core = bench.core
    assert core.refuse_node("x") == "no node 'x' is expected"
    assert core.refuse_node("n") == "node 'n' is joined already"
    assert "not expected" in str(core.refuse_worker(9, "n"))
    assert "not expected" in str(core.refuse_worker(1, "other"))
    assert core.refuse_worker(1, "n") == "worker 1 has joined already"
    core.close(ClusterClosed(), 1.0, 0.0)
    assert core.refuse_node("n") == core.refuse_worker(1, "n") == "the cluster is closing"


def test_more_workers_are_started_now_or_when_the_node_has_joined() -> None:
    bench = Bench(1)
    bench.core.add_workers("n", 2, 0.0)
    bench.take()
    assert to_node(bench, StartWorkers)[-1] == StartWorkers([2, 3])
    bench.core.expect_node("late", 1, {}, 0.0)
    bench.core.add_workers("late", 1, 0.0)
    bench.core.node_joined("late", "host", 1, 0.0)
    bench.take()
    assert to_node(bench, StartWorkers)[-1] == StartWorkers([4, 5])


def test_a_heartbeat_is_answered_and_its_figures_are_kept() -> None:
    bench = Bench(1)
    rows: list[list[Any]] = [[1, "busy", 99.5, 1000, 3], [77, "idle", 0.0, 1, 0]]
    bench.core.node_message("n", NodeBeat(5, {"cpus": 2}, rows), 3.0)
    bench.core.node_message("n", WorkerStarted(1, 4711), 3.0)
    bench.core.node_message("n", WorkerStarted(77, 4712), 3.0)
    bench.take()
    assert to_node(bench, Beat) == [Beat(5)]
    assert bench.core.roster.nodes["n"].figures == {"cpus": 2}
    assert bench.core.roster.workers[1].figures == ("busy", 99.5, 1000)
    assert bench.core.roster.workers[1].pid == 4711
    assert bench.core.roster.nodes["n"].last_heard == 3.0


def test_what_an_agent_must_not_say_is_a_protocol_error() -> None:
    bench = Bench(1)
    with pytest.raises(ProtocolError, match="must not send Ack"):
        bench.core.node_message("n", Ack(1), 0.0)


# --- losing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
def test_a_silent_node_is_lost_after_the_timeout_and_its_workers_with_it(broken: bool) -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    if broken:
        bench.core.node_link_broken("n", 0.0)
    tick(bench, until=9.5)
    assert bench.core.roster.nodes["n"].state is NodeState.JOINED
    tick(bench, until=10.5)
    node = bench.core.roster.nodes["n"]
    assert node.state is NodeState.GONE
    assert ("cut off" if broken else "silent") in node.reason
    assert any(isinstance(one, DropNode) for one in bench.effects)
    assert any(isinstance(one, ReleaseNode) for one in bench.effects)
    error = bench.error_of(call)
    assert isinstance(error, WorkerLost)
    assert error.maybe_executed, "nobody knows how far it had come"
    assert "node_lost" in events(bench)
    before = len(bench.effects)
    bench.core.lose_node("n", "again", bench.now)
    bench.core.node_link_broken("n", bench.now)
    bench.core.node_link_resumed("n", bench.now)
    assert len(bench.take()) == before


def test_a_node_that_comes_back_in_time_is_not_lost() -> None:
    bench = Bench(1)
    bench.core.node_link_broken("n", 0.0)
    tick(bench, until=9.0)
    bench.core.node_link_resumed("n", 9.0)
    tick(bench, until=18.5)
    assert bench.core.roster.nodes["n"].state is NodeState.JOINED
    assert events(bench)[-2:] == ["link_broken", "link_resumed"]


def test_an_expected_node_that_fails_has_failed_and_not_been_lost() -> None:
    bench = Bench(1)
    bench.core.expect_node("m", 1, {}, 0.0)
    bench.core.lose_node("m", "no such image", 0.0)
    bench.take()
    assert events(bench)[-1] == "node_failed"


def test_a_manager_that_was_absent_declares_nobody_lost_for_it() -> None:
    bench = Bench(2)
    bench.core.worker_link_broken(2, 0.0)
    bench.now = 60.0
    bench.core.tick(60.0)
    assert bench.core.roster.nodes["n"].state is NodeState.JOINED
    assert set(bench.core.roster.workers) == {1, 2}
    tick(bench, until=71.5)
    assert bench.core.roster.nodes["n"].state.value == "gone"


def test_a_crashed_worker_is_replaced_under_a_new_id() -> None:
    bench = Bench(1)
    bench.exit(1)
    assert to_node(bench, StartWorkers)[-1] == StartWorkers([2])
    assert bench.dropped() == [1]
    assert "worker_lost" in events(bench)


def test_an_exit_is_judged_when_the_link_has_been_read_or_after_a_while() -> None:
    bench = Bench(2)
    first, second = bench.submit(bench.call(workers=[1])), bench.submit(bench.call(workers=[2]))
    bench.core.node_message("n", exited(1), 0.0)
    bench.core.node_message("n", exited(2), 0.0)
    bench.take()
    assert bench.error_of(first) is None
    result(bench, 1, first.id)
    bench.core.worker_link_broken(1, 0.1)
    bench.take()
    assert bench.error_of(first) is None, "its result had come before the end of the link"
    tick(bench, until=SETTLE_S + 1)
    assert isinstance(bench.error_of(second), WorkerLost)
    bench.core.node_message("n", exited(2), bench.now)  # said again: no matter
    bench.core.worker_link_broken(2, bench.now)
    bench.core.worker_link_resumed(2, bench.now)


def test_a_worker_whose_link_does_not_come_back_is_killed_and_lost() -> None:
    bench = Bench(1)
    bench.link_ends(1)
    tick(bench, until=9.0)
    assert 1 in bench.core.roster.workers
    bench.core.node_message("n", NodeBeat(1, {}, []), bench.now)
    tick(bench, until=11.0)
    assert 1 not in bench.core.roster.workers
    assert to_node(bench, KillWorker)[0].worker_id == 1


def test_a_worker_whose_link_comes_back_goes_on() -> None:
    bench = Bench(1)
    bench.link_ends(1)
    call = bench.call()
    assert bench.core.submit(call) is None
    bench.take()
    assert bench.sent_to(call) == []
    bench.core.worker_link_resumed(1, 1.0)
    bench.take()
    assert bench.sent_to(call) == [1]


def test_a_worker_that_gives_back_what_it_does_not_hold_is_dropped_and_killed() -> None:
    bench = Bench(2)
    other = bench.submit(bench.call(workers=[2]))
    bench.core.returned(1, Returned([12345]), 0.0)
    bench.take()
    assert bench.dropped() == [1]
    assert to_node(bench, KillWorker) == [KillWorker(1, "it broke the protocol")]
    result(bench, 2, other.id)
    assert other.state is CallState.ENDED


def test_a_result_of_a_call_that_is_not_its_own_drops_the_worker_and_hurts_nobody() -> None:
    bench = Bench(2)
    other = bench.submit(bench.call(workers=[2]))
    result(bench, 1, other.id)
    assert bench.dropped() == [1]
    assert other.state is CallState.SENT


def test_the_words_of_a_worker_that_is_gone_change_nothing() -> None:
    bench = Bench(1)
    bench.exit(1)
    before = len(bench.effects)
    result(bench, 1, 1)
    bench.core.returned(1, Returned([1]), 0.0)
    bench.core.yielded(1, 1, True, 0.0)
    bench.core.set_writable(1, False)
    bench.core.open_worker(1, 0.0)
    bench.core.retire(1, 1.0, 0.0)
    bench.core.kill_worker(1, "late", 0.0)
    bench.core.worker_misbehaved(1, "late", 0.0)
    assert len(bench.take()) == before


# --- calls -----------------------------------------------------------------------------------------------------------------


def test_results_go_to_their_calls_with_their_buffers() -> None:
    bench = Bench(1)
    one, two = bench.submit(bench.call(is_async=True)), bench.submit(bench.call(is_async=True))
    result(bench, 1, one.id, two.id, buffers=[[1, 2]], beside=[b"x", b"y"])
    (resolved,) = (effect for effect in bench.effects if isinstance(effect, ResolveCalls))
    assert list(resolved.calls) == [one, two]
    assert resolved.buffers is not None
    assert [list(share) for share in resolved.buffers] == [[], [b"x", b"y"]]
    assert not bench.core.has_work


def test_results_of_nested_calls_and_others_may_share_a_frame() -> None:
    bench = Bench(1)
    nested = bench.submit(bench.call(origin=1, is_async=True))
    other, gone = bench.submit(bench.call(is_async=True)), bench.submit(bench.call(is_async=True))
    bench.core.cancel(gone, 0.0)
    result(bench, 1, other.id, gone.id, nested.id)
    (resolved,) = (effect for effect in bench.effects if isinstance(effect, ResolveCalls))
    assert list(resolved.calls) == [other, None, nested]
    assert bench.core._nested == {1: {}}


def test_a_call_that_waits_for_another_gives_its_place_away() -> None:
    bench = Bench(1)
    first, second = bench.submit(bench.call()), bench.submit(bench.call())
    assert bench.sent_to(second) == []
    bench.core.yielded(1, first.id, True, 0.0)
    bench.take()
    assert bench.sent_to(second) == [1]
    bench.core.yielded(1, first.id, False, 0.0)
    third = bench.submit(bench.call())
    assert bench.sent_to(third) == []


def test_results_that_a_dead_worker_left_in_its_recorder_count() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.exit(1, sync_started=call.serial, sync_finished=call.serial, ids=[call.id, 12345])
    (resolved,) = (effect for effect in bench.effects if isinstance(effect, ResolveCalls))
    assert list(resolved.calls) == [call]
    assert bench.error_of(call) is None


def test_an_exit_that_is_reported_after_the_link_has_ended_is_judged_at_once() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.link_ends(1)
    bench.core.node_message("n", exited(1, "killed by signal 9 (SIGKILL)"), 0.0)
    bench.take()
    assert bench.error_of(call) is None
    assert bench.sent_to(call) == [1], "it never started: it moves to the worker that is on its way"
    bench.join(2)
    assert bench.sent_to(call) == [1, 2]


def test_a_node_may_be_told_twice_to_end() -> None:
    bench = Bench(1)
    bench.submit(bench.call())
    for _ in range(2):
        bench.core.node_message("n", NodeDraining("SIGTERM", 20.0), 0.0)
    bench.take()
    assert len(to_worker(bench, Recall, 1)) == 1


def test_a_refused_call_has_ended() -> None:
    bench = Bench(1, Settings(max_pending_calls=1))
    bench.submit(bench.call())
    refused = bench.call()
    assert isinstance(bench.core.submit(refused), Overloaded)
    assert refused.state is CallState.ENDED
    bench.core.cancel(refused, 0.0)


def test_a_sent_call_is_cancelled_where_it_is_and_killed_only_with_force() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.core.cancel(call, 0.0)
    bench.take()
    assert to_worker(bench, CancelCalls) == [CancelCalls([call.id], False)]
    assert to_node(bench, KillWorker) == []
    bench.core.cancel(call, 0.0, force=True)
    bench.take()
    assert "cancelled with force" in to_node(bench, KillWorker)[0].reason


def test_a_deadline_cancels_where_the_call_runs() -> None:
    bench = Bench(1)
    running = bench.submit(bench.call(deadline=1.0, timeout_s=1.0))
    queued = bench.submit(bench.call(deadline=1.0, timeout_s=1.0))
    assert bench.core.deadline == 1.0
    tick(bench, until=1.0)
    assert bench.error_of(running) is not None
    assert bench.error_of(queued) is not None
    assert to_worker(bench, CancelCalls) == [CancelCalls([running.id], False)]


def test_nested_calls_end_with_the_worker_that_made_them() -> None:
    bench = Bench(2)
    nested = [bench.submit(bench.call(origin=1, workers=[2])) for _ in range(2)]
    done = bench.submit(bench.call(origin=1, is_async=True))
    result(bench, bench.sent_to(done)[0], done.id)
    gone = bench.submit(bench.call(origin=1, workers=[2], deadline=0.5, timeout_s=0.5))
    tick(bench, until=1.0)
    assert bench.error_of(gone) is not None
    bench.exit(1)
    assert all(call.state in (CallState.ABANDONED, CallState.ENDED) for call in nested)
    assert bench.core._nested == {}


def test_backpressure_of_a_link_holds_calls_back() -> None:
    bench = Bench(1)
    bench.core.set_writable(1, False)
    call = bench.call()
    assert bench.core.submit(call) is None
    bench.take()
    assert bench.sent_to(call) == []
    bench.core.set_writable(1, True)
    bench.take()
    assert bench.sent_to(call) == [1]


def test_calls_behind_a_slow_one_are_called_back_for_an_idle_worker() -> None:
    bench = Bench(2)
    entry = bench.core.functions.intern(b"f1".ljust(16), b"", "f1", False)
    bench.core.functions.observe(entry.id, 1, 0.001)
    bench._calls = 0
    calls = [bench.call() for _ in range(4)]
    for call in calls:
        call.function = entry
        assert bench.core.submit(call) is None
    bench.take()
    first = [call for call in calls if bench.sent_to(call) == [1]]
    result(bench, 1, *[call.id for call in first])
    tick(bench, until=1.0)
    assert to_worker(bench, Recall, 2)


def test_functions_that_are_forgotten_are_dropped_where_they_are_known() -> None:
    bench = Bench(2)
    bench.core.functions._limit = 1
    used, unused = bench.submit(bench.call(workers=[1])), bench.call()
    result(bench, 1, used.id)
    assert unused.state is CallState.WAITING
    tick(bench, until=1.0)
    assert to_worker(bench, DropFunctions, 1) == [DropFunctions([used.function.id])]
    assert to_worker(bench, DropFunctions, 2) == []


# --- ending ----------------------------------------------------------------------------------------------------------------


def test_a_retired_worker_finishes_what_it_runs_and_is_not_replaced() -> None:
    bench = Bench(2)
    call = bench.submit(bench.call(workers=[1]))
    bench.core.retire(1, 60.0, 0.0)
    bench.core.retire(1, 0.0, 0.0)
    bench.take()
    assert to_worker(bench, Recall, 1)
    assert to_node(bench, StopWorker) == []
    result(bench, 1, call.id)
    assert to_node(bench, StopWorker) == [StopWorker(1, bench.core.settings.close_grace_s)]
    bench.core.set_writable(1, True)
    bench.core.worker_link_resumed(1, 0.0)
    bench.core.node_message("n", exited(1, "exited with code 0", expected=True), 0.0)
    bench.link_ends(1)
    assert "worker_retired" in events(bench)
    assert to_node(bench, StartWorkers) == [StartWorkers([1, 2])]


def test_a_retired_worker_is_stopped_when_it_has_given_everything_back() -> None:
    bench = Bench(2)
    call = bench.submit(bench.call())
    (holder,) = bench.sent_to(call)
    bench.core.retire(holder, 60.0, 0.0)
    bench.core.returned(holder, Returned([call.id]), 0.0)
    bench.take()
    assert [message.worker_id for message in to_node(bench, StopWorker)] == [holder]
    assert bench.sent_to(call) == [holder, 3 - holder]


def test_when_the_grace_is_over_a_retired_worker_is_killed() -> None:
    bench = Bench(1)
    bench.submit(bench.call())
    bench.core.retire(1, 2.0, 0.0)
    tick(bench, until=1.5)
    assert to_node(bench, StopWorker) == []
    tick(bench, until=3.0)
    assert to_node(bench, StopWorker) == [StopWorker(1, 0.0)]


def test_a_worker_that_is_retired_while_it_starts_ends_without_taking_calls() -> None:
    bench = Bench(1)
    bench.core.add_workers("n", 1, 0.0)
    bench.core.retire(2, 9.0, 0.0)
    bench.take()
    assert to_node(bench, StopWorker) == [StopWorker(2, 0.0)]
    bench.core.worker_joined(2, 5, 0.0)
    bench.take()
    assert bench.core.roster.workers[2].state is WorkerState.DRAINING
    bench.core.open_worker(2, 0.0)
    assert [record.id for record in bench.core.roster.ready()] == [1]


def test_a_node_without_workers_ends_and_calls_that_wait_are_told() -> None:
    bench = Bench(1)
    waiting = bench.submit(bench.call(is_async=True, resources={"gpu": 1}))
    blocked = bench.submit(bench.call(is_async=True, resources={"gpu": 1}))
    bench.core.retire(1, 60.0, 0.0)
    result(bench, 1, waiting.id)
    bench.core.node_message("n", exited(1, expected=True), 0.0)
    bench.link_ends(1)
    assert to_node(bench, Shutdown)
    assert any(isinstance(one, ReleaseNode) for one in bench.effects)
    assert bench.core.roster.nodes["n"].state is NodeState.DRAINING
    assert isinstance(bench.error_of(blocked), Unschedulable)


def test_a_node_that_is_told_to_end_drains_all_its_workers() -> None:
    bench = Bench(2)
    call = bench.submit(bench.call(workers=[1]))
    bench.core.retire(2, 9.0, 0.0)
    bench.core.node_message("n", NodeDraining("spot reclaim", 20.0), 0.0)
    bench.take()
    assert "node_draining" in events(bench)
    assert bench.core.roster.nodes["n"].reason == "spot reclaim"
    assert {message.worker_id for message in to_node(bench, StopWorker)} == {2}
    result(bench, 1, call.id)
    assert {message.worker_id for message in to_node(bench, StopWorker)} == {1, 2}


def test_workers_that_cannot_be_started_are_wanted_no_more() -> None:
    bench = Bench(1)
    bench.core.add_workers("n", 2, 0.0)
    call = bench.call(workers=[2])
    assert bench.core.submit(call) is None
    bench.core.node_message("n", StartGaveUp([2, 77], "all crashed", ["ImportError: x"]), 0.0)
    bench.take()
    node = bench.core.roster.nodes["n"]
    assert node.wanted == 2
    assert node.reason == "all crashed (last words: ImportError: x)"
    bench.core.node_message("n", StartGaveUp([3], "all crashed", []), 0.0)
    bench.take()
    assert node.wanted == 1
    assert node.reason == "all crashed"
    assert isinstance(bench.error_of(call), Unschedulable | WorkerLost)
    assert events(bench).count("start_failed") == 2


def test_closing_ends_every_call_and_tells_everybody() -> None:
    bench = Bench(2)
    running, waiting = bench.submit(bench.call(workers=[1])), bench.submit(bench.call(workers=[1]))
    bench.core.expect_node("late", 1, {}, 0.0)
    reason = ClusterClosed()
    bench.core.close(reason, 3.0, 0.0)
    bench.core.close(reason, 3.0, 0.0)
    bench.take()
    assert [effect.ended.call for effect in bench.effects if isinstance(effect, EndCall)] == [waiting, running]
    assert bench.error_of(running) is bench.error_of(waiting) is reason
    assert to_worker(bench, CancelCalls, 1) == [CancelCalls([running.id], False)]
    assert to_worker(bench, Shutdown) == [Shutdown(3.0), Shutdown(3.0)]
    assert to_node(bench, Shutdown) == [Shutdown(3.0)]
    assert bench.core.submit(bench.call()) is reason
    bench.exit(1)
    bench.core.lose_node("n", "its agent exited", 0.0)
    bench.take()
    assert "worker_lost" not in events(bench)
    assert events(bench)[-2:] == ["node_released", "worker_retired"]
    assert [one.worker_id for one in bench.effects if isinstance(one, DropWorker)] == [1, 2]


def test_calls_wait_for_workers_while_a_launch_is_under_way() -> None:
    core = Coordinator(Settings(), 0.0)
    bench = Bench(1)
    bench.core = core
    core.set_launching(True)
    call = bench.call()
    assert core.submit(call) is None
    core.set_launching(False)
    assert isinstance(
        bench.error_of(call) or next(e.ended.error for e in core.take_effects() if isinstance(e, EndCall)), Unschedulable
    )
    assert isinstance(core.submit(bench.call()), Unschedulable)


def test_a_worker_that_is_retired_and_given_up_is_taken_off_once() -> None:
    bench = Bench(2)
    bench.core.add_workers("n", 1, 0.0)
    bench.core.retire(3, 9.0, 0.0)
    bench.core.node_message("n", StartGaveUp([3], "all crashed", []), 0.0)
    bench.take()
    assert bench.core.roster.nodes["n"].wanted == 2
    bench.exit(1)
    assert to_node(bench, StartWorkers)[-1] == StartWorkers([4])


@pytest.mark.parametrize("end", ["cancel", "expire", "sweep"])
def test_of_pools_that_users_make_without_end_few_are_kept_when_nobody_waits_in_them(end: str) -> None:
    bench = Bench(2)
    dispatch = bench.core.dispatch
    before = len(dispatch._pools.all())
    for id in (1, 2):
        bench.submit(bench.call(workers=[id]))
    for amount in range(1, 20):
        call = bench.submit(bench.call(workers=[1, 2], resources={"gpu": amount / 100}, deadline=1.0, timeout_s=1.0))
        if end == "cancel":
            bench.core.cancel(call, 0.0)
    if end == "expire":
        tick(bench, until=1.0)
    elif end == "sweep":
        bench.core.lose_node("n", "gone", 0.0)
        bench.take()
    assert len(dispatch._pools.all()) <= before + IDLE_POOLS
    assert all(len(lane.pools) <= 2 + IDLE_POOLS for place in dispatch.places.values() for lane in place.lanes)
    assert bench.core.dispatch.pending_calls in (0, 2)


def test_a_deadline_that_was_inherited_is_said_to_be_so() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call(deadline=1.0))
    tick(bench, until=1.0)
    assert "before the deadline of what it belongs to" in str(bench.error_of(call))
