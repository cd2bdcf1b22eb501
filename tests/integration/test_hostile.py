"""Calls whose code hurts the worker that runs it hurt nobody else, and never run twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiocluster import Cluster, WorkerLost

from . import hostile_work as hostile
from . import work
from .conftest import SAFETY_S

CALLS = 200
FORKING = 50
ENDS = {
    "returns": 0,
    "raises": 1,
    "exits": 7,
    "exits with text": 1,
    "executes what is not there": 1,
    "closes its streams": 1,
}
expected = sorted(range(CALLS))


async def warm_up(cluster: Cluster) -> None:
    """So many calls that the next ones are sent ahead: those are what a child would find in its memory."""
    await cluster.map(work.square, range(CALLS), chunk_size=1)


# --- forks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "code"), ENDS.items(), ids=ENDS)
async def test_a_child_of_a_call_ends_where_the_call_does(single: Cluster, tmp_path: Path, how: str, code: int) -> None:
    journal = tmp_path / "journal"
    await warm_up(single)
    async with asyncio.timeout(SAFETY_S):
        futures = [single.submit(hostile.mark_and_fork, str(journal), number, FORKING, how) for number in range(CALLS)]
        codes = await asyncio.gather(*futures)
    assert codes[FORKING] == code
    assert sorted(hostile.journal_of(journal)) == expected, "each call has run once"
    assert set(single.workers) == {1}


@pytest.mark.parametrize("how", ["returns", "raises"])
@pytest.mark.parametrize("size", [1, 10, CALLS])
async def test_a_child_of_an_item_ends_where_the_item_does(single: Cluster, tmp_path: Path, how: str, size: int) -> None:
    journal = tmp_path / "journal"
    await warm_up(single)
    arguments = [str(journal)] * CALLS, range(CALLS), [FORKING] * CALLS, [how] * CALLS
    async with asyncio.timeout(SAFETY_S):
        codes = await single.map(hostile.mark_and_fork, *arguments, chunk_size=size)
    assert codes[FORKING] == ENDS[how]
    assert sorted(hostile.journal_of(journal)) == expected


@pytest.mark.parametrize("how", ["returns", "raises", "exits", "awaits"])
@pytest.mark.parametrize("size", [0, 1, 10])
async def test_a_child_of_an_async_call_ends_where_the_call_does_or_awaits(
    single: Cluster, tmp_path: Path, how: str, size: int
) -> None:
    journal = tmp_path / "journal"
    await warm_up(single)
    async with asyncio.timeout(SAFETY_S):
        if size:
            arguments = [str(journal)] * CALLS, range(CALLS), [FORKING] * CALLS, [how] * CALLS
            codes = await single.map(hostile.async_mark_and_fork, *arguments, chunk_size=size)
        else:
            calls = [single.submit(hostile.async_mark_and_fork, str(journal), n, FORKING, how) for n in range(CALLS)]
            codes = await asyncio.gather(*calls)
    assert codes[FORKING] == ENDS.get(how, 1)
    assert sorted(hostile.journal_of(journal)) == expected


async def test_a_child_of_a_task_of_a_call_ends_when_it_awaits(single: Cluster) -> None:
    async with asyncio.timeout(SAFETY_S):
        assert await single.submit(hostile.fork_in_a_task) == 1
        assert await single.submit(work.square, 3) == 9


@pytest.mark.parametrize(("tool", "result"), [("multiprocessing", 0), ("a pool of processes", 3), ("subprocess", 0)])
async def test_tools_that_fork_work_in_calls(single: Cluster, tool: str, result: int) -> None:
    async with asyncio.timeout(SAFETY_S):
        assert await single.submit(hostile.fork_by, tool) == result


async def test_a_child_of_a_call_is_told_that_it_is_no_worker(single: Cluster) -> None:
    async with asyncio.timeout(SAFETY_S):
        lines = await single.submit(hostile.submit_in_a_child)
    assert len(lines) == 4
    assert all("forked by a call" in line for line in lines), lines


# --- exceptions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [hostile.raises, hostile.async_raises])
@pytest.mark.parametrize("name", hostile.HOSTILE)
async def test_an_exception_that_raises_when_looked_at_fails_its_call_alone(
    single: Cluster, name: str, call: Callable[..., Any]
) -> None:
    async with asyncio.timeout(SAFETY_S):
        futures = [single.submit(call, name), single.submit(work.square, 3)]
        await asyncio.wait(futures)
        assert futures[0].exception() is not None
        assert await futures[1] == 9
    assert set(single.workers) == {1}


@pytest.mark.parametrize("call", [hostile.raises_sometimes, hostile.async_raises_sometimes])
@pytest.mark.parametrize("name", hostile.HOSTILE)
async def test_an_item_whose_exception_raises_when_looked_at_fails_alone(
    single: Cluster, name: str, call: Callable[..., Any]
) -> None:
    async with asyncio.timeout(SAFETY_S):
        results = await single.map(call, [name] * 10, range(10), chunk_size=10, return_exceptions=True)
    assert [index for index, result in enumerate(results) if type(result) is not int] == [5]
    assert set(single.workers) == {1}


# --- the loop -------------------------------------------------------------------------------------------------------------


async def test_hostile_logging_does_not_end_the_loop_of_a_worker(single: Cluster) -> None:
    async with asyncio.timeout(SAFETY_S):
        pid = await single.submit(hostile.end_the_loop_with_hostile_logging)
        assert pid == (await single.submit(work.own_pid))


async def test_a_worker_whose_loop_has_ended_is_lost_and_replaced(single: Cluster) -> None:
    async with asyncio.timeout(SAFETY_S):
        with pytest.raises(WorkerLost, match="exit"):
            await single.submit(hostile.end_the_loop)
        assert await single.submit(work.square, 3) == 9
    assert set(single.workers) == {2}


async def test_a_nested_call_that_cannot_be_sent_fails_alone(single: Cluster) -> None:
    async with asyncio.timeout(SAFETY_S):
        assert await single.submit(hostile.submit_among_others) == [1, "OverflowError", 2]
    assert set(single.workers) == {1}
