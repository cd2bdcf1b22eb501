"""What the processes of a cluster cost by being there: time to start, processor time when idle, memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable

from bench.children import run_fresh, time_first_line, time_process
from bench.model import Figures, Kind, Metric, Plan, Side, Workload
from bench.workloads.calls import WORKERS

__all__ = ["COLDSTART2", "COLDSTART8", "IDLE", "RSS"]

BARE_IMPORT = "import uvloop, msgpack"


def _side(
    measure: Callable[[Plan], Awaitable[Figures]],
) -> Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]]:
    @contextlib.asynccontextmanager
    async def open_side(plan: Plan) -> AsyncIterator[Side]:
        yield functools.partial(measure, plan)

    return open_side


async def _bare_start(plan: Plan) -> Figures:
    return {"start": await time_process(["-c", BARE_IMPORT]) * 1e3}


def _cold_start(workers: int, target: float) -> Workload:
    async def measure(plan: Plan) -> Figures:
        return {"start": await time_first_line(["-m", "bench.coldstart", str(workers)], b"first result") * 1e3}

    return Workload(
        name=f"coldstart{workers}",
        measures=f"fresh process to the first result, after all {workers} workers have joined",
        against=f'python -c "{BARE_IMPORT}", start to end',
        metrics=(Metric(key="start", unit="ms", target=target),),
        limit=_side(_bare_start),
        ours=_side(measure),
    )


async def _idle(plan: Plan) -> Figures:
    figures = await run_fresh("idle", workers=WORKERS, seconds=plan.size(10, 3))
    return {"cpu": figures["cpu_percent"]}


async def _bare_rss(plan: Plan) -> Figures:
    figures = await run_fresh("bare_rss")
    return dict.fromkeys(("manager", "node", "worker"), figures["rss_bytes"] / 2**20)


async def _rss(plan: Plan) -> Figures:
    figures = await run_fresh("rss", workers=WORKERS)
    return {name: size / 2**20 for name, size in figures.items()}


COLDSTART2 = _cold_start(2, 6.0)
COLDSTART8 = _cold_start(8, 10.0)
IDLE = Workload(
    name="idle",
    measures="processor time of manager, agent and 2 workers together, with nothing to do, in percent of one CPU",
    against="nothing: the target is a plain figure",
    metrics=(Metric(key="cpu", unit="%", target=0.5, kind=Kind.VALUE),),
    limit=None,
    ours=_side(_idle),
)
RSS = Workload(
    name="rss",
    measures="resident memory after 2,000 calls: manager; agent and its fork server together; the larger worker",
    against=f"a process that did {BARE_IMPORT}",
    metrics=tuple(Metric(key=key, unit="MiB", target=None) for key in ("manager", "node", "worker")),
    limit=_side(_bare_rss),
    ours=_side(_rss),
)
