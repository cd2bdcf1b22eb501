"""The examples run as their first lines say, on workers of this machine."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path

import pytest

import aiocluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PATIENCE_S = 60.0


def run(script: str, folder: Path, *arguments: str) -> str:
    """What the script prints, run by the command."""
    line = [sys.executable, "-m", "aiocluster.cli.main", "run", "--workers", "3", str(EXAMPLES / script), *arguments]
    ran = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_demo_names_all_workers(tmp_path: Path) -> None:
    first, *others = run("demo.py", tmp_path).splitlines()
    assert first == "NumWorkers = 3"
    assert [line.split()[:2] for line in others] == [["worker", "1"], ["worker", "2"], ["worker", "3"]]


def test_monte_carlo_saves_what_it_found(tmp_path: Path) -> None:
    out = run("monte_carlo.py", tmp_path, "--samples", "20", "--points", "1000")
    figures = asyncio.run(aiocluster.results.load("pi.pickle", place=str(tmp_path / "results")))
    assert (figures["samples"], figures["points"]) == (20, 1000)
    assert abs(figures["pi"] - math.pi) < 6 * figures["standard_error"]
    assert f"{figures['pi']:.6f}" in out.splitlines()[-1]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_how_it_is_run(path: Path) -> None:
    text = path.read_text()
    assert "aiocluster run --workers" in text.partition('"""\n\nimport')[0]
    assert f"aiocluster job submit {path.name}" in text
