"""Exceptions of every kind arrive whole, or say what could not."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from aiocluster import Cluster, RemoteError, RemoteTraceback

from . import work


class Detailed(Exception):
    """Carries more than its text."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint

    def __reduce__(self) -> Any:
        return _make_detailed, (self.code, self.hint)


def _make_detailed(code: int, hint: str) -> Detailed:
    return Detailed(code, hint=hint)


class Fundamental(BaseException):
    """Not an `Exception`, but no steering one either."""


async def caught(cluster: Cluster, function: Any, *args: Any) -> BaseException:
    try:
        await cluster.submit(function, *args)
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


async def test_attributes_and_notes_arrive(cluster: Cluster) -> None:
    def fail() -> None:
        error = Detailed(7, hint="look left")
        error.add_note("a note of the function")
        raise error

    error = await caught(cluster, fail)
    assert isinstance(error, Detailed)
    assert (error.code, error.hint) == (7, "look left")
    assert "a note of the function" in "".join(error.__notes__)


async def test_the_remote_traceback_shows_the_chain(cluster: Cluster) -> None:
    def fail() -> None:
        try:
            raise KeyError("the root")
        except KeyError as root:
            raise ValueError("the top") from root

    error = await caught(cluster, fail)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    text = str(error.__cause__)
    assert "the root" in text
    assert "the top" in text
    assert "in fail" in text


async def test_the_traceback_of_the_runtime_itself_is_left_out(cluster: Cluster) -> None:
    error = await caught(cluster, work.fail_on_odd, 3)
    assert "fail_on_odd" in str(error.__cause__)


async def test_exceptions_that_are_defined_in_a_function_travel(cluster: Cluster) -> None:
    class Local(Exception):
        pass

    def fail() -> None:
        raise Local("from here", 3)

    error = await caught(cluster, fail)
    assert type(error).__name__ == "Local"
    assert error.args == ("from here", 3)


async def test_groups_travel(cluster: Cluster) -> None:
    def fail() -> None:
        raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("more", [KeyError("two")])])

    error = await caught(cluster, fail)
    assert isinstance(error, ExceptionGroup)
    assert error.split(KeyError)[0] is not None
    assert [type(one) for one in error.exceptions] == [ValueError, ExceptionGroup]


async def test_other_base_exceptions_do_not_end_the_worker(single: Cluster) -> None:
    def fail() -> None:
        raise Fundamental("deep")

    async def async_fail() -> None:
        raise Fundamental("deep")

    for function in (fail, async_fail):
        error = await caught(single, function)
        assert isinstance(error, Fundamental | RemoteError)
        assert "deep" in str(error)
    assert await single.submit(work.own_id) == 1


async def test_a_group_that_holds_a_steering_one_does_not_steer(single: Cluster) -> None:
    def fail() -> None:
        raise BaseExceptionGroup("mixed", [SystemExit(3), ValueError("one")])

    error = await caught(single, fail)
    assert isinstance(error, RemoteError | BaseExceptionGroup)
    assert not isinstance(error, SystemExit)
    assert await single.submit(work.own_id) == 1


async def test_an_exception_with_a_huge_text_arrives(cluster: Cluster) -> None:
    def fail() -> None:
        raise ValueError("x" * 2_000_000)

    error = await caught(cluster, fail)
    assert isinstance(error, ValueError)
    assert len(str(error)) == 2_000_000


async def test_an_exception_that_holds_what_cannot_travel_becomes_a_remote_error(cluster: Cluster) -> None:
    def fail() -> None:
        import threading

        raise ValueError("with a lock", threading.Lock())

    error = await caught(cluster, fail)
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith("ValueError")
    assert "with a lock" in error.text
    assert "in fail" in error.traceback


async def test_an_exception_that_is_raised_anew_keeps_its_remote_traceback(cluster: Cluster) -> None:
    error = await caught(cluster, work.fail_on_odd, 3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "3 is odd"
    with pytest.raises(ValueError, match="3 is odd") as second:
        raise error
    assert second.value.__cause__ is error.__cause__


async def test_an_exception_given_as_a_result_is_a_result(cluster: Cluster) -> None:
    result = await cluster.submit(ValueError, "not raised")
    assert isinstance(result, ValueError)
    assert result.args == ("not raised",)


async def test_many_failures_at_once_each_reach_their_own_call(cluster: Cluster) -> None:
    import asyncio

    futures = [cluster.submit(work.fail_on_odd, number) for number in range(2000)]
    for number, outcome in enumerate(await asyncio.gather(*futures, return_exceptions=True)):
        if number % 2:
            assert isinstance(outcome, ValueError)
            assert str(outcome) == f"{number} is odd"
        else:
            assert outcome == number


async def test_an_argument_that_raises_while_it_loads_fails_its_call_alone(cluster: Cluster) -> None:
    good = cluster.submit(work.square, 3)
    error = await caught(cluster, work.echo, work.Trap())
    assert "the trap" in str(error) + "".join(getattr(error, "__notes__", []))
    assert await good == 9


async def test_an_argument_that_ends_the_process_while_it_loads_costs_that_call_alone(single: Cluster) -> None:
    import asyncio

    good = [single.submit(work.square, number) for number in range(20)]
    bad = await caught(single, work.echo, work.Bomb())
    good += [single.submit(work.square, number) for number in range(20)]
    assert type(bad).__name__ == "WorkerLost"
    assert await asyncio.gather(*good) == [number * number for number in range(20)] * 2
