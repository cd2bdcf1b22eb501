"""The look for what tests leave behind (tests/conftest.py) sees it, names it, and is not disturbed by what ends in time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

LEAKING = """
import asyncio, os, socket, subprocess, threading, time
import pytest

tasks = []

async def forever():
    await asyncio.Event().wait()

@pytest.mark.both_loops
async def test_task():
    tasks.append(asyncio.create_task(forever(), name="lost task"))

@pytest.mark.both_loops
async def test_task_that_is_told_to_end():
    tasks.append(asyncio.create_task(forever()))
    await asyncio.sleep(0)
    tasks[-1].cancel()

def test_descriptor():
    os.open("/dev/zero", os.O_RDONLY)

def test_unclosed_socket_in_a_cycle():
    cycle = [*socket.socketpair()]
    cycle.append(cycle)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="lost thread").start()

def test_orphan():
    subprocess.run(["bash", "-c", "sleep 1000 & exit 0"], check=True)

@pytest.mark.leaves_behind("fds")
def test_descriptor_that_is_meant():
    os.open("/dev/full", os.O_RDONLY)

@pytest.mark.both_loops
async def test_process_and_threads_of_the_loop():
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    await asyncio.to_thread(time.monotonic)

def test_nothing():
    pass
"""


def test_leaks_fail_the_test_that_made_them_and_no_other(tmp_path: Path) -> None:
    conftest = (TESTS / "conftest.py").read_text(encoding="utf-8")
    impatient = re.sub(r"^PATIENCE_S = .*$", "PATIENCE_S = 0.05", conftest, flags=re.MULTILINE)
    assert impatient != conftest
    # The impatience is for what never ends: threads of the loop and processes that end are waited for by others.
    (tmp_path / "conftest.py").write_text(impatient, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_bytes((TESTS.parent / "pyproject.toml").read_bytes())
    (tmp_path / "test_leaking.py").write_text(LEAKING, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "test_leaking.py"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert set(re.findall(r"^ERROR test_leaking\.py::(\S+)", done.stdout, re.MULTILINE)) == {
        "test_task[asyncio]",
        "test_task[uvloop]",
        "test_descriptor",
        "test_unclosed_socket_in_a_cycle",
        "test_thread",
        "test_orphan",
    }, done.stdout
    assert re.search(r"^=+ 12 passed, 6 errors in ", done.stdout, re.MULTILINE), done.stdout
    for named in ["task 'lost task'", "file descriptor \\d+: /dev/zero", "thread 'lost thread'", "process \\d+: .*sleep 1000"]:
        assert re.search(rf"^  {named}", done.stdout, re.MULTILINE), done.stdout
