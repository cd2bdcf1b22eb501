"""Processes that the harness starts: each is ended with it, on errors and Ctrl-C too, with what it started itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["ChildFailed", "child", "environment", "run_fresh", "time_first_line", "time_process"]

ROOT = Path(__file__).resolve().parent.parent
_GRACE_S = 2.0
_DRAIN_S = 10.0
"""A safety net: pipes of killed processes end at once, unless one of them got away."""
_LIMIT_S = 300.0
"""No workload takes so long: a child that does hangs."""


class ChildFailed(RuntimeError):
    """A process of the harness failed; the text holds the end of what it said on standard error."""


def environment() -> dict[str, str]:
    """The environment of children: ours, with `bench` importable in them and in the workers they start."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.asynccontextmanager
async def child(arguments: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process with pipes, ended when the block ends. In its own session: Ctrl-C reaches the harness alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    descendants: list[psutil.Process] = []
    if process.returncode is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants = psutil.Process(process.pid).children(recursive=True)
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        # A second Ctrl-C must not leave it behind either.
        try:
            await asyncio.wait_for(process.wait(), _GRACE_S)
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    # What its own clean-up did not end. psutil compares start times, so a pid that was given again is safe.
    _, alive = await asyncio.to_thread(psutil.wait_procs, descendants, _GRACE_S)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    # Its descendants shared its pipes: only now do they end, and the loop must see that before it closes.
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.read(), _DRAIN_S)


async def _failure(process: asyncio.subprocess.Process, what: str) -> ChildFailed:
    assert process.stderr is not None
    said = b""
    with contextlib.suppress(TimeoutError):
        said = await asyncio.wait_for(process.stderr.read(), _GRACE_S)
    return ChildFailed(f"{what} failed (exit code {process.returncode}): {said.decode(errors='replace')[-2000:].strip()}")


async def run_fresh(what: str, **arguments: Any) -> dict[str, float]:
    """The figures that `python -m bench.fresh` measures in a process of its own.

    Raises:
        ChildFailed: it ended without figures, or took longer than any workload does.
    """
    async with child(["-m", "bench.fresh", what, json.dumps(arguments)]) as process:
        try:
            out, err = await asyncio.wait_for(process.communicate(), _LIMIT_S)
        except TimeoutError:
            raise ChildFailed(f"the process that measures {what} did not end within {_LIMIT_S:g} s") from None
        if process.returncode:
            said = err.decode(errors="replace")[-2000:].strip()
            raise ChildFailed(f"the process that measures {what} failed (exit code {process.returncode}): {said}")
        figures: dict[str, float] = json.loads(out.splitlines()[-1])
        return figures


async def time_process(arguments: Sequence[str]) -> float:
    """Seconds from starting a Python process to its end."""
    started = time.perf_counter()
    async with child(arguments) as process:
        await process.wait()
        took = time.perf_counter() - started
        if process.returncode:
            raise await _failure(process, " ".join(arguments))
    return took


async def time_first_line(arguments: Sequence[str], expected: bytes) -> float:
    """Seconds from starting a Python process to the first line that it prints, which must be `expected`."""
    started = time.perf_counter()
    async with child(arguments) as process:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _LIMIT_S)
        took = time.perf_counter() - started
        if line.strip() != expected:
            raise await _failure(process, f"{' '.join(arguments)} (it printed {line!r})")
        # Its own orderly end is not part of the figure, but it must come, and in order.
        await asyncio.wait_for(process.wait(), _LIMIT_S)
        if process.returncode:
            raise await _failure(process, " ".join(arguments))
    return took
