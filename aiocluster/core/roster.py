"""The roster: which nodes and workers there are, in which state, and who was heard from when.

A worker's id is its epoch: it is never given again, and a record that is gone takes no further word. Transitions are data: what
the tables do not list is a `ProtocolError`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiocluster.core.verdicts import Verdict
from aiocluster.errors import ProtocolError

__all__ = ["Node", "NodeState", "Roster", "WorkerRecord", "WorkerState"]


class NodeState(enum.Enum):
    EXPECTED = "expected"
    """A launcher is starting it."""
    JOINED = "joined"
    DRAINING = "draining"
    """It was told to end; what runs may finish."""
    GONE = "gone"


class WorkerState(enum.Enum):
    STARTING = "starting"
    """Its agent has been asked to start it."""
    JOINING = "joining"
    """Its link stands; what must run on each new worker runs now."""
    READY = "ready"
    DRAINING = "draining"
    """It takes no more calls; what runs may finish."""
    GONE = "gone"


NODE_TRANSITIONS: dict[tuple[NodeState, str], NodeState] = {
    (NodeState.EXPECTED, "join"): NodeState.JOINED,
    (NodeState.EXPECTED, "lose"): NodeState.GONE,
    (NodeState.JOINED, "drain"): NodeState.DRAINING,
    (NodeState.JOINED, "lose"): NodeState.GONE,
    (NodeState.DRAINING, "drain"): NodeState.DRAINING,
    (NodeState.DRAINING, "lose"): NodeState.GONE,
}

WORKER_TRANSITIONS: dict[tuple[WorkerState, str], WorkerState] = {
    (WorkerState.STARTING, "join"): WorkerState.JOINING,
    (WorkerState.STARTING, "drain"): WorkerState.DRAINING,
    (WorkerState.STARTING, "lose"): WorkerState.GONE,
    (WorkerState.JOINING, "open"): WorkerState.READY,
    (WorkerState.JOINING, "drain"): WorkerState.DRAINING,
    (WorkerState.JOINING, "lose"): WorkerState.GONE,
    (WorkerState.READY, "drain"): WorkerState.DRAINING,
    (WorkerState.READY, "lose"): WorkerState.GONE,
    (WorkerState.DRAINING, "join"): WorkerState.DRAINING,
    (WorkerState.DRAINING, "drain"): WorkerState.DRAINING,
    (WorkerState.DRAINING, "lose"): WorkerState.GONE,
}


@dataclass(slots=True, eq=False)
class WorkerRecord:
    """What is known of one worker."""

    id: int
    node: Node
    since: float
    state: WorkerState = WorkerState.STARTING
    pid: int = 0
    has_place: bool = False
    """It has joined: dispatch knows it."""
    link_up: bool = False
    verdict: Verdict | None = None
    """What its agent said of its end, kept until its link has been read to the end."""
    killed: bool = False
    """The manager has had it killed: what it ran is not to blame for its end."""
    settle_at: float | None = None
    """When it is taken for lost if nothing else is heard: its link broke, or it exited and the link has not ended."""
    drain_until: float | None = None
    stopped: bool = False
    """It has been told to end."""
    figures: tuple[str, float, int] = ("", 0.0, 0)
    """What its agent sees of it: state, percent of CPU, bytes of RSS."""

    def apply(self, event: str, now: float) -> None:
        state = WORKER_TRANSITIONS.get((self.state, event))
        if state is None:
            raise ProtocolError(f"worker {self.id} is {self.state.value}: it cannot {event}")
        if state is not self.state:
            self.state = state
            self.since = now


@dataclass(slots=True, eq=False)
class Node:
    """What is known of one node."""

    name: str
    wanted: int
    """How many workers it should have; a crash does not change it, retiring and giving up do."""
    resources: Mapping[str, float]
    since: float
    state: NodeState = NodeState.EXPECTED
    host: str = ""
    pid: int = 0
    last_heard: float = 0.0
    link_up: bool = False
    reason: str = ""
    failed_joins: int = 0
    """How many of its workers in a row died after joining, before they were open."""
    leaving: bool = False
    """Its infrastructure takes it away; nobody else has told it to end."""
    figures: dict[str, Any] = field(default_factory=dict)
    workers: dict[int, WorkerRecord] = field(default_factory=dict)
    """Those not gone, by id."""
    reserved: deque[int] = field(default_factory=deque)
    """Ids for its first workers, so that ids follow the order of nodes however these join."""

    def apply(self, event: str, now: float) -> None:
        state = NODE_TRANSITIONS.get((self.state, event))
        if state is None:
            raise ProtocolError(f"node {self.name} is {self.state.value}: it cannot {event}")
        if state is not self.state:
            self.state = state
            self.since = now

    @property
    def is_up(self) -> bool:
        return self.state is NodeState.JOINED or self.state is NodeState.DRAINING


GONE_KEPT = 1000
"""Nodes that are gone and still shown, with the reason: the latest of them."""


class Roster:
    """All nodes and workers of a cluster, and the nodes that went last."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.workers: dict[int, WorkerRecord] = {}
        self._gone: deque[str] = deque()
        self._next_id = 1

    def expect_node(self, name: str, wanted: int, resources: Mapping[str, float], now: float) -> Node:
        if name in self.nodes:
            raise ValueError(f"there is a node {name!r} already")
        node = self.nodes[name] = Node(name, wanted, resources, now, last_heard=now)
        node.reserved.extend(range(self._next_id, self._next_id + wanted))
        self._next_id += wanted
        return node

    def keep_gone(self, node: Node) -> None:
        """The node is gone, and its workers with it: it is forgotten when so many others have gone after it."""
        self._gone.append(node.name)
        if len(self._gone) > GONE_KEPT:
            del self.nodes[self._gone.popleft()]

    def new_worker(self, node: Node, now: float) -> WorkerRecord:
        """A worker that the node shall start, with an id that nobody had before."""
        if node.reserved:
            id = node.reserved.popleft()
        else:
            id, self._next_id = self._next_id, self._next_id + 1
        record = WorkerRecord(id, node, now)
        self.workers[record.id] = node.workers[record.id] = record
        return record

    def remove_worker(self, record: WorkerRecord, now: float) -> None:
        record.apply("lose", now)
        del self.workers[record.id], record.node.workers[record.id]

    def ready(self) -> list[WorkerRecord]:
        return [record for record in self.workers.values() if record.state is WorkerState.READY]

    @property
    def wanted(self) -> int:
        """How many workers the nodes that are up, or on their way, should have."""
        return sum(node.wanted for node in self.nodes.values() if node.state is not NodeState.GONE)

    @property
    def expecting(self) -> bool:
        """True while a node, or a worker, is on its way."""
        return any(node.state is NodeState.EXPECTED for node in self.nodes.values()) or any(
            record.state in (WorkerState.STARTING, WorkerState.JOINING) for record in self.workers.values()
        )
