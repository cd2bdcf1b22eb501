"""Figures of nodes and workers, from a /proc that the tests write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiocluster.runtime.figures import Figures, OomWatch, describe_exit

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Proc:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.process("self", 0)
        self.process(str(os.getpid()), 0)
        (path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\n")
        self.figures = Figures(proc=str(path), clock=lambda: self.now)

    def process(self, pid: str, cpu_s: float) -> None:
        (self.path / pid).mkdir(exist_ok=True)
        ticks = int(cpu_s * TICKS)
        fields = f"S 1 1 1 0 -1 0 0 0 0 0 {ticks - ticks // 2} {ticks // 2} 0 0 20"
        (self.path / pid / "stat").write_text(f"{pid} (a ) b) {fields}\n")
        (self.path / pid / "statm").write_text("100 7 3 1 0 1 0\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_worker_is_busy_by_the_cpu_it_used_since_the_last_look(proc: Proc) -> None:
    proc.process("9", 5)
    assert proc.figures.worker(9) == ("idle", 0.0, 7 * PAGE)
    proc.now += 2
    proc.process("9", 6)
    assert proc.figures.worker(9) == ("busy", 50.0, 7 * PAGE)
    proc.now += 2
    assert proc.figures.worker(9) == ("idle", 0.0, 7 * PAGE)


def test_second_look_at_once_repeats_the_first(proc: Proc) -> None:
    proc.process("9", 0)
    proc.figures.worker(9)
    proc.now += 1
    proc.process("9", 1)
    assert proc.figures.worker(9) == proc.figures.worker(9) == ("busy", 100.0, 7 * PAGE)


def test_worker_that_is_gone_has_no_figures(proc: Proc) -> None:
    assert proc.figures.worker(9) == ("idle", 0.0, 0)


def test_node_says_its_memory(proc: Proc) -> None:
    found = proc.figures.node()
    assert (found["memory_total"], found["memory_available"]) == (1_024_000, 614_400)
    assert found["agent_rss"] == 7 * PAGE
    assert int(found["cpus"]) >= 1
    assert float(found["load1"]) >= 0


def test_psutil_is_asked_where_there_is_no_proc(tmp_path: Path) -> None:
    figures = Figures(proc=str(tmp_path / "none"))
    assert figures.worker(os.getpid())[2] > 0
    assert int(figures.node()["memory_total"]) > 0


@pytest.mark.parametrize(
    ("groups", "counter"),
    [
        ("0::/a/b\n", "sys/fs/cgroup/a/b/memory.events"),
        ("0::/not/seen/here\n", "sys/fs/cgroup/memory.events"),
        ("4:memory:/a\n0::/\n", "sys/fs/cgroup/memory/a/memory.oom_control"),
        ("4:cpu,memory:/host/path\n", "sys/fs/cgroup/memory/memory.oom_control"),
        ("", "proc/vmstat"),
    ],
)
def test_kills_for_want_of_memory_are_counted_once(tmp_path: Path, groups: str, counter: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    file = tmp_path / counter
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("oom 3\noom_kill 2\noom_kill_disable 0\n")
    watch = OomWatch(root=str(tmp_path))
    assert watch.kills() == 0
    file.write_text("oom 4\noom_kill 4\n")
    assert watch.kills() == 2
    assert watch.kills() == 0


def test_without_counters_no_kill_is_claimed(tmp_path: Path) -> None:
    assert OomWatch(root=str(tmp_path)).kills() == 0


@pytest.mark.parametrize(
    ("status", "oom", "because", "text"),
    [
        (3 << 8, True, None, "exited with code 3"),
        (9, False, None, "killed by signal 9 (SIGKILL)"),
        (9, True, None, "killed by signal 9 (out of memory)"),
        (11, True, None, "killed by signal 11 (segmentation fault)"),
        (11 | 0x80, False, None, "killed by signal 11 (segmentation fault)"),
        (9, True, "its call was cancelled", "killed by the manager: its call was cancelled"),
    ],
)
def test_exit_is_described(status: int, oom: bool, because: str | None, text: str) -> None:
    assert describe_exit(status, oom=oom, killed_because=because) == text
