"""Whom to ask for calls back, and when not to ask again."""

from __future__ import annotations

from aiocluster.config import Settings
from aiocluster.core.places import LaneKind, WorkerPlace
from aiocluster.core.recalls import RECALL_AFTER_S, RECALL_LOAD_S, Recalls


def place(id: int, *, count: int, load: float, progress_at: float = 0.0) -> WorkerPlace:
    made = WorkerPlace(id, {}, Settings(), {}, progress_at)
    lane = made.lanes[LaneKind.SYNC]
    lane.count, lane.load = count, load
    return made


def test_half_of_a_worthwhile_load_is_asked_for_at_once() -> None:
    recalls, loaded = Recalls(), place(1, count=9, load=RECALL_LOAD_S)
    assert recalls.choose([loaded], 1, 0.0) == [(loaded, 4)]
    assert loaded.recalling
    assert recalls.choose([loaded], 1, 0.0) == [], "it has been asked already"


def test_a_small_load_is_asked_for_when_nothing_has_ended_for_a_while() -> None:
    recalls = Recalls()
    later, sooner = place(1, count=2, load=0.0, progress_at=0.5), place(2, count=2, load=0.0, progress_at=0.2)
    assert recalls.choose([later, sooner], 5, 0.2) == []
    assert recalls.due == 0.2 + RECALL_AFTER_S
    assert recalls.choose([sooner, later], 5, 0.2) == []
    assert recalls.due == 0.2 + RECALL_AFTER_S
    assert recalls.choose([later, sooner], 5, 0.2 + RECALL_AFTER_S) == [(sooner, 1)]


def test_no_more_workers_are_asked_than_are_idle() -> None:
    recalls = Recalls()
    places = [place(id, count=4, load=1.0) for id in range(1, 5)]
    assert [chosen.id for chosen, _ in recalls.choose(places, 2, 0.0)] == [1, 2]
    assert recalls.choose(places, 2, 0.0) == [], "those that were asked count"


def test_one_that_had_nothing_to_give_is_not_asked_before_it_was_sent_more() -> None:
    recalls, loaded = Recalls(), place(1, count=4, load=1.0)
    recalls.choose([loaded], 1, 0.0)
    recalls.answered(loaded, [], 0.1)
    assert recalls.choose([loaded], 1, 99.0) == []
    loaded.next_serial += 1
    assert recalls.choose([loaded], 1, 99.0) == [(loaded, 2)]


def test_one_that_is_gone_is_forgotten() -> None:
    recalls, loaded = Recalls(), place(1, count=4, load=1.0)
    recalls.choose([loaded], 1, 0.0)
    recalls.forget(loaded)
    assert not recalls.asked
    assert not recalls.vain
