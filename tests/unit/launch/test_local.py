"""`Local` with real agents: they join, their ends are noticed and explained, and none is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from aiocluster.errors import LaunchError
from aiocluster.launch import local as local_module
from aiocluster.launch.local import Local
from aiocluster.wire.messages import NodeBeat, Refused, Shutdown
from tests.unit.launch.harness import manager_and_launcher
from tests.unit.net.harness import on_both_loops


@on_both_loops
async def test_an_agent_joins_and_beats_until_it_is_stopped(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        assert (agent.hello.role, agent.hello.node, agent.hello.worker_id) == ("agent", "local-1", 0)
        beat = await manager.said(agent, NodeBeat, lambda beat: beat.number == 3)
        assert beat.workers == []
        await launcher.stop("local-1")
        assert not launcher.is_running("local-1")
        assert manager.exits == []
        with pytest.raises(ProcessLookupError):
            os.kill(agent.hello.pid, 0)


async def test_several_nodes_are_ended_together(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1", "local-2"))
        for agent in [await manager.agent("local-1"), await manager.agent("local-2")]:
            agent.send(Shutdown(0.0))
        await launcher.close(30.0)
        assert not launcher.is_running("local-1")
        assert not launcher.is_running("local-2")
        assert manager.exits == []


@on_both_loops
async def test_the_end_of_an_agent_is_told_with_its_signal(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        os.kill((await manager.agent()).hello.pid, signal.SIGKILL)
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent was killed by signal 9 (SIGKILL)")]


async def test_the_end_is_seen_where_the_kernel_gives_no_descriptor_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        os.kill((await manager.agent()).hello.pid, 50)  # a signal without a name
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent was killed by signal 50")]


async def test_an_agent_that_cannot_join_says_why_in_its_last_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        manager.refuse = Refused("closing", "the cluster is being closed", "ours", "theirs")
        await launcher.start(manager.request("local-1"))
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent exited with code 1")]
        assert "the cluster is being closed" in "\n".join(launcher.last_lines("local-1"))
        assert "the cluster is being closed" in caplog.text


async def test_last_words_count_without_the_end_of_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho one >&2\nprintf 'no such module' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent exited with code 3")]
        assert launcher.last_lines("local-1") == ("one", "no such module")


async def test_a_python_that_is_not_there_is_a_launch_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        with pytest.raises(LaunchError, match=r"cannot start .*nowhere for node local-1"):
            await launcher.start(manager.request("local-1"))


async def test_an_agent_that_is_frozen_is_ended_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "STOP_GRACE_S", 0.0)
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        os.kill((await manager.agent()).hello.pid, signal.SIGSTOP)
        await launcher.stop("local-1")
        assert not launcher.is_running("local-1")


async def test_cancelling_a_stop_ends_the_agent_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "STOP_GRACE_S", 3600.0)
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        os.kill((await manager.agent()).hello.pid, signal.SIGSTOP)
        stopping = asyncio.create_task(launcher.stop("local-1"), name="stopping")
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await launcher.close(3600.0)  # it would wait as long as that for an agent that is frozen
        assert not launcher.is_running("local-1")


async def test_stopping_what_is_unknown_or_gone_is_no_matter(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (_manager, launcher):
        await launcher.stop("local-9")
        assert launcher.last_lines("local-9") == ()
        await launcher.close(0.0)


async def test_variables_given_for_workers_reach_the_node(tmp_path: Path) -> None:
    program = tmp_path / "node"
    program.write_text('#!/bin/sh\nprintf "%s %s" "$COLOUR" "$AIOCLUSTER_NODE" >&2\n')
    program.chmod(0o755)
    async with manager_and_launcher(tmp_path) as (manager, _launcher):
        launcher = Local(env={"COLOUR": "green"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(program))
            await launcher.start(manager.request("local-1"))
        await manager.until(lambda: manager.exits)
        assert launcher.last_lines("local-1") == ("green local-1",)
