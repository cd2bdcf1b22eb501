"""The poller: when it looks, what it tells, and how it bears errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import pytest

from aiocluster.launch.aws import AwsError, Fault
from aiocluster.launch.poller import Figures, Pace, Poller

FIGURES = Figures(quick_s=1.0, slow_s=10.0, growth=2.0, troubled_s=60.0, at_once=100)
SAFETY_S = 30.0
"""A safety net: no test counts on it."""


def pace(random: float = 0.5) -> Pace[str]:
    """With that random number the time to a round is not stretched."""
    return Pace(FIGURES, lambda: random)


def ids(n: int) -> list[str]:
    return [f"j-{i}" for i in range(n)]


def test_nothing_to_watch_is_never_due() -> None:
    one = pace()
    assert one.due(0.0) == float("inf")
    one.add(["a"], now=0.0)
    one.drop(["a", "b"])
    assert one.due(100.0) == float("inf")
    assert one.requests() == []


def test_what_is_new_is_looked_at_soon() -> None:
    one = pace()
    one.add(["a"], now=5.0)
    assert one.due(5.0) == 1.0
    assert one.due(5.75) == 0.25
    assert one.due(7.0) == 0.0


def test_rounds_without_a_change_come_later_and_later_up_to_a_limit() -> None:
    one, now = pace(), 0.0
    one.add(["a"], now=now)
    waits = []
    for _ in range(6):
        one.rested(changed=False, now=now)
        waits.append(one.due(now))
    assert waits == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


@pytest.mark.parametrize("news", ["change", "addition", "hurry"])
def test_news_make_it_quick_again(news: str) -> None:
    one = pace()
    one.add(["a"], now=0.0)
    for _ in range(6):
        one.rested(changed=False, now=0.0)
    match news:
        case "change":
            one.rested(changed=True, now=0.0)
        case "addition":
            one.add(["b"], now=0.0)
        case _:
            one.hurry(now=0.0)
    assert one.due(0.0) == 1.0


def test_additions_without_end_do_not_put_off_the_round() -> None:
    one = pace()
    one.add(["a"], now=0.0)
    one.add(["b"], now=0.9)
    assert one.due(1.0) == 0.0


def test_errors_double_the_time_up_to_a_limit_and_a_good_round_ends_that() -> None:
    one, waits = pace(), []
    one.add(["a"], now=0.0)
    for _ in range(8):
        one.failed(now=0.0)
        waits.append(one.due(0.0))
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    one.rested(changed=False, now=0.0)
    assert one.due(0.0) == 10.0


@pytest.mark.parametrize(("random", "wait"), [(0.0, 0.75), (1.0, 1.25)])
def test_rounds_of_many_managers_do_not_fall_together(random: float, wait: float) -> None:
    one = pace(random)
    one.add(["a"], now=0.0)
    assert one.due(0.0) == wait


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])])
def test_a_request_has_as_many_ids_as_the_api_takes(n: int, sizes: list[int]) -> None:
    one = pace()
    one.add(ids(n), now=0.0)
    assert [len(request) for request in one.requests()] == sizes
    assert [id for request in one.requests() for id in request] == ids(n)


def test_only_changes_are_told_and_only_of_what_is_watched() -> None:
    one = pace()
    one.add(["a", "b"], now=0.0)
    assert one.seen("ab", {"a": "RUNNABLE", "b": "RUNNABLE", "c": "RUNNING"}) == {"a": "RUNNABLE", "b": "RUNNABLE"}
    assert one.seen("ab", {"a": "RUNNABLE", "b": "RUNNING"}) == {"b": "RUNNING"}
    assert one.seen("ab", {"a": "RUNNABLE"}) == {}
    one.drop(["b"])
    assert one.seen("ab", {"b": "FAILED"}) == {}
    assert len(one) == 1


def test_a_round_that_is_broken_off_begins_next_time_with_those_that_were_not_asked_for() -> None:
    one = pace()
    one.add(ids(150), now=0.0)
    first, second = one.requests()
    one.seen(first, {})
    one.failed(now=0.0)
    again = [id for request in one.requests() for id in request]
    assert again == [*second, *first]


class Asked:
    """Answers with the states that a test sets, or raises."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.errors: list[Exception] = []
        self.deaf: list[Exception] = []
        """What is raised by those who are told."""
        self.rounds = 0
        self.told: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    async def ask(self, ids: Sequence[str]) -> Mapping[str, str]:
        self.rounds += 1
        self._changed.set()
        if self.errors:
            raise self.errors.pop(0)
        return {id: self.states[id] for id in ids if id in self.states}

    def changed(self, id: str, state: str) -> None:
        if self.deaf:
            raise self.deaf.pop(0)
        self.told.append((id, state))
        self._changed.set()

    async def until_told(self, *told: tuple[str, str]) -> None:
        async with asyncio.timeout(SAFETY_S):
            while self.told != list(told):
                self._changed.clear()
                await self._changed.wait()


