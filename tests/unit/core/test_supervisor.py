"""The life of worker processes and of their node: the rules one by one, then any order of events."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiocluster.core.supervisor import (
    TRANSITIONS,
    Effect,
    EndNode,
    ForkWorker,
    KillProcess,
    ProcessState,
    Send,
    Supervisor,
    SupervisorLimits,
)
from aiocluster.wire.messages import NodeDraining, StartGaveUp, WorkerExited, WorkerStarted

LIMITS = SupervisorLimits()


class Reading(NamedTuple):
    sync_started: int = 0
    sync_finished: int = 0
    async_started: int = 0
    item: int = 0
    item_call: int = 0
    results: tuple[tuple[int, int, bytes], ...] = ()


def supervisor(now: float = 0.0, **limits: Any) -> Supervisor:
    return Supervisor(SupervisorLimits(**limits), now)


def running(*worker_ids: int, **limits: Any) -> Supervisor:
    """A supervisor whose workers run, with pids of a hundred times their ids."""
    one = supervisor(**limits)
    one.start_workers(worker_ids, 0.0)
    for worker_id in worker_ids:
        one.forked(worker_id, 100 * worker_id, 0.0)
    return one


def exited(one: Supervisor, worker_id: int, now: float, cause: str = "exited with code 1") -> list[Effect]:
    return one.exited(worker_id, cause, None, last_lines=["its last words"], now=now)


def said(effects: list[Effect]) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def crash_while_starting(one: Supervisor, first_id: int, times: int, now: float) -> float:
    """Start workers one after the other that die at once; when the last one has died."""
    for worker_id in range(first_id, first_id + times):
        effects = one.start_workers([worker_id], now)
        if not effects:
            now = one.deadline
            effects = one.tick(now)
        assert effects == [ForkWorker(worker_id)]
        one.forked(worker_id, 100 * worker_id, now)
        exited(one, worker_id, now)
    return now


# --- starting ------------------------------------------------------------------------------------------------------------


def test_workers_are_forked_at_once_and_their_pids_told() -> None:
    one = supervisor()
    assert one.start_workers([1, 2], 0.0) == [ForkWorker(1), ForkWorker(2)]
    assert one.forked(1, 71, 0.1) == [Send(WorkerStarted(1, 71))]
    assert one.forked(2, 72, 0.1) == [Send(WorkerStarted(2, 72))]
    assert {process.state for process in one.processes.values()} == {ProcessState.RUNNING}


def test_an_id_that_is_there_already_is_not_forked_again() -> None:
    assert running(1).start_workers([1], 0.0) == []


def test_replacements_of_workers_that_die_at_their_start_are_delayed_twice_as_long_each_time() -> None:
    one = supervisor(give_up_after=100)
    now, delays = 0.0, []
    for worker_id in range(1, 10):
        crash_while_starting(one, worker_id, 1, now)
        now = max(now, one.processes[worker_id].due) if worker_id in one.processes else now
        one.start_workers([worker_id + 100], now)
        delays.append(round(one.processes[worker_id + 100].due - now, 3))
        one.stop_worker(worker_id + 100, 0.0, now)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_after_five_crashes_in_a_row_the_reason_and_last_lines_are_told() -> None:
    one = supervisor()
    now = crash_while_starting(one, 1, 5, 0.0)
    (message,) = said(one.start_workers([6], now))
    assert message == StartGaveUp(
        [6], "5 workers in a row ended while they were starting; the last one exited with code 1", ["its last words"]
    )
    assert not one.processes


def test_workers_that_wait_are_given_up_with_the_fifth_crash() -> None:
    one = supervisor()
    now = crash_while_starting(one, 1, 4, 0.0)
    one.start_workers([5], now)
    now = one.deadline
    assert one.tick(now) == [ForkWorker(5)]
    assert one.start_workers([6, 7], now) == []
    gave_up = said(exited(one, 5, now))[1]
    assert isinstance(gave_up, StartGaveUp)
    assert gave_up.worker_ids == [6, 7]


def test_replacements_that_are_asked_for_soon_after_giving_up_are_given_up_too() -> None:
    one = running(*range(1, 9))
    for worker_id in range(1, 9):
        exited(one, worker_id, 0.1)
    for worker_id in range(9, 17):
        (message,) = said(one.start_workers([worker_id], 0.2))
        assert isinstance(message, StartGaveUp)
    assert one.start_workers([17], 0.2 + LIMITS.longest_delay_s) == [ForkWorker(17)]


def test_a_worker_that_joins_ends_the_row_of_crashes() -> None:
    one = supervisor()
    now = crash_while_starting(one, 1, 4, 0.0)
    one.start_workers([5], now)
    now = one.deadline
    one.tick(now)
    one.forked(5, 500, now)
    one.joined(5, now)
    one.joined(5, now)
    now = crash_while_starting(one, 6, 4, now)
    assert one.start_workers([10], now) == []
    assert one.processes[10].due == now + LIMITS.longest_delay_s  # of those that came to nothing it was one


def end_after_joining(one: Supervisor, worker_id: int, now: float, lives_s: float, reading: Reading | None = None) -> float:
    """A worker is started, joins and ends by itself so much later; how long it had to wait to be forked."""
    one.heard(now)
    effects = one.start_workers([worker_id], now)
    delay = one.processes[worker_id].due - now
    if not effects:
        now += delay
        effects = one.tick(now)
    assert effects == [ForkWorker(worker_id)]
    one.forked(worker_id, 100 * worker_id, now)
    one.joined(worker_id, now)
    one.exited(worker_id, "killed by signal 11", reading, last_lines=[], now=now + lives_s)
    return round(delay, 3)


def test_replacements_of_workers_that_end_soon_after_joining_are_delayed_more_and_more_and_not_given_up() -> None:
    one, now, delays = supervisor(), 0.0, []
    for worker_id in range(1, 11):
        delays.append(end_after_joining(one, worker_id, now, 0.5))
        now += delays[-1] + 0.5
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_a_worker_that_has_lasted_or_finished_a_call_ends_the_row_of_those_that_came_to_nothing() -> None:
    for lives_s, reading in ((LIMITS.settled_after_s, Reading()), (0.5, Reading(sync_started=2, sync_finished=1))):
        one = supervisor()
        assert [end_after_joining(one, worker_id, 0.0, 0.0, Reading()) for worker_id in (1, 2, 3)] == [0.0, 0.1, 0.2]
        assert end_after_joining(one, 4, 1.0, lives_s, reading) == 0.4
        assert one.start_workers([5], 1.4 + lives_s) == [ForkWorker(5)]


def test_a_row_of_workers_that_came_to_nothing_is_forgotten_after_a_while() -> None:
    one = supervisor()
    assert [end_after_joining(one, worker_id, 0.0, 0.0) for worker_id in (1, 2, 3)] == [0.0, 0.1, 0.2]
    assert end_after_joining(one, 4, 100.0, 0.0) == 0.0
    assert end_after_joining(one, 5, 100.0, 0.0) == 0.1
    one.start_workers([6], 100.1)
    one.tick(100.3)
    one.forked(6, 600, 100.3)
    one.heard(200.0)
    one.joined(6, 200.0)  # it took its time
    exited(one, 6, 200.0)
    assert end_after_joining(one, 7, 200.0, 0.0) == 0.1  # the first of a new row


def test_the_end_of_a_worker_that_was_told_to_end_is_no_crash_at_its_start() -> None:
    one = running(1, 2)
    one.stop_worker(1, 5.0, 0.0)
    one.kill_worker(2, "it is in the way", 0.0)
    exited(one, 1, 0.0)
    exited(one, 2, 0.0)
    assert one.start_workers([3], 0.0) == [ForkWorker(3)]


# --- ending --------------------------------------------------------------------------------------------------------------


def test_an_exit_is_told_with_what_the_flight_recorder_says() -> None:
    one = running(1)
    reading = Reading(9, 8, 7, 6, 5, ((11, 0, b"a"), (12, 1, b"b")))
    assert said(one.exited(1, "killed by signal 9 (SIGKILL)", reading, last_lines=[], now=1.0)) == [
        WorkerExited(1, "killed by signal 9 (SIGKILL)", False, 9, 8, 7, 6, 5, [11, 12], b"\x00\x01", [b"a", b"b"])
    ]


def test_a_worker_that_ends_within_its_grace_is_not_killed_and_expected() -> None:
    one = running(1)
    assert one.stop_worker(1, 5.0, 1.0) == []
    assert one.deadline == 6.0
    assert one.tick(5.9) == []
    (message,) = said(exited(one, 1, 5.9, "exited with code 0"))
    assert message.expected


def test_a_worker_that_does_not_end_within_its_grace_is_killed() -> None:
    one = running(1)
    one.stop_worker(1, 5.0, 1.0)
    assert one.tick(6.0) == [KillProcess(1)]
    assert one.processes[1].kill_reason == "it did not end within its grace"
    assert one.tick(7.0) == []


def test_a_shorter_grace_counts_and_a_longer_one_does_not() -> None:
    one = running(1)
    one.stop_worker(1, 5.0, 0.0)
    one.stop_worker(1, 60.0, 0.0)
    assert one.deadline == 5.0
    one.stop_worker(1, 2.0, 0.0)
    assert one.deadline == 2.0


def test_a_killed_worker_keeps_the_reason_it_was_killed_for() -> None:
    one = running(1)
    one.stop_worker(1, 0.5, 0.0)
    assert one.kill_worker(1, "its call was cancelled by force", 0.1) == [KillProcess(1)]
    assert one.stop_worker(1, 0.0, 0.2) == []
    assert one.tick(1.0) == []
    assert one.processes[1].kill_reason == "its call was cancelled by force"


def test_a_worker_that_waits_to_be_forked_is_stopped_or_killed_without_a_process() -> None:
    one = supervisor()
    now = crash_while_starting(one, 1, 1, 0.0)
    one.start_workers([2, 3], now)
    for message in said(one.stop_worker(2, 5.0, now)) + said(one.kill_worker(3, "away", now)):
        assert (message.cause, message.expected) == ("it had not been started", True)
    assert not one.processes


def test_a_worker_that_is_killed_while_it_is_forked_is_killed_when_it_exists() -> None:
    one = supervisor()
    one.start_workers([1], 0.0)
    assert one.kill_worker(1, "away", 0.0) == []
    assert one.forked(1, 100, 0.1) == [Send(WorkerStarted(1, 100)), KillProcess(1)]


def test_a_worker_that_is_stopped_while_it_is_forked_is_stopping_when_it_exists() -> None:
    one = supervisor()
    one.start_workers([1], 0.0)
    one.stop_worker(1, 1.0, 0.0)
    assert one.forked(1, 100, 0.1) == [Send(WorkerStarted(1, 100))]
    assert one.tick(1.0) == [KillProcess(1)]


def test_what_is_said_of_an_unknown_worker_changes_nothing() -> None:
    one = supervisor()
    assert one.stop_worker(9, 1.0, 0.0) == []
    assert one.kill_worker(9, "away", 0.0) == []
    assert one.forked(9, 900, 0.0) == []
    assert exited(one, 9, 0.0) == []
    one.joined(9, 0.0)
    assert not one.processes


# --- the node ------------------------------------------------------------------------------------------------------------


def test_a_node_without_workers_ends_when_it_is_told() -> None:
    assert supervisor().shutdown(5.0, 0.0) == [EndNode(0, "the manager ended this node")]


def test_a_node_ends_with_its_last_worker_and_starts_no_more() -> None:
    one = running(1, 2)
    assert one.shutdown(5.0, 0.0) == []
    assert one.start_workers([3], 0.0) == []
    assert EndNode not in map(type, exited(one, 1, 1.0))
    assert exited(one, 2, 1.0)[-1] == EndNode(0, "the manager ended this node")
    assert one.shutdown(0.0, 1.0) == []


def test_workers_that_outlive_the_grace_of_a_shutdown_are_killed() -> None:
    one = running(1)
    one.shutdown(5.0, 0.0)
    assert one.tick(5.0) == [KillProcess(1)]


def test_a_node_that_is_told_to_end_by_its_system_drains_until_the_manager_ends_it() -> None:
    one = running(1)
    assert one.terminate("SIGTERM", 1.0, connected=True) == [Send(NodeDraining("SIGTERM", LIMITS.drain_grace_s))]
    assert one.terminate("a spot notice", 1.0, connected=True, grace_s=115.0) == []
    one.stop_worker(1, 5.0, 2.0)
    exited(one, 1, 3.0)
    assert one.shutdown(0.0, 3.0) == [EndNode(0, "SIGTERM")]


def test_a_second_word_that_leaves_less_time_counts() -> None:
    one = running(1, drain_grace_s=10.0)
    assert one.terminate("a spot notice", 0.0, connected=True, grace_s=115.0) == [Send(NodeDraining("a spot notice", 115.0))]
    one.heard(100.0)
    assert one.terminate("SIGTERM", 100.0, connected=True) == [Send(NodeDraining("SIGTERM", 10.0))]
    assert one.deadline == 110.0


def test_a_node_that_drains_kills_its_workers_when_the_grace_is_over() -> None:
    one = running(1, drain_grace_s=10.0)
    one.terminate("SIGTERM", 0.0, connected=True)
    assert one.deadline == 10.0
    assert one.tick(10.0) == [KillProcess(1)]
    assert exited(one, 1, 10.1)[-1] == EndNode(0, "SIGTERM")


def test_a_node_that_nobody_can_be_told_of_ends_its_workers_at_once() -> None:
    one = running(1)
    assert one.terminate("SIGTERM", 0.0, connected=False) == [KillProcess(1)]
    assert exited(one, 1, 0.1)[-1] == EndNode(0, "SIGTERM")


def test_a_node_whose_manager_is_gone_kills_what_runs_and_ends_at_once() -> None:
    one = running(1, 2)
    exited(one, 1, 0.0)
    one.start_workers([3], 0.0)
    assert one.processes[3].state is ProcessState.WAITING
    assert one.manager_gone("its address refuses") == [KillProcess(2), EndNode(1, "its address refuses")]
    assert list(one.processes) == [2]
    assert one.manager_gone("its address refuses") == [KillProcess(2)]


def test_a_silent_manager_makes_an_orphan_after_the_timeout_and_not_before() -> None:
    one = running(1, orphan_timeout_s=60.0)
    one.heard(10.0)
    one.heard(5.0)
    assert one.deadline == 70.0
    assert one.tick(69.9) == []
    assert one.tick(70.0) == [KillProcess(1), EndNode(1, "the manager has been silent for 60 s (orphan_timeout)")]


@pytest.mark.parametrize("state", ProcessState)
def test_no_event_leads_back_to_an_earlier_state(state: ProcessState) -> None:
    order = list(ProcessState)
    for (before, _event), after in TRANSITIONS.items():
        if before is state:
            assert order.index(after) >= order.index(before)


# --- any order of events -------------------------------------------------------------------------------------------------


class AnyNode(RuleBasedStateMachine):
    """A manager, a fork server and a system that do what they like: each worker has one end, and the node has one."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.one = supervisor()
        self.next_id = 1
        self.asked: set[int] = set()
        self.over: set[int] = set()
        self.forking: list[int] = []
        self.alive: list[int] = []
        self.to_be_killed: set[int] = set()
        self.ended: EndNode | None = None
        self.orphaned = False

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ForkWorker(worker_id):
                    assert worker_id not in self.forking + self.alive
                    self.forking.append(worker_id)
                case KillProcess(worker_id):
                    assert worker_id in self.alive
                    self.to_be_killed.add(worker_id)
                case EndNode():
                    assert self.ended is None
                    self.ended = effect
                case Send(message):
                    for worker_id in (
                        message.worker_ids
                        if isinstance(message, StartGaveUp)
                        else [message.worker_id]
                        if isinstance(message, WorkerExited)
                        else []
                    ):
                        assert worker_id in self.asked
                        assert worker_id not in self.over
                        self.over.add(worker_id)

    @property
    def some_id(self) -> Any:
        return st.integers(1, max(1, self.next_id))

    @rule(count=st.integers(1, 3))
    def start(self, count: int) -> None:
        ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        effects = self.one.start_workers(ids, self.now)
        if set(ids) & self.one.processes.keys() or effects:
            self.asked.update(ids)
        self.perform(effects)

    @rule(data=st.data(), grace_s=st.sampled_from([0.0, 1.0, 30.0]))
    def stop(self, data: st.DataObject, grace_s: float) -> None:
        self.perform(self.one.stop_worker(data.draw(self.some_id), grace_s, self.now))

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.perform(self.one.kill_worker(data.draw(self.some_id), "away", self.now))

    @precondition(lambda self: self.forking)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        worker_id = data.draw(st.sampled_from(self.forking))
        self.forking.remove(worker_id)
        self.alive.append(worker_id)
        self.perform(self.one.forked(worker_id, 100 * worker_id, self.now))

    @precondition(lambda self: self.forking)
    @rule(data=st.data())
    def fail_to_fork(self, data: st.DataObject) -> None:
        worker_id = data.draw(st.sampled_from(self.forking))
        self.forking.remove(worker_id)
        self.perform(exited(self.one, worker_id, self.now, "could not be forked"))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        self.one.joined(data.draw(st.sampled_from(self.alive)), self.now)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        worker_id = data.draw(st.sampled_from(self.alive))
        self.alive.remove(worker_id)
        self.to_be_killed.discard(worker_id)
        self.perform(exited(self.one, worker_id, self.now))

    @rule(connected=st.booleans())
    def terminate(self, connected: bool) -> None:
        self.perform(self.one.terminate("SIGTERM", self.now, connected=connected))

    @rule(grace_s=st.sampled_from([0.0, 5.0]))
    def shut_down(self, grace_s: float) -> None:
        self.perform(self.one.shutdown(grace_s, self.now))

    @rule()
    def hear(self) -> None:
        self.one.heard(self.now)

    @rule(seconds=st.sampled_from([0.05, 0.5, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        """Time goes on, and the node looks at the clock as late as it said it needs to."""
        until = self.now + seconds
        while self.one.deadline <= until and self.ended is None:
            self.now = max(self.now, self.one.deadline)
            before = self.one.deadline
            self.perform(self.one.tick(self.now))
            assert self.ended is not None or self.one.deadline > before or self.one.deadline > self.now
        self.now = until

    @invariant()
    def each_worker_has_one_end(self) -> None:
        if self.ended is None or self.ended.code == 0:
            assert self.asked - self.over == self.one.processes.keys()

    @invariant()
    def a_node_that_ended_in_order_has_no_processes(self) -> None:
        if self.ended is not None and self.ended.code == 0:
            assert not self.forking
            assert not self.alive

    @invariant()
    def who_is_to_be_killed_is_known_as_killed(self) -> None:
        for worker_id in self.to_be_killed:
            assert self.one.processes[worker_id].state is ProcessState.KILLED


AnyNode.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyNode = AnyNode.TestCase
