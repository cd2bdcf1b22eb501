"""The coordinator: what becomes of calls when workers exit, retire, drain and come back, each rule by itself."""

from __future__ import annotations

from typing import TypeVar

import pytest

from aiocluster.config import Settings
from aiocluster.core.calls import Call, CallState
from aiocluster.core.coordinator import ALL, SETTLE_S
from aiocluster.core.effects import PublishEvent, ReleaseNode, ResolveCalls, RunJoinCalls, SendToNode, SendToWorker
from aiocluster.core.roster import WorkerState
from aiocluster.errors import Unschedulable, WorkerLost
from aiocluster.wire.messages import (
    CancelCalls,
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
)
from tests.unit.core.test_dispatch_found import TICK_S, Bench

TIMEOUT_S = Settings().heartbeat_timeout_s
M = TypeVar("M")


def effects(bench: Bench, kind: type[M]) -> list[M]:
    bench.take()
    return [one for one in bench.effects if isinstance(one, kind)]


def to_node(bench: Bench, kind: type[M]) -> list[M]:
    return [one.message for one in effects(bench, SendToNode) if isinstance(one.message, kind)]


def to_worker(bench: Bench, kind: type[M], id: int = 1) -> list[M]:
    return [one.message for one in effects(bench, SendToWorker) if one.worker_id == id and isinstance(one.message, kind)]


def result(bench: Bench, id: int, *calls: Call) -> None:
    ids = [call.id for call in calls]
    bench.core.results(id, Results(ids, bytes(len(ids)), [b""] * len(ids), [], []), (), bench.now)
    bench.take()


def resolved(bench: Bench) -> list[Call | None]:
    return [call for one in effects(bench, ResolveCalls) for call in one.calls]


def pass_time(bench: Bench, seconds: float) -> None:
    """The manager ticks on time, and hears the node each time."""
    until = bench.now + seconds
    while bench.now < until:
        bench.now += TICK_S
        bench.core.node_message("n", NodeBeat(1, {}, []), bench.now)
        bench.core.tick(bench.now)
        bench.take()


def test_calls_wait_for_the_replacement_of_the_last_worker() -> None:
    bench = Bench(1)
    running, waiting = bench.submit(bench.call()), bench.submit(bench.call())
    bench.exit(1, sync_started=running.serial)
    assert isinstance(bench.error_of(running), WorkerLost)
    assert bench.error_of(waiting) is None
    bench.join(2)
    assert bench.sent_to(waiting) == [2]


def test_link_of_an_exited_worker_is_read_to_its_end_before_its_calls_are_judged() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.exit(1, sync_started=call.serial, link_stays=True)
    result(bench, 1, call)
    bench.link_ends(1)
    assert resolved(bench) == [call]
    assert bench.error_of(call) is None
    assert bench.dropped() == [1]


def test_link_of_an_exited_worker_that_does_not_end_is_waited_for_so_long_only() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.exit(1, sync_started=call.serial, link_stays=True)
    pass_time(bench, SETTLE_S - TICK_S)
    assert bench.dropped() == []
    pass_time(bench, TICK_S)
    assert to_node(bench, KillWorker) == []
    error = bench.error_of(call)
    assert isinstance(error, WorkerLost)
    assert (error.cause, error.running) == ("crashed", True)


def test_exit_of_a_worker_whose_link_is_gone_already_is_judged_at_once() -> None:
    bench = Bench(1)
    done = bench.submit(bench.call())
    bench.link_ends(1)
    message = WorkerExited(1, "crashed", False, 1, 1, 0, 0, 0, [done.id, 99], b"\0\0", [b"box", b"?"])
    bench.core.node_message("n", message, bench.now)
    (outcome,) = effects(bench, ResolveCalls)
    assert (outcome.calls, outcome.payloads) == ([done], [b"box"])
    assert bench.dropped() == [1]


def test_exit_of_a_worker_that_never_joined_has_it_replaced_once() -> None:
    bench = Bench(0)
    bench.core.add_workers("n", 1, bench.now)
    for _ in range(2):
        bench.core.node_message("n", WorkerExited(1, "crashed", False, 0, 0, 0, 0, 0, [], b"", []), bench.now)
    assert to_node(bench, StartWorkers) == [StartWorkers([1]), StartWorkers([2])]


def test_worker_of_a_lost_node_is_judged_by_what_its_agent_has_said() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.exit(1, sync_started=call.serial, link_stays=True)
    bench.core.lose_node("n", "cut off", bench.now)
    bench.take()
    error = bench.error_of(call)
    assert isinstance(error, WorkerLost)
    assert error.cause == "crashed"


def test_late_words_of_a_worker_that_is_gone_are_ignored() -> None:
    bench = Bench(2)
    call = bench.submit(bench.call(workers=[1]))
    bench.exit(1)
    before = len(bench.effects)
    result(bench, 1, call)
    bench.core.returned(1, Returned([call.id]), bench.now)
    bench.core.yielded(1, call.id, True, bench.now)
    bench.core.worker_misbehaved(1, "late", bench.now)
    bench.core.worker_link_broken(1, bench.now)
    bench.core.worker_link_resumed(1, bench.now)
    bench.core.set_writable(1, False)
    bench.core.kill_worker(1, "late", bench.now)
    bench.core.retire(1, 1.0, bench.now)
    bench.core.open_worker(1, bench.now)
    assert len(bench.take()) == before


