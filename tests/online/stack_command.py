"""`aiocluster stack …` in a process of its own, as tests of stacks run it."""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND_S = 120.0


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """It has run to its end, without anybody to answer it."""
    line = [sys.executable, "-m", "aiocluster.cli.main", "stack", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=COMMAND_S, check=False, stdin=subprocess.DEVNULL)


def outputs_of(name: str) -> dict[str, str]:
    """What a stack tells of itself."""
    ran = command("outputs", "--json", "--stack", name)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, str] = json.loads(ran.stdout)
    return told


def delete(name: str) -> None:
    """The stack is not there, whatever it held."""
    ran = command("delete", "--yes", "--empty", "--stack", name)
    assert ran.returncode == 0, ran.stderr
