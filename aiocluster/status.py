"""What a cluster looks like at a moment: plain figures for people, logs and programs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NodeStatus", "Status", "WorkerStats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStats:
    """One worker's figures: those of calls are the manager's, those of the process are its agent's at the last heartbeat."""

    state: str
    in_flight: int
    """Calls it has been sent that have not ended."""
    cpu_percent: float
    rss_bytes: int
    process_state: str
    """What its agent saw: "idle", "busy", …; empty before the first heartbeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatus:
    """One node."""

    name: str
    state: str
    host: str
    workers: tuple[int, ...]
    heard_s_ago: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """A snapshot of a cluster.

    `workers` counts those that take calls, `wanted` those that it should have; `waiting` and `running` count calls (those that
    were sent to workers count as running), `ended` those that have ended since it began.
    """

    cluster_id: str
    workers: int
    wanted: int
    waiting: int
    running: int
    ended: int
    pending_bytes: int
    nodes: tuple[NodeStatus, ...]
    closed: bool
