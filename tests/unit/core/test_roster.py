"""Nodes and workers: their states, and ids that are never given twice."""

from __future__ import annotations

import pytest

from aiocluster.core.roster import NODE_TRANSITIONS, WORKER_TRANSITIONS, NodeState, Roster, WorkerState
from aiocluster.errors import ProtocolError


@pytest.mark.parametrize("state", NodeState)
@pytest.mark.parametrize("event", ["join", "drain", "lose"])
def test_a_node_does_what_the_table_lists_and_nothing_else(state: NodeState, event: str) -> None:
    node = Roster().expect_node("n", 1, {}, 0.0)
    node.state = state
    wanted = NODE_TRANSITIONS.get((state, event))
    if wanted is None:
        with pytest.raises(ProtocolError, match=f"node n is {state.value}: it cannot {event}"):
            node.apply(event, 5.0)
        assert node.state is state
    else:
        node.apply(event, 5.0)
        assert node.state is wanted
        assert node.since == (0.0 if wanted is state else 5.0)


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("event", ["join", "open", "drain", "lose"])
def test_a_worker_does_what_the_table_lists_and_nothing_else(state: WorkerState, event: str) -> None:
    roster = Roster()
    record = roster.new_worker(roster.expect_node("n", 1, {}, 0.0), 0.0)
    record.state = state
    wanted = WORKER_TRANSITIONS.get((state, event))
    if wanted is None:
        with pytest.raises(ProtocolError, match=f"worker 1 is {state.value}: it cannot {event}"):
            record.apply(event, 5.0)
        assert record.state is state
    else:
        record.apply(event, 5.0)
        assert record.state is wanted
        assert record.since == (0.0 if wanted is state else 5.0)


def test_ids_count_from_one_and_are_never_given_again() -> None:
    roster = Roster()
    node = roster.expect_node("n", 2, {}, 0.0)
    first, second = roster.new_worker(node, 0.0), roster.new_worker(node, 0.0)
    assert [first.id, second.id] == [1, 2]
    roster.remove_worker(second, 1.0)
    assert second.state is WorkerState.GONE
    assert list(roster.workers) == list(node.workers) == [1]
    assert roster.new_worker(node, 2.0).id == 3


def test_ids_follow_the_order_of_nodes_however_these_join() -> None:
    roster = Roster()
    one, two = roster.expect_node("a", 2, {}, 0.0), roster.expect_node("b", 1, {}, 0.0)
    assert roster.new_worker(two, 0.0).id == 3
    assert [roster.new_worker(one, 0.0).id for _ in range(3)] == [1, 2, 4]
    assert roster.new_worker(two, 0.0).id == 5


def test_a_name_is_given_to_one_node_only() -> None:
    roster = Roster()
    roster.expect_node("n", 1, {}, 0.0)
    with pytest.raises(ValueError, match="a node 'n' already"):
        roster.expect_node("n", 1, {}, 0.0)


def test_what_is_wanted_and_expected_follows_the_nodes_that_are_not_gone() -> None:
    roster = Roster()
    one, two = roster.expect_node("a", 2, {}, 0.0), roster.expect_node("b", 3, {}, 0.0)
    assert roster.wanted == 5
    assert roster.expecting
    one.apply("join", 0.0)
    two.apply("lose", 0.0)
    assert roster.wanted == 2
    assert not roster.expecting
    assert one.is_up
    assert not two.is_up
    one.apply("drain", 0.0)
    assert one.is_up
    record = roster.new_worker(one, 0.0)
    assert roster.expecting
    record.apply("join", 0.0)
    assert roster.expecting
    assert roster.ready() == []
    record.apply("open", 0.0)
    assert not roster.expecting
    assert roster.ready() == [record]
