"""What the coordinator asks of its shell, and what it tells people. Effects are imperative, events are past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aiocluster.core.calls import Call
from aiocluster.core.dispatch import Ended
from aiocluster.wire.messages import Message

__all__ = [
    "DropNode",
    "DropWorker",
    "Effect",
    "EndCall",
    "Event",
    "PublishEvent",
    "ReleaseNode",
    "ResolveCalls",
    "RunJoinCalls",
    "SendToNode",
    "SendToWorker",
]


class Event(NamedTuple):
    """Something that happened to the cluster, for `Cluster.events`.

    `kind` is one of: node_state, node_joined, node_lost, node_draining, node_failed, node_released, worker_joined, worker_lost,
    worker_retired, link_broken, link_resumed, start_failed. `node` is "" and `worker_id` 0 where none is meant. `at` is in
    seconds of the manager's monotonic clock.
    """

    at: float
    kind: str
    node: str
    worker_id: int
    text: str


class SendToNode(NamedTuple):
    node: str
    message: Message


class SendToWorker(NamedTuple):
    worker_id: int
    message: Message
    buffers: Sequence[Any] = ()


class DropNode(NamedTuple):
    """Close the node's link: what it says from now on is not heard, and it cannot resume."""

    node: str
    reason: str


class DropWorker(NamedTuple):
    """Close the worker's link: what it says from now on is not heard, and it cannot resume."""

    worker_id: int
    reason: str


class ReleaseNode(NamedTuple):
    """The node is not needed any more, or lost: let its launcher end what is left of it."""

    node: str
    reason: str


class ResolveCalls(NamedTuple):
    """These calls ended on their worker; entries of `calls` are None where nobody waits. Columns are those of `Results`."""

    worker_id: int
    calls: Sequence[Call | None]
    statuses: bytes
    payloads: Sequence[bytes]
    buffers: Sequence[Sequence[Any]] | None
    """For each call its buffers; None if no call of the frame has any."""


class EndCall(NamedTuple):
    """This call ended without a result from its worker."""

    ended: Ended


class RunJoinCalls(NamedTuple):
    """The worker has joined: run on it what must run on each new worker, then call `open_worker` or `worker_unfit`."""

    worker_id: int


class PublishEvent(NamedTuple):
    event: Event


Effect = SendToNode | SendToWorker | DropNode | DropWorker | ReleaseNode | ResolveCalls | EndCall | RunJoinCalls | PublishEvent
