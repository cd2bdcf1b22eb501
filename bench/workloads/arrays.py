"""numpy arrays there and back, held against the time of the same bytes in the same frames on loopback TCP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from bench.functions import echo
from bench.limit import open_limit
from bench.model import Figures, Metric, Plan, Side, Workload, check
from bench.workloads.calls import open_cluster

if TYPE_CHECKING:
    import numpy

__all__ = ["ARRAY100", "ARRAYS200"]

MB = 10**6


def _arrays(count: int, size: int) -> list[numpy.ndarray[Any, Any]]:
    try:
        import numpy
    except ImportError:
        raise RuntimeError("the array workloads need numpy: python -m pip install numpy") from None
    generator = numpy.random.default_rng(1)
    return [generator.integers(0, 256, size, dtype=numpy.uint8) for _ in range(count)]


def _sides(
    shape: Callable[[Plan], tuple[int, int]],
) -> tuple[
    Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]],
    Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]],
]:
    @contextlib.asynccontextmanager
    async def limit(plan: Plan) -> AsyncIterator[Side]:
        count, size = shape(plan)
        bodies = [bytearray(array.tobytes()) for array in _arrays(count, size)]
        async with open_limit("tcp") as limit:

            async def measure() -> Figures:
                return {"array": await limit.arrays(bodies) * 1e6 / (count * size / MB)}

            yield measure

    @contextlib.asynccontextmanager
    async def ours(plan: Plan) -> AsyncIterator[Side]:
        count, size = shape(plan)
        arrays = _arrays(count, size)
        async with open_cluster() as cluster:

            async def measure() -> Figures:
                for array in arrays:
                    array[0] ^= 1  # The last round's answer must not pass for this one's.
                started = time.perf_counter()
                results = await asyncio.gather(*[cluster.submit(echo, array) for array in arrays])
                took = time.perf_counter() - started
                for array, result in zip(arrays, results, strict=True):
                    check(result is not array, "an array came back as the very object that was sent")
                    check(bool((array == result).all()), "an array came back changed")
                check(all(result.flags.writeable for result in results), "an array came back read-only")
                return {"array": took * 1e6 / (count * size / MB)}

            yield measure

    return limit, ours


def _workload(name: str, measures: str, target: float, shape: Callable[[Plan], tuple[int, int]]) -> Workload:
    limit, ours = _sides(shape)
    return Workload(
        name=name,
        measures=measures,
        against="the same bytes in the same frames on loopback TCP, there and back",
        metrics=(Metric(key="array", unit="µs/MB", target=target, rate="GB/s", amount=2 * MB / 1e9),),
        limit=limit,
        ours=ours,
    )


ARRAY100 = _workload("array100", "one 100 MB numpy array there and back", 1.2, lambda plan: (1, plan.size(100, 10) * MB))
ARRAYS200 = _workload("arrays200", "200 numpy arrays of 1 MB there and back, at once", 1.6, lambda plan: (plan.size(200, 20), MB))
