"""The manager's brain: roster and dispatch together. Everything that changes what a cluster is happens here.

Inputs are method calls with `now`; what is to be done about them is collected in `effects`, which the shell takes and performs
after each input. The same object drives a real cluster and a simulated one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiocluster.config import Settings
from aiocluster.core.batches import calls_messages
from aiocluster.core.calls import Call, CallState
from aiocluster.core.dispatch import Dispatch, Ended
from aiocluster.core.effects import (
    DropNode,
    DropWorker,
    Effect,
    EndCall,
    Event,
    PublishEvent,
    ReleaseNode,
    ResolveCalls,
    RunJoinCalls,
    SendToNode,
    SendToWorker,
)
from aiocluster.core.functions import FunctionTable
from aiocluster.core.roster import Node, NodeState, Roster, WorkerRecord, WorkerState
from aiocluster.core.verdicts import Verdict
from aiocluster.errors import AioclusterError, ClusterClosed, ProtocolError
from aiocluster.wire.messages import (
    Beat,
    CancelCalls,
    DropFunctions,
    KillWorker,
    NodeBeat,
    NodeDraining,
    Recall,
    Results,
    Returned,
    Shutdown,
    StartGaveUp,
    StartWorkers,
    StopWorker,
    WorkerExited,
    WorkerStarted,
)

__all__ = ["Coordinator"]

SETTLE_S = 2.0
"""After a worker's exit was reported, its link is read to the end for at most so long before its calls are judged."""
ALL = 2**32
GIVE_UP_AFTER = 5
"""So many workers of a node in a row that die of what prepares them: the next would do the same."""


