"""Lines of CloudWatch Logs: each once, in the order of time, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.cloud.jobs import Job, Stream
from aiocluster.cloud.logs import Line, Readers, of_jobs
from aiocluster.launch.aws import AwsError, Fault
from tests.unit.cloud.fake_account import FakeAccount


def stream(name: str) -> Stream:
    return Stream(group="g", name=name)


async def read(account: FakeAccount, names: Iterable[str], since: int | None = None) -> list[Line]:
    readers = Readers(account, since)
    readers.add((stream(name), name) for name in names)
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
    account = FakeAccount()
    lines = [(n, f"line {n}") for n in range(50)]
    rounds = 0
    paused: list[float] = []

    async def look() -> tuple[list[tuple[Stream, str]], bool]:
        nonlocal rounds
        rounds += 1
        account.events["a"] = lines[: min(len(lines) - late, rounds * 7)] if rounds < 12 else lines
        return ([(stream("a"), "")] if rounds > 1 else []), rounds >= 10

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    readers = Readers(account)
    seen = [line async for line in readers.follow(look, pause=pause)]
    assert [(line.time, line.text) for line in seen] == lines
    assert sum(paused) < 60


async def test_a_stream_of_a_later_attempt_is_followed_too() -> None:
    account = FakeAccount()
    account.events = {"one": [(1, "first")], "two": [(2, "second")]}
    looks = iter([[(stream("one"), "")], [(stream("one"), ""), (stream("two"), "again")]])

    async def look() -> tuple[list[tuple[Stream, str]], bool]:
        streams = next(looks, None)
        return streams or [], streams is None

    async def pause(_seconds: float) -> None: ...

    seen = [(line.label, line.text) async for line in Readers(account).follow(look, pause=pause)]
    assert seen == [("", "first"), ("again", "second")]


def job(id: str, *streams: str, children: tuple[Job, ...] = ()) -> Job:
    return Job(id=id, name=f"name-{id}", queue="q", status="RUNNING", streams=tuple(map(stream, streams)), children=children)


def test_streams_have_labels_that_tell_them_apart() -> None:
    array = job("b", children=(job("b:0", "w0"), job("b:1", "w1", "w1 again")))
    manager = job("a", "m", "m again", children=(array, job("c", "alone")))
    assert [label for _, label in of_jobs(manager, workers=False)] == ["", "manager attempt 2"]
    assert of_jobs(manager, workers=True) == [
        (stream("m"), "manager"),
        (stream("m again"), "manager attempt 2"),
        (stream("w0"), "name-b:0:0"),
        (stream("w1"), "name-b:1:1"),
        (stream("w1 again"), "name-b:1:1 attempt 2"),
        (stream("alone"), "name-c"),
    ]
