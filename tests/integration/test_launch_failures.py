"""Launches that cannot succeed fail fast, with the reason and the last words of who failed, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aiocluster import Cluster, ClusterClosed, LaunchError, Settings, Unschedulable
from aiocluster.ids import Token
from aiocluster.launch.base import Launcher, LaunchRequest
from aiocluster.launch.local import Local
from aiocluster.launch.reach import Reach

from . import work
from .conftest import SAFETY_S, ended, event_of
from .processes import agent_of, descendants, send, worker_pids

NEVER_S = 3600
"""A launch timeout: whoever waits for it hangs, and is seen."""


def broken_module(folder: Path, source: str) -> dict[str, str]:
    """An environment in which every Python that starts runs this first."""
    (folder / "sitecustomize.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


async def fails(opening: object) -> LaunchError:
    with pytest.raises(LaunchError) as caught:
        async with asyncio.timeout(SAFETY_S):
            await opening  # type: ignore[misc]
    await ended(*descendants(os.getpid()))
    return caught.value


# --- the agent -----------------------------------------------------------------------------------------------------------


async def test_a_python_that_cannot_start_is_told_with_its_last_words() -> None:
    error = await fails(Cluster.local(n=2, env={"PYTHONHOME": "/nowhere"}, timeout=NEVER_S, output="quiet"))
    assert "its agent exited with code 1" in str(error)
    assert any("encodings" in line or "Py" in line for line in error.nodes[0].last_lines)
    assert error.nodes[0].state == "gone"


async def test_an_agent_that_crashes_is_told_with_its_last_words(tmp_path: Path) -> None:
    env = broken_module(tmp_path, "import os, sys\nprint('out of order', file=sys.stderr, flush=True)\nos._exit(9)\n")
    error = await fails(Cluster.local(n=2, env=env, timeout=NEVER_S, output="quiet"))
    assert "its agent exited with code 9" in error.reason
    assert error.nodes[0].last_lines == ("out of order",)
    assert "| out of order" in str(error)


async def test_an_agent_that_is_killed_is_told_with_the_signal(tmp_path: Path) -> None:
    env = broken_module(tmp_path, "import os\nos.kill(os.getpid(), 9)\n")
    error = await fails(Cluster.local(n=1, env=env, timeout=NEVER_S, output="quiet"))
    assert "killed by signal 9" in error.reason


async def test_a_program_that_is_not_there_is_a_launch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    error = await fails(Cluster.local(n=1, timeout=NEVER_S, output="quiet"))
    assert "/nowhere/python" in error.reason


async def test_an_agent_that_never_dials_is_given_up_at_the_timeout(tmp_path: Path) -> None:
    env = broken_module(tmp_path, "import time\ntime.sleep(3600)\n")
    error = await fails(Cluster.local(n=1, env=env, timeout=0.5, output="quiet"))
    assert "only 0 of at least 1 workers joined within 0.5 s" in error.reason
    assert error.nodes[0].name == "local-1"


async def test_an_agent_with_another_token_is_refused_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    error = await fails(_with_wrong_token())
    assert any("token" in line for line in error.nodes[0].last_lines)
    assert any("did not prove that it knows the token" in record.getMessage() for record in caplog.records)


def _with_wrong_token() -> object:
    class Forgetful(Local):
        async def start(self, request: LaunchRequest) -> None:
            await super().start(replace(request, token=Token.generate()))

    return Cluster.start(Forgetful(), 1, timeout=NEVER_S, output="quiet")


# --- workers ---------------------------------------------------------------------------------------------------------------


WORKERS_DIE = """
import os, sys, threading
if sys.argv[0] == "-m":
    start = threading.Thread.start
    def die(self):
        if self.name == "aiocluster loop":
            print("no room for me", file=sys.stderr, flush=True)
            os._exit(5)
        start(self)
    threading.Thread.start = die
