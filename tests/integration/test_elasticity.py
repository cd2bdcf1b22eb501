"""The number of workers follows what is asked for: scale, retire, stop, adapt, wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from aiocluster import Cluster, ClusterClosed, LaunchError, Settings, Unschedulable, WorkerLost
from aiocluster.launch.base import Launcher, LaunchRequest

from . import work
from .conftest import SAFETY_S, Fifos, ended, event_of, numbers_in
from .processes import agent_of, send, worker_pids


@pytest.fixture
async def restless() -> AsyncIterator[Cluster]:
    """A cluster that retires idle workers after half a second."""
    async with Cluster.local(n=1, output="quiet", settings=Settings(adapt_idle_s=0.5)) as cluster:
        yield cluster


# --- scale ---------------------------------------------------------------------------------------------------------------


async def test_scale_adds_workers_and_takes_them_away(cluster: Cluster) -> None:
    await cluster.scale(4)
    assert set(cluster.workers) == {1, 2, 3, 4}
    assert cluster.status().workers == cluster.status().wanted == 4
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2, 3: 3, 4: 4}
    pids = {id: worker.pid for id, worker in cluster.workers.items()}
    await cluster.scale(1)
    (left,) = cluster.workers
    await ended(*(pid for id, pid in pids.items() if id != left))
    assert await cluster.submit(work.own_id) == left
    await cluster.scale(2)
    assert set(cluster.workers) == {left, 5}, "an id is never given again"


async def test_scaling_to_what_is_there_changes_nothing(cluster: Cluster) -> None:
    await cluster.scale(2)
    assert [event.kind for event in cluster.events()] == ["node_joined", "worker_joined", "worker_joined"]


async def test_scaling_down_loses_no_call(cluster: Cluster, tmp_path: object) -> None:
    log = f"{tmp_path}/log"
    await cluster.scale(3)
    futures = [cluster.submit(work.log_call, log, number) for number in range(3000)]
    await cluster.scale(1)
    assert await asyncio.gather(*futures) == list(range(3000))
    assert sorted(numbers_in(log)) == list(range(3000))


async def test_the_workers_with_nothing_to_do_go_first(cluster: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    running = cluster.submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    await cluster.scale(1)
    assert list(cluster.workers) == [running.worker_id]
    fifos.release(go_on)
    assert await running == running.worker_id


async def test_a_cluster_can_be_empty_and_grow_again(cluster: Cluster) -> None:
    await cluster.scale(0)
    assert not cluster.workers
    with pytest.raises(Unschedulable):
        await cluster.submit(work.square, 2)
    await cluster.scale(1)
    assert await cluster.submit(work.square, 2) == 4


async def test_a_cluster_may_begin_without_workers() -> None:
    async with Cluster.local(n=0, output="quiet") as cluster:
        assert len(cluster.workers) == 0
        assert await cluster.everywhere(work.own_id) == {}
        await cluster.scale(1)
        assert await cluster.submit(work.square, 2) == 4


async def test_calls_wait_for_workers_that_are_on_their_way() -> None:
    async with Cluster.local(n=0, output="quiet") as cluster:
        scaling = asyncio.create_task(cluster.scale(1))
        await event_of(cluster, lambda event: event.kind == "node_joined")
        assert await cluster.submit(work.square, 2) == 4
        await scaling


async def test_several_scalings_at_once_agree(cluster: Cluster) -> None:
    await asyncio.gather(cluster.scale(3), cluster.scale(3))
    await cluster.wait_for_workers(3)
    assert cluster.status().wanted == 3
    assert len(await cluster.everywhere(work.own_id)) == 3


# --- retire, stop --------------------------------------------------------------------------------------------------------


async def test_a_retired_worker_finishes_what_it_runs_and_the_rest_moves(cluster: Cluster, fifos: Fifos) -> None:
    begun, go_on = fifos.new(), fifos.new()
    running = cluster.workers[1].submit(work.announce_and_wait, begun, go_on)
    await fifos.read(begun)
    pid = cluster.workers[1].pid
    retiring = asyncio.create_task(cluster.retire(1))
    await asyncio.sleep(0)
    assert await asyncio.gather(*[cluster.submit(work.own_id) for _ in range(100)]) == [2] * 100
    assert not retiring.done()
    fifos.release(go_on)
    assert await running == 1
    await retiring
    await ended(pid)
    assert list(cluster.workers) == [2]
    assert {event.kind for event in cluster.events()} == {"node_joined", "worker_joined", "worker_retired"}


async def test_a_retired_worker_is_ended_after_its_grace_and_not_replaced(cluster: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    running = cluster.workers[1].submit(work.announce_and_sleep, begun)
    await fifos.read(begun)
    pid = cluster.workers[1].pid
    await cluster.retire(1, grace=0.1)
    with pytest.raises(WorkerLost) as caught:
        await running
    assert caught.value.maybe_executed
    await ended(pid)
    assert list(cluster.workers) == [2]
    assert cluster.status().wanted == 1


async def test_a_worker_can_be_named_by_itself_and_stops_by_its_own_method(cluster: Cluster) -> None:
    await cluster.scale(3)
    first, second = cluster.workers[1], cluster.workers[2]
    await cluster.retire(first)
    await second.stop()
    assert list(cluster.workers) == [3]
    assert first.state == second.state == "gone"


async def test_retiring_several_takes_them_together(cluster: Cluster) -> None:
    await cluster.scale(4)
    await cluster.retire(1, 3, 4)
    assert list(cluster.workers) == [2]
    assert await cluster.submit(work.own_id) == 2


async def test_retiring_somebody_unknown_retires_nobody(cluster: Cluster) -> None:
    with pytest.raises(KeyError):
        await cluster.retire(1, 77)
    assert set(cluster.workers) == {1, 2}
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}


async def test_a_worker_that_dies_while_it_retires_is_not_replaced(cluster: Cluster, fifos: Fifos) -> None:
    begun = fifos.new()
    running = cluster.workers[1].submit(work.announce_and_sleep, begun)
    await fifos.read(begun)
    retiring = asyncio.create_task(cluster.retire(1))
    await asyncio.sleep(0)
    send(signal.SIGKILL, cluster.workers[1].pid)
    with pytest.raises(WorkerLost):
        await running
    await retiring
    assert list(cluster.workers) == [2]
    assert cluster.status().wanted == 1


# --- wait_for_workers ----------------------------------------------------------------------------------------------------


async def test_waiting_ends_when_the_workers_are_there(cluster: Cluster) -> None:
    await cluster.wait_for_workers(2)
    await cluster.wait_for_workers(1, timeout=0)
    waiting = asyncio.create_task(cluster.wait_for_workers(3))
    await asyncio.sleep(0)
    assert not waiting.done()
    await cluster.scale(3)
    await waiting


async def test_waiting_in_vain_ends_with_the_timeout_and_with_the_cluster(cluster: Cluster) -> None:
    with pytest.raises(TimeoutError, match="2 of 5"):
        await cluster.wait_for_workers(5, timeout=0.05)
    waiting = asyncio.create_task(cluster.wait_for_workers(5))
    await asyncio.sleep(0)
    await cluster.close()
    with pytest.raises(ClusterClosed):
        await waiting


# --- adapt ---------------------------------------------------------------------------------------------------------------


async def test_adapt_grows_with_the_work_and_shrinks_without_it(restless: Cluster, fifos: Fifos) -> None:
    begun, go_on = [fifos.new() for _ in range(3)], [fifos.new() for _ in range(3)]
    restless.adapt(minimum=1, maximum=3)
    futures = [restless.submit(work.announce_and_wait, *paths) for paths in zip(begun, go_on, strict=True)]
    for path in begun:  # all three run at once: there are three workers
        await fifos.read(path)
    assert len(restless.workers) == 3
    for path in go_on:
        fifos.release(path)
    assert len(set(await asyncio.gather(*futures))) == 3
    async with asyncio.timeout(SAFETY_S):
        retired = 0
        async for event in restless.events():
            retired += event.kind == "worker_retired"
            if retired == 2:
                break
    assert len(restless.workers) == 1
    assert await restless.submit(work.square, 3) == 9


async def test_adapt_starts_from_nothing_when_there_is_work() -> None:
    async with Cluster.local(n=0, output="quiet") as cluster:
        cluster.adapt(minimum=0, maximum=2)
        assert await cluster.submit(work.square, 3) == 9


async def test_adapt_keeps_to_its_bounds(restless: Cluster) -> None:
    await restless.adapt(minimum=2, maximum=2)
    await asyncio.gather(*[restless.submit(work.square, number) for number in range(2000)])
    assert len(restless.workers) == 2


async def test_adapt_replaces_a_node_that_is_lost(restless: Cluster) -> None:
    await restless.adapt(minimum=1, maximum=2)
    send(signal.SIGKILL, agent_of(worker_pids(restless)[0]))
    await event_of(restless, lambda event: event.kind == "node_lost")
    assert await restless.submit(work.square, 3) == 9
    assert restless.status().wanted >= 1


async def test_scale_ends_adapting(restless: Cluster) -> None:
    await restless.adapt(minimum=2, maximum=4)
    await restless.scale(1)
    assert len(restless.workers) == 1
    assert await restless.map(work.square, range(1000)) == [number * number for number in range(1000)]
    assert restless.status().wanted == 1


# --- add -----------------------------------------------------------------------------------------------------------------


async def test_another_launchers_workers_join_the_same_cluster(single: Cluster) -> None:
    from aiocluster.launch.local import Local

    await single.add(Local(env={"FROM": "the second"}), n=2)
    assert set(single.workers) == {1, 2, 3}
    assert single.workers[1].node != single.workers[2].node == single.workers[3].node

    def origin() -> str | None:
        import os

        return os.environ.get("FROM")

    assert await single.everywhere(origin) == {1: None, 2: "the second", 3: "the second"}


# --- changes that meet ---------------------------------------------------------------------------------------------------


class Nowhere(Launcher):
    """A launcher whose nodes are on their way for ever."""

    name = "nowhere"

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.lost: list[str] = []

    async def start(self, request: LaunchRequest) -> None:
        self.started += request.nodes

    async def stop(self, node: str, *, lost: bool = False) -> None:
        self.stopped.append(node)
        if lost:
            self.lost.append(node)

    async def close(self, grace_s: float) -> None:
        pass


async def turns_until(condition: Callable[[], bool]) -> None:
    """Turn the loop until it is so."""
    async with asyncio.timeout(SAFETY_S):
        while not condition():  # noqa: ASYNC110  # it tells nobody when it comes true
            await asyncio.sleep(0)


async def test_adapting_anew_takes_the_place_of_adapting_before(restless: Cluster) -> None:
    await restless.adapt(0, 1)
    await restless.adapt(1, 2)
    await restless.adapt(0, 2)
    await event_of(restless, lambda event: event.kind == "worker_retired")
    assert await restless.submit(work.square, 3) == 9, "calls may still wait for workers that come when they are needed"


async def test_scaling_ends_adapting_in_the_middle_of_a_launch() -> None:
    async with Cluster.local(n=0, output="quiet") as cluster:
        cluster.adapt(4, 4)
        await turns_until(lambda: cluster.status().wanted == 4)
        await cluster.scale(1)
        assert cluster.status().wanted == len(cluster.workers) == 1
        assert await cluster.submit(work.square, 3) == 9


async def test_scaling_down_takes_workers_that_are_starting_before_those_that_work(cluster: Cluster) -> None:
    growing = asyncio.create_task(cluster.scale(5))
    await turns_until(lambda: cluster.status().wanted == 5)
    growing.cancel()
    await asyncio.wait([growing])
    await cluster.scale(2)
    assert set(cluster.workers) == {1, 2}
    assert cluster.status().wanted == 2


async def test_scaling_down_gives_up_nodes_that_have_not_joined(cluster: Cluster) -> None:
    nowhere = Nowhere()
    adding = asyncio.create_task(cluster.add(nowhere, n=3))
    await turns_until(lambda: len(nowhere.started) == 3)
    await cluster.scale(2)
    with pytest.raises(LaunchError, match="not needed any more"):
        await adding
    assert set(nowhere.stopped) == set(nowhere.started)
    assert nowhere.lost == [], "nor is any that would come in their place"
    assert set(cluster.workers) == {1, 2}


async def test_scaling_that_fails_leaves_what_was_there(cluster: Cluster) -> None:
    with pytest.raises(LaunchError, match="within 0 s"):
        await cluster.scale(4, timeout=0)
    assert cluster.status().wanted == 2
    assert await cluster.everywhere(work.own_id) == {1: 1, 2: 2}
    await cluster.scale(3)
    assert len(await cluster.everywhere(work.own_id)) == 3


async def test_closing_ends_adapting_and_adding_as_closed(caplog: pytest.LogCaptureFixture) -> None:
    cluster = await Cluster.local(n=1, output="quiet")
    nowhere = Nowhere()
    adding = asyncio.create_task(cluster.add(nowhere, n=1))
    await turns_until(lambda: len(nowhere.started) == 1)
    adapted = cluster.adapt(2, 2)
    await cluster.close()
    with pytest.raises(ClusterClosed):
        await adding
    with pytest.raises(ClusterClosed):
        await adapted
    with pytest.raises(ClusterClosed):
        cluster.adapt(1, 2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_closed_cluster_that_is_used_keeps_no_timer() -> None:
    cluster = await Cluster.local(n=1, output="quiet")
    await cluster.close()
    with pytest.raises(ClusterClosed):
        await cluster.submit(work.square, 2)
    with pytest.raises(ClusterClosed):
        await cluster.scale(2)
    with pytest.raises(ClusterClosed):
        await cluster.map(work.square, [1])
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.BaseEventLoop)
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
