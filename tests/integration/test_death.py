"""Processes that are killed, frozen or blocked: who is lost is known with the cause, and every call has one outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster import Cluster, Event, Unschedulable, WorkerLost

from . import work
from .conftest import SAFETY_S, Fifos, ended, event_of
from .processes import agent_of, descendants, send, stopped, worker_pids

BEATS = {"heartbeat_interval": 0.2, "heartbeat_timeout": 1.0}


@pytest.fixture
async def quick() -> AsyncIterator[Cluster]:
    """A node that is lost after one second of silence."""
    async with Cluster.local(n=2, output="quiet", **BEATS) as cluster:  # type: ignore[arg-type]
        yield cluster


def lost(event: Event) -> bool:
    return event.kind in ("worker_lost", "node_lost")


def losses(cluster: Cluster) -> list[Event]:
    return [event for event in cluster.events() if lost(event)]


def node_of(cluster: Cluster) -> list[int]:
    """Every process of the cluster's node, the agent first."""
    agent = agent_of(worker_pids(cluster)[0])
    return [agent, *descendants(agent)]


# --- kill -9 of workers --------------------------------------------------------------------------------------------------


async def test_an_idle_worker_that_is_killed_is_known_with_its_cause_and_replaced(cluster: Cluster) -> None:
    send(signal.SIGKILL, cluster.workers[1].pid)
    event = await event_of(cluster, lost)
    assert (event.kind, event.worker_id) == ("worker_lost", 1)
    assert "killed by signal 9" in event.text
    await event_of(cluster, lambda event: event.kind == "worker_joined" and event.worker_id == 3)
    assert set(cluster.workers) == {2, 3}
    assert await cluster.everywhere(work.own_id) == {2: 2, 3: 3}
    assert len(losses(cluster)) == 1


async def test_the_call_that_ran_is_lost_and_those_behind_it_move(single: Cluster, fifos: Fifos, tmp_path: Path) -> None:
    begun, log = fifos.new(), tmp_path / "log"
    running = single.submit(work.announce_and_sleep, begun)
    waiting = [single.submit(work.log_call, str(log), n) for n in range(200)]
    await fifos.read(begun)
    send(signal.SIGKILL, single.workers[1].pid)
    with pytest.raises(WorkerLost, match=r"killed by signal 9.*MAY have run") as caught:
        await running
    assert caught.value.worker_id == 1
    assert caught.value.maybe_executed
    assert await asyncio.gather(*waiting) == list(range(200))
    assert counts(log) == Counter(range(200))


class Load:
    """Keeps so many calls in flight, and kills a random worker after each so many outcomes."""

    def __init__(self, cluster: Cluster, submit: Callable[[int], asyncio.Future[Any]], *, in_flight: int, kills: int) -> None:
        self.outcomes: dict[int, Any] = {}
        self.killed = 0
        self._cluster = cluster
        self._submit = submit
        self._in_flight = in_flight
        self._kills = kills
        self._random = random.Random(7)
        self._sent = 0
        self._ended = 0
        self._kill_at = in_flight // 2
        self._done = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        for _ in range(self._in_flight):
            self._send()
        await self._done

    def _send(self) -> None:
        number = self._sent
        self._sent += 1
        self._submit(number).add_done_callback(lambda future: self._note(number, future))

    def _note(self, number: int, future: asyncio.Future[Any]) -> None:
        assert number not in self.outcomes, "a call ended twice"
        error = future.exception()
        self.outcomes[number] = future.result() if error is None else error
        self._ended += 1
        if self.killed < self._kills:
            if self._ended >= self._kill_at and (pids := worker_pids(self._cluster)):
                send(signal.SIGKILL, self._random.choice(pids))
                self.killed += 1
                self._kill_at += self._in_flight // 2
            self._send()
        elif self._ended == self._sent and not self._done.done():
            self._done.set_result(None)


def counts(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split()))


