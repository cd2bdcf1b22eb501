"""Runs workloads: warm-up first, then rounds in which the limit and ours take turns."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

from bench.model import Figures, Outcome, Plan, Side, Workload

__all__ = ["run_workload"]


async def run_workload(
    workload: Workload, plan: Plan, *, limit_only: bool = False, tell: Callable[[str], None] = lambda text: None
) -> Outcome:
    """All rounds of one workload.

    An error of the workload does not end the run: it becomes the outcome's `error`. Cancelling closes what is open.
    """
    outcome = Outcome(workload=workload)
    try:
        async with contextlib.AsyncExitStack() as stack:
            tell("starting")
            limit = await stack.enter_async_context(workload.limit(plan)) if workload.limit is not None else None
            ours = None if limit_only else await stack.enter_async_context(workload.ours(plan))
            for number in range(plan.warm_ups):
                tell(f"warming up, {number + 1} of {plan.warm_ups}")
                await _one(limit)
                await _one(ours)
            for number in range(plan.rounds):
                tell(f"round {number + 1} of {plan.rounds}: the limit")
                if (figures := await _one(limit)) is not None:
                    outcome.limit.append(figures)
                tell(f"round {number + 1} of {plan.rounds}: aiocluster")
                if (figures := await _one(ours)) is not None:
                    outcome.ours.append(figures)
    except Exception as error:
        # Reported in the table and in the exit code: the other workloads are still worth having.
        outcome.error = f"{type(error).__name__}: {error}"
        outcome.limit.clear()
        outcome.ours.clear()
    return outcome


async def _one(side: Side | None) -> Figures | None:
    if side is None:
        return None
    gc.collect()  # What one side leaves behind must not be collected in the other's time.
    return await side()
