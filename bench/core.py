"""The pure core alone: what a call costs the manager's dispatch with 1,000 workers, against 2. No process, no socket.

Both sides run the same calls in frames of the same size: a simulated worker ends its oldest calls, and the core places
others. So what differs is only how many workers the core has to choose from. It is the one workload that reaches behind
the public API: it depends on `Dispatch`, `FunctionTable` and `calls_messages` of `aiocluster.core`.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import islice

from aiocluster.config import Settings
from bench.model import Figures, Metric, Plan, Side, Workload, check

__all__ = ["CORE1000", "seconds_per_call"]

_FRAME_CALLS = 32
"""Calls that end with one frame of results."""
_CALL_S = 50e-6
"""What the core believes a call to take: a window of 2 ms then holds 40, so most calls wait in the manager."""


def seconds_per_call(workers: int, calls: int) -> float:
    """Processor time of the core for one call, from its submission to its end."""
    from aiocluster.core.batches import calls_messages
    from aiocluster.core.calls import Call
    from aiocluster.core.dispatch import Dispatch
    from aiocluster.core.functions import FunctionTable

    functions = FunctionTable()
    function = functions.intern(b"f" * 16, b"payload", "f", False)
    functions.observe(function.id, _FRAME_CALLS, _FRAME_CALLS * _CALL_S)
    dispatch = Dispatch(Settings(), functions)
    for worker in range(1, workers + 1):
        dispatch.add_worker(worker, {}, 0.0)
        dispatch.open_worker(worker)
    busy = deque(range(1, workers + 1))
    ended = now = 0

    started = time.process_time()
    for number in range(calls):
        refusal = dispatch.submit(Call(number + 1, function, b"\x91\x01"))
        check(refusal is None, f"the core refused a call: {refusal}")
    while ended < calls:
        for place, batch in dispatch.assign(now * 1e-3):
            calls_messages(place, batch, now * 1e-3)
        worker = busy[0]
        busy.rotate(-1)
        done = list(islice(dispatch.places[worker].inflight, _FRAME_CALLS))
        if done:
            finished, honest = dispatch.finished(worker, done, now * 1e-3)
            functions.observe(function.id, len(done), len(done) * _CALL_S)
            check(honest and None not in finished, "the core did not know a call that it had sent")
            ended += len(finished)
        now += 1
    took = time.process_time() - started
    check(dispatch.pending_calls == 0 and ended == calls, f"{ended} of {calls} calls ended")
    return took / calls


def _side(workers: int) -> Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]]:
    @contextlib.asynccontextmanager
    async def open_side(plan: Plan) -> AsyncIterator[Side]:
        async def measure() -> Figures:
            return {"call": seconds_per_call(workers, plan.size(200_000, 50_000)) * 1e6}

        yield measure

    return open_side


CORE1000 = Workload(
    name="core1000",
    measures="cost per call in the pure core with 1,000 simulated workers",
    against="the same calls with 2 simulated workers",
    metrics=(Metric(key="call", unit="µs", target=1.2),),
    limit=_side(2),
    ours=_side(1000),
)
