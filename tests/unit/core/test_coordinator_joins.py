"""Nodes and workers that come and do not come: what waits for them, and what is remembered of those that went."""

from __future__ import annotations

import pytest

from aiocluster.config import Settings
from aiocluster.core.coordinator import GIVE_UP_AFTER, Coordinator
from aiocluster.core.effects import PublishEvent, SendToNode
from aiocluster.core.roster import GONE_KEPT, NodeState, WorkerState
from aiocluster.errors import Unschedulable, WorkerLost
from aiocluster.wire.messages import NodeDraining, StartGaveUp, StartWorkers, WorkerExited

from .test_dispatch_found import Bench


def die(core: Coordinator, id: int, cause: str = "killed by signal 11", *, expected: bool = False) -> None:
    """The worker ends by itself, and its link with it."""
    core.worker_link_broken(id, 0.0)
    core.node_message("n", WorkerExited(id, cause, expected, 0, 0, 0, 0, 0, [], b"", []), 0.0)


def started(core: Coordinator) -> list[int]:
    """Ids of the workers that nodes were told to start since the last look."""
    return [
        id
        for effect in core.take_effects()
        if isinstance(effect, SendToNode) and isinstance(effect.message, StartWorkers)
        for id in effect.message.worker_ids
    ]


def node(workers: int) -> Coordinator:
    """A node that has been told to start its workers."""
    core = Coordinator(Settings(), 0.0)
    core.expect_node("n", workers, {}, 0.0)
    core.node_joined("n", "host", 1, 0.0)
    assert len(started(core)) == workers
    return core


# --- workers that die of what prepares them ------------------------------------------------------------------------------


def test_a_node_whose_workers_die_of_what_prepares_them_is_given_up_with_the_reason() -> None:
    core = node(1)
    id, forks = 1, 1
    reasons: list[str] = []
    while id in core.roster.workers:
        core.worker_joined(id, 100, 0.0)
        core.take_effects()
        die(core, id)
        reasons = [one.event.text for one in core.effects if isinstance(one, PublishEvent) and one.event.kind == "start_failed"]
        new = started(core)
        forks += len(new)
        id += 1
    assert forks == GIVE_UP_AFTER
    assert reasons == [
        "5 workers in a row ended while what must run when a worker joins ran on them; the last one killed by signal 11"
    ]
    gone = core.roster.nodes["n"]
    assert (gone.reason, gone.wanted, gone.state) == (reasons[0], 0, NodeState.DRAINING)
    assert not core.roster.expecting


def test_all_workers_of_a_node_that_die_of_what_prepares_them_are_given_up_one_by_one() -> None:
    core = node(3)
    ids, forks = [1, 2, 3], 3
    while ids:
        for id in ids:
            core.worker_joined(id, 100, 0.0)
        for id in ids:
            die(core, id)
        ids = started(core)
        forks += len(ids)
    assert forks == 3 + GIVE_UP_AFTER - 1
    assert core.roster.wanted == 0


@pytest.mark.parametrize("end", ["opened", "asked for more"])
def test_the_row_of_workers_that_die_of_what_prepares_them_ends(end: str) -> None:
    core = node(2)
    core.worker_joined(1, 100, 0.0)
    for id in range(2, 1 + GIVE_UP_AFTER):
        core.worker_joined(id, 100, 0.0)
        die(core, id)
    if end == "opened":
        core.open_worker(1, 0.0)
    else:
        assert core.add_workers("n", 1, 0.0)
    wanted = core.roster.wanted
    core.worker_joined(1 + GIVE_UP_AFTER, 100, 0.0)
    die(core, 1 + GIVE_UP_AFTER)
    assert core.roster.wanted == wanted
    assert core.roster.nodes["n"].failed_joins == 1


def test_workers_that_were_ended_before_they_were_open_did_not_die_of_it() -> None:
    core = node(1)
    for id in range(1, 10):
        core.worker_joined(id, 100, 0.0)
        core.kill_worker(id, "the program wants it", 0.0)
        die(core, id)
        assert started(core) == [id + 1]
    assert core.roster.nodes["n"].failed_joins == 0


