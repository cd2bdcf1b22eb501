"""What the simulation found in dispatch and the coordinator: each fault in its smallest form."""

from __future__ import annotations

from typing import Any

import pytest

from aiocluster.config import Settings
from aiocluster.core.calls import MAX_KILLS, Call, CallOptions
from aiocluster.core.coordinator import Coordinator
from aiocluster.core.effects import DropNode, DropWorker, Effect, EndCall, ResolveCalls, RunJoinCalls, SendToWorker
from aiocluster.errors import AioclusterError, CallTimeout, Unschedulable, WorkerLost
from aiocluster.wire.messages import Calls, Recall, Results, Returned, WorkerExited

TICK_S = 1.0


class Bench:
    """A coordinator with one node, and its effects as they come."""

    def __init__(self, workers: int, settings: Settings | None = None) -> None:
        self.now = 0.0
        self.core = Coordinator(settings or Settings(), self.now)
        self.effects: list[Effect] = []
        self.core.expect_node("n", workers, {"gpu": 1.0}, self.now)
        self.core.node_joined("n", "host", 1, self.now)
        self._calls = 0
        self.take()
        for id in range(1, workers + 1):
            self.join(id)

    def take(self) -> list[Effect]:
        """Perform what can be performed, until there is nothing more."""
        self.core.assign(self.now)
        while new := self.core.take_effects():
            self.effects.extend(new)
            for effect in new:
                if isinstance(effect, RunJoinCalls):
                    self.core.open_worker(effect.worker_id, self.now)
            self.core.assign(self.now)
        return self.effects

    def join(self, id: int) -> None:
        self.core.worker_joined(id, 100 + id, self.now)
        self.take()

    def call(self, *, is_async: bool = False, origin: int = 0, deadline: float | None = None, **options: Any) -> Call:
        self._calls += 1
        name = f"f{self._calls}"
        entry = self.core.functions.intern(name.encode().ljust(16), b"", name, is_async)
        if "workers" in options:
            options["workers"] = frozenset(options["workers"])
        call = Call(self._calls, entry, b"", (), CallOptions(**options), origin=origin)
        call.deadline = deadline
        return call

    def submit(self, call: Call) -> Call:
        assert self.core.submit(call) is None
        self.take()
        return call

    def sent_to(self, call: Call) -> list[int]:
        return [
            effect.worker_id
            for effect in self.effects
            if isinstance(effect, SendToWorker) and isinstance(effect.message, Calls) and call.id in effect.message.ids
        ]

    def error_of(self, call: Call) -> AioclusterError | None:
        errors = [effect.ended.error for effect in self.effects if isinstance(effect, EndCall) and effect.ended.call is call]
        assert len(errors) <= 1
        return errors[0] if errors else None

    def dropped(self) -> list[int]:
        return [effect.worker_id for effect in self.effects if isinstance(effect, DropWorker)]

    def exit(self, id: int, *, sync_started: int = 0, sync_finished: int = 0, async_started: int = 0, **box: Any) -> None:
        """The worker crashed: its link ends, its agent says how far it had come."""
        ids = box.get("ids", [])
        message = WorkerExited(
            id, "crashed", False, sync_started, sync_finished, async_started, 0, 0, ids, bytes(len(ids)), [b"box"] * len(ids)
        )
        self.core.node_message("n", message, self.now)
        if not box.get("link_stays"):
            self.link_ends(id)
        self.take()

    def link_ends(self, id: int) -> None:
        self.core.worker_link_broken(id, self.now)
        self.take()


def test_call_for_some_workers_moves_to_another_of_them_after_the_pool_had_run_empty() -> None:
    bench = Bench(2)
    call = bench.submit(bench.call(workers=[1, 2]))
    (holder,) = bench.sent_to(call)
    bench.exit(holder)
    assert bench.sent_to(call) == [holder, 3 - holder]


def test_returned_call_for_some_workers_is_placed_again_after_the_pool_had_run_empty() -> None:
    bench = Bench(2)
    call = bench.submit(bench.call(workers=[1, 2]))
    (holder,) = bench.sent_to(call)
    bench.core.returned(holder, Returned([call.id]), bench.now)
    bench.take()
    assert len(bench.sent_to(call)) == 2


def test_returned_calls_find_the_pool_that_has_taken_the_place_of_theirs() -> None:
    bench = Bench(1, Settings(window_calls=1))
    old = bench.submit(bench.call(workers=[1, 9]))
    new = bench.submit(bench.call(workers=[1, 9]))  # waits in a pool of its own
    bench.core.returned(1, Returned([old.id]), bench.now)
    bench.take()
    assert old.pool is new.pool
    assert bench.sent_to(old) == [1, 1]


def test_call_for_lost_workers_does_not_wait_for_others_that_are_on_their_way() -> None:
    bench = Bench(2)
    bench.core.set_launching(True)
    blocker = [bench.submit(bench.call(workers=[id])) for id in (1, 2)]
    call = bench.submit(bench.call(workers=[1, 2]))
    bench.exit(1)
    assert bench.error_of(call) is None
    bench.exit(2)
    assert isinstance(bench.error_of(call), Unschedulable)
    assert all(isinstance(bench.error_of(one), WorkerLost) for one in blocker)


