"""Calls and their options."""

from __future__ import annotations

from typing import Any

import pytest

from aiocluster.core.calls import MAX_KILLS, Call, CallOptions
from aiocluster.core.functions import FunctionTable

ENTRY = FunctionTable().intern(b"h", b"", "module.f", False)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout_s": -1}, "timeout"),
        ({"timeout_s": float("nan")}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"workers": frozenset()}, "workers"),
        ({"resources": {"gpu": 0}}, "gpu"),
        ({"resources": {"gpu": float("inf")}}, "gpu"),
        ({"timeout_s": "5"}, "timeout"),
        ({"timeout_s": True}, "timeout"),
        ({"retries": 1.5}, "retries"),
        ({"priority": float("nan")}, "priority"),
        ({"priority": 2**63}, "priority"),
        ({"name": b"x"}, "name"),
        ({"resources": "gpu"}, "resources"),
        ({"resources": {5: 1}}, "5"),
        ({"resources": {"gpu": 2**63}}, "gpu"),
        ({"resources": {"\ud800": 1}}, "printable"),
        ({"resources": {"n" * 201: 1}}, "printable"),
        ({"resources": {"gpu": "1"}}, "gpu"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises((TypeError, ValueError), match=word):
        CallOptions(**options)


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e300, 2e9])
def test_a_timeout_longer_than_anybody_waits_is_none(timeout_s: float) -> None:
    assert CallOptions(timeout_s=timeout_s).timeout_s is None


@pytest.mark.parametrize(("name", "kept"), [("n" * 200, "n" * 200), ("n" * 201, "n" * 199 + "…"), ("a\ud800", "a\\ud800")])
def test_a_name_is_cut_to_what_people_read_and_frames_carry(name: str, kept: str) -> None:
    assert CallOptions(name=name).name == kept


def test_the_demand_has_one_form_whatever_the_order() -> None:
    assert (
        CallOptions(resources={"b": 1, "a": 2}).demand == CallOptions(resources={"a": 2, "b": 1}).demand == (("a", 2), ("b", 1))
    )


def test_its_name_is_the_one_it_was_given_or_the_functions() -> None:
    assert Call(1, ENTRY, b"").name == "module.f"
    assert Call(1, ENTRY, b"", options=CallOptions(name="render")).name == "render"


def test_its_size_counts_the_buffers() -> None:
    assert Call(1, ENTRY, b"abc").size == 3
    assert Call(1, ENTRY, b"abc", [b"12345", b"1"]).size == 9


def test_it_may_run_again_as_its_options_allow() -> None:
    assert not Call(1, ENTRY, b"").may_run_again()
    retried = Call(1, ENTRY, b"", options=CallOptions(retries=2))
    assert [retried.may_run_again() for _ in range(3)] == [True, True, False]
    again = Call(1, ENTRY, b"", options=CallOptions(idempotent=True))
    assert all(again.may_run_again() for _ in range(10))
    again.kills = MAX_KILLS
    assert not again.may_run_again()


def test_its_repr_names_it_and_its_state_but_not_its_arguments() -> None:
    assert repr(Call(7, ENTRY, b"secret")) == "<Call 7 module.f WAITING>"
