"""Who may wait at the door, and who has to go."""

from __future__ import annotations

import pytest

from aiocluster.net.door import Door


def test_oldest_that_has_not_proven_itself_has_to_go_when_the_door_is_full() -> None:
    door: Door[str] = Door(3, 3)
    assert [door.enter(name, None) for name in "abc"] == [None, None, None]
    door.prove("a")
    assert door.enter("d", None) == "b"
    assert door.visitors() == ["c", "d", "a"]
    assert len(door) == 3


def test_new_one_has_to_go_when_all_others_have_proven_themselves() -> None:
    door: Door[str] = Door(2, 2)
    for name in "ab":
        door.enter(name, None)
        door.prove(name)
    assert door.enter("c", None) == "c"
    assert door.visitors() == ["a", "b"]
    door.leave("a")
    assert door.enter("c", None) is None


def test_full_address_costs_its_own_oldest_one_its_place_and_nobody_elses() -> None:
    door: Door[str] = Door(100, 2)
    for name in ("x1", "x2", "y1"):
        assert door.enter(name, name[0]) is None
    assert door.enter("x3", "x") == "x1"
    door.prove("x2")
    assert door.enter("x4", "x") == "x3"
    door.prove("x4")
    assert door.enter("x5", "x") == "x5"
    assert door.enter("y2", "y") is None
    for name in ("x2", "x4", "x4", "x1", "y1", "y2", "never seen"):
        door.leave(name)
    assert len(door) == 0
    assert door._by_address == {}  # addresses that are gone are not remembered


@pytest.mark.parametrize("limits", [(0, 1), (1, 0)])
def test_limits_must_be_positive(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Door(*limits)
