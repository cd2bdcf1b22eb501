"""Workers that have joined and are not open: what runs on them, what waits, and that nobody waits for each other."""

from __future__ import annotations

from typing import Any

import pytest

from aiocluster.config import Settings
from aiocluster.core.calls import Call, CallState
from aiocluster.core.verdicts import Verdict
from aiocluster.errors import Unschedulable, WorkerLost

from .test_dispatch import Desk


def joining(ready: int = 0, settings: Settings | None = None, **resources: float) -> tuple[Desk, int]:
    """A desk with so many open workers, and one more that is being prepared: its id."""
    desk = Desk(ready, settings, **resources)
    desk.core.add_worker(ready + 1, resources, desk.now)
    desk.core.expect(True)  # the one that joins is on its way
    return desk, ready + 1


def begin(desk: Desk, id: int, **options: Any) -> Call:
    """The call that prepares the worker, where it runs."""
    call = desk.run("prepare", workers={id}, prepares=id, **options)
    assert desk.on(id) == [call]
    return call


def wait_for(desk: Desk, by: Call, **options: Any) -> Call:
    """A call that this one, which runs, makes and waits for."""
    assert by.lane is not None
    id = by.lane.place.id
    call = desk.run("nested", origin=id, prepares=desk.core.preparing(id, by), **options)
    if not by.function.is_async:
        desk.core.yielded(id, by.id, True)
    desk.place()
    return call


def refusal(desk: Desk, by: Call, **options: Any) -> Unschedulable:
    """Why a call cannot be placed that this one makes."""
    assert by.lane is not None
    id = by.lane.place.id
    error = desk.core.submit(desk.call("nested", origin=id, prepares=desk.core.preparing(id, by), **options))
    assert isinstance(error, Unschedulable)
    return error


# --- what has to wait until the worker is open ---------------------------------------------------------------------------


def test_calls_for_a_worker_wait_until_it_is_open_and_then_start_in_their_order() -> None:
    desk, new = joining()
    early = desk.run(workers={new}, is_async=True)
    nested = desk.run(workers={new}, is_async=True, origin=new)
    prepare = begin(desk, new)
    late = desk.run(workers={new}, is_async=True)
    assert desk.on(new) == [prepare]
    desk.finish(new, prepare)
    desk.place()
    assert desk.on(new) == []
    desk.core.open_worker(new)
    desk.place()
    assert desk.on(new) in ([early, late, nested], [nested, early, late])


def test_worker_that_is_not_open_takes_nothing_that_another_one_can_take() -> None:
    desk, new = joining(1)
    calls = [desk.run(), desk.run(workers={1, new}), desk.run(is_async=True)]
    assert desk.on(new) == []
    assert desk.on(1) == [calls[0], calls[2]]
    desk.core.open_worker(new)
    desk.place()
    assert desk.on(new) == [calls[1]]


def test_resources_that_come_free_while_a_worker_is_prepared_are_for_its_preparation() -> None:
    desk, new = joining(gpu=1.0)
    waiting = desk.run(workers={new}, resources={"gpu": 1.0})
    prepare = begin(desk, new, is_async=True)
    first = wait_for(desk, prepare, resources={"gpu": 1.0}, is_async=True)
    second = wait_for(desk, prepare, resources={"gpu": 1.0}, is_async=True)
    assert desk.on(new) == [prepare, first]
    desk.finish(new, first)
    desk.place()
    assert desk.on(new) == [prepare, second]
    assert waiting.state is CallState.WAITING


def test_calls_for_a_worker_that_is_lost_before_it_is_open_never_started() -> None:
    desk, new = joining()
    user, prepare = desk.run(workers={new}), begin(desk, new)
    ended = desk.lose(new)
    errors = {one.call: one.error for one in ended}
    assert errors.keys() == {user, prepare}
    error = errors[user]
    assert isinstance(error, WorkerLost)
    assert not error.maybe_executed
    assert desk.core.waiting_calls == desk.core.pending_calls == 0
    assert not desk.core.has_work


def test_worker_can_be_prepared_when_the_cluster_holds_as_many_calls_as_it_may() -> None:
    desk, new = joining(settings=Settings(max_pending_calls=1))
    desk.submit()
    begin(desk, new)
    desk, new = joining(settings=Settings(max_pending_bytes=10))
    desk.submit(payload=bytes(10))
    begin(desk, new, payload=bytes(10))


# --- calls that a preparation waits for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_preparation_waits_for_runs_on_an_open_worker_if_there_is_one(is_async: bool) -> None:
    desk, new = joining(1)
    call = wait_for(desk, begin(desk, new, is_async=is_async), is_async=is_async)
    assert desk.homes(call) == [1]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("options", [{}, {"workers": {1, 2}}, {"workers": {1}}, {"resources": {"gpu": 1.0}}], ids=str)
