"""aiocluster: an asyncio program on more than one process or machine.

Everything public is named here and imported when it is first used, so that `import aiocluster` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiocluster._version import __version__
from aiocluster.errors import (
    AioclusterError,
    AuthenticationError,
    CallTimeout,
    ClusterClosed,
    LaunchError,
    NodeReport,
    Overloaded,
    ProtocolError,
    RemoteError,
    RemoteTraceback,
    ResultsError,
    Unschedulable,
    VersionMismatch,
    WorkerLost,
)

if TYPE_CHECKING:
    from aiocluster import results
    from aiocluster.cluster import Cluster, Worker, run
    from aiocluster.config import Settings
    from aiocluster.context import get_cluster, get_worker
    from aiocluster.core.effects import Event
    from aiocluster.launch.batch import Batch
    from aiocluster.launch.batch_nodes import BatchNodes
    from aiocluster.launch.docker import Docker
    from aiocluster.launch.ecs import ECS
    from aiocluster.launch.local import Local
    from aiocluster.remoting import remote
    from aiocluster.runtime.futures import Future
    from aiocluster.status import Status, WorkerStats

_HOMES = {
    "Batch": "aiocluster.launch.batch",
    "BatchNodes": "aiocluster.launch.batch_nodes",
    "Cluster": "aiocluster.cluster",
    "Worker": "aiocluster.cluster",
    "run": "aiocluster.cluster",
    "Settings": "aiocluster.config",
    "get_cluster": "aiocluster.context",
    "get_worker": "aiocluster.context",
    "Event": "aiocluster.core.effects",
    "Docker": "aiocluster.launch.docker",
    "ECS": "aiocluster.launch.ecs",
    "Local": "aiocluster.launch.local",
    "Future": "aiocluster.runtime.futures",
    "remote": "aiocluster.remoting",
    "Status": "aiocluster.status",
    "WorkerStats": "aiocluster.status",
}
_MODULES = frozenset({"results"})
"""Public modules that need no import of their own."""

__all__ = [
    "AioclusterError",
    "AuthenticationError",
    "Batch",
    "BatchNodes",
    "CallTimeout",
    "Cluster",
    "ClusterClosed",
    "Docker",
    "ECS",
    "Event",
    "Future",
    "LaunchError",
    "Local",
    "NodeReport",
    "Overloaded",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "ResultsError",
    "Settings",
    "Status",
    "Unschedulable",
    "VersionMismatch",
    "Worker",
    "WorkerLost",
    "WorkerStats",
    "__version__",
    "get_cluster",
    "get_worker",
    "remote",
    "results",
    "run",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None and name not in _MODULES:
        raise AttributeError(f"module 'aiocluster' has no attribute {name!r}")
    import importlib

    value = importlib.import_module(f"aiocluster.{name}") if home is None else getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
