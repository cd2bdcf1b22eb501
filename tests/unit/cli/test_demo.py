from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster.cli import demo, parse
from aiocluster.cli.demo import find_files, run_demo, usable_cpus
from aiocluster.cli.parse import FileReport

from .fake_cluster import FIRST_PID, FakeCluster, FakeWorker


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for number in range(20):
        path = tmp_path / f"module_{number:02}.py"
        path.write_text(f"import os, sys\nfrom json import loads\ndef function_{number}():\n" + "    pass\n" * (number + 1))
        paths.append(str(path))
    (tmp_path / "module_03.py").write_text("print 'two'\n")
    return paths


@pytest.fixture(autouse=True)
def no_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parse, "_journal", None)
    yield
    if parse._journal is not None:
        os.close(parse._journal)


Demo = Callable[..., Any]


def rewrite(path: str, source: str) -> None:
    Path(path).write_text(source)


@pytest.fixture
def run(files: list[str], monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Runs the demo on a fake cluster of two workers; gives the exit code and the cluster."""

    async def run(
        workers: int | None = 2,
        *,
        kill: bool = False,
        spoil: Callable[[FileReport], list[FileReport]] = lambda report: [report],
        kill_process: Callable[[int, int], None] | None = None,
        pid_of: Callable[[int], int] = lambda worker_id: FIRST_PID + worker_id,
    ) -> tuple[int, FakeCluster]:
        clusters: list[FakeCluster] = []

        def open_cluster(n: int) -> Any:
            known = {id: FakeWorker(id, pid_of(id)) for id in range(1, n + 1)}
            clusters.append(FakeCluster(known, monkeypatch, spoil, interrupted=files[-1]))
            return clusters[0]

        ticks = itertools.count()
        code = await run_demo(
            workers,
            kill=kill,
            files=files,
            open_cluster=open_cluster,
            clock=lambda: float(next(ticks)),
            kill_process=kill_process or (lambda pid, signal: clusters[0].kill(pid, signal)),
        )
        return code, clusters[0]

    return run


async def test_every_worker_has_a_line_with_what_it_did(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    code, cluster = await run()
    out = capsys.readouterr().out
    assert code == 0
    assert cluster.closed
    assert f"  worker      pid  node     files\n       1  {FIRST_PID + 1}  local-1     10\n" in out
    assert f"       2  {FIRST_PID + 2}  local-1     10\n" in out
    assert "Each of the 20 files was counted exactly once, in both runs." in out
    assert "\x1b" not in out


async def test_what_is_in_the_files_is_shown(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    await run()
    out = capsys.readouterr().out
    assert "  most imported  in files\n  json                 19\n  os                   19\n  sys                  19\n" in out
    assert "  function_19           21  " in out
    assert "module_19.py:3" in out
    assert "  do not parse (1)" in out
    assert "Missing parentheses" in out


async def test_the_speed_up_is_measured_on_one_worker_of_the_same_cluster(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    _, cluster = await run(3)
    assert [options["workers"] for options in cluster.options_seen] == [[1], None]
    assert all(options["idempotent"] for options in cluster.options_seen)
    out = capsys.readouterr().out
    assert "Speed: one worker alone 1.00 s, 3 workers 1.00 s: 1.00 times as fast, on " in out


async def test_more_workers_than_cpus_are_said_to_gain_nothing(
    run: Demo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "usable_cpus", lambda: 2)
    await run(3)
    assert "There are more workers than CPUs" in capsys.readouterr().out


async def test_the_default_is_a_worker_for_each_cpu(run: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "usable_cpus", lambda: 5)
    _, cluster = await run(None)
    assert len(cluster.workers) == 5


async def test_one_worker_is_compared_with_nothing(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    code, cluster = await run(1)
    assert code == 0
    assert len(cluster.options_seen) == 1
    assert "there is nothing to compare" in capsys.readouterr().out


async def test_a_killed_worker_costs_no_file_and_the_rule_is_told(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    code, cluster = await run(2, kill=True)
    out = capsys.readouterr().out
    assert code == 0
    assert cluster.killed == [2]
    assert f"Killed worker 2 (pid {FIRST_PID + 2}) with SIGKILL after 10 files" in out
    assert "local-1      5  killed half way\n" in out
    assert f"       3  {FIRST_PID + 3}  local-1" in out
    assert "1 file had to be begun again, such as " in out
    assert "module_19.py: by worker 2, then by worker 3." in out
    assert "idempotent=True" in out
    assert "includes the death of a worker" in out


async def test_a_kill_that_fails_fails_the_demo(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise ProcessLookupError("no such process")

    code, _ = await run(2, kill=True, kill_process=refuse)
    assert code == 1
    assert "no worker was killed" in capsys.readouterr().err


@pytest.mark.parametrize("times", [0, 2])
async def test_a_file_not_counted_exactly_once_fails_the_demo(run: Demo, capsys: pytest.CaptureFixture[str], times: int) -> None:
    code, _ = await run(spoil=lambda report: [report] * (times if report.path.endswith("07.py") else 1))
    captured = capsys.readouterr()
    assert code == 1
    assert f"module_07.py was counted {times} times" in captured.err
    assert "exactly once" not in captured.out


async def test_a_report_about_a_file_that_nobody_asked_for_fails_the_demo(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    def add(report: FileReport) -> list[FileReport]:
        return [report, report._replace(path="/other.py")] if report.path.endswith("07.py") else [report]

    code, _ = await run(spoil=add)
    assert code == 1
    assert "WRONG: /other.py was counted 1 times" in capsys.readouterr().err


async def test_a_python_without_sources_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_demo(1, kill=False, files=[]) == 1
    assert "comes without them" in capsys.readouterr().err


def test_the_library_is_found_without_what_was_installed_beside_it(tmp_path: Path) -> None:
    for name in ("b.py", "a/c.py", "site-packages/x.py", "a/__pycache__/y.py", "dist-packages/z.py", "a/readme.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_files(str(tmp_path)) == [str(tmp_path / "a/c.py"), str(tmp_path / "b.py")]


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000\n", 8),
        ("250000 100000\n", 2),
        ("20000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("nonsense", 8),
        (None, 8),
    ],
)
def test_a_quota_of_the_container_lowers_the_number_of_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    assert usable_cpus(str(file)) == cpus


async def test_a_file_that_is_gone_is_reported_and_counted(
    run: Demo, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    os.unlink(files[5])
    code, _ = await run()
    assert code == 0
    assert "FileNotFoundError" in capsys.readouterr().out


async def test_many_broken_files_are_counted_and_some_are_shown(
    run: Demo, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files:
        rewrite(path, "(")
    await run()
    out = capsys.readouterr().out
    assert "do not parse (20)" in out
    assert "... and 8 more files" in out


async def test_files_that_all_parse_are_said_to(run: Demo, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(files[3], "")
    await run()
    assert "Every file parses." in capsys.readouterr().out


async def test_a_worker_without_a_process_is_never_killed(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    code, cluster = await run(2, kill=True, pid_of=lambda worker_id: 0)
    assert code == 1
    assert cluster.killed == []
    assert "no worker was killed" in capsys.readouterr().err
