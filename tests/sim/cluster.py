"""The simulated cluster: the real `Coordinator` with the real peers of `runtime.peers`, under a shell in virtual time.

It mirrors `runtime.manager.Manager`: the same effects performed in the same order, calls placed once per turn.
"""

from __future__ import annotations

import random
from functools import partial
from struct import Struct
from typing import Any, assert_never, cast

from aiocluster.config import Settings
from aiocluster.core.calls import Call, CallOptions, PreparingCall
from aiocluster.core.coordinator import Coordinator
from aiocluster.core.effects import (
    DropNode,
    DropWorker,
    EndCall,
    PublishEvent,
    ReleaseNode,
    ResolveCalls,
    RunJoinCalls,
    SendToNode,
    SendToWorker,
)
from aiocluster.core.roster import NodeState
from aiocluster.errors import ClusterClosed, WorkerLost
from aiocluster.runtime.peers import NodePeer, WorkerPeer
from aiocluster.wire.messages import Hello, Message, Mode

from .agent import SimAgent
from .checks import Checker
from .clock import Process, Timer, World
from .load import Load, Spec
from .network import Handler, Listener, SimLink

__all__ = ["Cluster", "RootHandle"]

PAYLOAD = Struct(">I")
RESULT = Struct(">II")


class RootHandle:
    """The program's future."""

    __slots__ = ("_cluster", "spec")

    def __init__(self, cluster: Cluster, spec: Spec) -> None:
        self._cluster = cluster
        self.spec = spec

    def resolve(self, status: int, payload: bytes, buffers: Any, worker_id: int) -> None:
        kind = ("result", "error", "cancelled", "result")[status]
        self._cluster.checker.result_arrived(self.spec, kind, payload, worker_id)

    def fail(self, error: BaseException) -> None:
        self._cluster.checker.failed(self.spec, error)


class JoinHandle(RootHandle):
    """Waits for what prepares a worker, and opens it then."""

    __slots__ = ("_worker_id",)

    def __init__(self, cluster: Cluster, spec: Spec, worker_id: int) -> None:
        super().__init__(cluster, spec)
        self._worker_id = worker_id

    def resolve(self, status: int, payload: bytes, buffers: Any, worker_id: int) -> None:
        super().resolve(status, payload, buffers, worker_id)
        self._cluster.prepared(self._worker_id, status == 0)

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        if not isinstance(error, WorkerLost | ClusterClosed):
            self._cluster.prepared(self._worker_id, False)


