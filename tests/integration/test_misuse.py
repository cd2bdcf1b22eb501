"""What beginners try and what goes wrong unseen: said at once, in words that tell what to do."""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
from typing import Any

import pytest

import aiocluster
from aiocluster import Cluster, ClusterClosed, LaunchError, RemoteError
from aiocluster.launch.local import Local

from . import work
from .conftest import Fifos


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 2e13])
async def test_an_endless_timeout_is_none_and_hurts_nobody(cluster: Cluster, timeout: float) -> None:
    endless = cluster.options(timeout=timeout).submit(work.square, 3)
    assert await asyncio.gather(*[cluster.submit(work.square, n) for n in range(10)]) == [n * n for n in range(10)]
    assert await endless == 9
    assert await cluster.options(timeout=timeout).map(work.square, range(10)) == [n * n for n in range(10)]
    view = cluster.options(timeout=1e-9).options(timeout=timeout)
    assert await view.submit(work.square, 3) == 9, "it takes a timeout away"
    assert await cluster.submit(work.nested_with, timeout=timeout) == 9


@pytest.mark.parametrize(
    "name", ["n" * 5000, "\ud800", "\U0001f600" * 300, "two\nlines"], ids=["long", "half a pair", "wide", "lines"]
)
async def test_a_name_of_any_kind_hurts_nobody(cluster: Cluster, name: str) -> None:
    named = cluster.options(name=name).submit(work.square, 3)
    assert await cluster.submit(work.square, 4) == 16
    assert await named == 9
    assert await cluster.submit(work.nested_with, name=name) == 9
    assert set(cluster.workers) == {1, 2}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"timeout": "5"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"priority": "high"}, "priority"),
        ({"priority": math.nan}, "priority"),
        ({"priority": 2**64}, "priority"),
        ({"retries": 1.5}, "retries"),
        ({"retries": -1}, "retries"),
        ({"name": 5}, "name"),
        ({"name": b"x"}, "name"),
        ({"workers": "1"}, "workers"),
        ({"workers": 1.0}, "workers"),
        ({"workers": []}, "workers"),
        ({"workers": 0}, "worker"),
        ({"workers": 2**63}, "worker"),
        ({"resources": {"gpu": "1"}}, "gpu"),
        ({"resources": {"gpu": 0}}, "gpu"),
        ({"resources": {"gpu": math.inf}}, "gpu"),
        ({"resources": "gpu"}, "resources"),
        ({"resources": {5: 1}}, "5"),
        ({"resources": {"gpu": 10**400}}, "gpu"),
        ({"resources": {"\ud800": 1}}, "printable"),
    ],
)
async def test_an_option_that_makes_no_sense_is_named(cluster: Cluster, options: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        cluster.options(**options)
    assert await cluster.submit(work.square, 3) == 9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n": "2"}, "n must be"),
        ({"n": 2.5}, "n must be"),
        ({"n": (2, 1)}, "n must be"),
        ({"n": 1, "env": {"A": 1}}, "env"),
        ({"n": 1, "resources": {"gpu": -1}}, "gpu"),
        ({"n": 1, "resources": "gpu"}, "resources"),
        ({"n": 1, "resources": {5: 1}}, "5"),
    ],
)
async def test_an_argument_of_a_constructor_that_makes_no_sense_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        await Cluster.local(**arguments, output="quiet")


async def test_methods_name_what_makes_no_sense(cluster: Cluster) -> None:
    for call, named in (
        (cluster.scale("3"), "cannot have '3'"),  # type: ignore[arg-type]
        (cluster.scale(1.5), "cannot have 1.5"),  # type: ignore[arg-type]
        (cluster.retire("1"), "ids"),  # type: ignore[arg-type]
        (cluster.retire(99), "no worker 99; the cluster has 1, 2"),
    ):
        with pytest.raises((TypeError, ValueError, KeyError), match=named):
            await call
    with pytest.raises(ValueError, match="whole numbers"):
        cluster.adapt(0.5, 1.5)  # type: ignore[arg-type]
    for how in ({"limit": "x"}, {"chunk_size": 2.5}):
        with pytest.raises(ValueError, match=next(iter(how))):
            cluster.map(work.square, [1], **how)


# --- opening and closing -------------------------------------------------------------------------------------------------


