"""What a worker process is told when it is forked: plain data, made by its agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiocluster.ids import Token

__all__ = ["WorkerSpec"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """One worker. `sys_path` and `cwd` are those of the manager's program where the worker can use them, else None."""

    worker_id: int
    node: str
    cluster_id: str
    address: str
    token: Token
    host: str
    settings: Mapping[str, Any]
    sys_path: tuple[str, ...] | None = None
    cwd: str | None = None
