"""A few seeds in every test run; that a seed replays exactly; and that the checks can fail: broken cores are caught."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiocluster.core import dispatch
from aiocluster.core.calls import Call
from aiocluster.core.coordinator import Coordinator
from aiocluster.core.dispatch import Dispatch
from aiocluster.core.inbox import Inbox
from aiocluster.core.link import LinkLedger
from aiocluster.core.places import WorkerPlace
from aiocluster.core.pools import OwnPool
from aiocluster.core.queues import CallQueue
from aiocluster.core.roster import Roster

from .clock import Violation
from .run import simulate

SEEDS = 150
STEPS = 5


@pytest.mark.parametrize("first", range(1, SEEDS + 1, SEEDS // STEPS))
def test_promises_hold(first: int) -> None:
    for seed in range(first, first + SEEDS // STEPS):
        try:
            simulate(seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}; replay it: python -m tests.sim --seed {seed} --trace")


def traced(seed: int) -> list[str]:
    lines: list[str] = []
    simulate(seed, lines.append)
    return lines


def test_seed_replays_exactly_and_tracing_changes_nothing() -> None:
    for seed in (3, 11, 25):
        first = traced(seed)
        assert first == traced(seed)
        assert len(first) > 20
        assert simulate(seed).world.now == simulate(seed, lambda line: None).world.now


def test_seed_replays_exactly_in_another_process_with_other_hashes() -> None:
    run = [sys.executable, "-m", "tests.sim", "--seed", "25", "--trace"]
    root = Path(__file__).parents[2]
    outputs = [
        subprocess.run(run, cwd=root, env={"PYTHONHASHSEED": salt}, capture_output=True, text=True, check=True).stdout
        for salt in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].endswith("s of virtual time)\n")


def test_seeds_see_every_kind_of_outcome() -> None:
    kinds = {spec.outcome[0] for seed in range(1, 81) for spec in simulate(seed).cluster.load.specs if spec.outcome is not None}
    assert kinds >= {
        "result",
        "error",
        "cancelled by the program",
        "WorkerLost",
        "CallTimeout",
        "Unschedulable",
        "Overloaded",
        "ClusterClosed",
    }


# --- broken cores ------------------------------------------------------------------------------------------------------------

Mutation = Callable[[pytest.MonkeyPatch], None]


def never_started(patch: pytest.MonkeyPatch) -> None:
    """Calls that had started when their worker ended are taken for ones that had not: they run twice."""
    patch.setattr(dispatch, "judge", lambda call, verdict: (False, False))


def all_started(patch: pytest.MonkeyPatch) -> None:
    """Calls that never started are lost with their worker."""
    patch.setattr(dispatch, "judge", lambda call, verdict: (True, False))


def drops_moved_calls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CallQueue, "append_left", lambda self, call: None)


def runs_again_unasked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "may_run_again", lambda self: True)


def accepts_results_twice(patch: pytest.MonkeyPatch) -> None:
    """A worker that sends what it does not hold is not dropped."""
    patch.setattr(Coordinator, "worker_misbehaved", lambda self, worker_id, reason, now: None)


def hears_the_dead(patch: pytest.MonkeyPatch) -> None:
    """A worker that is lost keeps its place: what it says later is accepted."""
    honest = Coordinator._lose_worker

    def lose(self: Coordinator, record: Any, verdict: Any, now: float) -> None:
        place = self.dispatch.places.get(record.id)
        inflight = {} if place is None else dict(place.inflight)
        honest(self, record, verdict, now)
        for call in inflight.values():
            if call.handle is not None:
                call.handle.resolve(0, b"", (), record.id)

    patch.setattr(Coordinator, "_lose_worker", lose)


def forgets_deadlines(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "expire", lambda self, now: self.deadlines.expire(now) and [])


def oversubscribes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WorkerPlace, "fits_now", lambda self, demand: True)


def believes_in_silent_nodes(patch: pytest.MonkeyPatch) -> None:
    honest = Coordinator.lose_node

    def lose(self: Coordinator, name: str, reason: str, now: float) -> None:
        if "heartbeat_timeout" not in reason:
            honest(self, name, reason, now)

    patch.setattr(Coordinator, "lose_node", lose)


def impatient_after_its_own_pause(patch: pytest.MonkeyPatch) -> None:
    honest = Coordinator.tick

    def tick(self: Coordinator, now: float) -> None:
        self._last_tick = max(self._last_tick, now - self._tick_s)
        honest(self, now)

    patch.setattr(Coordinator, "tick", tick)


def sends_again_what_arrived(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LinkLedger, "peer_received", lambda self, count: None)


def loses_a_frame_in_resuming(patch: pytest.MonkeyPatch) -> None:
    honest = LinkLedger.resume
    patch.setattr(LinkLedger, "resume", lambda self, received, now: honest(self, received, now)[:-1])


def starts_targeted_calls_in_any_order(patch: pytest.MonkeyPatch) -> None:
    honest = OwnPool.fill

    def fill(self: OwnPool, touched: Any, now: float) -> None:
        for line in self.queue._lines.values():
            line.reverse()
        honest(self, touched, now)

    patch.setattr(OwnPool, "fill", fill)


def forgets_that_a_call_waits(patch: pytest.MonkeyPatch) -> None:
    """A sync call that waits for another keeps its place."""
    patch.setattr(Dispatch, "yielded", lambda self, worker_id, call_id, waiting: True)


def gives_back_what_runs(patch: pytest.MonkeyPatch) -> None:
    honest = Inbox.recall

    def recall(self: Inbox, count: int) -> list[int]:
        running = [call.id for call in self.held.values() if call.started]
        return [*honest(self, count), *running[:1]]

    patch.setattr(Inbox, "recall", recall)


def leaks_nested_calls(patch: pytest.MonkeyPatch) -> None:
    def lose(self: Coordinator, record: Any, verdict: Any, now: float) -> None:
        nested = self._nested.get(record.id)
        honest(self, record, verdict, now)
        if nested:
            self._nested[record.id] = nested

    honest = Coordinator._lose_worker
    patch.setattr(Coordinator, "_lose_worker", lose)


def gives_ids_again(patch: pytest.MonkeyPatch) -> None:
    honest = Roster.new_worker

    def new(self: Roster, node: Any, now: float) -> Any:
        gone = [id for id in range(1, self._next_id) if id not in self.workers]
        if not gone:
            return honest(self, node, now)
        next_id, self._next_id = self._next_id, gone[0]
        record = honest(self, node, now)
        self._next_id = next_id
        return record

    patch.setattr(Roster, "new_worker", new)


def starts_before_it_is_prepared(patch: pytest.MonkeyPatch) -> None:
    """A worker that is not open takes calls that name it."""
    patch.setattr(OwnPool, "is_open", True)


def waits_for_workers_that_join(patch: pytest.MonkeyPatch) -> None:
    """What a preparation waits for may wait for that worker to be open."""
    patch.setattr(Dispatch, "preparing", lambda self, worker_id, parent: 0)


MUTATIONS: dict[Mutation, set[int | str]] = {
    never_started: {2},
    all_started: {2},
    drops_moved_calls: {1},
    runs_again_unasked: {2},
    accepts_results_twice: {6},
    hears_the_dead: {1},
    forgets_deadlines: {"deadline"},
    oversubscribes: {10},
    believes_in_silent_nodes: {4},
    impatient_after_its_own_pause: {4},
    sends_again_what_arrived: {5},
    loses_a_frame_in_resuming: {5},
    starts_targeted_calls_in_any_order: {8},
    forgets_that_a_call_waits: {1},
    gives_back_what_runs: {1, 2},
    leaks_nested_calls: {"bookkeeping"},
    gives_ids_again: {4},
    starts_before_it_is_prepared: {9},
    waits_for_workers_that_join: {1},
}
"""What breaks the core, and the promises of which one is seen to be broken."""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_broken_core_is_caught(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    broken: int | str | None = None
    for seed in range(1, 300):
        try:
            simulate(seed)
        except Violation as violation:
            broken = violation.promise
            break
    assert broken in MUTATIONS[mutation]