# --- who is on the way ---------------------------------------------------------------------------------------------------


def test_a_node_that_joins_and_wants_no_workers_is_waited_for_no_more() -> None:
    bench = Bench(1)
    bench.core.expect_node("late", 0, {}, 0.0)
    call = bench.submit(bench.call(resources={"tpu": 1.0}))
    bench.core.node_joined("late", "host", 2, 0.0)
    bench.take()
    assert isinstance(bench.error_of(call), Unschedulable)


def test_a_call_for_a_worker_that_never_comes_ends_though_others_are_on_their_way() -> None:
    bench = Bench(1)
    bench.core.set_launching(True)
    assert bench.core.add_workers("n", 1, 0.0)
    bench.take()
    call, other = bench.submit(bench.call(workers=[2])), bench.submit(bench.call(workers=[2, 3]))
    bench.core.node_message("n", StartGaveUp([2], "no memory", []), 0.0)
    bench.take()
    assert isinstance(bench.error_of(call), Unschedulable)
    assert bench.error_of(other) is None
    late = bench.core.submit(bench.call(workers=[2]))
    assert isinstance(late, WorkerLost)
    assert late.cause == "no memory"


def test_a_node_that_ends_takes_no_more_workers_and_says_so() -> None:
    bench = Bench(1)
    assert not bench.core.add_workers("unknown", 1, 0.0)
    bench.core.node_message("n", NodeDraining("spot reclaim", 60.0), 0.0)
    assert bench.core.roster.nodes["n"].state is NodeState.DRAINING
    assert not bench.core.add_workers("n", 1, 0.0)
    bench.core.lose_node("n", "gone", 0.0)
    assert not bench.core.add_workers("n", 1, 0.0)
    assert bench.core.roster.nodes["n"].wanted == 0
    bench.core.expect_node("late", 1, {}, 0.0)
    assert bench.core.add_workers("late", 1, 0.0)
    assert bench.core.roster.wanted == 2


# --- what is remembered --------------------------------------------------------------------------------------------------


def test_of_nodes_that_are_gone_the_latest_are_remembered() -> None:
    core = Coordinator(Settings(), 0.0)
    count = 2 * GONE_KEPT
    core.expect_node("stays", 1, {}, 0.0)
    for number in range(count):
        core.expect_node(f"n{number}", 1, {}, 0.0)
        core.lose_node(f"n{number}", "no capacity", 0.0)
        core.lose_node(f"n{number}", "again", 0.0)
    assert list(core.roster.nodes) == ["stays", *(f"n{number}" for number in range(count - GONE_KEPT, count))]
    core.lose_node("n0", "long ago", 0.0)
    assert core.refuse_node("n0") == "no node 'n0' is expected"
    core.node_joined("stays", "host", 1, 0.0)
    assert core.roster.workers[1].state is WorkerState.STARTING


def test_what_is_known_of_workers_does_not_grow_with_those_that_went() -> None:
    core = node(1)
    for id in range(1, 3000):
        core.worker_joined(id, 100, 0.0)
        core.open_worker(id, 0.0)
        die(core, id)
        assert started(core) == [id + 1]
    dispatch = core.dispatch
    assert len(core.roster.workers) == len(core.roster.nodes["n"].workers) == 1
    assert [dispatch.places, dispatch._stacked, core._nested] == [{}, {}, {}]
    assert len(dispatch._router.lost._causes) <= 1000


def test_a_call_for_a_worker_whose_node_never_came_ends() -> None:
    bench = Bench(1)
    bench.core.expect_node("far", 2, {}, 0.0)
    call = bench.submit(bench.call(workers=[3]))
    bench.core.lose_node("far", "no capacity", 0.0)
    bench.take()
    assert isinstance(bench.error_of(call), Unschedulable)
    refused = bench.core.submit(bench.call(workers=[2]))
    assert isinstance(refused, WorkerLost)
    assert "its node far is lost: no capacity" in str(refused)
    assert not refused.maybe_executed