async def test_a_cluster_that_is_not_open_says_how_it_is_opened() -> None:
    opening: Any = Cluster.local(n=1)
    with pytest.raises(AttributeError, match="`await` this, or use it with `async with`, to have its 'submit'"):
        opening.submit(work.square, 2)
    with pytest.raises(AttributeError, match="no attribute 'sumbit'"):
        _ = opening.sumbit
    with pytest.raises(TypeError, match="async with"), opening:
        pass
    assert "await" in repr(opening)


def test_run_wants_a_coroutine() -> None:
    async def main() -> None: ...

    with pytest.raises(TypeError, match="needs a coroutine"):
        aiocluster.run(main)  # type: ignore[arg-type]


async def test_calls_that_nobody_waited_for_are_told_of_at_the_end(caplog: pytest.LogCaptureFixture, fifos: Fifos) -> None:
    async with Cluster.local(n=1, output="quiet") as cluster:
        begun = fifos.new()
        running = cluster.submit(work.announce_and_sleep, begun)
        waiting = [cluster.submit(work.square, n) for n in range(9)]
        await fifos.read(begun)
    assert "the cluster is closed with 10 calls unfinished" in caplog.text
    assert isinstance(running.exception(), ClusterClosed)
    assert all(isinstance(future.exception(), ClusterClosed) for future in waiting)


async def test_a_cluster_that_is_left_with_nothing_to_do_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with Cluster.local(n=1, output="quiet") as cluster:
        await cluster.submit(work.square, 2)
        async for _ in cluster.map(work.square, range(1000)):
            break
    assert "unfinished" not in caplog.text


async def test_everything_on_a_closed_cluster_is_closed() -> None:
    cluster = await Cluster.local(n=1, output="quiet")
    await cluster.close()
    with pytest.raises(ClusterClosed):
        await cluster.everywhere(work.own_id)


async def test_a_map_that_is_forgotten_warns(cluster: Cluster) -> None:
    forgotten = [cluster.map(work.square, range(3))]
    with pytest.warns(RuntimeWarning, match="the map of tests.integration.work.square was never awaited"):
        forgotten.clear()


# --- what travels --------------------------------------------------------------------------------------------------------


async def test_a_cluster_does_not_travel_and_says_what_does(cluster: Cluster) -> None:
    with pytest.raises(TypeError, match="get_cluster"):
        await cluster.submit(work.echo, cluster)
    with pytest.raises(TypeError, match="get_cluster"):
        pickle.dumps(cluster)
    with pytest.raises(TypeError, match="get_cluster"):
        await cluster.submit(lambda: cluster)


async def test_an_exception_that_cannot_be_rebuilt_says_why_it_has_another_type(cluster: Cluster) -> None:
    with pytest.raises(RemoteError) as caught:
        await cluster.submit(work.fail_picky)
    assert any("__reduce__" in note for note in caught.value.__notes__)
    with pytest.raises(RemoteError) as caught:
        await cluster.submit(sys.exit, 3)
    assert not hasattr(caught.value, "__notes__")


async def test_logging_in_a_call_is_the_callers_own() -> None:
    lines: list[str] = []
    async with Cluster.local(n=1, output=lambda _id, _stream, line: lines.append(line)) as cluster:
        future = cluster.submit(work.configure_logging_and_log)
        await future
        assert await future.logs() == ["mine: hello"]
    assert lines == ["mine: hello"]


async def test_a_launcher_that_is_told_of_it_in_vain_leaves_the_cluster_as_it_was(cluster: Cluster) -> None:
    with pytest.raises((LaunchError, TypeError)):
        await cluster.add(Local(), n="2")  # type: ignore[arg-type]
    assert set(cluster.workers) == {1, 2}


async def test_another_thread_is_told_how_to_submit(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
        await asyncio.to_thread(cluster.submit, work.square, 3)
    assert await cluster.submit(work.square, 4) == 16


@pytest.mark.parametrize("grace", [-1, math.nan, "1"])
async def test_a_grace_that_is_no_number_of_seconds_retires_nobody(cluster: Cluster, grace: Any) -> None:
    with pytest.raises(ValueError, match="grace"):
        await cluster.retire(1, grace=grace)
    with pytest.raises(ValueError, match="grace"):
        await cluster.workers[2].stop(grace=grace)
    assert set(cluster.workers) == {1, 2}
