"""deploy/engine.py finds engines, and ends none but its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.online.engine import PROJECT, Engine

pytestmark = pytest.mark.online("docker")


def engine_script(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "deploy" / "engine.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, check=False, timeout=60)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line names the pid file of an engine in `tmp_path`, as that of an engine does."""
    command = [sys.executable, "-c", "print('up', flush=True); import signal; signal.pause()", str(tmp_path / "pid")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def test_engine_that_answers_is_found_each_time(docker: Engine) -> None:
    for _ in range(2):
        found = engine_script("start", DOCKER_HOST=docker.host)
        assert (found.returncode, found.stdout) == (0, f"DOCKER_HOST={docker.host}\n")


def test_engine_that_is_asked_for_and_does_not_answer_is_an_error(docker: Engine, tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path / 'none.sock'}"
    found = engine_script("--folder", str(tmp_path), "start", DOCKER_HOST=nowhere)
    assert (found.returncode, found.stdout) == (1, "")
    assert f"no engine answers at DOCKER_HOST={nowhere}" in found.stderr


def test_stop_ends_what_the_pid_file_names(stand_in: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(str(stand_in.pid))
    assert engine_script("--folder", str(tmp_path), "stop").stdout == f"ended the engine, process {stand_in.pid}\n"
    assert stand_in.wait() == -signal.SIGTERM
    assert not (tmp_path / "pid").exists()


def test_stop_leaves_a_process_that_only_has_the_number_of_an_engine(stand_in: subprocess.Popen[bytes], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "pid").write_text(str(stand_in.pid))
    assert engine_script("--folder", str(other), "stop").stdout == "no engine was started here\n"
    assert stand_in.poll() is None


def test_stop_of_nothing_says_so(tmp_path: Path) -> None:
    stopped = engine_script("--folder", str(tmp_path), "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "no engine was started here\n")