def poller(asked: Asked, at_once: int = 100) -> Poller[str]:
    figures = Figures(quick_s=0.001, slow_s=0.001, troubled_s=0.001, at_once=at_once)
    return Poller(asked.ask, asked.changed, name="jobs", figures=figures)


async def test_changes_are_told_as_they_are_seen() -> None:
    asked = Asked()
    watching = poller(asked, at_once=1)
    watching.watch(["a", "b"])
    asked.states = {"a": "RUNNABLE", "b": "RUNNING"}
    await asked.until_told(("a", "RUNNABLE"), ("b", "RUNNING"))
    watching.forget(["b"])
    asked.states = {"a": "RUNNING", "b": "FAILED"}
    await asked.until_told(("a", "RUNNABLE"), ("b", "RUNNING"), ("a", "RUNNING"))
    await watching.close()


async def test_it_outlives_errors_and_tells_each_kind_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "aiocluster")
    asked = Asked()
    expired = AwsError("expired", Fault.CREDENTIALS)
    asked.errors = [expired, expired, AwsError("slow down", Fault.THROTTLED), expired]
    asked.states = {"a": "RUNNING"}
    watching = poller(asked)
    watching.watch(["a"])
    await asked.until_told(("a", "RUNNING"))
    assert caplog.messages == ["jobs cannot look after its nodes, and tries again: expired"]
    await watching.close()


async def test_an_error_that_nobody_foresaw_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked()
    asked.errors = [KeyError("jobId"), KeyError("jobId"), TypeError("None")]
    asked.states = {"a": "RUNNING"}
    watching = poller(asked)
    watching.watch(["a"])
    await asked.until_told(("a", "RUNNING"))
    assert caplog.messages == ["jobs has met an error that it does not know, and tries again"] * 2
    assert "KeyError: 'jobId'" in caplog.text
    assert "Traceback" in caplog.text
    await watching.close()


async def test_what_could_not_be_told_is_told_later_and_keeps_no_other_from_being_told() -> None:
    asked = Asked()
    asked.deaf = [ValueError("not now")]
    asked.states = {"a": "FAILED", "b": "RUNNING"}
    watching = poller(asked)
    watching.watch(["a", "b"])
    await asked.until_told(("b", "RUNNING"), ("a", "FAILED"))
    watching.forget(["b"])
    asked.deaf = [ValueError("not now")]
    asked.states = {"a": "SUCCEEDED"}
    with pytest.raises(ValueError, match="not now"):
        await watching.look(["a"])
    await watching.close()


def test_one_that_is_forgotten_while_it_is_told_stays_forgotten() -> None:
    one = pace()
    one.add(["a"], now=0.0)
    one.drop(["a"])
    one.untold("a")
    assert len(one) == 0


async def test_a_look_asks_at_once_and_raises_what_went_wrong() -> None:
    asked = Asked()
    watching: Poller[str] = Poller(asked.ask, asked.changed, name="jobs", figures=Figures(quick_s=3600.0))
    watching.watch(["a", "b"])
    asked.states = {"a": "RUNNING", "b": "RUNNING"}
    await watching.look(["a", "c"])
    assert asked.told == [("a", "RUNNING")]
    asked.errors = [AwsError("denied", Fault.DENIED)]
    with pytest.raises(AwsError, match="denied"):
        await watching.look(["b"])
    await watching.close()


async def test_an_answer_is_never_told_after_a_later_one() -> None:
    answers: list[asyncio.Future[dict[str, str]]] = []
    told: list[tuple[str, str]] = []
    asked = asyncio.Event()

    async def ask(_ids: Sequence[str]) -> Mapping[str, str]:
        answers.append(asyncio.get_running_loop().create_future())
        asked.set()
        return await answers[-1]

    figures = Figures(quick_s=0.001, slow_s=3600.0, growth=1e9)
    watching: Poller[str] = Poller(ask, lambda job, state: told.append((job, state)), name="jobs", figures=figures)
    watching.watch(["a"])
    async with asyncio.timeout(SAFETY_S):
        await asked.wait()
        looking = asyncio.create_task(watching.look(["a"]))
        await asyncio.sleep(0)
        asked.clear()
        assert len(answers) == 1, "the round's request is still under way"
        answers[0].set_result({"a": "STARTING"})
        await asked.wait()
        answers[1].set_result({"a": "RUNNING"})
        await looking
    assert told == [("a", "STARTING"), ("a", "RUNNING")]
    await watching.close()


async def test_what_comes_later_wakes_it() -> None:
    """It slept for ever, with nothing to watch."""
    asked = Asked()
    watching = poller(asked)
    watching.watch([])
    await asyncio.sleep(0)
    assert asked.rounds == 0
    asked.states = {"a": "RUNNING"}
    watching.watch(["a"])
    await asked.until_told(("a", "RUNNING"))
    await watching.close()
    await watching.close()


async def test_it_can_be_used_again_after_its_end() -> None:
    asked = Asked()
    watching = poller(asked)
    watching.watch(["a"])
    await watching.close()
    asked.states = {"a": "RUNNING"}
    watching.watch(["b"])
    await asked.until_told(("a", "RUNNING"))
    await watching.close()
