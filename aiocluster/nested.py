"""The cluster as a call on a worker sees it."""

from __future__ import annotations

from dataclasses import dataclass

from aiocluster.calling import CurrentCluster
from aiocluster.runtime.nested import NestedBackend

__all__ = ["NestedCluster", "RemoteWorker"]


@dataclass(frozen=True, slots=True)
class RemoteWorker:
    """A worker of the cluster as another one knows it."""

    id: int
    node: str
    host: str
    pid: int


class RemoteWorkers:
    """The workers of the cluster, for those who ask."""

    def __init__(self, backend: NestedBackend) -> None:
        self._backend = backend

    async def __call__(self) -> dict[int, RemoteWorker]:
        """The workers that take calls now, by id. Await it in an `async def` call."""
        return {row[0]: RemoteWorker(*row) for row in await self._backend.ask("workers", [])}


class NestedCluster(CurrentCluster):
    """What `get_cluster()` gives inside a call: nested calls have the deadline of the call that makes them at the latest."""

    def __init__(self, backend: NestedBackend) -> None:
        super().__init__(backend)
        self._nested = backend

    @property
    def id(self) -> str:
        """The cluster's id."""
        return self._nested.cluster_id

    @property
    def workers(self) -> RemoteWorkers:
        """`await cluster.workers()` gives the workers that take calls now, by id."""
        return RemoteWorkers(self._nested)
