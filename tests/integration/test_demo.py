"""The demo as a person runs it: real workers, the real standard library, a real terminal, a real Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys

import psutil
import pytest

DEMO = ["-m", "aiocluster.cli.main", "demo", "--workers", "2"]

# Makes the terminal on stdin the controlling one, so that a Ctrl-C typed there reaches the whole group, as in a shell.
ON_A_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_a_killed_worker_costs_no_file_and_every_one_is_counted_once() -> None:
    done = subprocess.run([sys.executable, *DEMO, "--kill"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert "\x1b" not in out + done.stderr
    match = re.search(r"^The standard library of Python \S+: ([\d,]+) files in ", out, re.MULTILINE)
    assert match is not None
    total = match[1]
    assert re.search(r"^Killed worker (\d+) \(pid \d+\) with SIGKILL after [\d,]+ files$", out, re.MULTILINE)
    assert f"Each of the {total} files was counted exactly once, in both runs." in out
    rows = re.findall(r"^ +(\d+) +(\d+) +\S+ +([\d,]+)(?:  killed half way)?$", out, re.MULTILINE)
    assert sum(int(files.replace(",", "")) for _, _, files in rows) == int(total.replace(",", ""))
    assert len({pid for _, pid, _ in rows}) == len(rows) >= 2
    assert "killed half way" in out
    assert re.search(r"^Speed: one worker alone [\d.]+ s, 2 workers [\d.]+ s: [\d.]+ times as fast", out, re.MULTILINE)
    # plain progress on stderr, with a last line for each run
    assert f"one worker alone: {total} of {total} in " in done.stderr
    assert f"all workers: {total} of {total} in " in done.stderr


@pytest.mark.parametrize("how", ["terminal", "signal"])
def test_ctrl_c_ends_the_demo_with_130_and_no_process_is_left(how: str) -> None:
    manager, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *DEMO],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(terminal)
    seen = b""
    children: list[psutil.Process] = []
    try:
        while b"\xe2\x94\x81" not in seen:  # a piece of the bar: the map is running
            seen += os.read(manager, 4096)
        children = descendants(process.pid)
        assert children
        if how == "terminal":
            os.write(manager, b"\x03")
        else:
            process.send_signal(signal.SIGINT)
        while True:
            try:
                piece = os.read(manager, 4096)
            except OSError:  # EIO: the last process on the terminal has ended
                break
            if not piece:
                break
            seen += piece
        assert process.wait(timeout=30) == 130
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        for child in children:
            if child.is_running():
                child.kill()
        process.kill()
        process.wait()
        os.close(manager)
    text = seen.decode(errors="replace")
    assert "Interrupted; what had been started has been stopped." in text
    assert "Traceback" not in text
    assert "Task was destroyed" not in text
