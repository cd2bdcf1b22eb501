"""What a map sends, and when, without a cluster: its backend is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest

from aiocluster.core.calls import CallOptions
from aiocluster.errors import CallTimeout, WorkerLost
from aiocluster.maps import MapRun
from aiocluster.runtime.backend import Backend, CallHandle
from aiocluster.wire.messages import CallStatus
from aiocluster.wire.payloads import pack, unpack


class Loop:
    """The running loop; its timers go off when the test says so."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.timers: list[tuple[float, Callable[[], None], asyncio.TimerHandle]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, (), self._loop)
        self.timers.append((when, callback, handle))
        return handle


class Sent:
    """A chunk on its way."""

    def __init__(self, items: list[int], handle: CallHandle, kills: int, options: CallOptions) -> None:
        self.items = items
        self.kills = kills
        self.options = options
        self._handle = handle

    def resolve(self) -> None:
        """Each item is its own result."""
        self._handle.resolve(CallStatus.OK, pack((1, self.items))[0], (), 1)

    def kill(self) -> None:
        """The worker crashes, and nobody knows which item it was."""
        self._handle.fail(WorkerLost(1, "crashed", maybe_executed=True, kills=self.kills + 1))


class Stage:
    """One worker; `sent` is what it holds, in the order sent."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.sent: list[Sent] = []
        self.withdrawn: list[Sent] = []

    def capture(self, fn: Callable[..., Any]) -> Any:
        return fn

    async def prepare_map(self) -> None:
        pass

    def worker_count(self) -> int:
        return 1

    def estimate_s(self, function: Any) -> None:
        return None

    def send(
        self,
        function: Any,
        payload: bytes,
        buffers: Sequence[Any],
        options: CallOptions,
        handle: CallHandle,
        *,
        kills: int,
        **_rest: Any,
    ) -> Sent:
        sent = Sent(unpack(payload, buffers), handle, kills, options)
        self.sent.append(sent)
        return sent

    def withdraw(self, call: Sent) -> None:
        self.withdrawn.append(call)

    def take(self) -> list[Sent]:
        sent, self.sent = self.sent, []
        return sent

    def map(self, source: Any, chunk_size: int = 1, **options: Any) -> MapRun[int]:
        async def function(item: int) -> int:
            return item

        return MapRun(
            cast(Backend, self),
            function,
            (source,),
            CallOptions(**options),
            ordered=True,
            return_exceptions=True,
            limit=None,
            chunk_size=chunk_size,
            progress=False,
        )


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def collect(run: MapRun[int]) -> list[Any]:
    return await run


async def stream(run: MapRun[int]) -> list[Any]:
    return [value async for value in run]


async def silent() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


@pytest.mark.parametrize("consume", [collect, stream])
async def test_a_deadline_ends_a_map_whose_source_is_silent(consume: Callable[[MapRun[int]], Any]) -> None:
    stage = Stage()
    task = asyncio.ensure_future(consume(stage.map(silent(), timeout_s=3600.0, name="patient")))
    await turn()
    (one,) = stage.sent
    one.resolve()
    await turn()
    assert not task.done()
    ((when, out_of_time, timer),) = stage.loop.timers
    assert 3590 < when - stage.loop.time() <= 3600
    out_of_time()
    with pytest.raises(CallTimeout) as caught:
        await task
    assert (caught.value.call, caught.value.timeout_s) == ("patient", 3600.0)
    assert timer.cancelled()


async def test_the_timer_of_a_map_ends_with_it() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    stage = Stage()
    task = asyncio.ensure_future(collect(stage.map(source(), timeout_s=3600.0)))
    await turn()
    ((_, out_of_time, timer),) = stage.loop.timers
    out_of_time()  # the source has ended: what is on its way has the deadline too, and an outcome each
    assert not timer.cancelled()
    stage.take()[0].resolve()
    assert await task == [1]
    assert timer.cancelled()


async def test_a_map_without_a_deadline_or_a_source_to_wait_for_has_no_timer() -> None:
    stage = Stage()
    for source, timeout_s in ((silent(), None), ([1], 3600.0)):
        task = asyncio.ensure_future(collect(stage.map(source, timeout_s=timeout_s)))
        await turn()
        assert stage.loop.timers == []
        task.cancel()
        await asyncio.wait([task])


async def test_suspects_of_two_deaths_go_one_by_one_when_all_else_has_ended() -> None:
    stage = Stage()
    task = asyncio.ensure_future(collect(stage.map(range(9), 4, idempotent=True)))
    await turn()
    suspect, other, last = stage.take()
    assert not suspect.options.idempotent, "it is not for anybody else to send it again"
    suspect.kill()
    first, second = stage.take()
    assert [(one.items, one.kills) for one in (first, second)] == [([0, 1], 1), ([2, 3], 1)]
    second.kill()
    assert stage.sent == []
    for one in (other, last):
        one.resolve()
        assert stage.sent == []
    first.resolve()
    for item in (2, 3):
        (alone,) = stage.take()
        assert (alone.items, alone.kills) == ([item], 2)
        alone.kill()
    results = await task
    assert [type(result) for result in results] == [int, int, WorkerLost, WorkerLost, int, int, int, int, int]


async def test_what_a_source_has_had_under_way_does_not_go_beside_a_suspect() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 0
        await more.wait()
        for item in range(1, 4):
            yield item

    stage = Stage()
    task = asyncio.ensure_future(stream(stage.map(source(), 4, retries=9)))
    await turn()
    for kills in (0, 1):
        (one,) = stage.take()
        assert (one.items, one.kills) == ([0], kills)
        one.kill()
    (one,) = stage.take()
    more.set()
    await turn()
    assert stage.sent == []
    one.resolve()
    (rest,) = stage.take()
    assert (rest.items, rest.kills) == ([1], 0)
    rest.resolve()
    await turn()
    (rest,) = stage.take()
    rest.resolve()
    assert await task == [0, 1, 2, 3]


async def test_leaving_a_map_withdraws_its_suspects() -> None:
    stage = Stage()
    task = asyncio.ensure_future(collect(stage.map(range(4), 2, retries=9)))
    await turn()
    for _ in range(2):
        for one in stage.take():
            one.kill()
    (alone,) = stage.take()
    task.cancel()
    await asyncio.wait([task])
    assert stage.withdrawn == [alone]
    assert stage.sent == []
