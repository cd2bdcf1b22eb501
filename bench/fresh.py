"""Measurements that need a fresh manager: `python -m bench.fresh WHAT JSON` prints its figures as one line of JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import uvloop

import aiocluster
from bench.functions import increment
from bench.model import check

__all__ = ["MEASUREMENTS"]

_WORKERS = 2
_WARM_UP_CALLS = 1_000


async def _exercise(cluster: aiocluster.Cluster, count: int) -> None:
    results = await asyncio.gather(*[cluster.submit(increment, number) for number in range(count)])
    check(sum(results) == count * (count + 1) // 2, f"the {count} results do not add up")


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


def _reset_peak() -> bool:
    """Start the kernel's record of our largest RSS afresh; False where it cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss(was_reset: bool) -> int:
    if was_reset:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Elsewhere: the peak since the start. Right as long as the measured part is the largest, which it is.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def waiting(calls: int) -> dict[str, float]:
    """Time and growth of the manager's peak RSS for each of `calls` calls that wait at once, their futures included."""
    async with aiocluster.Cluster.local(n=_WORKERS, output="quiet") as cluster:
        for _ in range(3):
            await _exercise(cluster, _WARM_UP_CALLS)
        gc.collect()
        before = _rss()
        was_reset = _reset_peak()
        started = time.perf_counter()
        futures = [cluster.submit(increment, number) for number in range(calls)]
        results = await asyncio.gather(*futures)
        took = time.perf_counter() - started
        peak = _peak_rss(was_reset)
        check(results == list(range(1, calls + 1)), f"the {calls} results are not those of the calls, in order")
        return {"seconds_per_call": took / calls, "bytes_per_call": (peak - before) / calls}


def _cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process so far: of all its threads, to the nanosecond where the kernel tells it."""
    try:
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) * 1e-9
    except (OSError, ValueError, IndexError):
        times = process.cpu_times()
        return float(times.user + times.system)


async def idle(workers: int, seconds: float) -> dict[str, float]:
    """Processor time of the whole process tree while nothing is asked of it, in percent of one CPU."""
    async with aiocluster.Cluster.local(n=workers, output="quiet") as cluster:
        await _exercise(cluster, _WARM_UP_CALLS)
        await asyncio.sleep(1.0)  # What is due after work (acknowledgements, trimming) is not idling.
        gc.collect()
        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
        check(len(tree) >= workers + 2, f"the process tree has only {len(tree)} processes")
        before = [_cpu_seconds(process) for process in tree]
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - started
        after = [_cpu_seconds(process) for process in tree]
        await _exercise(cluster, 1)
        return {"cpu_percent": (sum(after) - sum(before)) / took * 100}


async def rss(workers: int) -> dict[str, float]:
    """Bytes resident in the manager, in the node's own processes together, and in its largest worker."""
    async with aiocluster.Cluster.local(n=workers, output="quiet") as cluster:
        await _exercise(cluster, 2_000)
        pids = {worker.pid for worker in cluster.workers.values()}
        tree = psutil.Process().children(recursive=True)
        check(pids <= {process.pid for process in tree}, "a worker is not in the manager's process tree")
        sizes = {process.pid: process.memory_info().rss for process in tree}
        return {
            "manager": _rss(),
            "node": sum(size for pid, size in sizes.items() if pid not in pids),
            "worker": max(sizes[pid] for pid in pids),
        }


async def bare_rss() -> dict[str, float]:
    """Bytes resident in a process that has done what the limit of `rss` says."""
    code = "import uvloop, msgpack, sys; print('ready', flush=True); sys.stdin.read()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        check(await process.stdout.readline() == b"ready\n", "the bare process did not start")
        return {"rss_bytes": psutil.Process(process.pid).memory_info().rss}
    finally:
        process.stdin.close()
        await process.wait()


async def sleeps(durations: list[float]) -> dict[str, float]:
    """Seconds that these sleeps take one after the other, in a process that does nothing else."""
    started = time.perf_counter()
    for seconds in durations:
        time.sleep(seconds)  # noqa: ASYNC251 - what a worker's main thread does
    return {"seconds": time.perf_counter() - started}


MEASUREMENTS: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    "waiting": waiting,
    "idle": idle,
    "rss": rss,
    "bare_rss": bare_rss,
    "sleeps": sleeps,
}


async def _main(what: str, arguments: str) -> None:
    print(json.dumps(await MEASUREMENTS[what](**json.loads(arguments))), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sys.argv[1], sys.argv[2]))
