"""Processes of the harness: timed, explained when they fail, and ended."""

from __future__ import annotations

import asyncio

import psutil
import pytest

import bench.children
from bench.children import ChildFailed, child, run_fresh, time_first_line, time_process


def test_a_process_that_fails_is_reported_with_its_last_words() -> None:
    with pytest.raises(ChildFailed, match=r"exit code 1.*no such thing"):
        asyncio.run(time_process(["-c", "raise SystemExit('no such thing')"]))


def test_an_unexpected_first_line_is_reported() -> None:
    with pytest.raises(ChildFailed, match="nonsense"):
        asyncio.run(time_first_line(["-c", "print('nonsense')"], b"first result"))


def test_the_first_line_is_awaited_and_then_the_end() -> None:
    assert asyncio.run(time_first_line(["-c", "print('first result')"], b"first result")) > 0


def test_a_fresh_process_gives_its_figures() -> None:
    assert asyncio.run(run_fresh("bare_rss"))["rss_bytes"] > 2**20


def test_a_child_is_ended_with_its_own_children_when_the_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.children, "_GRACE_S", 0.05)  # nothing here ends by itself
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )

    tree: list[psutil.Process] = []

    async def main() -> None:
        async with child(["-c", code]) as process:
            assert process.stdout is not None
            await process.stdout.readline()
            tree.extend([psutil.Process(process.pid), *psutil.Process(process.pid).children()])
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert len(tree) == 2
    assert psutil.wait_procs(tree, timeout=5)[1] == []