def test_call_for_one_worker_that_may_have_run_is_not_said_never_to_have() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call(workers=[1], retries=3))
    bench.exit(1, sync_started=call.serial)
    error = bench.error_of(call)
    assert isinstance(error, WorkerLost)
    assert error.maybe_executed


@pytest.mark.parametrize("is_async", [False, True])
def test_idempotent_call_that_kills_its_workers_is_blamed(is_async: bool) -> None:
    bench = Bench(1)
    call = bench.submit(bench.call(is_async=is_async, idempotent=True))
    for id in range(1, MAX_KILLS + 1):
        assert bench.error_of(call) is None
        assert bench.sent_to(call)[-1] == id
        bench.exit(id, sync_started=0 if is_async else call.serial, async_started=call.serial if is_async else 0)
        if id < MAX_KILLS:
            bench.join(id + 1)
    error = bench.error_of(call)
    assert isinstance(error, WorkerLost)
    assert "blamed" in str(error)


def test_async_call_is_not_blamed_for_a_sync_call_that_was_running() -> None:
    bench = Bench(1)
    bystander = bench.submit(bench.call(is_async=True, idempotent=True))
    for id in range(1, MAX_KILLS + 2):
        killer = bench.submit(bench.call())
        bench.exit(id, sync_started=killer.serial, async_started=bystander.serial)
        bench.join(id + 1)
    assert bench.error_of(bystander) is None


def test_call_whose_nested_calls_kill_its_worker_is_blamed() -> None:
    bench = Bench(1)
    outer = bench.submit(bench.call(is_async=True, idempotent=True))
    for id in range(1, MAX_KILLS + 1):
        assert bench.error_of(outer) is None
        nested = bench.submit(bench.call(origin=id))
        bench.exit(id, sync_started=nested.serial, async_started=outer.serial)
        if id < MAX_KILLS:
            bench.join(id + 1)
    assert isinstance(bench.error_of(outer), WorkerLost)


def test_call_that_is_out_of_time_keeps_its_deadline_for_the_calls_it_makes() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call(deadline=0.5, timeout_s=0.5))
    bench.now = 0.6
    bench.core.tick(bench.now)
    bench.take()
    assert isinstance(bench.error_of(call), CallTimeout)
    assert bench.core.dispatch.places[1].inflight[call.id].deadline == 0.5
    bench.core.results(1, Results([call.id], b"\x02", [b""], [], []), (), bench.now)
    assert bench.core.dispatch.deadlines.dead == 0


def test_cancelled_call_keeps_its_deadline_after_it_has_passed() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call(deadline=0.5, timeout_s=0.5))
    bench.core.cancel(call, bench.now)
    bench.core.tick(0.6)
    assert call.deadline == 0.5
    assert bench.core.dispatch.next_deadline is None


def test_nested_call_for_a_worker_is_not_held_up_behind_the_programs_own() -> None:
    bench = Bench(1, Settings(async_calls=1))
    bench.submit(bench.call(is_async=True, workers=[1]))
    bench.submit(bench.call(is_async=True, workers=[1]))  # waits: the lane is full
    nested = bench.submit(bench.call(is_async=True, workers=[1], origin=1))
    assert bench.sent_to(nested) == [1]
    assert bench.core.dispatch.waiting_calls == 1


def test_nested_calls_for_a_lost_worker_end_with_it() -> None:
    bench = Bench(2, Settings(window_calls=1))
    running = bench.submit(bench.call(workers=[1]))
    nested = bench.submit(bench.call(workers=[1], origin=2))
    assert bench.sent_to(nested) == []
    bench.exit(1, sync_started=running.serial)
    error = bench.error_of(nested)
    assert isinstance(error, WorkerLost)
    assert not error.maybe_executed


def test_calls_that_wait_for_a_worker_that_is_retired_end_at_once() -> None:
    bench = Bench(2)
    running = bench.submit(bench.call(workers=[1]))
    waiting = bench.submit(bench.call(workers=[1]))
    bench.core.retire(1, float("inf"), bench.now)
    bench.take()
    assert isinstance(bench.error_of(waiting), Unschedulable)
    assert bench.error_of(running) is None
    assert isinstance(bench.core.submit(bench.call(workers=[1])), Unschedulable)


def test_call_for_workers_that_are_ending_does_not_wait_for_others() -> None:
    bench = Bench(2)
    bench.core.set_launching(True)
    for id in (1, 2):
        bench.submit(bench.call(workers=[id]))
        bench.core.retire(id, float("inf"), bench.now)
    assert isinstance(bench.core.submit(bench.call(workers=[1, 2])), Unschedulable)


