"""Agents as processes, with a manager that only listens: what they start, tell and end, and when they end themselves."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aiocluster.ids import Token
from aiocluster.launch import local as local_module
from aiocluster.runtime.agent_settings import AgentSettings
from aiocluster.wire.messages import (
    FlushOutput,
    KillWorker,
    NodeBeat,
    NodeDraining,
    Output,
    OutputFlushed,
    Shutdown,
    StartGaveUp,
    StartWorkers,
    StopWorker,
    WorkerExited,
    WorkerStarted,
)
from tests.unit.launch.harness import FakeManager, Peer, manager_and_launcher


@pytest.fixture(autouse=True)
def patient_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent here is ended by its launcher unless it does not end by itself."""
    monkeypatch.setattr(local_module, "STOP_GRACE_S", 30.0)


async def started(manager: FakeManager, agent: Peer, *worker_ids: int) -> list[int]:
    """Have workers started; their pids when they have joined."""
    agent.send(StartWorkers(list(worker_ids)))
    pids = []
    for worker_id in worker_ids:
        peer = await manager.worker(worker_id)
        message = await manager.said(agent, WorkerStarted, functools.partial(_is_of, worker_id))
        assert peer.hello.pid == message.pid
        pids.append(message.pid)
    return pids


def _is_of(worker_id: int, message: WorkerStarted) -> bool:
    return message.worker_id == worker_id


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def exit_of(manager: FakeManager, agent: Peer, worker_id: int) -> WorkerExited:
    return await manager.said(agent, WorkerExited, lambda message: message.worker_id == worker_id)


# --- workers -------------------------------------------------------------------------------------------------------------


