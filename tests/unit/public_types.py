"""What type checkers make of the public API. Nothing here runs: both checkers read it (`nox -s types`)."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, assert_type

import aiocluster
from aiocluster import Cluster, Future, Worker, results
from aiocluster.maps import MapRun


def half(x: int) -> float:
    return x / 2


async def text_of(x: int, *, width: int = 0) -> str:
    return f"{x:{width}}"


@aiocluster.remote
def remote_half(x: int) -> float:
    return x / 2


@aiocluster.remote(timeout=5)
async def remote_text(x: int) -> str:
    return str(x)


async def calls(cluster: Cluster, worker: Worker) -> None:
    assert_type(cluster.submit(half, 3), Future[float])
    assert_type(cluster.submit(text_of, 3, width=5), Future[str])
    assert_type(await cluster.submit(text_of, 3), str)
    assert_type(cluster.options(timeout=3).submit(half, 3), Future[float])
    assert_type(worker.submit(half, 3), Future[float])
    assert_type(worker.submit(text_of, 3), Future[str])
    cluster.submit(half, "three")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def maps(cluster: Cluster, worker: Worker) -> None:
    assert_type(cluster.map(half, [1, 2]), MapRun[float])
    assert_type(await cluster.map(text_of, [1, 2]), list[str])
    assert_type(await worker.map(half, [1, 2]), list[float])
    assert_type(await cluster.map(half, [1, 2], return_exceptions=True), list[float | BaseException])
    async for value in cluster.map(text_of, [1, 2], ordered=False):
        assert_type(value, str)


async def remote_functions(cluster: Cluster) -> None:
    assert_type(remote_half(3), float)
    assert_type(await remote_text(3), str)
    coroutine: Coroutine[Any, Any, str] = remote_text(3)
    coroutine.close()
    assert_type(remote_half.remote(3), Future[float])
    assert_type(remote_text.remote(3), Future[str])
    assert_type(remote_half.map([1, 2]), MapRun[float])
    assert_type(await remote_text.map([1, 2]), list[str])
    assert_type(await remote_text.map([1, 2], return_exceptions=True), list[str | BaseException])
    assert_type(remote_text.options(retries=2).remote(3), Future[str])
    assert_type(cluster.submit(remote_half, 3), Future[float])
    assert_type(cluster.submit(remote_text, 3), Future[str])
    assert_type(await cluster.map(remote_text, [1, 2]), list[str])
    remote_half("three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    remote_half.remote("three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def everywhere(cluster: Cluster) -> None:
    assert_type(await cluster.everywhere(half, 3), dict[int, float])
    assert_type(await cluster.everywhere(text_of, 3, on_join=True), dict[int, str])
    assert_type(await cluster.everywhere(remote_text, 3), dict[int, str])


async def inside_a_call() -> None:
    inner = aiocluster.get_cluster()
    assert_type(inner.id, str)
    assert_type(inner.submit(half, 3), Future[float])
    assert_type(await inner.everywhere(text_of, 3), dict[int, str])
    for id, one in (await inner.workers()).items():
        assert_type(id, int)
        assert_type((one.id, one.node, one.host, one.pid), tuple[int, str, str, int])


def of_a_cluster(cluster: Cluster) -> None:
    assert_type(cluster.workers[1], Worker)


async def what_is_kept() -> None:
    assert_type(await results.save("mean", 2.5), results.Entry)
    assert_type(await results.load("mean"), Any)
    assert_type(await results.load("model.bin", "copy.bin"), Path)
    assert_type(await results.names(), list[str])
