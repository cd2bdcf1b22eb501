"""Pools of calls with constraints: what one call costs, which pools are kept, and who is in them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aiocluster.core.constraints import IDLE_POOLS
from aiocluster.core.pools import Pool
from aiocluster.core.verdicts import Verdict

from .test_dispatch import Desk


def constrained(desk: Desk) -> list[Pool]:
    return [pool for pool in desk.core._pools.all() if pool.workers is not None or pool.demand]


def one_by_one(desk: Desk, count: int, **options: Any) -> None:
    """Calls that are submitted each when the one before has ended."""
    for _ in range(count):
        call = desk.run(takes_s=1e-5, **options)
        (home,) = desk.homes(call)
        desk.finish(home, call)
        desk.sent.clear()


def steps_of(work: Callable[[], None]) -> int:
    """How many functions, of Python and of C, are called by that."""
    steps = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()  # what hangs on a collection would be counted too
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return steps


@pytest.mark.parametrize(
    "options",
    [
        {"workers": {1, 2}},
        {"workers": {2, 3}, "resources": {"gpu": 1.0}},
        {"resources": {"gpu": 1.0}},
        {"resources": {"gpu": 1.0}, "is_async": True},
        {"workers": {1}},
    ],
    ids=str,
)
def test_a_call_with_constraints_costs_the_same_however_many_workers_there_are(options: dict[str, Any]) -> None:
    steps = []
    for workers in (3, 300):
        desk = Desk(workers, gpu=1.0)
        one_by_one(desk, 1, **options)
        steps.append(steps_of(lambda desk=desk: one_by_one(desk, 20, **options)))  # type: ignore[misc]
    assert steps[0] == steps[1]


def test_a_call_for_a_set_of_workers_that_nobody_named_before_costs_as_much_as_the_set_is_large() -> None:
    def new_sets(desk: Desk) -> None:
        for first in range(2, 30):
            one_by_one(desk, 1, workers={1, first})

    steps = []
    for workers in (30, 600):
        desk = Desk(workers)
        new_sets(desk)
        steps.append(steps_of(lambda desk=desk: new_sets(desk)))  # type: ignore[misc]
    assert steps[0] == steps[1]


def test_of_pools_without_calls_those_used_last_are_kept() -> None:
    desk = Desk(30)
    for first in range(2, 30):
        one_by_one(desk, 1, workers={first, first + 1})
        one_by_one(desk, 1, workers={1, 2})
    kept = {pool.workers for pool in constrained(desk)}
    assert len(kept) == IDLE_POOLS
    assert {frozenset({1, 2}), frozenset({29, 30}), frozenset({28, 29})} <= kept
    assert len(desk.core.places[5].lanes[0].pools) == 2
    assert all(len(pool.members) == 2 for pool in constrained(desk))


def test_pools_in_which_calls_wait_are_never_dropped() -> None:
    desk = Desk(2)
    for id in (1, 2):
        desk.run(workers={id}, takes_s=5.0)
    waiting = [desk.run(workers={1, 2}, resources={}, priority=0), *(desk.run(workers={1, 2, id}) for id in range(3, 40))]
    assert len(constrained(desk)) == len(waiting)
    for id in (1, 2):
        (long,) = desk.on(id)
        desk.finish(id, long)
    for _ in range(len(waiting)):
        desk.place()
        for id in (1, 2):
            desk.finish(id, *desk.on(id))
    assert desk.core.pending_calls == 0
    assert len(constrained(desk)) == IDLE_POOLS


def test_workers_come_into_pools_that_are_kept_and_go_from_them() -> None:
    desk = Desk(2)
    one_by_one(desk, 1, workers={1, 3})
    (pool,) = constrained(desk)
    desk.join(3)
    assert [lane.place.id for lane in pool.members] == [1, 3]
    desk.lose(1)
    assert desk.homes(desk.run(workers={1, 3})) == [3]
    desk.core.close_worker(3)
    assert not pool.members
    assert desk.core.submit(desk.call(workers={1, 3})) is not None


def test_call_that_comes_back_finds_its_pool_though_it_was_dropped() -> None:
    desk = Desk(40)
    call = desk.run(workers={1, 2})
    for first in range(3, 30):
        one_by_one(desk, 1, workers={first, first + 1})
    assert frozenset({1, 2}) not in {pool.workers for pool in constrained(desk)}
    assert desk.on(1) == [call]
    desk.lose(1, Verdict("crashed", recorded=True))
    desk.place()
    assert desk.on(2) == [call]
