"""What goes wrong in one call is that call's outcome, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from aiocluster import Cluster, Future, RemoteError, RemoteTraceback, WorkerLost

from . import work


async def test_an_exception_arrives_as_itself_with_the_remote_traceback(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="3 is odd") as caught:
        await cluster.submit(work.fail_on_odd, 3)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "fail_on_odd" in str(caught.value.__cause__)


@pytest.mark.parametrize("function", [work.fail_grumpy, work.fail_unspeakable, work.fail_picky])
async def test_an_exception_that_cannot_travel_becomes_a_remote_error(cluster: Cluster, function: object) -> None:
    with pytest.raises(RemoteError) as caught:
        await cluster.submit(function)  # type: ignore[call-overload]
    assert caught.value.type_name.endswith(("Grumpy", "Unspeakable", "Picky"))
    assert "work.py" in caught.value.traceback
    assert await cluster.submit(work.square, 2) == 4


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration, asyncio.CancelledError]
)
@pytest.mark.parametrize("in_async", [False, True])
async def test_what_would_steer_the_callers_loop_arrives_as_a_remote_error(
    cluster: Cluster, kind: type[BaseException], in_async: bool
) -> None:
    def fail() -> None:
        raise kind("steer")

    async def async_fail() -> None:
        await asyncio.sleep(0)
        raise kind("steer")

    workers = set(cluster.workers)
    with pytest.raises((RemoteError, RuntimeError)) as caught:  # a coroutine turns StopIteration into RuntimeError itself
        await cluster.submit(async_fail if in_async else fail)
    assert kind.__name__ in str(caught.value)
    assert await cluster.submit(work.square, 2) == 4
    assert set(cluster.workers) == workers


async def test_sys_exit_ends_the_call_not_the_worker(single: Cluster) -> None:
    with pytest.raises(RemoteError, match="SystemExit: 7"):
        await single.submit(work.exit_politely)
    assert list(single.workers) == [1]


async def test_an_unpicklable_argument_fails_that_call_alone(cluster: Cluster) -> None:
    good = cluster.submit(work.square, 3)
    bad = cluster.submit(work.echo, threading.Lock())
    with pytest.raises(TypeError, match="pickle"):
        await bad
    assert await good == 9


async def test_an_unpicklable_result_fails_that_call_alone(cluster: Cluster) -> None:
    bad = cluster.submit(threading.Lock)
    good = cluster.submit(work.square, 3)
    with pytest.raises(TypeError, match="pickle"):
        await bad
    assert await good == 9


async def test_an_unpicklable_function_fails_that_call_alone(cluster: Cluster) -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        await cluster.submit(lambda: lock)
    assert await cluster.submit(work.square, 3) == 9


async def test_a_result_that_does_not_load_here_fails_that_call_alone(cluster: Cluster) -> None:
    def make() -> object:
        import sys
        import types

        module = types.ModuleType("only_on_the_worker")
        sys.modules["only_on_the_worker"] = module
        exec("class Thing: pass", module.__dict__)
        thing: object = module.Thing()
        return thing

    good = cluster.submit(work.square, 3)
    with pytest.raises(ModuleNotFoundError, match="only_on_the_worker"):
        await cluster.submit(make)
    assert await good == 9


@pytest.mark.parametrize(
    ("die", "cause"),
    [(work.segfault, "signal 11"), (os.abort, "signal 6")],
    ids=["segfault", "abort"],
)
async def test_a_crash_is_told_with_its_cause(single: Cluster, die: object, cause: str) -> None:
    with pytest.raises(WorkerLost, match=cause) as caught:
        await single.submit(die)  # type: ignore[call-overload]
    assert caught.value.worker_id == 1
    assert caught.value.maybe_executed
    assert await single.submit(work.own_id) == 2


async def test_os_exit_in_a_call_loses_the_worker_and_only_that_call(single: Cluster) -> None:
    futures = [single.submit(work.square, n) for n in range(10)]
    bad: Future[None] = single.submit(os._exit, 3)
    futures += [single.submit(work.square, n) for n in range(10, 500)]
    with pytest.raises(WorkerLost, match="exited with code 3"):
        await bad
    assert await asyncio.gather(*futures) == [n * n for n in range(500)]
    assert list(single.workers) == [2]


class Trap:
    """Loads only with an exception that would steer the loop of whoever loads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return spring, ()


def spring() -> None:
    raise asyncio.CancelledError("sprung")


def make_trap() -> Trap:
    return Trap()


async def test_a_result_that_springs_a_trap_while_it_is_loaded_fails_that_call_alone(cluster: Cluster) -> None:
    others = [cluster.submit(work.square, n) for n in range(100)]
    with pytest.raises(RemoteError, match="CancelledError"):
        await cluster.submit(make_trap)
    assert await asyncio.gather(*others) == [n * n for n in range(100)]
    with pytest.raises(RemoteError, match="CancelledError"):
        await cluster.map(work.fail, [asyncio.CancelledError])
