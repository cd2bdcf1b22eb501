"""What an agent says about its node and its workers: CPU and memory, out-of-memory kills, and why a process ended.

Read with every heartbeat, so it costs two small files of /proc per worker. It only reads, and a figure that cannot be had is
left out or 0: no figure is worth a node.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

__all__ = ["Figures", "OomWatch", "describe_exit"]

BUSY_PERCENT = 10.0
"""A worker that waits for its manager uses next to nothing; its links alone stay far below this."""
SHORTEST_LOOK_S = 0.1
"""CPU time is counted in hundredths of seconds: over less than this the figure would be noise."""
_UTIME, _STIME = 11, 12  # fields of /proc/<pid>/stat after the name, which may contain anything


class Figures:
    """CPU and memory of this node and of processes on it.

    Args:
        proc: where the kernel tells about processes; psutil is asked where there is no such directory.
        clock: seconds that only go forward.
    """

    def __init__(self, *, proc: str = "/proc", clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc if os.path.exists(f"{proc}/self/stat") else None
        self._clock = clock
        self._ticks: int = os.sysconf("SC_CLK_TCK")
        self._page: int = os.sysconf("SC_PAGE_SIZE")
        self._looks: dict[int, tuple[float, float, float]] = {}
        """When a process was looked at, its CPU seconds by then, and the percentage that was found."""

    def worker(self, pid: int) -> tuple[str, float, int]:
        """How a process is: `("idle" | "busy", CPU percent since the last look, resident bytes)`; zeros if it is gone."""
        try:
            cpu_s, rss = self._process(pid)
        except (OSError, ValueError, IndexError):
            self.forget(pid)
            return "idle", 0.0, 0
        now = self._clock()
        at, cpu_before_s, percent = self._looks.get(pid, (now, cpu_s, 0.0))
        if now - at >= SHORTEST_LOOK_S:
            percent = max(0.0, 100.0 * (cpu_s - cpu_before_s) / (now - at))
            at, cpu_before_s = now, cpu_s
        self._looks[pid] = at, cpu_before_s, percent
        return "busy" if percent >= BUSY_PERCENT else "idle", round(percent, 1), rss

    def forget(self, pid: int) -> None:
        """The process has ended; its number may be another one's soon."""
        self._looks.pop(pid, None)

    def node(self) -> dict[str, int | float | str]:
        """`cpus`, and as far as they can be had `load1`, `memory_total`, `memory_available` and `agent_rss`, in bytes."""
        found: dict[str, int | float | str] = {"cpus": _cpus()}
        try:
            found["load1"] = round(os.getloadavg()[0], 2)
        except OSError:  # some sandboxes have none
            found["load1"] = 0.0
        try:
            found["memory_total"], found["memory_available"] = self._memory()
            found["agent_rss"] = self._process(os.getpid())[1]
        except (OSError, ValueError, IndexError, KeyError):
            pass  # what was not found is left out
        return found

    def _process(self, pid: int) -> tuple[float, int]:
        """CPU seconds so far, and resident bytes."""
        if self._proc is None:
            return _ask_psutil(pid)
        stat = _read(f"{self._proc}/{pid}/stat").rpartition(b")")[2].split()
        rss = int(_read(f"{self._proc}/{pid}/statm").split()[1]) * self._page
        return (int(stat[_UTIME]) + int(stat[_STIME])) / self._ticks, rss

    def _memory(self) -> tuple[int, int]:
        if self._proc is None:
            memory = _psutil().virtual_memory()
            return memory.total, memory.available
        lines = _read(f"{self._proc}/meminfo").splitlines()
        sizes = {name: size for name, _colon, size in (line.partition(b":") for line in lines)}
        return _kilobytes(sizes[b"MemTotal"]), _kilobytes(sizes[b"MemAvailable"])


class OomWatch:
    """How many processes of this node the kernel has killed for want of memory.

    It looks at the counter of the container, or control group, that this process is in, and at that of the whole machine where
    there is no other: that one may count a neighbour's misfortune.

    Args:
        root: the root of the file system, for tests.
    """

    def __init__(self, *, root: str = "/") -> None:
        self._path = next((path for path in _oom_counters(Path(root)) if _count(path) is not None), None)
        self._seen = self._now()

    def kills(self) -> int:
        """How many kills were counted since the last look."""
        now = self._now()
        before, self._seen = self._seen, now
        return max(0, now - before)

    def _now(self) -> int:
        return 0 if self._path is None else _count(self._path) or 0


def describe_exit(status: int, *, oom: bool, killed_because: str | None) -> str:
    """Why a process ended, for people.

    Args:
        status: as of `os.waitpid`.
        oom: a kill for want of memory was counted when it ended.
        killed_because: the reason, if the agent itself has killed it.
    """
    if not os.WIFSIGNALED(status):
        return f"exited with code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    if number in (signal.SIGKILL, signal.SIGTERM) and killed_because is not None:
        return f"killed by the manager: {killed_because}"
    if number == signal.SIGKILL and oom:
        return "killed by signal 9 (out of memory)"
    return f"killed by signal {number} ({_signal_name(number)})"


_FAULTS = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "arithmetic fault",
    signal.SIGILL: "illegal instruction",
    signal.SIGABRT: "aborted",
}


def _signal_name(number: int) -> str:
    try:
        known = signal.Signals(number)
    except ValueError:
        return "unknown"
    return _FAULTS.get(known, known.name)


def _oom_counters(root: Path) -> list[Path]:
    """Where kills are counted, the nearest first."""
    found: list[Path] = []
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        # In a container the path is often the host's, which does not exist here: the group is mounted as the root.
        if not controllers:
            found += [groups / path.lstrip("/") / "memory.events", groups / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [
                groups / "memory" / path.lstrip("/") / "memory.oom_control",
                groups / "memory" / "memory.oom_control",
            ]
    return [*found, root / "proc/vmstat"]


def _count(path: Path) -> int | None:
    """The `oom_kill` of a file of lines `name number`, if it has one."""
    try:
        for line in _read(str(path)).splitlines():
            name, _space, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
    except (OSError, ValueError):
        pass  # no such file here, or not in this form: there are others
    return None


def _read(path: str) -> bytes:
    # Files of the kernel: whole in one read, and `open` of Python takes three times as long.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)


def _kilobytes(size: bytes) -> int:
    return int(size.split()[0]) * 1024


def _cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _psutil() -> Any:
    import psutil

    return psutil


def _ask_psutil(pid: int) -> tuple[float, int]:
    library = _psutil()
    try:
        process: psutil.Process = library.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    except library.Error as error:
        raise ProcessLookupError(str(error)) from error
