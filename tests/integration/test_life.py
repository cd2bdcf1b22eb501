"""A cluster's life: how it opens, what is known of it, and that nothing hangs or stays when it closes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

import pytest

import aiocluster
from aiocluster import Cluster, ClusterClosed, LaunchError, Settings, get_cluster

from . import work
from .conftest import Fifos, ended, event_of
from .processes import worker_pids

# --- opening -------------------------------------------------------------------------------------------------------------


async def test_it_can_be_awaited_and_closed_more_than_once() -> None:
    cluster = await Cluster.local(n=1, output="quiet")
    assert await cluster.submit(work.square, 3) == 9
    pids = worker_pids(cluster)
    await asyncio.gather(cluster.close(), cluster.close())
    await cluster.close()
    assert cluster.closed
    await ended(*pids)


async def test_it_can_be_awaited_and_entered() -> None:
    async with await Cluster.local(n=1, output="quiet") as cluster:
        assert await cluster.submit(work.square, 3) == 9
    assert cluster.closed


async def test_an_exception_in_its_block_closes_it_and_passes() -> None:
    pids: list[int] = []
    with pytest.raises(LookupError, match="mine"):  # noqa: PT012  # the block is what is tested
        async with Cluster.local(n=1, output="quiet") as cluster:
            pids += worker_pids(cluster)
            raise LookupError("mine")
    assert cluster.closed
    await ended(*pids)


async def test_cancelling_the_block_closes_it(fifos: Fifos) -> None:
    begun = fifos.new()
    clusters: list[Cluster] = []

    async def program() -> None:
        async with Cluster.local(n=1, output="quiet") as cluster:
            clusters.append(cluster)
            await cluster.submit(work.announce_and_sleep, begun)

    task = asyncio.create_task(program())
    await fifos.read(begun)
    pids = worker_pids(clusters[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clusters[0].closed
    await ended(*pids)


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_cancelling_while_it_opens_releases_all(turns: int) -> None:
    async def program() -> None:
        async with Cluster.local(n=2, output="quiet"):
            raise AssertionError("it cannot be open yet")

    task = asyncio.create_task(program())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_starts_before_it_is_awaited() -> None:
    Cluster.local(n=2)
    with pytest.raises(ValueError, match="output"):
        Cluster.local(n=1, output="loud")


@pytest.mark.parametrize("n", [-1, (2, 1), (-1, 1), True])
async def test_a_number_of_workers_that_makes_no_sense_is_refused(n: int | tuple[int, int]) -> None:
    with pytest.raises((TypeError, ValueError), match="n must be"):
        await Cluster.local(n=n)


async def test_a_launch_that_fails_tells_why() -> None:
    with pytest.raises(LaunchError) as caught:
        await Cluster.local(n=1, env={"PYTHONHOME": "/nonexistent"}, output="quiet")
    assert "exited with code" in str(caught.value)
    (node,) = caught.value.nodes
    assert any("encodings" in line for line in node.last_lines), "the node's last words are the best hint"


async def test_a_launch_that_takes_too_long_is_released() -> None:
    with pytest.raises(LaunchError, match="0 of at least 1"):
        await Cluster.local(n=1, timeout=0.001, output="quiet")


async def test_a_minimum_is_enough() -> None:
    async with Cluster.local(n=(1, 2), output="quiet") as cluster:
        assert len(cluster.workers) >= 1
        await cluster.wait_for_workers(2)


async def test_workers_get_their_environment_and_not_the_token() -> None:
    def environment() -> dict[str, str]:
        return dict(os.environ)

    async with Cluster.local(n=1, env={"MY_SETTING": "42"}, output="quiet") as cluster:
        seen = await cluster.submit(environment)
    assert seen["MY_SETTING"] == "42"
    assert "AIOCLUSTER_TOKEN" not in seen


async def test_from_env_opens_what_the_environment_says() -> None:
    async with Cluster.from_env({"AIOCLUSTER_WORKERS": "2", "AIOCLUSTER_OUTPUT": "quiet"}) as cluster:
        assert len(cluster.workers) == 2
    async with Cluster.from_env({"AIOCLUSTER_LAUNCHER": "local", "AIOCLUSTER_WORKERS": "1,1"}) as cluster:
        assert len(cluster.workers) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIOCLUSTER_LAUNCHER", "mainframe"),
        ("AIOCLUSTER_LAUNCHER", "batch"),  # and nobody says how many workers
        ("AIOCLUSTER_WORKERS", "many"),
        ("AIOCLUSTER_WORKERS", "1,2,3"),
        ("AIOCLUSTER_WORKERS", "2,1"),
        ("AIOCLUSTER_WORKERS", "-1"),
        ("AIOCLUSTER_HEARTBEAT_TIMEOUT", "soon"),
    ],
)
async def test_from_env_names_the_variable_that_is_wrong(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        await Cluster.from_env({name: value})


async def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="heartbeat_timeout"):
        await Cluster.local(n=1, heartbeat_interval=2, heartbeat_timeout=1)
    with pytest.raises(ValueError, match="orphan_timeout"):
        await Cluster.local(n=1, orphan_timeout=-1)


# --- two at once ---------------------------------------------------------------------------------------------------------


async def test_two_clusters_know_nothing_of_each_other() -> None:
    async with Cluster.local(n=1, output="quiet") as one, Cluster.local(n=1, output="quiet") as two:
        assert one.id != two.id
        await one.submit(work.count_up, 5)
        assert await one.submit(work.read_count) == 5
        assert await two.submit(work.read_count) == 0
        assert worker_pids(one) != worker_pids(two)
        await one.close()
        assert await two.submit(work.square, 3) == 9
    assert two.closed


async def test_clusters_one_after_the_other_leave_nothing_to_the_next() -> None:
    for _ in range(3):
        async with Cluster.local(n=1, output="quiet") as cluster:
            assert get_cluster() is cluster
            assert await cluster.submit(work.count_up) == 1
            assert list(cluster.workers) == [1]
    with pytest.raises(RuntimeError, match="no cluster"):
        get_cluster()


# --- closing -------------------------------------------------------------------------------------------------------------


async def test_calls_that_are_pending_when_it_closes_end_in_cluster_closed(cluster: Cluster, fifos: Fifos) -> None:
    paths = [fifos.new() for _ in range(3)]
    running = [
        cluster.workers[1].submit(work.announce_and_sleep, paths[0]),
        cluster.workers[2].submit(work.announce_and_spin, paths[1]),
        cluster.submit(work.async_announce_and_sleep, paths[2]),
    ]
    for path in paths:
        await fifos.read(path)
    waiting = [cluster.submit(work.square, number) for number in range(100)]
    mapping = asyncio.ensure_future(collect(cluster))
    everywhere = asyncio.create_task(cluster.everywhere(work.own_id))
    await asyncio.sleep(0)
    pids = worker_pids(cluster)
    await cluster.close()
    outcomes = await asyncio.gather(*running, *waiting, mapping, return_exceptions=True)
    assert len(outcomes) == 104
    assert all(isinstance(outcome, ClusterClosed) for outcome in outcomes)
    with pytest.raises((ClusterClosed, ExceptionGroup)):
        await everywhere
    await ended(*pids)


async def collect(cluster: Cluster) -> list[int]:
    return await cluster.map(work.square, range(10_000))


async def test_a_closed_cluster_takes_nothing(cluster: Cluster) -> None:
    worker = cluster.workers[1]
    await cluster.close()
    with pytest.raises(ClusterClosed):
        await cluster.submit(work.square, 2)
    with pytest.raises(ClusterClosed):
        await cluster.options(timeout=1).submit(work.square, 2)
    with pytest.raises(ClusterClosed):
        await worker.submit(work.square, 2)
    with pytest.raises(ClusterClosed):
        await cluster.map(work.square, [1, 2])
    with pytest.raises(ClusterClosed):
        await cluster.scale(3)
    with pytest.raises(ClusterClosed):
        await cluster.wait_for_workers(1)
    assert cluster.status().closed
    assert len(cluster.workers) == 0


async def test_what_has_ended_before_can_be_read_after(cluster: Cluster) -> None:
    future = cluster.submit(work.square, 3)
    await future
    await cluster.close()
    assert await future == 9
    assert future.worker_id in (1, 2)


async def test_a_loop_over_events_ends_with_the_cluster(cluster: Cluster) -> None:
    kinds: list[str] = []

    async def follow() -> None:
        async for event in cluster.events():
            kinds.append(event.kind)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    await cluster.close()
    await task
    assert kinds[:3] == ["node_joined", "worker_joined", "worker_joined"]


# --- what is known of it -------------------------------------------------------------------------------------------------


async def test_workers_is_a_mapping_by_id(cluster: Cluster) -> None:
    assert isinstance(cluster.workers, Mapping)
    assert dict(cluster.workers.items()).keys() == {1, 2}
    assert 1 in cluster.workers
    assert 3 not in cluster.workers
    with pytest.raises(KeyError):
        cluster.workers[3]
    for id, worker in cluster.workers.items():
        assert worker.id == id
        assert worker.host == socket.gethostname()
        assert worker.node
        assert worker.state == "ready"
        assert worker.pid == await worker.submit(os.getpid)
        assert worker.stats.state == "ready"


async def test_events_and_status_tell_what_there_is(cluster: Cluster, fifos: Fifos) -> None:
    assert [event.kind for event in cluster.events()] == ["node_joined", "worker_joined", "worker_joined"]
    status = cluster.status()
    assert (status.cluster_id, status.workers, status.wanted, status.closed) == (cluster.id, 2, 2, False)
    assert (status.waiting, status.running) == (0, 0)
    (node,) = status.nodes
    assert set(node.workers) == {1, 2}
    begun = [fifos.new(), fifos.new()]
    futures = [cluster.submit(work.async_announce_and_sleep, path) for path in begun]
    for path in begun:
        await fifos.read(path)
    assert cluster.status().running == 2
    for future in futures:
        future.cancel()
    await cluster.everywhere(work.own_id)
    os.kill(cluster.workers[1].pid, 9)
    await event_of(cluster, lambda event: event.kind == "worker_joined" and event.worker_id == 3)
    assert cluster.status().wanted == cluster.status().workers == 2


async def test_it_does_not_show_its_token(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    shown = f"{cluster!r} {cluster.status()!r} {cluster.workers!r} {list(cluster.events())!r} {caplog.text}"
    assert "oken" not in shown


def test_run_gives_what_the_program_gives_on_uvloop() -> None:
    async def main() -> tuple[int, str]:
        async with Cluster.local(n=1, output="quiet") as cluster:
            return await cluster.submit(work.square, 3), type(asyncio.get_running_loop()).__module__

    value, loop = aiocluster.run(main())
    assert value == 9
    assert loop.startswith("uvloop")


def test_run_raises_what_the_program_raises() -> None:
    async def main() -> None:
        async with Cluster.local(n=1, output="quiet") as cluster:
            await cluster.submit(work.fail_on_odd, 3)

    with pytest.raises(ValueError, match="3 is odd"):
        aiocluster.run(main())


async def test_close_waits_no_longer_than_its_grace_for_a_call_that_does_not_end(fifos: Fifos) -> None:
    async with Cluster.local(n=1, output="quiet", settings=Settings(close_grace_s=0.2)) as cluster:
        begun = fifos.new()
        future = cluster.submit(work.announce_and_hold, begun)
        await fifos.read(begun)
        (pid,) = worker_pids(cluster)
    with pytest.raises(ClusterClosed):
        await future
    await ended(pid)
