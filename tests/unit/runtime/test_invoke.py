"""Chunks on a worker: what the flight recorder says of those that run side by side, and where one that was cancelled ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiocluster.core.inbox import ArrivedCall
from aiocluster.runtime.executor import Runner
from aiocluster.runtime.invoke import Functions, Invoker, Outcome
from aiocluster.runtime.recorder import Recorder
from aiocluster.wire.messages import CallStatus, Mode
from aiocluster.wire.payloads import pack, unpack


class Bench:
    """An invoker without a worker around it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._functions = Functions()
        self.invoker = Invoker(self._functions, recorder.slots, lambda _id: None)
        self._calls = 0

    def chunk(self, function: Callable[..., Any], *items: Any, mode: int = 0) -> ArrivedCall:
        self._calls += 1
        self._functions.loaded[self._calls] = function
        return ArrivedCall(self._calls, self._calls, self._calls, Mode.CHUNK | mode, pack(list(items))[0])

    def run(self, call: ArrivedCall) -> Outcome:
        runner = Runner(is_main=True)
        runner.call = call
        return self.invoker.run(runner, call)

    @property
    def items_started(self) -> tuple[int, int]:
        """How many, and of which call."""
        reading = self.recorder.read()
        return reading.item_call, reading.item


@pytest.fixture
def bench() -> Iterator[Bench]:
    recorder, descriptor = Recorder.create()
    os.close(descriptor)
    bench = Bench(recorder)
    yield bench
    bench.invoker._slots = memoryview(b"")
    recorder.close()


def values_of(outcome: Outcome) -> Any:
    assert outcome.status == CallStatus.OK
    return unpack(outcome.payload, outcome.buffers)[1]


@pytest.mark.parametrize("mode", [0, Mode.STAR])
def test_items_are_counted_for_their_own_chunk_where_two_run_side_by_side(bench: Bench, mode: int) -> None:
    def beside(_item: int) -> tuple[int, int]:
        return bench.items_started

    def first(item: int) -> tuple[int, int]:
        if item == 1:  # here it waits, and a stand-in runs the other one
            assert values_of(bench.run(second)) == [(2, 1), (2, 2), (2, 3)]
            assert bench.items_started == (2, 3)
        return bench.items_started

    def row(*items: int) -> list[Any]:
        return [(item,) for item in items] if mode else list(items)

    one = bench.chunk(first, *row(0, 1, 2), mode=mode)
    second = bench.chunk(beside, *row(0, 1, 2), mode=mode)
    assert values_of(bench.run(one)) == [(1, 1), (2, 3), (1, 3)]
    assert bench.recorder.read().sync_started == second.serial


def test_chunk_of_which_no_item_has_started_says_so(bench: Bench) -> None:
    def load() -> None:
        raise AssertionError

    chunk = bench.chunk(load)
    bench.run(chunk)
    assert bench.items_started == (chunk.serial, 0)


@pytest.mark.parametrize("mode", [0, Mode.STAR, Mode.KEEP_GOING])
@pytest.mark.parametrize("swallow", [True, False])
def test_chunk_that_was_cancelled_ends_though_an_item_has_caught_the_interrupt(bench: Bench, mode: int, swallow: bool) -> None:
    ran = []

    def item(number: int) -> None:
        ran.append(number)
        if number == 1:
            try:
                chunk.cancelled = True
                raise asyncio.CancelledError  # as the signal does
            except asyncio.CancelledError:
                if not swallow:
                    raise

    chunk = bench.chunk(item, *[(number,) if mode & Mode.STAR else number for number in range(4)], mode=mode)
    assert bench.run(chunk).status == CallStatus.CANCELLED
    assert ran == [0, 1]


def test_chunk_that_was_cancelled_ends_though_an_item_has_made_another_error_of_the_interrupt(bench: Bench) -> None:
    ran = []

    def item(number: int) -> None:
        ran.append(number)
        chunk.cancelled = True
        raise ValueError(number)

    chunk = bench.chunk(item, 0, 1, 2, mode=Mode.KEEP_GOING)
    assert bench.run(chunk).status == CallStatus.CANCELLED
    assert ran == [0]


async def test_async_chunk_that_was_cancelled_ends_with_its_last_item_and_not_before(bench: Bench) -> None:
    waiting, cancelled, go_on = asyncio.Semaphore(0), asyncio.Semaphore(0), asyncio.Event()
    went_on = []

    async def item(number: int) -> None:
        try:
            waiting.release()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.release()
            if number == 0:
                raise
        await go_on.wait()
        went_on.append(number)

    chunk = bench.chunk(item, 0, 1, 2, mode=Mode.ASYNC)
    task = asyncio.get_running_loop().create_task(bench.invoker.run_async(chunk))
    for _ in range(3):
        await waiting.acquire()
    chunk.cancelled = True
    task.cancel()
    for _ in range(3):
        await cancelled.acquire()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    assert (await task).status == CallStatus.CANCELLED
    assert went_on == [1, 2]


async def test_items_of_an_async_chunk_that_have_not_begun_when_it_is_cancelled_never_do(bench: Bench) -> None:
    ran = []

    async def item(number: int) -> None:
        ran.append(number)
        if number == 0:
            chunk.cancelled = True
            task.cancel()

    chunk = bench.chunk(item, 0, 1, 2, mode=Mode.ASYNC)
    task = asyncio.get_running_loop().create_task(bench.invoker.run_async(chunk))
    assert (await task).status == CallStatus.CANCELLED
    assert ran == [0]