def test_result_that_is_in_the_recorder_and_on_the_link_counts_once_and_harms_nobody() -> None:
    bench = Bench(1)
    first = bench.submit(bench.call())
    second = bench.submit(bench.call(is_async=True))
    bench.exit(1, sync_started=first.serial, sync_finished=first.serial, ids=[first.id], link_stays=True)
    bench.core.results(1, Results([first.id], b"\0", [b"link"], [], []), (), bench.now)
    bench.take()
    assert bench.dropped() == []
    bench.link_ends(1)
    bench.join(2)
    assert [call for effect in bench.effects if isinstance(effect, ResolveCalls) for call in effect.calls] == [first, None]
    assert bench.sent_to(second) == [1, 2]


def test_dead_worker_that_breaks_the_protocol_is_judged_by_its_recorder() -> None:
    bench = Bench(1)
    call = bench.submit(bench.call())
    bench.exit(1, link_stays=True)
    bench.core.returned(1, Returned([999]), bench.now)
    bench.take()
    bench.join(2)
    assert bench.sent_to(call) == [1, 2]


def test_node_that_dies_after_a_pause_of_the_manager_is_lost_in_time() -> None:
    bench = Bench(1)
    bench.core.tick(TICK_S)
    bench.now = 31.0
    bench.core.node_link_resumed("n", bench.now)  # heard first, then the timer comes
    bench.core.tick(bench.now)
    at = bench.now
    while not any(isinstance(effect, DropNode) for effect in bench.take()):
        bench.now += TICK_S
        bench.core.tick(bench.now)
        assert bench.now < at + Settings().heartbeat_timeout_s + 2 * TICK_S


def test_broken_link_after_a_pause_of_the_manager_has_the_usual_time_to_come_back() -> None:
    bench = Bench(1)
    bench.core.tick(TICK_S)
    bench.now = 31.0
    bench.core.worker_link_broken(1, bench.now)
    bench.core.tick(bench.now)
    assert bench.core.roster.workers[1].settle_at == bench.now + Settings().heartbeat_timeout_s


def stacked(bench: Bench, *, count: int = 3, **options: Any) -> list[Call]:
    """Calls that worker 1 holds one behind the other, while worker 2 has nothing to do."""
    calls = []
    for _ in range(count):
        call = bench.call(**options)
        call.function.estimate_s = 1e-4
        calls.append(bench.submit(call))
    assert [bench.sent_to(call) for call in calls] == [[1]] * count
    return calls


def recalls(bench: Bench, seconds: float = 0.0) -> int:
    """How often worker 1 has been asked to give calls back, after that time."""
    bench.now += seconds
    bench.take()
    for place, count in bench.core.dispatch.recalls(bench.now):
        bench.effects.append(SendToWorker(place.id, Recall(count)))
    return sum(1 for effect in bench.effects if isinstance(effect, SendToWorker) and isinstance(effect.message, Recall))


def test_worker_that_has_nothing_to_give_back_is_asked_again_only_when_it_was_sent_more() -> None:
    bench = Bench(2)
    stacked(bench, workers=[1])
    assert recalls(bench, 0.01) == 1
    bench.core.returned(1, Returned([]), bench.now)
    assert recalls(bench, 5.0) == 1
    stacked(bench, count=1, workers=[1])
    assert recalls(bench, 0.01) == 2


def test_call_that_was_sent_while_the_worker_gave_its_answer_can_be_asked_for() -> None:
    bench = Bench(2)
    stacked(bench, workers=[1])
    assert recalls(bench, 0.01) == 1
    stacked(bench, count=1, workers=[1])
    bench.core.returned(1, Returned([]), bench.now)
    assert recalls(bench, 0.01) == 2


def test_worker_whose_calls_nobody_else_may_take_is_asked_ever_more_rarely() -> None:
    bench = Bench(2)
    calls = stacked(bench, workers=[1, 9])
    asked = 0
    for _ in range(10_000):
        now_asked = recalls(bench, 0.001)
        if now_asked > asked:
            asked = now_asked
            bench.core.returned(1, Returned([calls[-1].id]), bench.now)
    assert 10 < asked < 25


def test_recall_that_helped_is_followed_by_another_at_once() -> None:
    bench = Bench(2)
    bench.core.dispatch.set_accepting(2, False)
    calls = stacked(bench, count=8)
    bench.core.dispatch.set_accepting(2, True)
    assert recalls(bench, 0.01) == 1
    bench.core.returned(1, Returned([call.id for call in calls[4:]]), bench.now)
    bench.take()
    moved = [call.id for call in calls if bench.sent_to(call)[-1] == 2]
    assert len(moved) >= 2
    bench.core.results(2, Results(moved, bytes(len(moved)), [b""] * len(moved), [], []), (), bench.now)
    assert recalls(bench) == 2


def test_what_is_remembered_of_recalls_ends_with_the_worker() -> None:
    bench = Bench(2)
    stacked(bench, workers=[1])
    recalls(bench, 0.01)
    bench.core.returned(1, Returned([]), bench.now)
    bench.exit(1)
    assert not bench.core.dispatch._recalls.vain
    assert not bench.core.dispatch._recalls.asked
