"""`aiocluster top` on a cluster of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from typing import Any

from aiocluster import Cluster


async def top(*arguments: str) -> tuple[int, str, str]:
    """Exit code, and what was printed to stdout and stderr."""
    command = [sys.executable, "-m", "aiocluster.cli.main", "top", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    printed, complained = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode(), complained.decode()


async def test_one_look_tells_programs_what_the_cluster_itself_says() -> None:
    async with Cluster.local(n=2, output="quiet") as cluster:
        assert await cluster.submit(abs, -3) == 3
        code, printed, _ = await top(cluster.id, "--once", "--json")
        assert code == 0
        seen: dict[str, Any] = json.loads(printed)
        assert (seen["cluster"], seen["pid"]) == (cluster.id, os.getpid())
        assert {one["id"]: one["pid"] for one in seen["workers"]} == {id: one.pid for id, one in cluster.workers.items()}
        assert (seen["status"]["workers"], seen["status"]["ended"]) == (2, 1)
        assert {event["kind"] for event in seen["events"]} >= {"node_joined", "worker_joined"}


async def test_people_get_a_table_and_are_asked_which_of_several() -> None:
    async with Cluster.local(n=1, output="quiet") as one, Cluster.local(n=1, output="quiet") as two:
        code, printed, _ = await top(one.id, "--once")
        assert code == 0
        assert printed.splitlines()[0].startswith(one.id)
        assert "1 of 1 workers" in printed
        assert str(one.workers[1].pid) in printed
        code, _, complained = await top("--once")
        assert code == 1
        assert "say which one" in complained
        assert one.id in complained
        assert two.id in complained
        code, _, complained = await top("c-nobody", "--once")
        assert code == 1
        assert "no cluster c-nobody" in complained
    code, _, complained = await top(one.id, "--once")
    assert code == 1
    assert one.id not in complained.replace(f"no cluster {one.id}", "")


async def live(cluster: Cluster) -> tuple[asyncio.subprocess.Process, int]:
    """On a terminal, which has shown something already."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "aiocluster.cli.main", "top", cluster.id, "--interval", "0.1"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = await asyncio.create_subprocess_exec(*command, stdout=inner, stderr=inner, stdin=inner, env=environ)
    os.close(inner)
    shown = b""
    while cluster.id.encode() not in shown:
        shown += await asyncio.to_thread(os.read, outer, 65536)
    return process, outer


async def rest_of(outer: int) -> bytes:
    shown = b""
    try:
        while part := await asyncio.to_thread(os.read, outer, 65536):
            shown += part
    except OSError:  # how a terminal without programs ends
        pass
    return shown


async def test_the_live_view_ends_with_the_cluster() -> None:
    async with Cluster.local(n=1, output="quiet") as cluster:
        process, outer = await live(cluster)
    try:
        assert f"cluster {cluster.id} has closed".encode() in await rest_of(outer)
        assert await process.wait() == 0
    finally:
        os.close(outer)


async def test_ctrl_c_ends_the_view_and_not_the_cluster() -> None:
    async with Cluster.local(n=1, output="quiet") as cluster:
        process, outer = await live(cluster)
        try:
            process.send_signal(signal.SIGINT)
            assert b"the cluster goes on" in await rest_of(outer)
            assert await process.wait() == 130
        finally:
            os.close(outer)
        assert await cluster.submit(abs, -1) == 1
