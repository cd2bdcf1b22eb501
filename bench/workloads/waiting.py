"""Many waiting calls: what one costs in memory, and whether it costs more time than when fewer wait."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from bench.children import run_fresh
from bench.model import Figures, Kind, Metric, Plan, Side, Workload

__all__ = ["WAITING"]

_MANY, _FEW = 200_000, 20_000


def _side(full: int) -> Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]]:
    @contextlib.asynccontextmanager
    async def open_side(plan: Plan) -> AsyncIterator[Side]:
        async def measure() -> Figures:
            figures = await run_fresh("waiting", calls=plan.size(full, full // 10))
            return {"call": figures["seconds_per_call"] * 1e6, "memory": figures["bytes_per_call"]}

        yield measure

    return open_side


WAITING = Workload(
    name="waiting",
    measures="200,000 calls waiting at once, in a fresh manager: time per call; growth of its peak RSS per call",
    against="20,000 calls waiting at once, in a fresh manager",
    metrics=(
        Metric(key="call", unit="µs", target=1.1, rate="calls/s"),
        Metric(key="memory", unit="bytes", target=1024, kind=Kind.VALUE),
    ),
    limit=_side(_FEW),
    ours=_side(_MANY),
)
