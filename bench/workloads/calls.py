"""Tiny calls: one at a time, all at once, and as a map. Held against echoes of one msgpack frame each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import aiocluster
from bench.functions import increment
from bench.limit import Limit, open_limit
from bench.model import Figures, Metric, Plan, Side, Workload, check
from bench.placement import apart

if TYPE_CHECKING:
    from aiocluster import Cluster

__all__ = ["MAP100K", "ROUNDTRIP", "SUBMIT20K", "WORKERS", "open_cluster"]

WORKERS = 2
_ECHOES = 100_000


def open_cluster() -> contextlib.AbstractAsyncContextManager[Cluster]:
    """The cluster of every workload that needs one: two workers, whose output nobody reads."""
    cluster: contextlib.AbstractAsyncContextManager[Cluster] = aiocluster.Cluster.local(n=WORKERS, output="quiet")
    return cluster


def _expected(count: int) -> int:
    return count * (count + 1) // 2


def _ours(
    measure: Callable[[Cluster, Plan], Awaitable[Figures]],
) -> Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]]:
    @contextlib.asynccontextmanager
    async def open_side(plan: Plan) -> AsyncIterator[Side]:
        async with open_cluster() as cluster:
            yield lambda: measure(cluster, plan)

    return open_side


def _limit(
    measure: Callable[[Limit, Plan], Awaitable[Figures]],
) -> Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]]:
    @contextlib.asynccontextmanager
    async def open_side(plan: Plan) -> AsyncIterator[Side]:
        # A Unix socket, as between a local node and its manager.
        async with open_limit("unix") as limit:
            yield lambda: measure(limit, plan)

    return open_side


async def _echoes(limit: Limit, plan: Plan) -> Figures:
    count = plan.size(2_000, 200)
    figures = {"free": await limit.round_trips(count) / count * 1e6}
    with apart() as is_apart:
        if is_apart:
            figures["apart"] = await limit.round_trips(count) / count * 1e6
    return figures


async def _messages(limit: Limit, _plan: Plan) -> Figures:
    count = _ECHOES  # even in a quick run: fewer would not fill the pipe
    return {"call": await limit.pipelined(count) / count * 1e6}


async def _one_at_a_time(cluster: Cluster, plan: Plan) -> Figures:
    count = plan.size(2_000, 200)
    figures = {"free": await _awaited_calls(cluster, count)}
    with apart() as is_apart:
        if is_apart:
            figures["apart"] = await _awaited_calls(cluster, count)
    return figures


async def _awaited_calls(cluster: Cluster, count: int) -> float:
    total = 0
    started = time.perf_counter()
    for number in range(count):
        total += await cluster.submit(increment, number)
    took = time.perf_counter() - started
    check(total == _expected(count), f"{count} calls add up to {total}, not to {_expected(count)}")
    return took / count * 1e6


async def _all_at_once(cluster: Cluster, plan: Plan) -> Figures:
    count = plan.size(20_000, 2_000)
    started = time.perf_counter()
    futures = [cluster.submit(increment, number) for number in range(count)]
    results = await asyncio.gather(*futures)
    took = time.perf_counter() - started
    check(results == list(range(1, count + 1)), f"the {count} results are not those of the calls, in order")
    return {"call": took / count * 1e6}


async def _as_a_map(cluster: Cluster, plan: Plan) -> Figures:
    count = plan.size(100_000, 10_000)
    started = time.perf_counter()
    results = await cluster.map(increment, range(count))
    took = time.perf_counter() - started
    check(results == list(range(1, count + 1)), f"the {count} results are not those of the items, in order")
    return {"call": took / count * 1e6}


ROUNDTRIP = Workload(
    name="roundtrip",
    measures="one tiny call at a time, awaited; manager and workers on different CPUs, or where the kernel puts them",
    against="the echo of one msgpack frame, one at a time, placed in the same way",
    metrics=(Metric(key="apart", unit="µs", target=1.8), Metric(key="free", unit="µs", target=None)),
    limit=_limit(_echoes),
    ours=_ours(_one_at_a_time),
)
SUBMIT20K = Workload(
    name="submit20k",
    measures="20,000 tiny calls submitted at once, gathered",
    against="the time of one pipelined echoed message",
    metrics=(Metric(key="call", unit="µs", target=5.0, rate="calls/s"),),
    limit=_limit(_messages),
    ours=_ours(_all_at_once),
)
MAP100K = Workload(
    name="map100k",
    measures="map over 100,000 tiny calls",
    against="the time of one pipelined echoed message",
    metrics=(Metric(key="call", unit="µs", target=0.8, rate="items/s"),),
    limit=_limit(_messages),
    ours=_ours(_as_a_map),
)