def test_broken_link_is_not_taken_for_lost_because_the_manager_was_absent() -> None:
    bench = Bench(2)
    pass_time(bench, 2.0)
    bench.core.worker_link_broken(1, bench.now)
    bench.now += 1000.0
    bench.core.tick(bench.now)
    assert bench.take()
    assert bench.dropped() == []
    pass_time(bench, TIMEOUT_S + TICK_S)
    assert bench.dropped() == [1]


def test_draining_worker_whose_link_is_back_takes_no_more_calls() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.core.retire(1, 60.0, bench.now)
    bench.link_ends(1)
    bench.core.worker_link_resumed(1, bench.now)
    bench.core.set_writable(1, True)
    assert not bench.core.dispatch.places[1].accepting
    result(bench, 1, call)
    assert to_worker(bench, Shutdown) == [Shutdown(0.0)]


def test_worker_that_was_retired_while_it_started_is_stopped_and_takes_nothing() -> None:
    bench = Bench(1)
    bench.core.add_workers("n", 1, bench.now)
    bench.core.retire(2, 30.0, bench.now)
    bench.core.worker_joined(2, 12, bench.now)
    bench.core.open_worker(2, bench.now)
    assert to_node(bench, StopWorker) == [StopWorker(2, 0.0)]
    assert RunJoinCalls(2) not in effects(bench, RunJoinCalls)
    assert bench.core.roster.workers[2].state is WorkerState.DRAINING
    assert isinstance(bench.core.submit(bench.call(workers=[2])), Unschedulable)


def test_call_that_the_last_worker_gives_back_as_it_is_retired_ends() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.core.retire(1, 60.0, bench.now)
    bench.core.returned(1, Returned([call.id]), bench.now)
    bench.take()
    assert isinstance(bench.error_of(call), Unschedulable)


@pytest.mark.parametrize(("first_s", "second_s"), [(60.0, 30.0), (30.0, 60.0)])
def test_worker_that_is_told_to_end_twice_has_the_shorter_grace(first_s: float, second_s: float) -> None:
    bench = Bench(2)
    bench.submit(bench.call(workers=[1]))
    bench.core.retire(1, first_s, bench.now)
    bench.core.node_message("n", NodeDraining("SIGTERM", second_s), bench.now)
    assert bench.core.roster.workers[1].drain_until == 30.0
    bench.core.retire(1, 10.0, bench.now)
    assert bench.core.roster.workers[1].drain_until == 10.0
    assert to_worker(bench, Recall) == [Recall(ALL)]
    assert bench.core.roster.nodes["n"].wanted == 0
    assert bench.core.roster.nodes["n"].leaving


def test_node_without_workers_that_drains_ends_at_once() -> None:
    bench = Bench(0)
    bench.core.node_message("n", NodeDraining("spot notice", 30.0), bench.now)
    assert to_node(bench, Shutdown) == [Shutdown(0.0)]
    assert effects(bench, ReleaseNode) == [ReleaseNode("n", "it has no workers any more")]


def test_killed_worker_is_replaced_and_its_calls_are_not_blamed() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call(idempotent=True))
    bench.core.kill_worker(1, "you said so", bench.now)
    bench.exit(1, sync_started=call.serial)
    assert call.kills == 0
    bench.join(2)
    assert bench.sent_to(call) == [1, 2]


def test_start_that_was_given_up_is_wanted_no_more_and_has_its_reason() -> None:
    bench = Bench(1)
    bench.core.add_workers("n", 1, bench.now)
    bench.core.node_message("n", StartGaveUp([2, 99], "no memory", []), bench.now)
    node = bench.core.roster.nodes["n"]
    assert (node.reason, node.wanted) == ("no memory", 1)
    assert [one.event.kind for one in effects(bench, PublishEvent)][-1] == "start_failed"


def test_waiting_sync_call_lets_the_next_one_be_sent() -> None:
    bench = Bench(1)
    outer, inner = bench.submit(bench.call()), bench.submit(bench.call(origin=1))
    assert bench.sent_to(inner) == []
    bench.core.yielded(1, outer.id, True, bench.now)
    bench.take()
    assert bench.sent_to(inner) == [1]


def test_nested_calls_that_have_ended_are_not_remembered() -> None:
    bench = Bench(2)
    done, late, withdrawn, kept = (
        bench.submit(bench.call(origin=1, workers=[2], is_async=True, deadline=deadline)) for deadline in (None, 0.5, None, None)
    )
    own = bench.submit(bench.call(workers=[2], is_async=True))
    result(bench, 2, own, done)
    bench.core.tick(0.5)
    bench.core.cancel(withdrawn, bench.now)
    told = len(to_worker(bench, CancelCalls, 2))
    bench.exit(1)
    assert to_worker(bench, CancelCalls, 2)[told:] == [CancelCalls([kept.id], False)]
    assert late.state is CallState.ABANDONED
