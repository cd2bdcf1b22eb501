"""`aiocluster demo`: real work on this machine that shows what a cluster does, and whether it keeps its word.

Every file of the standard library is parsed twice: by one worker alone, then by all. With `kill`, one worker dies half
way through the second run. What is printed is what was counted and measured; nothing is assumed.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiocluster.cli.parse import keep_journal, parse_file
from aiocluster.cli.tally import Tally, columns, plural
from aiocluster.terminal import above_bars, write_text

if TYPE_CHECKING:
    from aiocluster.cluster import Cluster

__all__ = ["find_files", "run_demo", "usable_cpus"]

NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})

RULE = (
    "  The rule: the call was made with idempotent=True, so a file that was with the lost worker, and may have been",
    "  parsed there, is parsed again elsewhere; a result is taken once for each file. Without idempotent=True",
    "  such a call would have ended in WorkerLost, for a call runs at most once unless you say otherwise.",
)


def _open_local(workers: int) -> AbstractAsyncContextManager[Cluster]:
    from aiocluster import Cluster

    return Cluster.local(n=workers)


async def run_demo(
    workers: int | None,
    *,
    kill: bool,
    files: Sequence[str] | None = None,
    open_cluster: Callable[[int], AbstractAsyncContextManager[Cluster]] = _open_local,
    clock: Callable[[], float] = time.perf_counter,
    kill_process: Callable[[int, int], None] = os.kill,
) -> int:
    """Run the demo and print what happened.

    Args:
        workers: how many; one for each usable CPU if None.
        kill: kill a worker half way.
        files: the files to parse; those of the standard library if None.
        open_cluster, clock, kill_process: the world outside, for tests.

    Returns: 0 if every file was counted exactly once (and, with `kill`, the worker was really killed), else 1.
    """
    root = sysconfig.get_path("stdlib")
    files = find_files(root) if files is None else files
    if not files:
        _complain(f"There are no source files in {root}: this Python comes without them.")
        return 1
    cpus = usable_cpus()
    workers = cpus if workers is None else workers
    _read_once(files)
    _say(f"The standard library of Python {platform.python_version()}: {plural(len(files), 'file')} in {root}")
    begun = clock()
    async with open_cluster(workers) as cluster:
        _say(f"{plural(workers, 'worker')} ready after {clock() - begun:.2f} s")
        with tempfile.TemporaryDirectory(prefix="aiocluster-demo-") as folder:
            journal = os.path.join(folder, "started") if kill else None
            if journal is not None:
                # on_join: the worker that takes the place of the killed one keeps the journal too
                await cluster.everywhere(keep_journal, journal, on_join=True)
            alone = None
            if workers > 1:
                alone = await _parse(cluster, files, [min(cluster.workers)], "one worker alone", clock)
                if journal is not None:
                    os.truncate(journal, 0)
            victim = _Victim(cluster, len(files) // 2, kill_process) if kill else None
            together = await _parse(cluster, files, None, "all workers", clock, victim)
            started = _starts(journal)
    _print_workers(together.tally, victim)
    _say("\n".join(["", *together.tally.findings(root), ""]))
    _print_speed(alone, together, workers, cpus, victim)
    if victim is not None:
        _print_kill(victim, started, root)
    return _print_verdict(files, alone, together, victim)


def _say(text: str) -> None:
    """Print a line; a closed pipe behind it (`| head`) or an encoding without some character do not end the demo."""
    with above_bars():
        if sys.stdout is not None:
            write_text(sys.stdout, text + "\n")


def _complain(text: str) -> None:
    with above_bars():
        if sys.stderr is not None:
            write_text(sys.stderr, text + "\n")


def find_files(root: str) -> list[str]:
    """The Python sources under `root`, sorted, without packages that were installed beside the library."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_THE_LIBRARY]
        found.extend(os.path.join(folder, name) for name in names if name.endswith(".py"))
    return sorted(found)


