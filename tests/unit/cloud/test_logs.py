"""Lines of CloudWatch Logs: each once, in the order of time, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.cloud.jobs import Job, Stream
from aiocluster.cloud.logs import RATE, Again, Line, Readers, Source, of_jobs
from aiocluster.launch.aws import AwsError, Fault
from tests.unit.cloud.fake_account import FakeAccount


class Time:
    """Passes where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def stream(name: str) -> Stream:
    return Stream(group="g", name=name)


def readers_of(account: FakeAccount, since: int | None = None, again: Again | None = None) -> Readers:
    time = Time()
    return Readers(account, since, again=again, clock=time, pause=time.pause)


async def read(account: FakeAccount, names: Iterable[str], since: int | None = None) -> list[Line]:
    readers = readers_of(account, since)
    readers.add(Source(stream(name), name) for name in names)
    return [line async for line in readers.lines()]


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=4), st.integers(1, 7))
def test_every_line_comes_once_and_in_the_order_of_time(streams: list[list[int]], page: int) -> None:
    account = FakeAccount()
    account.page = page
    account.events = {str(i): [(time, f"{i}/{n}") for n, time in enumerate(sorted(times))] for i, times in enumerate(streams)}
    lines = asyncio.run(read(account, account.events))
    assert sorted(line.text for line in lines) == sorted(text for events in account.events.values() for _, text in events)
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    for name, events in account.events.items():
        assert [line.text for line in lines if line.label == name] == [text for _, text in events]


async def test_what_is_later_alone_is_told_where_that_is_asked_for() -> None:
    account = FakeAccount()
    account.events["a"] = [(time, str(time)) for time in range(10)]
    assert [line.text for line in await read(account, ["a"], since=7)] == ["7", "8", "9"]


async def test_a_stream_that_is_not_there_yet_has_no_lines_and_other_trouble_is_told() -> None:
    account = FakeAccount()
    assert await read(account, ["a"]) == []
    account.fail("get_log_events", AwsError("not yours", Fault.DENIED, "AccessDeniedException"))
    with pytest.raises(AwsError, match="not yours"):
        await read(account, ["a"])


@pytest.mark.parametrize("late", [0, 1, 2])
async def test_following_tells_each_line_once_and_waits_for_the_last_ones(late: int) -> None:
    account, time = FakeAccount(), Time()
    lines = [(n, f"line {n}") for n in range(50)]
    rounds = 0

    async def look() -> tuple[list[Source], bool]:
        nonlocal rounds
        rounds += 1
        account.events["a"] = lines[: min(len(lines) - late, rounds * 7)] if rounds < 12 else lines
        return ([Source(stream("a"), "", rounds >= 10)] if rounds > 1 else []), rounds >= 10

    seen = [line async for line in Readers(account, clock=time, pause=time.pause).follow(look)]
    assert [(line.time, line.text) for line in seen] == lines
    assert time.now < 60


async def test_a_stream_of_a_later_attempt_is_followed_too() -> None:
    account = FakeAccount()
    account.events = {"one": [(1, "first")], "two": [(2, "second")]}
    looks = iter([[Source(stream("one"), "")], [Source(stream("one"), "", ended=True), Source(stream("two"), "again")]])

    async def look() -> tuple[list[Source], bool]:
        sources = next(looks, None)
        return sources or [], sources is None

    seen = [(line.label, line.text) async for line in readers_of(account).follow(look)]
    assert seen == [("", "first"), ("again", "second")]


async def test_a_stream_that_has_ended_is_asked_until_its_last_lines_are_there_and_no_more() -> None:
    account = FakeAccount()
    account.events = {"short": [(1, "first")], "long": []}
    rounds = 0

    async def look() -> tuple[list[Source], bool]:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            account.events["short"] = [(1, "first"), (2, "late")]
        account.events["long"] = [(n, str(n)) for n in range(min(rounds, 41))]
        return [Source(stream("short"), "short", ended=True), Source(stream("long"), "long")], rounds > 40

    seen = [line.text async for line in readers_of(account).follow(look)]
    assert {"first", "late"} < set(seen)
    asked = [one["logStreamName"] for one in account.arguments("get_log_events")]
    assert asked.count("short") < 20
    assert asked.count("long") > 40


async def test_no_more_is_asked_in_a_second_than_leaves_some_for_others() -> None:
    account, time = FakeAccount(), Time()
    account.events = {str(n): [(n, "line")] for n in range(100)}
    readers = Readers(account, clock=time, pause=time.pause)
    readers.add(Source(stream(name), name) for name in account.events)
    assert len([line async for line in readers.lines()]) == 100
    assert account.count("get_log_events") / RATE == pytest.approx(time.now, abs=1)


@pytest.mark.parametrize("at", range(6))
async def test_where_aws_does_not_answer_for_a_while_nothing_is_lost_or_told_twice(at: int) -> None:
    account = FakeAccount()
    account.events = {name: [(n, f"{name}{n}") for n in range(7)] for name in "ab"}
    whats: list[str] = []

    async def again(error: AwsError) -> None:
        whats.append(str(error))

    readers = readers_of(account, again=again)
    readers.add(Source(stream(name), name) for name in "ab")
    lines: list[str] = []
    async for line in readers.lines():
        if len(lines) == at:
            account.fail("get_log_events", AwsError("no answer", Fault.UNREACHABLE), AwsError("slow down", Fault.THROTTLED))
        lines.append(line.text)
    assert lines == [f"{name}{n}" for n in range(7) for name in "ab"]
    assert whats == ["no answer", "slow down"]


def job(id: str, *streams: str, children: tuple[Job, ...] = (), status: str = "RUNNING") -> Job:
    return Job(id=id, name=f"name-{id}", queue="q", status=status, streams=tuple(map(stream, streams)), children=children)


def test_streams_have_labels_that_tell_them_apart() -> None:
    array = job("b", children=(job("b:0", "w0", status="SUCCEEDED"), job("b:1", "w1", "w1 again")))
    manager = job("a", "m", "m again", children=(array, job("c", "alone")))
    assert [source.label for source in of_jobs(manager, workers=False)] == ["", "manager attempt 2"]
    assert of_jobs(manager, workers=True) == [
        (stream("m"), "manager", True),
        (stream("m again"), "manager attempt 2", False),
        (stream("w0"), "name-b:0:0", True),
        (stream("w1"), "name-b:1:1", True),
        (stream("w1 again"), "name-b:1:1 attempt 2", False),
        (stream("alone"), "name-c", False),
    ]


def test_the_main_node_is_the_manager_and_told_once() -> None:
    nodes = job("a", "main", children=(job("a#0", "main"), job("a#1", "other")))
    assert [(source.stream.name, source.label) for source in of_jobs(nodes, workers=True)] == [
        ("main", "manager"),
        ("other", "name-a#1:1"),
    ]
