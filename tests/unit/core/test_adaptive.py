"""How many workers the work asks for."""

from __future__ import annotations

import pytest

from aiocluster.core.adaptive import Adaptive


def test_it_grows_only_when_calls_waited_at_two_looks_in_a_row() -> None:
    policy = Adaptive(0, 8, idle_s=5)
    assert policy.target(waiting=6, running=2, wanted=2, now=0) == 2
    assert policy.target(waiting=0, running=2, wanted=2, now=1) == 2
    assert policy.target(waiting=6, running=2, wanted=2, now=2) == 2
    assert policy.target(waiting=3, running=2, wanted=2, now=3) == 5


def test_it_grows_at_once_from_nothing_and_never_above_the_maximum() -> None:
    policy = Adaptive(0, 3, idle_s=5)
    assert policy.target(waiting=1, running=0, wanted=0, now=0) == 1
    assert policy.target(waiting=100, running=0, wanted=0, now=1) == 3


def test_it_keeps_the_bounds_whatever_there_is_to_do() -> None:
    policy = Adaptive(2, 4, idle_s=5)
    assert policy.target(waiting=0, running=0, wanted=1, now=0) == 2
    assert policy.target(waiting=0, running=0, wanted=9, now=0) == 4


def test_it_shrinks_after_the_idle_time_to_the_most_that_was_needed_in_it() -> None:
    policy = Adaptive(0, 8, idle_s=5)
    assert policy.target(waiting=0, running=1, wanted=6, now=0) == 6
    assert policy.target(waiting=0, running=3, wanted=6, now=2) == 6
    assert policy.target(waiting=0, running=0, wanted=6, now=4.9) == 6
    assert policy.target(waiting=0, running=0, wanted=6, now=5) == 3
    assert policy.target(waiting=0, running=0, wanted=3, now=6) == 3
    assert policy.target(waiting=0, running=0, wanted=3, now=11) == 0


def test_enough_work_begins_the_idle_time_anew() -> None:
    policy = Adaptive(0, 8, idle_s=5)
    assert policy.target(waiting=0, running=0, wanted=2, now=0) == 2
    assert policy.target(waiting=0, running=2, wanted=2, now=4) == 2
    assert policy.target(waiting=0, running=0, wanted=2, now=6) == 2
    assert policy.target(waiting=0, running=0, wanted=2, now=11) == 0


@pytest.mark.parametrize(("minimum", "maximum"), [(-1, 2), (3, 2), (0, 0)])
def test_bounds_that_make_no_sense_are_refused(minimum: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="minimum <= maximum"):
        Adaptive(minimum, maximum, idle_s=1)
