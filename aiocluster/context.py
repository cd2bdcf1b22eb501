"""Which cluster is meant: that of the call that runs here, or the one that this program has open."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakSet

from aiocluster.runtime import current, forked
from aiocluster.runtime.current import ThisWorker

if TYPE_CHECKING:
    from aiocluster.calling import CurrentCluster
    from aiocluster.cluster import Cluster

__all__ = ["get_cluster", "get_worker", "left", "opened"]

_current: ContextVar[Cluster | None] = ContextVar("aiocluster_cluster", default=None)
_open: WeakSet[Cluster] = WeakSet()


def get_worker() -> ThisWorker:
    """The worker that the calling code runs on: its `id`, `node`, `host`, `pid` and `cluster_id`.

    Raises:
        RuntimeError: the code does not run on a worker.
    """
    if current.this_worker is None:
        raise RuntimeError("get_worker() tells a call which worker it runs on; this process is no worker")
    return current.this_worker


def get_cluster() -> CurrentCluster:
    """The cluster to submit calls to: inside a call the one that runs it, elsewhere the one that this program has open.

    It has `submit`, `map`, `everywhere` and `options`, and `await get_cluster().workers()` gives the workers by id. In an
    `async def` call its futures are awaited; in a sync call `future.result()` waits, and the worker's place is free for
    other calls meanwhile.

    Raises:
        RuntimeError: no cluster is open, or several are and none was opened in this context.
    """
    if current.backend is not None:
        from aiocluster.nested import NestedCluster

        return NestedCluster(current.backend)
    cluster = _current.get()
    if cluster is not None and not cluster.closed:
        return cluster
    alive = [one for one in _open if not one.closed]
    if not alive:
        forked.refuse()
    if len(alive) == 1:
        return alive[0]
    if not alive:
        raise RuntimeError("no cluster is open: use this inside `async with Cluster.local() as cluster:`, or in a call")
    raise RuntimeError(f"{len(alive)} clusters are open: call the methods of the one that you mean")


def opened(cluster: Cluster) -> None:
    """The cluster is open from now on, and the current one of this context."""
    _open.add(cluster)
    _current.set(cluster)


def left(cluster: Cluster) -> None:
    """The cluster is closed."""
    _open.discard(cluster)
    if _current.get() is cluster:
        _current.set(None)
