"""Uneven calls: every tenth takes 50 ms, the others 1 ms. How close the makespan comes to the ideal one.

The ideal is what no placement and no machine can beat: the sum of the nominal durations divided by the number of
workers (or the longest call, if that is more). It counts neither the end, when one worker may have nothing left, nor
that a sleep lasts a little longer than asked for. What the latter alone costs on this machine is shown by the rows
`against bare`: their limit is the measured makespan of the same sleeps, dealt out evenly beforehand to as many bare
processes, with no runtime at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from bench.children import run_fresh
from bench.functions import sleep_for
from bench.model import Figures, Metric, Plan, Side, Workload, check
from bench.workloads.calls import WORKERS, open_cluster

__all__ = ["IMBALANCE", "durations", "ideal_makespan"]


def durations(count: int) -> list[float]:
    """Seconds of each call, in the order of submission."""
    return [0.050 if number % 10 == 0 else 0.001 for number in range(count)]


def ideal_makespan(seconds: list[float], workers: int) -> float:
    return max(sum(seconds) / workers, max(seconds))


def _count(plan: Plan) -> int:
    return plan.size(1000, 200)


@contextlib.asynccontextmanager
async def _limit(plan: Plan) -> AsyncIterator[Side]:
    seconds = durations(_count(plan))
    by_length = sorted(seconds, reverse=True)

    async def measure() -> Figures:
        shares = [by_length[first::WORKERS] for first in range(WORKERS)]
        slept = await asyncio.gather(*[run_fresh("sleeps", durations=share) for share in shares])
        bare = max(figures["seconds"] for figures in slept) * 1e3
        ideal = ideal_makespan(seconds, WORKERS) * 1e3
        return {"submit": ideal, "map": ideal, "submit against bare": bare, "map against bare": bare}

    yield measure


@contextlib.asynccontextmanager
async def _ours(plan: Plan) -> AsyncIterator[Side]:
    seconds = durations(_count(plan))
    async with open_cluster() as cluster:

        async def measure() -> Figures:
            started = time.perf_counter()
            results = await asyncio.gather(*[cluster.submit(sleep_for, one) for one in seconds])
            submitted = time.perf_counter() - started
            check(results == seconds, "the results of the submitted calls are not those of the calls, in order")
            started = time.perf_counter()
            results = await cluster.map(sleep_for, seconds)
            mapped = time.perf_counter() - started
            check(results == seconds, "the results of the map are not those of the items, in order")
            return {
                "submit": submitted * 1e3,
                "map": mapped * 1e3,
                "submit against bare": submitted * 1e3,
                "map against bare": mapped * 1e3,
            }

        yield measure


IMBALANCE = Workload(
    name="imbalance",
    measures="1,000 sleeping calls, every tenth 50 ms, the others 1 ms: makespan, submitted at once and as a map",
    against="sum of the durations / workers, the ideal makespan",
    metrics=(
        Metric(key="submit", unit="ms", target=1.06),
        Metric(key="map", unit="ms", target=1.06),
        Metric(key="submit against bare", unit="ms", target=None),
        Metric(key="map against bare", unit="ms", target=None),
    ),
    limit=_limit,
    ours=_ours,
)
