"""The promises of the design, checked against what really happened: while a cluster runs, when it is quiet, and at its end."""

from __future__ import annotations

from struct import error as struct_error
from typing import TYPE_CHECKING, Any

from aiocluster.core.calls import MAX_KILLS, Call, CallState
from aiocluster.core.places import LaneKind
from aiocluster.core.pools import OwnPool, Pool
from aiocluster.core.roster import WorkerState
from aiocluster.errors import CallTimeout, ClusterClosed, Overloaded, Unschedulable, WorkerLost
from aiocluster.wire.messages import Message, WorkerExited

from .clock import Violation
from .load import Spec, Start

if TYPE_CHECKING:
    from .cluster import Cluster
    from .worker import SimWorker

__all__ = ["Checker"]

LATE_S = 1e-4
"""A timer of a manager that is not frozen is no later than this."""
EPSILON = 1e-9


class Checker:
    """Knows the truth, hears what the cluster says, and raises `Violation` where they differ."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.by_call: dict[int, Spec] = {}
        self.dropped: dict[int, float] = {}
        """Workers that the manager declared lost, and when."""
        self.reported: dict[int, WorkerExited] = {}
        """Exits of which the manager has read the report."""
        self.heard: dict[str, float] = {}
        """When the manager last read a word of each node."""
        self.manager_froze: list[tuple[float, float]] = []
        """From when to when the manager was frozen."""
        self.running: dict[int, dict[Spec, None]] = {}
        """What really runs on each worker."""
        self.open_roots: dict[Spec, None] = {}
        self.unexpected_losses: list[str] = []
        self.closed = False
        self._orders = 0
        self._last_ordered: dict[tuple[int, int, bool], int] = {}

    def _complain(self, promise: int | str, text: str) -> None:
        raise Violation(promise, f"at {self.world.now:.6f} s: {text}")

    # --- what the program does -------------------------------------------------------------------------------------------

    def submitted(self, spec: Spec, call: Call) -> None:
        self._orders += 1
        spec.order = self._orders
        spec.submitted_at = self.world.now
        spec.call = call
        spec.deadline = call.deadline
        self.by_call[call.id] = spec
        if not call.origin:
            self.open_roots[spec] = None
        if self.world.tracing:
            who = f"w{call.origin}" if call.origin else "program"
            self.world.say(who, f"submits {spec} as {call.id}, deadline {call.deadline}")

    def nested_submitted(self, spec: Spec, call: Call) -> None:
        """The manager takes in a nested call: it must have the deadline of the call around it, at the latest."""
        self.submitted(spec, call)
        parent = spec.parent
        assert parent is not None
        limit = parent.deadline
        if limit is None:
            return
        if parent.outcome is not None and parent.ended_at is not None and parent.outcome[0] in ("result", "error"):
            return  # it was left to itself by a call that has ended
        if parent.call.state is CallState.ENDED:
            return
        if call.deadline is None or call.deadline > limit + EPSILON:
            self._complain("deadline", f"{spec} has the deadline {call.deadline}, the call around it {limit}")

    def cancelled(self, spec: Spec, call: Call) -> None:
        if self.world.tracing:
            self.world.say("program", f"cancels {spec}")
        # One that may run again can be on a lost worker still, which starts it when it thaws; nobody hears of that.
        spec.withdrawn = call.state is CallState.WAITING and (spec.at_most_once or call.serial == 0)
        self._ended(spec, "cancelled by the program", None)

    def given_up(self, spec: Spec) -> None:
        """The call around it was cancelled, and cancels it."""
        spec.orphaned = True

    def nested_answered(self, spec: Spec) -> None:
        if spec.outcome is None:
            self._complain(1, f"the caller of {spec} was answered before the call had an outcome")

    def closing(self) -> None:
        self.closed = True

    # --- what really happens ---------------------------------------------------------------------------------------------

    def started(self, worker: SimWorker, spec: Spec, start: Start, ordered: bool) -> None:
        """A call starts on a worker."""
        record = self.cluster.core.roster.workers.get(worker.id)
        if record is not None and record.state is WorkerState.JOINING and not spec.prepares:
            self._complain(9, f"{spec} starts on worker {worker.id} before that is prepared")
        if spec.withdrawn:
            self._complain(3, f"{spec} was cancelled in its queue and starts on worker {worker.id}")
        if spec.outcome is not None and isinstance(spec.outcome[1], WorkerLost) and not spec.outcome[1].maybe_executed:
            self._complain(2, f"{spec} was said never to have started, and starts on worker {worker.id}")
        if spec.at_most_once and spec.outcome is not None and isinstance(spec.outcome[1], Unschedulable | Overloaded):
            self._complain(2, f"{spec} was refused, and starts on worker {worker.id}")
        if spec.starts:
            if spec.at_most_once:
                self._complain(2, f"{spec} starts again on worker {worker.id}, after worker {spec.starts[-1].worker_id}")
            if not spec.options.idempotent and len(spec.starts) > spec.options.retries:
                self._complain(2, f"{spec} starts for the {len(spec.starts) + 1}th time")
            if spec.starts[-1].worker_id == worker.id:
                self._complain(2, f"{spec} starts twice on worker {worker.id}")
        crashes = sum(1 for one in spec.starts if one.crashed and one.blamable and one.worker_id in self.reported)
        if crashes >= MAX_KILLS:
            self._complain(2, f"{spec} has killed {crashes} workers and starts again")
        workers = spec.options.workers
        if workers is not None and worker.id not in workers:
            self._complain(8, f"{spec} starts on worker {worker.id}")
        spec.starts.append(start)
        if ordered and not spec.prepares:  # that goes before what has waited for the worker to be open
            key = (worker.id, spec.options.priority, spec.parent is None)
            if self._last_ordered.get(key, 0) > spec.order:
                self._complain(8, f"{spec} starts on worker {worker.id} after a call that was submitted later")
            self._last_ordered[key] = spec.order
        running = self.running.setdefault(worker.id, {})
        running[spec] = None
        if spec.options.resources:
            have = worker.agent.cluster.core.roster.nodes[worker.agent.name].resources
            used: dict[str, float] = {}
            for one in running:
                for name, amount in one.options.resources.items():
                    used[name] = used.get(name, 0.0) + amount
            for name, amount in used.items():
                if amount > have.get(name, 0.0) + EPSILON:
                    self._complain(10, f"worker {worker.id} has {have.get(name, 0.0)} of {name}, and {amount} are in use")
        if not spec.kind.is_async:
            computing = [run.spec for run in worker.computing if run.spec is not spec]
            if computing:
                self._complain(7, f"{spec} starts on worker {worker.id} beside {computing[0]}")

    def item_started(self, worker: SimWorker, spec: Spec, item: int) -> None:
        number = spec.first_item + item
        spec.item_starts[number] = spec.item_starts.get(number, 0) + 1
        if spec.at_most_once and spec.item_starts[number] > 1:
            self._complain(2, f"item {number} of {spec} starts again on worker {worker.id}")

    def stopped(self, worker: SimWorker, spec: Spec) -> None:
        self.running.get(worker.id, {}).pop(spec, None)

    # --- what the manager hears and declares -------------------------------------------------------------------------------

    def node_heard(self, name: str) -> None:
        self.heard[name] = self.world.now

    def node_says(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, WorkerExited) and message.worker_id not in self.dropped:
                self.reported[message.worker_id] = message

    def worker_dropped(self, worker_id: int) -> None:
        if worker_id in self.dropped:
            self._complain(4, f"worker {worker_id} is declared lost twice")
        self.dropped[worker_id] = self.world.now
        self.running.pop(worker_id, None)
        for spec in self.cluster.load.specs:
            if spec.origin == worker_id and spec.outcome is None:
                spec.orphaned = True

    def node_dropped(self, name: str, reason: str) -> None:
        if "heartbeat_timeout" in reason:
            heard = self.heard[name]
            silent_s = self.world.now - heard - self._frozen_s(heard)
            timeout_s = self.cluster.settings.heartbeat_timeout_s
            frozen = 1 + sum(1 for _, until in self.manager_froze if until > heard)  # each costs the node up to a tick and a half
            if silent_s < timeout_s - frozen * 0.75 * self.cluster.settings.heartbeat_interval_s:
                self._complain(4, f"node {name} is declared lost after {silent_s:.2f} s of silence")

    def _frozen_s(self, since: float) -> float:
        return sum(max(0.0, until - max(since, begin)) for begin, until in self.manager_froze)

    # --- outcomes --------------------------------------------------------------------------------------------------------

    def core_resolved(self, call: Call, worker_id: int, status: int, payload: bytes) -> None:
        """The core accepts a result."""
        spec = self.by_call[call.id]
        if worker_id in self.dropped:
            self._complain(4, f"a result for {spec} of worker {worker_id}, which is lost, is accepted")
        if not any(start.worker_id == worker_id and start.call_id == call.id for start in spec.starts) and status != 2:
            self._complain(4, f"a result for {spec} of worker {worker_id} is accepted, where it never ran")
        if call.origin:
            self._nested_ended(spec, ("result", "error", "cancelled", "result")[status], None)

    def core_ended(self, call: Call, error: Any) -> None:
        spec = self.by_call[call.id]
        if call.origin:
            self._nested_ended(spec, type(error).__name__, error)

    def _nested_ended(self, spec: Spec, kind: str, error: Any) -> None:
        self._ended(spec, kind, error)
        if error is not None:
            self._check_error(spec, error)

    def result_arrived(self, spec: Spec, kind: str, payload: bytes, worker_id: int) -> None:
        if kind != "cancelled":
            try:
                id, really = self.cluster_result(payload)
            except struct_error:
                id, really = 0, 0
            if id != spec.id or really != worker_id:
                self._complain(1, f"{spec} got a result of call {id} from worker {really}")
        self._ended(spec, kind, None)

    @staticmethod
    def cluster_result(payload: bytes) -> tuple[int, int]:
        from .cluster import RESULT

        id, worker_id = RESULT.unpack(payload)
        return id, worker_id

    def failed(self, spec: Spec, error: BaseException) -> None:
        self._ended(spec, type(error).__name__, error)
        self._check_error(spec, error)

    def _ended(self, spec: Spec, kind: str, error: BaseException | None) -> None:
        if spec.outcome is not None:
            self._complain(1, f"{spec} ends as {kind}, and had ended as {spec.outcome[0]}")
        spec.outcome = (kind, error)
        spec.ended_at = self.world.now
        self.open_roots.pop(spec, None)
        if self.world.tracing:
            self.world.say(f"w{spec.origin}" if spec.origin else "program", f"{spec} ended: {kind} {error or ''}")

    def _check_error(self, spec: Spec, error: BaseException) -> None:
        starts = spec.starts
        match error:
            case WorkerLost():
                self._check_lost(spec, error)
            case CallTimeout():
                if spec.deadline is None or self.world.now < spec.deadline - EPSILON:
                    self._complain("deadline", f"{spec} is out of time before its deadline {spec.deadline}")
            case Unschedulable() | Overloaded():
                if starts and spec.at_most_once:
                    self._complain(1, f"{spec} had started and ends as {type(error).__name__}: {error}")
                if starts and not (isinstance(error, Unschedulable) and error.maybe_executed):
                    self._complain(2, f"{spec} had started, and {error!r} does not say that it may have")
            case ClusterClosed():
                if not self.closed:
                    self._complain(1, f"{spec} ends as ClusterClosed and the cluster is open")
            case _:
                self._complain(1, f"{spec} ends in {type(error).__name__}: {error}")

    def _check_lost(self, spec: Spec, error: WorkerLost) -> None:
        if error.worker_id not in self.dropped:
            self._complain(1, f"{spec} ends as lost with worker {error.worker_id}, which is not")
        if not error.maybe_executed:
            if spec.starts:
                self._complain(2, f"{spec} is said never to have started; it did on worker {spec.starts[-1].worker_id}")
            return
        report = self.reported.get(error.worker_id)
        here = [start for start in spec.starts if start.worker_id == error.worker_id]
        waited_behind = spec.kind.is_async and spec.options.workers is not None
        if report is not None and not here and not waited_behind:
            self._complain(2, f"{spec} never started on worker {error.worker_id}, whose recorder was read, and is lost with it")
        if (
            report is not None
            and not spec.kind.is_async
            and spec.items > 1
            and error.items_started is not None
            and here
            and (error.items_started != here[-1].items)
        ):
            self._complain(2, f"{spec}: {here[-1].items} items had started, {error.items_started} are said to have")
        if (
            spec.options.idempotent
            and spec.items == 1
            and not spec.prepares
            and (spec.options.workers is None or len(spec.options.workers) > 1)
        ):
            known = sum(1 for start in spec.starts if start.worker_id in self.reported)
            if known < MAX_KILLS:
                self._complain(2, f"{spec} may run again, and is lost after {known} workers that it may have killed")

    # --- looks at the whole ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Invariants that hold at any moment; called once a second."""
        cluster, now, settings = self.cluster, self.world.now, self.cluster.settings
        core = cluster.core
        timeout_s, tick_s = settings.heartbeat_timeout_s, settings.heartbeat_interval_s / 2
        for node in core.roster.nodes.values():
            heard = self.heard.get(node.name)
            if node.is_up and heard is not None:
                silent_s = now - heard - self._frozen_s(heard)
                if silent_s > timeout_s + 2 * tick_s + LATE_S:
                    self._complain(4, f"node {node.name} has been silent for {silent_s:.2f} s and is not declared lost")
        for spec in self.open_roots:
            if spec.deadline is not None and now > spec.deadline + LATE_S:
                self._complain("deadline", f"{spec} had to end at {spec.deadline:.6f}")
        for place in core.dispatch.places.values():
            self._look_at_place(place)
        gone = {id for id in self.dropped if id not in core.dispatch.places}
        for pool in core.dispatch._pools.all():
            if pool.queue and pool.workers is not None and pool.workers <= gone and not pool.members:
                self._complain(1, f"{pool.queue.head()} waits for {sorted(pool.workers)}, which are lost ({pool.kind.name})")

    def _look_at_place(self, place: Any) -> None:
        settings = self.cluster.settings
        counts = dict.fromkeys(LaneKind, 0)
        yielded = 0
        loads = dict.fromkeys(LaneKind, 0.0)
        size = 0
        used: dict[str, float] = {}
        for call in place.inflight.values():
            if call.lane is None or call.lane.place is not place or call.state not in (CallState.SENT, CallState.ABANDONED):
                self._complain("bookkeeping", f"{call} is in flight on worker {place.id}, and does not know it")
            counts[call.lane.kind] += 1
            size += call.size
            if call.yielded:
                yielded += 1
            else:
                loads[call.lane.kind] += call.weight
            for name, amount in call.options.resources.items():
                used[name] = used.get(name, 0.0) + amount
        for lane in place.lanes:
            if lane.count != counts[lane.kind] or (lane.kind is LaneKind.SYNC and lane.yielded != yielded):
                self._complain(
                    "bookkeeping",
                    f"lane {lane.kind.name} of worker {place.id} counts {lane.count} calls, {lane.yielded} yielded; "
                    f"there are {counts[lane.kind]}, {yielded} yielded",
                )
            if abs(lane.load - loads[lane.kind]) > 1e-6:
                self._complain(
                    "bookkeeping", f"lane {lane.kind.name} of worker {place.id} has the load {lane.load}, not {loads[lane.kind]}"
                )
        if place.bytes != size:
            self._complain("bookkeeping", f"worker {place.id} holds {size} bytes and counts {place.bytes}")
        for name, amount in place.resources.items():
            free, taken = place.free[name], used.get(name, 0.0)
            if abs(free + taken - amount) > EPSILON:
                self._complain("bookkeeping", f"worker {place.id} has {free} of {name} free, {taken} used, of {amount}")
        if counts[LaneKind.ASYNC] > settings.async_calls:
            self._complain(10, f"worker {place.id} holds {counts[LaneKind.ASYNC]} async calls")
        nested = sum(1 for call in place.inflight.values() if call.lane.kind is LaneKind.SYNC and self._has_waited(call))
        if counts[LaneKind.SYNC] - nested > settings.window_calls:
            self._complain(10, f"worker {place.id} holds {counts[LaneKind.SYNC]} sync calls, {nested} of which have waited")

    def _has_waited(self, call: Call) -> bool:
        """Calls that waited once are beside the window: others were sent meanwhile."""
        return any(step.__class__.__name__ == "Nested" for step in self.by_call[call.id].steps)

    def all_ended(self) -> bool:
        """Every call that anybody waits for has its outcome, and no worker runs one."""
        return not self.open_roots and not self.cluster.core.dispatch.pending_calls

    def hanging(self) -> None:
        """Faults have stopped long ago, and something has not ended."""
        dispatch = self.cluster.core.dispatch
        for spec in self.open_roots:
            call = spec.call
            where = f" on worker {call.lane.place.id}" if call.lane is not None else ""
            ran = f"; it started on {[start.worker_id for start in spec.starts]}" if spec.starts else ""
            self._complain(1, f"{spec} has no outcome; its call is {call.state.name}{where}{ran}")
        for spec in self.cluster.load.specs:
            if spec.call is not None and spec.outcome is None and not spec.orphaned and spec.call.state is not CallState.ENDED:
                self._complain(1, f"{spec} has no outcome; its call is {spec.call.state.name}")
        self._complain(1, f"{dispatch.pending_calls} calls are pending and belong to nobody")

    def quiet(self) -> None:
        """Nothing waits and nothing runs: nothing may be left in the books."""
        core = self.cluster.core
        dispatch = core.dispatch
        self.look()
        if dispatch.pending_calls or dispatch.pending_bytes:
            what = f"{dispatch.pending_calls} calls with {dispatch.pending_bytes} bytes"
            self._complain("bookkeeping", f"{what} are pending when all have ended")
        for place in dispatch.places.values():
            if place.inflight or place.outbox or place.own.queue or place.bytes:
                self._complain("bookkeeping", f"worker {place.id} still holds {place.inflight}")
            for lane in place.lanes:
                if lane.count or lane.yielded or lane.load > EPSILON:
                    what = f"{lane.count} calls, {lane.yielded} yielded, load {lane.load}"
                    self._complain("bookkeeping", f"lane {lane.kind.name} of worker {place.id} has {what}")
        for pool in dispatch._pools.all():
            if pool.queue:
                self._complain("bookkeeping", "a pool still has calls")
            self._check_pool(pool)
        leaked = {origin: calls for origin, calls in core._nested.items() if calls}
        if leaked:
            self._complain("bookkeeping", f"nested calls are left: {leaked}")
        for entry in core.functions._by_id.values():
            if entry.uses:
                self._complain("bookkeeping", f"function {entry.name} is used by {entry.uses} calls when all have ended")
        for name, agent in self.cluster.agents.items():
            for worker in agent.workers.values():
                link, misdeed = worker.link, worker.misdeed
                if misdeed is not None and link is not None and link.ledger.acked >= misdeed and worker.id not in self.dropped:
                    self._complain(6, f"worker {worker.id} of {name} broke the protocol and is not dropped")
        for spec in self.cluster.load.specs:
            if spec.call is not None and spec.outcome is None and not spec.orphaned and spec.call.origin == 0:
                self._complain(1, f"{spec} has no outcome")

    def _check_pool(self, pool: Pool) -> None:
        members = sum(1 for place in self.cluster.core.dispatch.places.values() for lane in place.lanes if pool in lane.pools)
        if members != len(pool.members):
            self._complain("bookkeeping", f"a pool counts {len(pool.members)} members and has {members}")
        assert not isinstance(pool, OwnPool)

    def over(self) -> None:
        """The cluster is closed and all its nodes have ended."""
        dispatch = self.cluster.core.dispatch
        waiting = any(call.state is not CallState.ENDED for _, _, call in dispatch.deadlines._heap)
        if dispatch.places or dispatch.pending_calls or dispatch.pending_bytes or waiting:
            self._complain("bookkeeping", f"after the end: {list(dispatch.places)}, {dispatch.pending_calls} calls pending")
        if self.cluster.core._nested:
            self._complain("bookkeeping", f"after the end: nested calls of {list(self.cluster.core._nested)}")
        for entry in self.cluster.core.functions._by_id.values():
            if entry.uses:
                self._complain("bookkeeping", f"after the end function {entry.name} is used by {entry.uses} calls")
        for worker_id, record in self.cluster.core.roster.workers.items():
            self._complain("bookkeeping", f"after the end worker {worker_id} is {record.state.value}")
        for agent in self.cluster.agents.values():
            if not agent.ended:
                self._complain(5, f"node {agent.name} outlives its cluster")
            for worker in agent.workers.values():
                if worker.process.alive:
                    self._complain(5, f"worker {worker.id} outlives its cluster")