def test_what_a_preparation_waits_for_runs_on_the_worker_itself_if_none_is_open(is_async: bool, options: Any) -> None:
    desk, new = joining(gpu=1.0)
    prepare = begin(desk, new, is_async=is_async)
    call = wait_for(desk, prepare, is_async=is_async, **options)
    deeper = wait_for(desk, call, is_async=is_async)
    assert desk.on(new) == [prepare, call, deeper]


def test_several_workers_that_are_prepared_do_not_wait_for_each_other() -> None:
    desk, first = joining()
    second = first + 1
    desk.core.add_worker(second, {}, desk.now)
    one, two = begin(desk, first), begin(desk, second)
    assert desk.homes(wait_for(desk, one)) == [first]
    assert desk.homes(wait_for(desk, two)) == [second]
    assert "waits for no other" in str(refusal(desk, one, workers={second}))
    assert "worker 1, which cannot join before it ends" in str(refusal(desk, one, workers={second, 99}))
    assert isinstance(refusal(desk, one, resources={"gpu": 1.0}), Unschedulable)


def test_what_waits_for_an_open_worker_comes_to_the_one_that_is_prepared_when_that_ends() -> None:
    desk, new = joining(1)
    busy, other = desk.run(), desk.submit(origin=1)
    prepare = begin(desk, new)
    calls = [wait_for(desk, prepare) for _ in range(2)]
    withdrawn = wait_for(desk, prepare)
    assert desk.core.cancel(withdrawn) is None
    for_nobody = wait_for(desk, prepare, workers={1, 99})
    program = desk.submit()
    assert desk.on(new) == [prepare]
    assert desk.core.close_worker(1) == []
    (ended,) = desk.core.expect(True)
    assert ended.call is for_nobody
    assert isinstance(ended.error, Unschedulable)
    desk.place()
    assert desk.on(new) == [prepare, calls[0]]
    desk.finish(new, calls[0])
    desk.place()
    assert desk.on(new) == [prepare, calls[1]]
    assert program.state is other.state is CallState.WAITING
    assert desk.on(1) == [busy]


def test_what_was_made_elsewhere_for_a_preparation_waits_for_no_worker_either() -> None:
    """The open worker that ran the call in between drains, and the only other one waits for it."""
    desk, new = joining(1)
    prepare = begin(desk, new)
    between = wait_for(desk, prepare)
    assert desk.homes(between) == [1]
    assert desk.core.preparing(1, between) == new
    desk.core.close_worker(1)
    deeper = wait_for(desk, between)
    assert desk.homes(deeper) == [new]


def test_call_that_may_have_run_on_an_open_worker_is_not_said_never_to_have_when_the_other_is_lost_too() -> None:
    desk, new = joining(1)
    call = wait_for(desk, begin(desk, new), retries=1)
    assert desk.homes(call) == [1]
    assert desk.lose(1) == []
    desk.place()
    assert desk.homes(call) == [1, new]
    (error,) = [one.error for one in desk.lose(new, Verdict("crashed", recorded=True)) if one.call is call]
    assert isinstance(error, WorkerLost)
    assert error.maybe_executed


def test_worker_that_is_retired_before_it_is_open_serves_nothing_more() -> None:
    desk, new = joining()
    prepare = begin(desk, new)
    desk.core.close_worker(new)
    assert isinstance(refusal(desk, prepare), Unschedulable)


def test_what_a_preparation_has_left_running_or_waiting_goes_on_when_the_worker_is_open() -> None:
    desk, new = joining()
    prepare = begin(desk, new)
    runs, waits = wait_for(desk, prepare), wait_for(desk, prepare)
    again = desk.submit(workers={new}, prepares=new)
    desk.finish(new, prepare)
    user = desk.submit(workers={new})
    assert desk.on(new) == [runs]
    desk.core.open_worker(new)
    assert desk.core.returned(new, [runs.id], desk.now) == ([], True)
    order = []
    for _ in range(4):
        desk.place()
        (call,) = desk.on(new)
        order.append(call)
        desk.finish(new, call)
    assert order.index(runs) < order.index(waits)
    assert order.index(again) < order.index(user)
    assert desk.core.pending_calls == 0


def test_call_of_a_preparation_that_is_over_is_one_like_any_other() -> None:
    desk, new = joining()
    prepare = begin(desk, new)
    desk.core.open_worker(new)
    assert desk.core.preparing(new, None) == 0
    desk.core.add_worker(new + 1, {}, desk.now)
    call = desk.run("nested", origin=new, prepares=desk.core.preparing(new, prepare), workers={new + 1})
    assert call.state is CallState.WAITING
    desk.core.open_worker(new + 1)
    desk.place()
    assert desk.on(new + 1) == [call]
    desk.lose(new)
    desk.core.close_worker(new + 1)
    desk.core.expect(True)
    assert desk.core.submit(desk.call(origin=new + 1, prepares=new)) is None  # it may wait: nobody waits for it to join
