from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

import aiocluster
from aiocluster.cli import demo
from aiocluster.cli.main import app

runner = CliRunner()


@pytest.fixture
def run_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | int], None]:
    """Makes the demo end with an exception or a code, without a cluster."""

    def prepare(outcome: BaseException | int) -> None:
        def run(main: Any) -> int:
            main.close()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setitem(aiocluster.__dict__, "run", run)

    return prepare


def test_version_names_aiocluster_and_python() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"aiocluster {aiocluster.__version__}, Python {sys.version.split()[0]}\n"


def test_help_shows_the_commands_and_where_to_begin() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output
    assert "agent" in result.output
    assert "aiocluster demo" in result.output


def test_no_workers_are_refused() -> None:
    assert runner.invoke(app, ["demo", "--workers", "0"]).exit_code == 2


@pytest.mark.parametrize("code", [0, 1])
def test_the_demo_decides_the_exit_code(run_raises: Callable[..., None], code: int) -> None:
    run_raises(code)
    assert runner.invoke(app, ["demo", "-w", "1"]).exit_code == code


def test_ctrl_c_ends_with_130(run_raises: Callable[..., None]) -> None:
    run_raises(KeyboardInterrupt())
    result = runner.invoke(app, ["demo"])
    assert result.exit_code == 130
    assert "Interrupted" in result.output
    assert "Traceback" not in result.output


def test_an_error_of_the_cluster_is_one_line_and_1(run_raises: Callable[..., None]) -> None:
    run_raises(aiocluster.LaunchError("no worker joined"))
    result = runner.invoke(app, ["demo"])
    assert result.exit_code == 1
    assert result.output == "aiocluster demo: no worker joined\n"


def test_options_of_the_demo_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int | None, bool]] = []

    async def run_demo(workers: int | None, *, kill: bool) -> int:
        seen.append((workers, kill))
        return 0

    def run(main: Any) -> int:
        with pytest.raises(StopIteration):
            main.send(None)
        return 0

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setitem(aiocluster.__dict__, "run", run)
    assert runner.invoke(app, ["demo", "--workers", "3", "--kill"]).exit_code == 0
    assert runner.invoke(app, ["demo"]).exit_code == 0
    assert seen == [(3, True), (None, False)]


def test_the_agent_takes_over_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: seen.append((program, arguments)))
    assert runner.invoke(app, ["agent"]).exit_code == 0
    assert seen == [(sys.executable, [sys.executable, "-m", "aiocluster.runtime.agent"])]


def test_help_needs_no_cluster_code() -> None:
    program = "import sys, aiocluster.cli.main; sys.exit(bool({'uvloop', 'psutil', 'aiocluster.cluster'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