"""


async def test_workers_that_crash_at_their_start_fail_the_launch_with_their_last_words(tmp_path: Path) -> None:
    error = await fails(Cluster.local(n=2, env=broken_module(tmp_path, WORKERS_DIE), timeout=NEVER_S, output="quiet"))
    assert "in a row ended while they were starting" in str(error)
    assert "exited with code 5" in str(error)
    assert "no room for me" in str(error)


async def test_a_minimum_that_can_still_be_reached_is_waited_for(tmp_path: Path) -> None:
    """The first worker to start takes the only place; the others die."""
    once = WORKERS_DIE.replace(
        "            print(",
        f"            try:\n                os.close(os.open({str(tmp_path / 'taken')!r}, os.O_CREAT | os.O_EXCL))\n"
        "                return start(self)\n            except FileExistsError:\n                pass\n            print(",
    )
    env = broken_module(tmp_path, once)
    async with Cluster.local(n=(1, 3), env=env, timeout=NEVER_S, output="quiet") as cluster:
        assert len(cluster.workers) == 1
        assert await cluster.submit(work.square, 3) == 9
        event = await event_of(cluster, lambda event: event.kind == "start_failed")
        assert "no room for me" in event.text


async def test_while_a_launch_waits_the_log_says_what_its_nodes_wait_for(
    single: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Launcher):
        name = "stuck"
        looked = asyncio.Event()

        async def start(self, request: LaunchRequest) -> None:
            self.request = request
            for node in request.nodes:
                request.observed(node, "RUNNABLE", "")

        async def look(self, nodes: Sequence[str]) -> None:
            for node in nodes:
                self.request.observed(node, "RUNNABLE", "no instance has taken it")
            self.looked.set()

        async def stop(self, node: str, *, lost: bool = False) -> None:
            return

        async def close(self, grace_s: float) -> None:
            return

    monkeypatch.setattr("aiocluster.runtime.launching.REPORT_EVERY_S", 0.01)
    caplog.set_level("INFO", "aiocluster")
    launcher = Stuck()
    adding = asyncio.ensure_future(single.add(launcher, 7, timeout=NEVER_S))
    async with asyncio.timeout(SAFETY_S):
        await launcher.looked.wait()
        while not any("workers have joined" in message for message in caplog.messages):  # noqa: ASYNC110
            await asyncio.sleep(0)
    adding.cancel()
    await asyncio.wait([adding])
    (first, *_) = [message for message in caplog.messages if "workers have joined" in message]
    assert first.startswith("0 of 7 workers have joined; stuck-1 RUNNABLE for 0 s (no instance has taken it); stuck-2")
    assert first.endswith("; and 2 more")


async def test_a_crashed_worker_whose_replacements_cannot_start_is_given_up(tmp_path: Path) -> None:
    switch = tmp_path / "broken"
    source = WORKERS_DIE.replace(' == "aiocluster loop":', f' == "aiocluster loop" and os.path.exists({str(switch)!r}):')
    async with Cluster.local(n=1, env=broken_module(tmp_path, source), timeout=NEVER_S, output="quiet") as cluster:
        assert await cluster.submit(work.square, 3) == 9
        switch.touch()
        send(signal.SIGKILL, *worker_pids(cluster))
        waiting = cluster.submit(work.square, 4)
        event = await event_of(cluster, lambda event: event.kind == "start_failed")
        assert "no room for me" in event.text
        with pytest.raises(Exception, match=r"cannot be placed|is lost"):
            async with asyncio.timeout(SAFETY_S):
                await waiting
        assert not cluster.workers


# --- the cluster that goes on ---------------------------------------------------------------------------------------------


async def test_an_addition_that_fails_leaves_the_rest_as_it_was(single: Cluster) -> None:
    with pytest.raises(LaunchError, match="its agent exited with code 1"):
        await single.add(Local(env={"PYTHONHOME": "/nowhere"}), 2, timeout=NEVER_S)
    assert set(single.workers) == {1}
    assert await single.submit(work.square, 3) == 9
    assert single.status().wanted == 1
    agent = agent_of(worker_pids(single)[0])
    assert set(descendants(os.getpid())) == {agent, *descendants(agent)}


async def test_workers_that_are_added_later_are_like_the_first(single: Cluster) -> None:
    await single.add(Local(), 1, resources={"gpu": 1})
    assert await single.options(resources={"gpu": 1}).submit(work.own_id) == 2
    send(signal.SIGKILL, agent_of(single.workers[1].pid))
    await event_of(single, lambda event: event.kind == "node_lost")
    await single.scale(2)
    assert set(single.workers) == {2, 3}
    with pytest.raises(Unschedulable):
        await single.workers[3].options(resources={"gpu": 1}).submit(work.own_id)


class Refusing(Launcher):
    """A launcher that cannot start anything."""

    name = "refusing"
    workers_per_node: int | None = 1

    def __init__(self) -> None:
        self.stopped: list[str] = []

    async def start(self, request: LaunchRequest) -> None:
        raise LaunchError("no capacity in this test")

    def last_lines(self, node: str) -> Sequence[str]:
        return ["the very last line"]

    async def stop(self, node: str, *, lost: bool = False) -> None:
        self.stopped.append(node)

    async def close(self, grace_s: float) -> None:
        pass


async def test_what_a_launcher_says_is_what_is_raised_with_a_report_of_each_node() -> None:
    launcher = Refusing()
    error = await fails(Cluster.start(launcher, 3, timeout=NEVER_S))
    assert error.reason == "no capacity in this test"
    assert [node.name for node in error.nodes] == ["refusing-1", "refusing-2", "refusing-3"]
    assert "| the very last line" in str(error)
    assert launcher.stopped == ["refusing-1", "refusing-2", "refusing-3"]


async def test_a_failed_launch_can_be_tried_again(single: Cluster) -> None:
    launcher = Refusing()
    for _ in range(2):
        with pytest.raises(LaunchError):
            await single.add(launcher, 1)
    assert launcher.stopped == ["refusing-1", "refusing-2"]
    await single.scale(2)
    assert await single.everywhere(work.own_id) == {1: 1, 4: 4}, "ids that were meant for others are not given again"


async def test_a_call_does_not_wait_for_a_launch_that_failed() -> None:
    async with Cluster.local(n=0, output="quiet", settings=Settings()) as cluster:
        adding = asyncio.ensure_future(cluster.add(Local(env={"PYTHONHOME": "/nowhere"}), 1, timeout=NEVER_S))
        await asyncio.sleep(0)
        call = cluster.submit(work.square, 3)
        with pytest.raises(LaunchError):
            await adding
        with pytest.raises(Exception, match="cannot be placed"):
            async with asyncio.timeout(SAFETY_S):
                await call


# --- launchers that are slow, or fail where they must not ------------------------------------------------------------------


class Slow(Launcher):
    """A launcher whose requests take as long as a test wants."""

    name = "slow"

    def __init__(self, *, reach: Reach | None = None) -> None:
        self.reach = reach
        self.asked = asyncio.Event()
        self.answered = asyncio.Event()
        self.did: list[str] = []

    async def find_reach(self) -> Reach | None:
        self.did.append("find_reach")
        return self.reach

    async def start(self, request: LaunchRequest) -> None:
        self.did.append("start")
        self.asked.set()
        await self.answered.wait()
        self.did.append("started")

    async def stop(self, node: str, *, lost: bool = False) -> None:
        self.did.append("stop")

    async def close(self, grace_s: float) -> None:
        self.did.append("close")


async def test_the_timeout_is_that_of_the_whole_launch() -> None:
    launcher = Slow()
    error = await fails(Cluster.start(launcher, 1, timeout=0.1, output="quiet"))
    assert "nothing could be started within 0.1 s" in error.reason
    assert launcher.did == ["find_reach", "start", "stop", "close"]


async def test_closing_ends_a_launch_under_way_before_its_launcher_is_closed() -> None:
    launcher = Slow()
    async with Cluster.local(n=0, output="quiet") as cluster:
        adding = asyncio.create_task(cluster.add(launcher, 2))
        await launcher.asked.wait()
    assert launcher.did == ["find_reach", "start", "stop", "stop", "close"]
    with pytest.raises(ClusterClosed):
        await adding


async def test_cancelling_a_launch_under_way_stops_what_it_started() -> None:
    launcher = Slow()
    async with Cluster.local(n=0, output="quiet") as cluster:
        adding = asyncio.create_task(cluster.add(launcher, 2))
        await launcher.asked.wait()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert launcher.did == ["find_reach", "start", "stop", "stop"]
        assert cluster.status().wanted == 0


async def test_a_node_that_cannot_be_released_is_told_in_one_line_and_ended_by_the_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Busy(Local):
        refused = asyncio.Event()

        async def stop(self, node: str, *, lost: bool = False) -> None:
            self.refused.set()
            raise LaunchError("AWS has other things to do")

    launcher = Busy()
    async with Cluster.start(launcher, 1, output="quiet") as cluster:
        send(signal.SIGKILL, agent_of(worker_pids(cluster)[0]))
        async with asyncio.timeout(SAFETY_S):
            await launcher.refused.wait()
    (told,) = [record for record in caplog.records if "could not be ended" in record.getMessage()]
    assert told.getMessage().endswith("closing the cluster tries it again: AWS has other things to do")
    assert told.exc_info is None
    await ended(*descendants(os.getpid()))


class Stubborn(Refusing):
    """It can neither start nor stop anything."""

    async def stop(self, node: str, *, lost: bool = False) -> None:
        raise ValueError("it will not go")


async def test_a_node_that_cannot_be_stopped_does_not_hide_why_the_launch_failed(caplog: pytest.LogCaptureFixture) -> None:
    error = await fails(Cluster.start(Stubborn(), 1))
    assert error.reason == "no capacity in this test"
    assert "it will not go" in caplog.text


async def test_launches_side_by_side_share_a_listener() -> None:
    one, two = (Slow(reach=Reach(advertise="127.0.0.1", host="localhost")) for _ in range(2))
    async with Cluster.local(n=0, output="quiet") as cluster:
        adding = [asyncio.create_task(cluster.add(launcher, 1, timeout=0.5)) for launcher in (one, two)]
        await asyncio.gather(one.asked.wait(), two.asked.wait())
        assert len(cluster._owner._listeners) == 1
        outcomes = await asyncio.gather(*adding, return_exceptions=True)
        assert all(isinstance(outcome, LaunchError) for outcome in outcomes)


# --- what is left, and what is secret ------------------------------------------------------------------------------------


class Sticky(Launcher):
    """Its nodes never join, print their environment, and cannot be ended."""

    name = "sticky"

    def __init__(self) -> None:
        self.token = ""

    async def start(self, request: LaunchRequest) -> None:
        self.token = request.token.reveal().hex()

    async def look(self, nodes: Sequence[str]) -> None:
        raise LaunchError("access denied")

    def last_lines(self, node: str) -> Sequence[str]:
        return (f"AIOCLUSTER_TOKEN={self.token}",)

    async def stop(self, node: str, *, lost: bool = False) -> None:
        raise LaunchError("the door is stuck")

    async def close(self, grace_s: float) -> None:
        raise LaunchError("the door is stuck")


async def test_what_cannot_be_released_hides_no_reason_and_no_line_the_token() -> None:
    launcher = Sticky()
    error = await fails(Cluster.start(launcher, 1, timeout=0.1, output="quiet"))
    assert "only 0 of at least 1 workers joined" in error.reason
    assert error.reason.endswith("; what became of its nodes could not be found out: access denied")
    assert error.nodes[0].last_lines == ("AIOCLUSTER_TOKEN=***",)
    assert launcher.token not in str(error)
    (note,) = error.__notes__
    assert "something may be left of it: the door is stuck" in note