class Coordinator:
    """One cluster's nodes, workers and calls."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.functions = FunctionTable()
        self.dispatch = Dispatch(settings, self.functions)
        self.roster = Roster()
        self.launching = False
        """A launcher is at work: calls that nobody can take yet may wait."""
        self.closing: ClusterClosed | None = None
        self.effects: list[Effect] = []
        """What has to be done; `take_effects` hands it over."""
        self._tick_s = settings.heartbeat_interval_s / 2
        self._last_tick = now
        self._nested: dict[int, dict[int, Call]] = {}
        """Calls that workers made, by worker and call id: they end with it."""

    @property
    def has_work(self) -> bool:
        """True if `assign` may have something to do."""
        return self.dispatch.has_work

    def take_effects(self) -> list[Effect]:
        """What has to be done now, in order. The shell performs all of it before the next input."""
        effects, self.effects = self.effects, []
        return effects

    # --- nodes -----------------------------------------------------------------------------------------------------------

    def expect_node(self, name: str, wanted: int, resources: Mapping[str, float], now: float) -> None:
        """A launcher starts a node that shall have `wanted` workers with `resources` each."""
        self.roster.expect_node(name, wanted, resources, now)
        self._expectation_changed()

    def refuse_node(self, name: str) -> str | None:
        """Why a node of this name may not join now; None if it may."""
        node = self.roster.nodes.get(name)
        if self.closing is not None:
            return "the cluster is closing"
        if node is None:
            return f"no node {name!r} is expected"
        if node.state is not NodeState.EXPECTED:
            return f"node {name!r} is {node.state.value} already"
        return None

    def node_joined(self, name: str, host: str, pid: int, now: float) -> None:
        """The node's agent is here: it is told to start its workers."""
        node = self.roster.nodes[name]
        node.apply("join", now)
        node.host, node.pid, node.last_heard, node.link_up = host, pid, now, True
        self._publish(now, "node_joined", node, 0, f"on {host}, agent pid {pid}")
        self._start_workers(node, node.wanted, now)
        self._expectation_changed()

    def add_workers(self, name: str, count: int, now: float) -> bool:
        """The node shall have `count` more workers. False if it starts none any more: another one has to."""
        node = self.roster.nodes.get(name)
        if node is None or node.state is NodeState.DRAINING or node.state is NodeState.GONE:
            return False
        node.wanted += count
        node.failed_joins = 0
        if node.state is NodeState.JOINED:
            self._start_workers(node, count, now)
        return True

    def node_message(self, name: str, message: Any, now: float) -> None:
        """The agent says something. Raises `ProtocolError` for what an agent must not say."""
        node = self.roster.nodes[name]
        node.last_heard = now
        match message:
            case NodeBeat():
                node.figures = message.figures
                for worker_id, state, cpu, rss, _started in message.workers:
                    record = node.workers.get(worker_id)
                    if record is not None:
                        record.figures = (state, cpu, rss)
                self.effects.append(SendToNode(name, Beat(message.number)))
            case WorkerStarted():
                record = node.workers.get(message.worker_id)
                if record is not None:
                    record.pid = message.pid
            case WorkerExited():
                self._worker_exited(node, message, now)
            case StartGaveUp():
                self._gave_up(node, message, now)
            case NodeDraining():
                self._drain_node(node, message, now)
            case _:
                raise ProtocolError(f"an agent must not send {type(message).__name__}")

    def node_link_broken(self, name: str, now: float) -> None:
        """The agent's link broke; it has until the heartbeat timeout to come back."""
        node = self.roster.nodes[name]
        if node.is_up:
            node.link_up = False
            self._publish(now, "link_broken", node, 0, "the link to its agent broke")

    def node_link_resumed(self, name: str, now: float) -> None:
        node = self.roster.nodes[name]
        if node.is_up:
            node.link_up, node.last_heard = True, now
            self._publish(now, "link_resumed", node, 0, "the link to its agent is back")

    def lose_node(self, name: str, reason: str, now: float) -> None:
        """The node is gone, or taken for gone: its workers with it, and what it says later is not heard."""
        node = self.roster.nodes.get(name)
        if node is None or node.state is NodeState.GONE:
            return
        failed = node.state is NodeState.EXPECTED
        node.apply("lose", now)
        node.reason, node.link_up = reason, False
        self.effects.append(DropNode(name, reason))
        self.effects.append(ReleaseNode(name, reason))
        kind = "node_failed" if failed else "node_lost"
        self._publish(now, kind if self.closing is None else "node_released", node, 0, reason)
        for record in list(node.workers.values()):
            verdict = record.verdict or Verdict(f"its node {name} is lost: {reason}")
            self._lose_worker(record, verdict, now)
        while node.reserved:
            self.dispatch.never_came(node.reserved.popleft(), f"its node {name} is lost: {reason}")
        self.roster.keep_gone(node)
        self._expectation_changed()

    # --- workers ---------------------------------------------------------------------------------------------------------

    def refuse_worker(self, worker_id: int, node: str) -> str | None:
        """Why a worker may not join now; None if it may."""
        record = self.roster.workers.get(worker_id)
        if self.closing is not None:
            return "the cluster is closing"
        if record is None or record.node.name != node or not record.node.is_up:
            return f"worker {worker_id} of node {node!r} is not expected, or has been declared lost"
        if record.has_place:
            return f"worker {worker_id} has joined already"
        return None

    def worker_joined(self, worker_id: int, pid: int, now: float) -> None:
        """The worker's link stands. It takes calls that name it, and all others after `open_worker`."""
        record = self.roster.workers[worker_id]
        record.apply("join", now)
        record.pid, record.link_up, record.has_place = pid, True, True
        self.dispatch.add_worker(worker_id, record.node.resources, now)
        if record.state is WorkerState.DRAINING:
            self._close_place(worker_id)
            self._stop_if_drained(record, now)
        else:
            self.effects.append(RunJoinCalls(worker_id))

    def open_worker(self, worker_id: int, now: float) -> None:
        """The worker is prepared: it takes calls from now on. Nothing happens if it is gone or draining meanwhile."""
        record = self.roster.workers.get(worker_id)
        if record is None or record.state is not WorkerState.JOINING:
            return
        record.apply("open", now)
        record.node.failed_joins = 0
        self.dispatch.open_worker(worker_id)
        self._publish(now, "worker_joined", record.node, worker_id, f"pid {record.pid}")
        self._expectation_changed()

    def kill_worker(self, worker_id: int, reason: str, now: float) -> None:
        """Have its agent kill the worker now; it is replaced like one that crashed."""
        record = self.roster.workers.get(worker_id)
        if record is not None and record.node.is_up:
            record.killed = True
            self.effects.append(SendToNode(record.node.name, KillWorker(worker_id, reason)))

    def retire(self, worker_id: int, grace_s: float, now: float) -> None:
        """The worker takes no more calls, ends when those it runs have, or is killed after `grace_s`; it is not replaced."""
        record = self.roster.workers.get(worker_id)
        if record is None:
            return
        if record.drain_until is None:
            record.node.wanted = max(0, record.node.wanted - 1)
        self._drain_worker(record, grace_s, now)
        self._expectation_changed()

    def set_writable(self, worker_id: int, writable: bool) -> None:
        """Backpressure of the worker's link."""
        record = self.roster.workers.get(worker_id)
        if record is not None and record.has_place and record.drain_until is None:
            self.dispatch.set_accepting(worker_id, writable and record.link_up)

    def worker_link_broken(self, worker_id: int, now: float) -> None:
        """The worker's link broke: it may come back, unless its agent says that it is dead."""
        record = self.roster.workers.get(worker_id)
        if record is None:
            return
        record.link_up = False
        self.dispatch.set_accepting(worker_id, False)
        if record.verdict is not None:
            self._lose_worker(record, record.verdict, now)
        else:
            record.settle_at = now + self.settings.heartbeat_timeout_s

    def worker_link_resumed(self, worker_id: int, now: float) -> None:
        record = self.roster.workers.get(worker_id)
        if record is not None:
            record.link_up, record.settle_at = True, None
            if record.drain_until is None:
                self.dispatch.set_accepting(worker_id, True)
            self._publish(now, "link_resumed", record.node, worker_id, "its link is back")

    def worker_misbehaved(self, worker_id: int, reason: str, now: float) -> None:
        """The worker broke the protocol: it is dropped and killed; nobody else is hurt."""
        record = self.roster.workers.get(worker_id)
        if record is not None:
            self.kill_worker(worker_id, "it broke the protocol", now)
            self._lose_worker(record, record.verdict or Verdict(f"it broke the protocol: {reason}"), now)

    # --- what workers say about calls --------------------------------------------------------------------------------------

    def results(self, worker_id: int, message: Results, buffers: Sequence[Any], now: float) -> None:
        """Calls ended on the worker."""
        if worker_id not in self.dispatch.places:
            return
        for function_id, count, total_ns in message.busy:
            self.functions.observe(function_id, count, total_ns * 1e-9)
        # What its agent has found in the recorder of a dead worker may arrive here too, later: that is no lie.
        strict = self.roster.workers[worker_id].verdict is None
        self._resolve(worker_id, message.ids, message.statuses, message.payloads, _split(message, buffers), now, strict=strict)

    def returned(self, worker_id: int, message: Returned, now: float) -> None:
        """The worker gives back calls that never started."""
        if worker_id not in self.dispatch.places:
            return
        _dropped, honest = self.dispatch.returned(worker_id, message.ids, now)
        if not honest:
            self.worker_misbehaved(worker_id, "it gave back a call that it does not hold", now)
            return
        self._stop_if_drained(self.roster.workers[worker_id], now)
        if self.roster.workers[worker_id].drain_until is not None:
            self._expectation_changed()  # nobody else may be there to take what came back

    def yielded(self, worker_id: int, call_id: int, waiting: bool, now: float) -> None:
        """A sync call waits for another call, or computes again; one that has ended meanwhile is no matter."""
        if worker_id in self.dispatch.places:
            self.dispatch.yielded(worker_id, call_id, waiting)

    # --- calls -----------------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> AioclusterError | None:
        """Accept a call, or say why not. An accepted call ends in exactly one `ResolveCalls` or `EndCall`, or by `cancel`."""
        refusal = self.dispatch.submit(call)
        if refusal is not None:
            call.state = CallState.ENDED
        elif call.origin:
            self._nested.setdefault(call.origin, {})[call.id] = call
        return refusal

    def cancel(self, call: Call, now: float, *, force: bool = False) -> None:
        """Withdraw the call: nobody waits for it any more. With `force` its worker is killed if it has been sent there."""
        self._cancel(call, force, now)

    def assign(self, now: float) -> None:
        """Send what can be placed. The shell calls it once per loop tick after anything has changed."""
        for place, calls in self.dispatch.assign(now):
            for message, buffers in calls_messages(place, calls, now):
                self.effects.append(SendToWorker(place.id, message, buffers))
        for place, count in self.dispatch.recalls(now):
            self.effects.append(SendToWorker(place.id, Recall(count)))

    # --- time ------------------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` must be called next."""
        due = self._last_tick + self._tick_s
        calls = self.dispatch.next_deadline
        return due if calls is None or calls > due else calls

    def tick(self, now: float) -> None:
        """Time has come: deadlines of calls, of nodes that are silent, of workers that drain or do not come back.

        A manager that was itself stopped, or blocked by its program, has not heard anybody: what it missed is added to all
        deadlines, so that it declares nobody lost for its own absence.
        """
        for ended, place in self.dispatch.expire(now):
            self._end(ended)
            if place is not None:
                self.effects.append(SendToWorker(place.id, CancelCalls([ended.call.id], False)))
        if now < self._last_tick + self._tick_s:
            return
        absent = now - self._last_tick - self._tick_s
        self._last_tick = now
        if absent > self._tick_s / 2:
            for node in self.roster.nodes.values():
                node.last_heard = min(now, node.last_heard + absent)  # it may have been heard since
            for record in self.roster.workers.values():
                if record.settle_at is not None:
                    record.settle_at = min(now + self.settings.heartbeat_timeout_s, record.settle_at + absent)
        for node in list(self.roster.nodes.values()):
            silent_s = now - node.last_heard
            if node.is_up and silent_s >= self.settings.heartbeat_timeout_s:
                how = "silent" if node.link_up else "cut off"
                self.lose_node(
                    node.name, f"{how} for {silent_s:.1f} s (heartbeat_timeout {self.settings.heartbeat_timeout_s:g} s)", now
                )
        for record in list(self.roster.workers.values()):
            if record.settle_at is not None and now >= record.settle_at:
                verdict = record.verdict
                if verdict is None:
                    verdict = Verdict("its link broke and did not come back")
                    self.kill_worker(record.id, "its link broke and did not come back", now)
                self._lose_worker(record, verdict, now)
            elif record.drain_until is not None and now >= record.drain_until and not record.stopped:
                self._stop_worker(record, 0.0)
        dropped = self.functions.evict()
        if dropped:
            for place in self.dispatch.places.values():
                told = [id for id in dropped if id in place.known]
                if told:
                    place.known.difference_update(told)
                    self.effects.append(SendToWorker(place.id, DropFunctions(told)))

    def close(self, error: ClusterClosed, grace_s: float, now: float) -> None:
        """End every call and every node. Nothing is accepted from now on."""
        if self.closing is not None:
            return
        self.closing = error
        for place in self.dispatch.places.values():
            if place.inflight:
                self.effects.append(SendToWorker(place.id, CancelCalls(list(place.inflight), False)))
            self.effects.append(SendToWorker(place.id, Shutdown(grace_s)))
        for ended in self.dispatch.close(error):
            self._end(ended)
        for node in self.roster.nodes.values():
            node.wanted = 0
            if node.is_up:
                self.effects.append(SendToNode(node.name, Shutdown(grace_s)))

    def set_launching(self, launching: bool) -> None:
        self.launching = launching
        self._expectation_changed()

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _publish(self, now: float, kind: str, node: Node, worker_id: int, text: str) -> None:
        self.effects.append(PublishEvent(Event(now, kind, node.name, worker_id, text)))

    def _expectation_changed(self) -> None:
        for ended in self.dispatch.expect(self.closing is None and (self.launching or self.roster.expecting)):
            self._end(ended)

    def _start_workers(self, node: Node, count: int, now: float) -> None:
        if count > 0:
            ids = [self.roster.new_worker(node, now).id for _ in range(count)]
            self.effects.append(SendToNode(node.name, StartWorkers(ids)))
            self._expectation_changed()

    def _worker_exited(self, node: Node, message: WorkerExited, now: float) -> None:
        record = node.workers.get(message.worker_id)
        if record is None:
            return
        cause = message.cause if record.drain_until is None else f"it was retired ({message.cause})"
        record.verdict = Verdict(
            cause,
            recorded=True,
            crashed=not (message.expected or record.killed),
            sync_started=message.sync_started,
            sync_finished=message.sync_finished,
            async_started=message.async_started,
            item=message.item,
            item_call=message.item_call,
        )
        if message.ids and record.has_place:
            known = self.dispatch.places[record.id].inflight
            rows = [row for row in range(len(message.ids)) if message.ids[row] in known]
            self._resolve(
                record.id,
                [message.ids[row] for row in rows],
                bytes(message.statuses[row] for row in rows),
                [message.payloads[row] for row in rows],
                None,
                now,
                strict=False,
            )
        if record.link_up:
            record.settle_at = now + SETTLE_S
        else:
            self._lose_worker(record, record.verdict, now)

    def _gave_up(self, node: Node, message: StartGaveUp, now: float) -> None:
        last = f" (last words: {message.last_lines[-1]})" if message.last_lines else ""
        node.reason = message.reason + last
        for worker_id in message.worker_ids:
            record = node.workers.get(worker_id)
            if record is not None:
                if record.drain_until is None:  # else it is wanted no more already
                    node.wanted = max(0, node.wanted - 1)
                self._lose_worker(record, Verdict(message.reason, recorded=True), now)
        self._publish(now, "start_failed", node, 0, "\n".join([message.reason, *message.last_lines]))
        self._expectation_changed()

    def _drain_node(self, node: Node, message: NodeDraining, now: float) -> None:
        node.apply("drain", now)
        node.wanted, node.reason, node.leaving = 0, message.reason, True
        self._publish(now, "node_draining", node, 0, message.reason)
        for record in list(node.workers.values()):
            self._drain_worker(record, message.grace_s, now)
        self._expectation_changed()
        self._end_node_if_empty(node, now)

    def _drain_worker(self, record: WorkerRecord, grace_s: float, now: float) -> None:
        if record.drain_until is not None:
            record.drain_until = min(record.drain_until, now + grace_s)  # it may be told again, and given less time
            return
        record.apply("drain", now)
        record.drain_until = now + grace_s
        if record.has_place:
            self._close_place(record.id)
            self.effects.append(SendToWorker(record.id, Recall(ALL)))
            self._stop_if_drained(record, now)
        else:
            self._stop_worker(record, 0.0)

    def _close_place(self, worker_id: int) -> None:
        for ended in self.dispatch.close_worker(worker_id):
            self._end(ended)

    def _stop_if_drained(self, record: WorkerRecord, now: float) -> None:
        if record.drain_until is not None and not record.stopped and not self.dispatch.places[record.id].inflight:
            self._stop_worker(record, self.settings.close_grace_s)

    def _stop_worker(self, record: WorkerRecord, grace_s: float) -> None:
        record.stopped = True
        if record.has_place:
            self.effects.append(SendToWorker(record.id, Shutdown(0.0)))
        self.effects.append(SendToNode(record.node.name, StopWorker(record.id, grace_s)))

    def _lose_worker(self, record: WorkerRecord, verdict: Verdict, now: float) -> None:
        """The worker is gone for good: judge its calls, replace it if its node lives and wants another."""
        node = record.node
        retired = record.drain_until is not None or self.closing is not None
        was_joining = record.state is WorkerState.JOINING
        self.roster.remove_worker(record, now)
        self.effects.append(DropWorker(record.id, verdict.cause))
        self._publish(now, "worker_retired" if retired else "worker_lost", node, record.id, verdict.cause)
        if was_joining and verdict.crashed:
            self._join_failed(node, verdict, now)
        if self.closing is None and node.state is NodeState.JOINED:
            self._start_workers(node, node.wanted - len(node.workers), now)
        # nothing is unschedulable before the replacement is counted, below
        for ended in [*self.dispatch.expect(True), *self.dispatch.worker_lost(record.id, verdict, now)]:
            self._end(ended)
        for call in list(self._nested.pop(record.id, {}).values()):
            self._cancel(call, False, now)
        self._expectation_changed()
        self._end_node_if_empty(node, now)

    def _join_failed(self, node: Node, verdict: Verdict, now: float) -> None:
        """A worker has died of what prepares it. When too many in a row have, the node wants those that follow no more."""
        node.failed_joins += 1
        if node.failed_joins >= GIVE_UP_AFTER:
            node.wanted = max(0, node.wanted - 1)
            node.reason = (
                f"{node.failed_joins} workers in a row ended while what must run when a worker joins ran on them; "
                f"the last one {verdict.cause}"
            )
            self._publish(now, "start_failed", node, 0, node.reason)

    def _end_node_if_empty(self, node: Node, now: float) -> None:
        """A node that shall have no workers, and has none, ends."""
        if node.is_up and node.wanted == 0 and not node.workers and self.closing is None:
            node.apply("drain", now)  # whoever needs more workers starts another node
            self.effects.append(SendToNode(node.name, Shutdown(0.0)))
            self.effects.append(ReleaseNode(node.name, "it has no workers any more"))

    def _resolve(
        self,
        worker_id: int,
        ids: Sequence[int],
        statuses: bytes,
        payloads: Sequence[bytes],
        buffers: Sequence[Sequence[Any]] | None,
        now: float,
        *,
        strict: bool,
    ) -> None:
        calls, honest = self.dispatch.finished(worker_id, ids, now)
        if self._nested:
            for call in calls:
                if call is not None and call.origin:
                    self._nested.get(call.origin, {}).pop(call.id, None)
        self.effects.append(ResolveCalls(worker_id, calls, statuses, payloads, buffers))
        if strict and not honest:
            self.worker_misbehaved(worker_id, "it sent the result of a call that it does not hold", now)
            return
        record = self.roster.workers.get(worker_id)
        if record is not None and record.drain_until is not None:
            self._stop_if_drained(record, now)

    def _end(self, ended: Ended) -> None:
        if ended.call.origin:
            self._nested.get(ended.call.origin, {}).pop(ended.call.id, None)
        self.effects.append(EndCall(ended))

    def _cancel(self, call: Call, force: bool, now: float) -> None:
        if call.origin:
            self._nested.get(call.origin, {}).pop(call.id, None)
        was_sent = call.state in (CallState.SENT, CallState.ABANDONED)
        place = self.dispatch.cancel(call)
        if place is not None:
            self.effects.append(SendToWorker(place.id, CancelCalls([call.id], False)))
        if force and was_sent and call.lane is not None:
            self.kill_worker(call.lane.place.id, f"the call of {call.name} was cancelled with force", now)


def _split(message: Results, buffers: Sequence[Any]) -> list[Sequence[Any]] | None:
    """The frame's buffers by call."""
    if not message.buffers:
        return None
    split: list[Sequence[Any]] = [()] * len(message.ids)
    start = 0
    for index, count in message.buffers:
        split[index] = buffers[start : start + count]
        start += count
    return split