async def test_workers_are_started_and_shown_in_heartbeats(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await started(manager, agent, 1, 2)
        beat = await manager.said(agent, NodeBeat, lambda beat: len(beat.workers) == 2)
        for worker_id, state, cpu, rss, sync_started in beat.workers:
            assert worker_id in (1, 2)
            assert state in ("idle", "busy")
            assert cpu >= 0
            assert rss > 1_000_000
            assert sync_started == 0
        agent.send(Shutdown(30.0))
        for worker_id in (1, 2):
            manager.workers[worker_id].send(Shutdown(0.0))
        await manager.until(lambda: not launcher.is_running("local-1") or agent.closed)
        assert (await exit_of(manager, agent, 1)).expected


async def test_a_killed_worker_is_reported_with_its_signal_and_one_killed_for_the_manager_with_the_reason(
    tmp_path: Path,
) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        first, _second, third = await started(manager, agent, 1, 2, 3)
        os.kill(first, signal.SIGKILL)
        agent.send(KillWorker(2, "its call was cancelled by force"))
        os.kill(third, signal.SIGSEGV)
        exits = [await exit_of(manager, agent, worker_id) for worker_id in (1, 2, 3)]
        assert [one.cause for one in exits] == [
            "killed by signal 9 (SIGKILL)",
            "killed by the manager: its call was cancelled by force",
            "killed by signal 11 (segmentation fault)",
        ]
        assert not any(one.expected for one in exits)
        fault = await manager.said(agent, Output, lambda output: output.worker_id == 3 and output.stream == 2)
        assert "Segmentation fault" in "\n".join(fault.lines)


async def test_a_worker_that_does_not_end_within_its_grace_is_killed(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await started(manager, agent, 1)
        agent.send(StopWorker(1, 0.0))
        message = await exit_of(manager, agent, 1)
        assert (message.cause, message.expected) == ("killed by the manager: it did not end within its grace", True)


async def test_workers_that_die_at_their_start_are_given_up_with_their_last_words(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        manager.refuse_workers("this worker is not wanted")
        agent.send(StartWorkers([1, 2, 3, 4, 5]))
        for worker_id in (1, 2, 3, 4, 5):
            message = await exit_of(manager, agent, worker_id)
            assert message.cause == "exited with code 1"
        agent.send(StartWorkers([6]))
        gave_up = await manager.said(agent, StartGaveUp)
        assert gave_up.worker_ids == [6]
        assert gave_up.reason == "5 workers in a row ended while they were starting; the last one exited with code 1"
        assert "this worker is not wanted" in gave_up.last_lines[-1]


async def test_a_flush_is_answered_after_all_output_and_for_unknown_workers_too(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await started(manager, agent, 1)
        agent.send(FlushOutput(11, 1))
        agent.send(FlushOutput(12, 99))
        await manager.said(agent, OutputFlushed, lambda message: message.request == 11)
        await manager.said(agent, OutputFlushed, lambda message: message.request == 12)


# --- the node ------------------------------------------------------------------------------------------------------------


async def test_a_node_that_is_told_to_end_by_its_system_says_so_and_waits_for_the_manager(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await started(manager, agent, 1)
        os.kill(agent.hello.pid, signal.SIGTERM)
        draining = await manager.said(agent, NodeDraining)
        assert "SIGTERM" in draining.reason
        assert launcher.is_running("local-1")
        agent.send(Shutdown(0.0))
        await exit_of(manager, agent, 1)
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent exited with code 0")]


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_node_whose_manager_is_gone_ends_with_all_its_workers(tmp_path: Path, frozen: bool) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        pids = await started(manager, agent, 1, 2)
        if frozen:
            os.kill(pids[0], signal.SIGSTOP)
        manager.stop_listening()
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent exited with code 1")]
        assert "is gone" in "\n".join(launcher.last_lines("local-1"))
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_a_node_whose_manager_is_silent_ends_after_the_orphan_timeout(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path, orphan_timeout_s=0.3) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await manager.said(agent, NodeBeat)
        assert agent.link is not None
        agent.link.pause_reading()  # a manager that is frozen: it reads nothing and says nothing
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent exited with code 1")]
        assert "orphan_timeout" in "\n".join(launcher.last_lines("local-1"))


async def test_a_node_without_its_fork_server_says_so_and_ends_with_all_its_workers(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await started(manager, agent, 1, 2)
        (server,) = children_of(agent.hello.pid)
        os.kill(server, signal.SIGKILL)
        await manager.until(lambda: manager.exits)
        assert manager.exits == [("local-1", "its agent exited with code 1")]
        assert "the fork server was killed by signal 9" in "\n".join(launcher.last_lines("local-1"))


async def test_no_worker_outlives_an_agent_that_is_killed(tmp_path: Path) -> None:
    async with manager_and_launcher(tmp_path) as (manager, launcher):
        await launcher.start(manager.request("local-1"))
        agent = await manager.agent()
        await started(manager, agent, 1, 2)
        os.kill(agent.hello.pid, signal.SIGKILL)
        await manager.until(lambda: manager.exits)
        # That they are gone is checked for every test: whoever loses its parent is a child of the tests.


# --- without a manager ---------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "AIOCLUSTER_MANAGER": f"unix:{tmp_path}/nobody",
        "AIOCLUSTER_CLUSTER": "c-test",
        "AIOCLUSTER_NODE": "node-1",
        "AIOCLUSTER_TOKEN": Token.generate().reveal().hex(),
    }


def test_settings_take_the_secret_out_of_the_environment(environment: dict[str, str]) -> None:
    environment["AIOCLUSTER_SYS_PATH"] = "/one:/two"
    environment["PYTHONPATH"], environment["AIOCLUSTER_PYTHONPATH"] = "/package:/mine", "/mine"
    settings = AgentSettings(environment)
    assert settings.sys_path == ("/one", "/two")
    assert (settings.node, settings.cluster_id) == ("node-1", "c-test")
    assert environment["PYTHONPATH"] == "/mine"
    left = {name for name in environment if name.startswith("AIOCLUSTER_")}
    assert left == {"AIOCLUSTER_CLUSTER", "AIOCLUSTER_NODE"}


def test_a_module_path_that_was_only_for_the_agent_is_taken_away(environment: dict[str, str]) -> None:
    environment["PYTHONPATH"], environment["AIOCLUSTER_PYTHONPATH"] = "/package", ""
    AgentSettings(environment)
    assert "PYTHONPATH" not in environment


@pytest.mark.parametrize("missing", ["AIOCLUSTER_MANAGER", "AIOCLUSTER_TOKEN", "AIOCLUSTER_NODE", "AIOCLUSTER_CLUSTER"])
def test_a_variable_that_is_missing_is_named(environment: dict[str, str], missing: str) -> None:
    del environment[missing]
    with pytest.raises(ValueError, match=missing):
        AgentSettings(environment)


def test_an_agent_without_orders_says_what_is_missing(environment: dict[str, str]) -> None:
    del environment["AIOCLUSTER_MANAGER"]
    run = subprocess.run(
        [sys.executable, "-m", "aiocluster.runtime.agent"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "AIOCLUSTER_MANAGER is not set" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_address_that_is_none_is_said_in_one_line(environment: dict[str, str]) -> None:
    environment["AIOCLUSTER_MANAGER"] = "carrier-pigeon"
    run = subprocess.run(
        [sys.executable, "-m", "aiocluster.runtime.agent"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "node-1 cannot join" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_agent_that_still_dials_ends_at_once_when_it_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/nobody")
        listener.listen()
        agent = subprocess.Popen([sys.executable, "-m", "aiocluster.runtime.agent"], env=environment)
        connection, _address = listener.accept()  # and says nothing
        with connection:
            agent.send_signal(signal.SIGTERM)
            assert agent.wait() == 128 + signal.SIGTERM


def test_an_agent_whose_fork_server_cannot_begin_does_not_go_on_dialling(environment: dict[str, str], tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "cloudpickle.py").write_text("raise ImportError('this cloudpickle is broken')")
    environment["PYTHONPATH"] = os.pathsep.join([str(modules), *sys.path])
    run = subprocess.run(
        [sys.executable, "-m", "aiocluster.runtime.agent"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "this cloudpickle is broken" in run.stderr
    assert "the fork server is gone: the fork server exited with code 1" in run.stderr