class SimLoop:
    """What the real peers use of a loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def time(self) -> float:
        return self._cluster.world.now

    def call_soon(self, callback: Any, *args: Any) -> None:
        world = self._cluster.world
        world.after(0.0, self._cluster.process, callback, *args)


def draw_settings(rng: random.Random) -> Settings:
    fast = rng.random() < 0.3
    return Settings(
        heartbeat_interval_s=0.5 if fast else 2.0,
        heartbeat_timeout_s=3.0 if fast else 10.0,
        orphan_timeout_s=rng.choice((15.0, 60.0)),
        close_grace_s=rng.choice((0.5, 5.0)),
        window_s=rng.choice((0.002, 0.002, 0.02)),
        window_calls=rng.choice((2, 8, 4096)),
        window_bytes=rng.choice((12, 64 * 2**20)),
        async_calls=rng.choice((1, 3, 1000)),
        max_pending_calls=rng.choice((30, 2_000_000, 2_000_000)),
    )


class Cluster:
    """The manager's process and everything that it talks to."""

    def __init__(self, world: World) -> None:
        rng = world.rng
        self.world = world
        self.process = Process("manager", shuffles=True)
        self.settings = draw_settings(rng)
        self.slowest_join_s = rng.choice((0.1, 3.0, 40.0))
        self.loop = SimLoop(self)
        self.load = Load(rng)
        self.checker = Checker(self)
        self.core = Coordinator(self.settings, world.now)
        self.listener = Listener(world, self.process, self._accept, 2 * self.settings.heartbeat_timeout_s)
        self.agents: dict[str, SimAgent] = {}
        self.nodes: dict[str, NodePeer] = {}
        self.workers: dict[int, WorkerPeer] = {}
        self.node_links: dict[str, SimLink] = {}
        self.worker_links: dict[int, SimLink] = {}
        self.join_call_s: float | None = rng.choice((None, None, 0.2))
        """Each new worker is prepared for so long before it takes calls."""
        self.join_calls = rng.random() < 0.25
        """Each new worker is prepared by a call, which may make others."""
        self.frozen_until = 0.0
        submit = self.core.submit

        def watched(call: Call) -> Any:
            spec = self.spec_of(call.payload)
            if call.origin:
                self.checker.nested_submitted(spec, call)
            refusal = submit(call)
            if refusal is not None:
                self.checker.failed(spec, refusal)
            return refusal

        cast(Any, self.core).submit = watched
        self._launchers = 0
        self._next_call = 1
        self._flush_due = False
        self._performing = False
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._arm()

    # --- what the real peers use -------------------------------------------------------------------------------------------

    def next_call_id(self) -> int:
        id = self._next_call
        self._next_call = id + 1
        return id

    def send_to_worker(self, worker_id: int, message: Message, buffers: Any = ()) -> None:
        link = self.worker_links.get(worker_id)
        if link is not None:
            link.send(message, buffers)

    def schedule_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        self.flush()

    def after_input(self) -> None:
        if self.core.has_work:
            self.flush()

    def flush(self) -> None:
        self.core.assign(self.world.now)
        self.perform()
        self._arm()

    def perform(self) -> None:
        if self._performing:
            return
        self._performing = True
        try:
            while effects := self.core.take_effects():
                for effect in effects:
                    match effect:
                        case SendToWorker():
                            self.send_to_worker(effect.worker_id, effect.message, effect.buffers)
                        case ResolveCalls():
                            self._resolve(effect)
                        case EndCall():
                            call, error = effect.ended
                            self.checker.core_ended(call, error)
                            handle, call.handle = call.handle, None
                            if handle is not None:
                                handle.fail(error)
                        case SendToNode():
                            if effect.node in self.node_links:
                                self.node_links[effect.node].send(effect.message)
                        case DropWorker():
                            self._drop_worker(effect)
                        case DropNode():
                            self._drop_node(effect)
                        case ReleaseNode():
                            self._release_node(effect)
                        case RunJoinCalls():
                            if self.join_calls and not self.checker.closed:
                                self.world.after(0.0, self.process, self._prepare, effect.worker_id)
                            elif self.join_call_s is None:
                                self.core.open_worker(effect.worker_id, self.world.now)
                            else:
                                self.world.after(self.join_call_s, self.process, self._open, effect.worker_id)
                        case PublishEvent():
                            if self.world.tracing:
                                event = effect.event
                                self.world.say("manager", f"** {event.kind} {event.node} {event.worker_id or ''}: {event.text}")
                        case _:
                            assert_never(effect)
        finally:
            self._performing = False

    def _prepare(self, worker_id: int) -> None:
        if not self.join_calls:
            self._open(worker_id)
            return
        spec = self.load.make(self.known_workers())
        spec.prepares = True
        spec.options = CallOptions(workers=frozenset((worker_id,)), timeout_s=spec.options.timeout_s)
        self.submit(spec, prepares=worker_id)

    def prepared(self, worker_id: int, well: bool) -> None:
        if well:
            self.core.open_worker(worker_id, self.world.now)
        else:
            self.core.retire(worker_id, 0.0, self.world.now)
        self.perform()
        self.schedule_flush()

    def _open(self, worker_id: int) -> None:
        self.core.open_worker(worker_id, self.world.now)
        self.perform()
        self.schedule_flush()

    def _resolve(self, effect: ResolveCalls) -> None:
        for index, call in enumerate(effect.calls):
            if call is None:
                continue
            self.checker.core_resolved(call, effect.worker_id, effect.statuses[index], effect.payloads[index])
            handle, call.handle = call.handle, None
            if handle is not None:
                handle.resolve(effect.statuses[index], effect.payloads[index], (), effect.worker_id)

    def _drop_worker(self, effect: DropWorker) -> None:
        self.checker.worker_dropped(effect.worker_id)
        peer = self.workers.pop(effect.worker_id, None)
        if peer is not None:
            peer.dropped = True
        link = self.worker_links.pop(effect.worker_id, None)
        if link is not None:
            link.abort()

    def _drop_node(self, effect: DropNode) -> None:
        self.checker.node_dropped(effect.node, effect.reason)
        peer = self.nodes.pop(effect.node, None)
        if peer is not None:
            peer.dropped = True
        link = self.node_links.pop(effect.node, None)
        if link is not None:
            link.abort()

    def _release_node(self, effect: ReleaseNode) -> None:
        """The launcher ends what is left of the node, sometimes too late to matter."""
        agent, world = self.agents.get(effect.node), self.world
        if agent is not None:
            world.after(world.rng.choice((1.0, 6.0, 90.0)), world.outside, agent.end, "its launcher ended it")

    def _arm(self) -> None:
        due = self.core.deadline
        if self._timer is not None:
            if self._timer_at <= due + 0.0005:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.world.at(due, self.process, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.core.tick(self.world.now)
        self.perform()
        self.flush()
        self.checker.look()

    # --- the door ----------------------------------------------------------------------------------------------------------

    def _accept(self, hello: Hello) -> Handler | str:
        if hello.role == "agent":
            refusal = self.core.refuse_node(hello.node)
            return _HeardNode(self, hello.node) if refusal is None else refusal
        refusal = self.core.refuse_worker(hello.worker_id, hello.node)
        return cast(Handler, WorkerPeer(cast(Any, self), hello.worker_id)) if refusal is None else refusal

    # --- the program -------------------------------------------------------------------------------------------------------

    def payload_of(self, spec: Spec) -> bytes:
        return PAYLOAD.pack(spec.id)

    def spec_of(self, payload: bytes) -> Spec:
        number: int = PAYLOAD.unpack(payload)[0]
        return self.load.specs[number - 1]

    def result_of(self, spec: Spec, worker_id: int) -> bytes:
        return RESULT.pack(spec.id, worker_id)

    def expect_node(self, name: str, workers: int, join_after_s: float, start_crashes: float) -> None:
        resources = {"gpu": float(self.world.rng.choice((1, 2)))} if self.world.rng.random() < 0.7 else {}
        self.core.expect_node(name, workers, resources, self.world.now)
        self.perform()
        self.agents[name] = SimAgent(self, name, join_after_s, start_crashes)
        self.world.after(self.settings.launch_timeout_s, self.process, self._launch_timed_out, name)

    def _launch_timed_out(self, name: str) -> None:
        if self.core.roster.nodes[name].state is NodeState.EXPECTED:
            self._node_exited(name, "it did not join in time")

    def submit(self, spec: Spec, prepares: int = 0) -> None:
        now, options = self.world.now, spec.options
        entry = self.core.functions.intern(spec.kind.hash, b"code", spec.kind.name, spec.kind.is_async)
        mode = Mode.CHUNK if spec.items > 1 else 0
        make = partial(PreparingCall, prepares) if prepares else Call
        handle = JoinHandle(self, spec, prepares) if prepares else RootHandle(self, spec)
        call = make(self.next_call_id(), entry, self.payload_of(spec), (), options, mode, spec.items, 0, handle)
        if options.timeout_s is not None:
            call.deadline = now + options.timeout_s
        self.checker.submitted(spec, call)
        refusal = self.core.submit(call)
        if refusal is not None:
            call.handle = None
            if prepares and not isinstance(refusal, WorkerLost | ClusterClosed):
                self.prepared(prepares, False)
        self.schedule_flush()

    def cancel(self, spec: Spec, force: bool) -> None:
        """The program cancels a future; cancelling one that is done changes nothing."""
        call = spec.call
        if call is None or spec.outcome is not None:
            return
        self.checker.cancelled(spec, call)
        call.handle = None
        self.core.cancel(call, self.world.now, force=force)
        self.perform()
        self.schedule_flush()

    def known_workers(self) -> list[int]:
        """Workers that a program may name: most are there, or on their way, some have been."""
        return list(self.core.roster.workers) + sorted(self.checker.dropped)[-1:]

    def retire(self, worker_id: int, grace_s: float) -> None:
        self.core.retire(worker_id, grace_s, self.world.now)
        self.perform()
        self.flush()

    def add_workers(self, name: str, count: int) -> None:
        self.core.add_workers(name, count, self.world.now)
        self.perform()

    def kill_worker(self, worker_id: int) -> None:
        self.core.kill_worker(worker_id, "the program wants it", self.world.now)
        self.perform()

    def set_launching(self, launching: bool) -> None:
        self._launchers += 1 if launching else -1
        self.core.set_launching(self._launchers > 0)
        self.perform()

    def close(self) -> None:
        self.world.say("manager", "** closes")
        self.checker.closing()
        self.core.close(ClusterClosed(), self.settings.close_grace_s, self.world.now)
        self.perform()
        for agent in self.agents.values():
            self.world.after(
                2 * self.settings.close_grace_s + 1.0, self.world.outside, agent.end, "its launcher ended it: the cluster closes"
            )

    # --- machines ------------------------------------------------------------------------------------------------------------

    def process_died(self, process: Process) -> None:
        """Its kernel closes its connections; what is under way arrives."""
        for connection in self.listener.connections:
            if connection.ends[0].process is process:
                connection.close(0)

    def process_vanished(self, process: Process) -> None:
        """Its machine has gone: nobody closes anything."""
        for connection in self.listener.connections:
            if connection.ends[0].process is process:
                connection.cut((0.0, self.world.rng.choice((0.01, 10.5))))

    def node_ended(self, agent: SimAgent, reason: str) -> None:
        """The launcher notices that a node has ended."""
        self.world.after(self.world.rng.choice((0.001, 0.5, 3.0)), self.process, self._node_exited, agent.name, reason)

    def _node_exited(self, name: str, reason: str) -> None:
        self.core.lose_node(name, reason, self.world.now)
        self.perform()
        self.schedule_flush()


class _HeardNode(NodePeer):
    """The real peer; the checker learns when its node was heard."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cast(Any, cluster), name)
        self._checker = cluster.checker

    def link_opened(self, link: Any) -> None:
        self._checker.node_heard(self.name)
        super().link_opened(link)

    def link_resumed(self, link: Any) -> None:
        self._checker.node_heard(self.name)
        super().link_resumed(link)

    def frames_received(self, link: Any, frames: Any) -> None:
        self._checker.node_heard(self.name)
        if not self.dropped:
            self._checker.node_says([frame.message for frame in frames])
        super().frames_received(link, frames)