async def test_every_call_has_one_outcome_while_workers_are_killed(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    load = Load(cluster, lambda number: cluster.submit(work.log_call, str(log), number), in_flight=1000, kills=10)
    await load.run()
    starts = counts(log)
    assert set(starts.values()) == {1}, "a call ran twice unasked"
    failed = {number: outcome for number, outcome in load.outcomes.items() if outcome != number}
    assert all(isinstance(error, WorkerLost) and error.maybe_executed for error in failed.values())
    assert len(failed) <= load.killed, "a worker runs one sync call at a time: only that one can be lost"
    assert load.outcomes.keys() - failed.keys() <= starts.keys()
    assert await cluster.submit(work.square, 3) == 9
    assert cluster.status().waiting == cluster.status().running == 0


async def test_async_calls_are_lost_only_where_they_may_have_run(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    load = Load(cluster, lambda number: cluster.submit(work.async_log_call, str(log), number), in_flight=1000, kills=5)
    await load.run()
    starts = counts(log)
    assert set(starts.values()) == {1}, "a call ran twice unasked"
    for number, outcome in load.outcomes.items():
        if outcome == number:
            assert starts[number] == 1
        else:
            assert isinstance(outcome, WorkerLost)
            assert outcome.maybe_executed


@pytest.mark.parametrize("options", [{"idempotent": True}, {"retries": 10}], ids=["idempotent", "retries"])
async def test_calls_that_may_run_again_all_give_their_results(cluster: Cluster, tmp_path: Path, options: dict[str, Any]) -> None:
    log = tmp_path / "log"
    view = cluster.options(**options)
    load = Load(cluster, lambda number: view.submit(work.log_call, str(log), number), in_flight=1000, kills=10)
    await load.run()
    assert all(outcome == number for number, outcome in load.outcomes.items())
    assert counts(log).keys() == load.outcomes.keys()


async def test_a_call_that_always_kills_its_worker_is_blamed_after_exactly_three(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def kill() -> None:
        work.append(str(log), "killed")
        os.kill(os.getpid(), signal.SIGKILL)

    deadly = cluster.options(idempotent=True).submit(kill)
    others = [cluster.options(idempotent=True).submit(work.square, n) for n in range(500)]
    with pytest.raises(WorkerLost, match="blamed") as caught:
        await deadly
    assert caught.value.maybe_executed
    assert log.read_text().split() == ["killed"] * 3
    assert await asyncio.gather(*others) == [n * n for n in range(500)], "a call was charged with another's deed"


# --- the end of a node ---------------------------------------------------------------------------------------------------


async def test_a_node_whose_agent_is_killed_is_lost_with_its_workers(cluster: Cluster, fifos: Fifos) -> None:
    begun = [fifos.new(), fifos.new()]
    running = [cluster.submit(work.announce_and_sleep, path) for path in begun]
    for path in begun:
        await fifos.read(path)
    waiting = [cluster.submit(work.square, n) for n in range(100)]
    processes = node_of(cluster)
    send(signal.SIGKILL, processes[0])
    async with asyncio.timeout(SAFETY_S):
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        unplaced = await asyncio.gather(*waiting, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, WorkerLost)
        assert outcome.maybe_executed
        assert "local-1" in outcome.cause
    for end in unplaced:
        assert isinstance(end, Unschedulable | WorkerLost)
        assert not isinstance(end, WorkerLost) or not end.maybe_executed
    await ended(*processes)
    assert [event.kind for event in losses(cluster)] == ["node_lost", "worker_lost", "worker_lost"]
    assert not cluster.workers
    with pytest.raises(Unschedulable):
        await cluster.submit(work.square, 2)

    await cluster.scale(2)
    assert set(cluster.workers) == {3, 4}
    assert {worker.node for worker in cluster.workers.values()} == {"local-2"}
    assert await cluster.map(work.square, range(100)) == [n * n for n in range(100)]


# --- frozen ----------------------------------------------------------------------------------------------------------------


async def test_a_frozen_node_is_lost_and_not_heard_when_it_wakes(quick: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    future = quick.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    processes = node_of(quick)
    with stopped(*processes):
        event = await event_of(quick, lambda event: event.kind == "node_lost")
        assert "silent for" in event.text
        with pytest.raises(WorkerLost, match="silent for") as caught:
            await future
        assert caught.value.maybe_executed
        descriptor = os.open(go_on, os.O_RDWR)  # the call may go on as soon as its process does
    os.close(descriptor)
    await ended(*processes)
    assert isinstance(future.exception(), WorkerLost)
    assert not quick.workers
    await quick.scale(1)
    assert await quick.submit(work.own_id) == 3
    assert [event.kind for event in losses(quick)] == ["node_lost", "worker_lost", "worker_lost"]


async def test_a_pause_shorter_than_the_timeout_is_no_death() -> None:
    async with Cluster.local(n=2, output="quiet", heartbeat_interval=0.2, heartbeat_timeout=8) as cluster:
        futures = [cluster.submit(work.square, n) for n in range(5000)]
        with stopped(*node_of(cluster)):
            await asyncio.sleep(1)  # the pause is the fault
        assert await asyncio.gather(*futures) == [n * n for n in range(5000)]
        assert losses(cluster) == []


async def test_a_worker_that_is_stopped_alone_is_not_lost(quick: Cluster) -> None:
    await quick.map(work.square, range(10))
    with stopped(quick.workers[1].pid):
        mine = [quick.workers[1].submit(work.square, n) for n in range(100)]
        assert await quick.workers[2].submit(work.square, 3) == 9
        await asyncio.sleep(2.5)  # the pause is the fault: more than twice the heartbeat timeout
        assert not any(future.done() for future in mine)
    assert await asyncio.gather(*mine) == [n * n for n in range(100)]
    assert losses(quick) == []


# --- busy ----------------------------------------------------------------------------------------------------------------


async def hold_the_interpreter(cluster: Cluster, fifos: Fifos, seconds: int) -> None:
    begun = fifos.new()
    held = cluster.submit(work.hold_the_interpreter, begun, seconds)
    await fifos.read(begun)
    others = [cluster.submit(work.square, n) for n in range(100)]
    assert await held in (1, 2)
    assert await asyncio.gather(*others) == [n * n for n in range(100)]
    assert losses(cluster) == []
    assert set(cluster.workers) == {1, 2}


async def test_a_call_that_holds_the_interpreter_for_longer_than_the_timeout_is_not_killed(quick: Cluster, fifos: Fifos) -> None:
    await hold_the_interpreter(quick, fifos, 3)


@pytest.mark.slow  # the promise is about half a minute
async def test_a_call_that_holds_the_interpreter_for_30_s_is_not_killed(cluster: Cluster, fifos: Fifos) -> None:
    await hold_the_interpreter(cluster, fifos, 30)


async def test_an_async_call_that_blocks_the_workers_loop_is_not_killed(quick: Cluster) -> None:
    assert await quick.workers[1].submit(work.block_the_loop(3)) == 1
    assert losses(quick) == []


async def test_a_manager_that_blocks_its_own_loop_declares_nobody_lost(quick: Cluster) -> None:
    futures = [quick.submit(work.square, n) for n in range(100)]
    await asyncio.sleep(0)
    time.sleep(3)  # noqa: ASYNC251  # the fault itself
    assert await asyncio.gather(*futures) == [n * n for n in range(100)]
    time.sleep(2)  # noqa: ASYNC251  # again, with nothing to do
    assert await quick.map(work.square, range(100)) == [n * n for n in range(100)]
    assert losses(quick) == []


@contextlib.contextmanager
def watched(descriptor: int) -> Iterator[Callable[[], bool]]:
    """Blocks until the descriptor is readable, and says whether it is."""
    try:
        yield lambda: bool(select.select([descriptor], [], [], SAFETY_S)[0])
    finally:
        os.close(descriptor)


async def test_results_that_have_left_a_dead_worker_are_not_lost_where_the_manager_writes_to_it(
    single: Cluster, fifos: Fifos, tmp_path: Path
) -> None:
    """Writing to a process that has just died breaks the connection, and what it had sent before is never read."""
    log, begun = tmp_path / "log", fifos.new()

    def note(number: int) -> int:
        work.append(str(log), str(number))
        if number == 120:
            work.announce_and_sleep(begun)
        return number

    await asyncio.gather(*[single.submit(note, n) for n in range(100)])  # from now on it is known to be short, and sent ahead
    futures = [single.submit(note, n) for n in range(100, 121)]
    await asyncio.sleep(0)
    with watched(os.open(begun, os.O_RDWR)) as told:  # the loop stands still: nothing that the worker sends is read
        assert told()
    pid = single.workers[1].pid
    with watched(os.pidfd_open(pid)) as gone:
        send(signal.SIGKILL, pid)
        assert gone()
    futures += [single.submit(note, n) for n in range(121, 200)]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(outcomes.pop(20), WorkerLost)
    assert outcomes == [n for n in range(100, 200) if n != 120]
    assert counts(log) == Counter(range(200))