def usable_cpus(quota_file: str = "/sys/fs/cgroup/cpu.max") -> int:
    """The CPUs that this process may use: those of its affinity, or fewer where a container's quota says so."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(quota_file, encoding="ascii") as file:
            quota, period = file.read().split()
        return cpus if quota == "max" else max(1, min(cpus, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup of version 2 here, or an outer one without a quota of its own
        return cpus


def _read_once(files: Sequence[str]) -> None:
    """Bring the files into memory, so that no run waits for the disk and the first is not slower for it."""
    for path in files:
        try:
            with open(path, "rb") as file:
                while file.read(2**20):
                    pass
        except OSError:  # the worker will report it
            continue


@dataclass(slots=True)
class _Run:
    """One pass over all files."""

    tally: Tally
    seconds: float


class _Victim:
    """One worker that is killed when half of the files are counted."""

    def __init__(self, cluster: Cluster, after: int, kill_process: Callable[[int, int], None]) -> None:
        self._cluster = cluster
        self._after = after
        self._kill_process = kill_process
        self.worker_id = 0
        self.pid = 0
        self.counted = 0
        self.killed = False

    def look(self, counted: int) -> None:
        """Kill it if it is time."""
        if self.worker_id or counted < self._after:
            return
        # Never a pid of 0: to kill it would kill this program too.
        pids = {worker.id: worker.pid for worker in self._cluster.workers.values() if worker.pid}
        if not pids:
            return
        self.worker_id = max(pids)
        self.pid = pids[self.worker_id]
        self.counted = counted
        try:
            self._kill_process(self.pid, signal.SIGKILL)
        except OSError as error:
            _complain(f"Could not kill worker {self.worker_id} (pid {self.pid}): {error}")
            return
        self.killed = True
        _say(f"Killed worker {self.worker_id} (pid {self.pid}) with SIGKILL after {plural(counted, 'file')}")


async def _parse(
    cluster: Cluster,
    files: Sequence[str],
    only: list[int] | None,
    label: str,
    clock: Callable[[], float],
    victim: _Victim | None = None,
) -> _Run:
    tally = Tally()
    begun = clock()
    view = cluster.options(idempotent=True, workers=only, name=label)
    async for report in view.map(parse_file, files, ordered=False, progress=True):
        tally.add(report)
        if victim is not None:
            victim.look(tally.received)
    return _Run(tally, clock() - begun)


def _starts(journal: str | None) -> dict[str, list[int]]:
    """By which workers each file was begun, in order."""
    starts: defaultdict[str, list[int]] = defaultdict(list)
    if journal is not None and os.path.exists(journal):
        with open(journal, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                worker_id, _, path = line.rstrip("\n").partition(" ")
                starts[path].append(int(worker_id))
    return starts


def _print_workers(tally: Tally, victim: _Victim | None) -> None:
    rows = [("worker", "pid", "node", "files", "")]
    for worker_id, share in sorted(tally.shares.items()):
        remark = "killed half way" if victim is not None and victim.killed and worker_id == victim.worker_id else ""
        rows.append((str(worker_id), str(share.pid), share.node, f"{share.files:,}", remark))
    _say("\n".join(["", *columns(rows)]))


def _print_speed(alone: _Run | None, together: _Run, workers: int, cpus: int, victim: _Victim | None) -> None:
    if alone is None:
        rate = together.tally.received / together.seconds
        _say(f"Speed: one worker took {together.seconds:.2f} s ({rate:,.0f} files/s); there is nothing to compare.")
        return
    _say(
        f"Speed: one worker alone {alone.seconds:.2f} s, {workers} workers {together.seconds:.2f} s: "
        f"{alone.seconds / together.seconds:.2f} times as fast, on {plural(cpus, 'CPU')}."
    )
    _say("  Both runs of the same files, on workers that were ready, from the first call to the last result; all files")
    _say("  had been read once before. The manager, which adds up the results, uses a CPU too.")
    if victim is not None:
        _say("  The second time includes the death of a worker, and what was parsed again because of it.")
    if workers > cpus:
        _say(f"  There are more workers than CPUs: more than {cpus} times as fast was not possible.")


def _print_kill(victim: _Victim, started: dict[str, list[int]], root: str) -> None:
    if not victim.killed:
        return
    again = {path: workers for path, workers in started.items() if len(workers) > 1}
    _say(
        f"\nThe kill: worker {victim.worker_id} (pid {victim.pid}) was killed with SIGKILL when "
        f"{plural(victim.counted, 'file')} had been counted."
    )
    if again:
        path, workers = next(iter(again.items()))
        name = os.path.relpath(path, root).encode("utf-8", "backslashreplace").decode()
        by = ", then by ".join(f"worker {worker}" for worker in workers)
        _say(f"  {plural(len(again), 'file')} had to be begun again, such as {name}: by {by}.")
    else:
        _say("  It happened to be between two files, so none had to be begun again.")
    _say("\n".join(RULE))


def _print_verdict(files: Sequence[str], alone: _Run | None, together: _Run, victim: _Victim | None) -> int:
    good = True
    for run in (alone, together):
        wrong = [] if run is None else run.tally.discrepancies(files)
        for path, times in wrong[:10]:
            _complain(f"WRONG: {path} was counted {times} times")
        if wrong:
            _complain(f"WRONG: {plural(len(wrong), 'file')} not counted exactly once")
            good = False
    if victim is not None and not victim.killed:
        _complain("WRONG: no worker was killed")
        good = False
    if good:
        runs = "" if alone is None else ", in both runs"
        _say(f"\nEach of the {plural(len(files), 'file')} was counted exactly once{runs}.")
    return 0 if good else 1
