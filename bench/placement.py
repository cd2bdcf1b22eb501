"""Which CPUs the two ends of a round trip run on: the one thing that changes it threefold and that nobody chose.

Two processes that take turns are fast on one core, which never sleeps, and slow on two, of which one is always waking
up. The kernel picks, differently from one moment to the next, so a ratio of one pick to another says little. `apart`
makes both sides of a round comparable: it must never be used on one of them alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator

import psutil

__all__ = ["apart"]


@contextlib.contextmanager
def apart() -> Iterator[bool]:
    """Keep this thread on one CPU and all descendant processes on the others; as before when the block ends.

    Yields: False where that cannot be done (one CPU only, or not Linux), and nothing is changed.
    """
    if sys.platform != "linux":
        yield False
        return
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        yield False
        return
    ours = min(usable)
    try:
        _pin_descendants(usable - {ours})
        os.sched_setaffinity(0, {ours})
        yield True
    finally:
        os.sched_setaffinity(0, usable)
        _pin_descendants(usable)


def _pin_descendants(cpus: Collection[int]) -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Thread by thread: the kernel's call moves one, and a worker has two that matter.
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, cpus)
