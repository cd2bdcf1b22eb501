"""Dispatch: which call runs where and when, and how each one ends.

Inputs are method calls; outputs are what they return: batches to send, calls that ended. The shell encodes, sends and resolves
futures. Every call that is accepted by `submit` is returned exactly once: by `finished`, `cancel`, `expire`, `worker_lost`,
`sweep` or `close`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aiocluster.config import Settings
from aiocluster.core.calls import DEFAULT_OPTIONS, MAX_KILLS, Call, CallState, PreparingCall
from aiocluster.core.deadlines import Deadlines
from aiocluster.core.functions import FunctionTable
from aiocluster.core.places import Lane, LaneKind, WorkerPlace
from aiocluster.core.pools import OwnPool, Pool
from aiocluster.core.queues import rank_of
from aiocluster.core.recalls import Recalls
from aiocluster.core.routing import Router
from aiocluster.core.verdicts import Verdict, judge
from aiocluster.errors import AioclusterError, CallTimeout, ClusterClosed, Overloaded, Unschedulable, WorkerLost

__all__ = ["Dispatch", "Ended"]

SENT, ENDED, WAITING, ABANDONED = CallState.SENT, CallState.ENDED, CallState.WAITING, CallState.ABANDONED
CHUNK = 1


class Ended(NamedTuple):
    """A call that ended without a result."""

    call: Call
    error: AioclusterError


class Dispatch:
    """The calls and workers of one cluster."""

    def __init__(self, settings: Settings, functions: FunctionTable) -> None:
        self._settings = settings
        self._functions = functions
        self._max_calls = settings.max_pending_calls
        self._max_bytes = settings.max_pending_bytes
        self._wakes: dict[Pool | OwnPool, None] = {}
        self._stacked: dict[WorkerPlace, None] = {}
        self._touched: dict[WorkerPlace, None] = {}
        self.places: dict[int, WorkerPlace] = {}
        self._router = Router(self.places, self._wakes)
        self._pools = self._router.pools
        self._general = self._pools.general
        self._sync_pool = self._general[LaneKind.SYNC]
        self._closed: ClusterClosed | None = None
        self.deadlines = Deadlines()
        self._recalls = Recalls()
        self.pending_calls = 0
        self.pending_bytes = 0
        self.ended_calls = 0

    # --- workers ---------------------------------------------------------------------------------------------------------

    def add_worker(self, id: int, resources: Mapping[str, float], now: float) -> WorkerPlace:
        """A worker has joined. It takes what prepares it and nothing else; `open_worker` lets it take all calls."""
        place = WorkerPlace(id, resources, self._settings, self._stacked, now)
        place.own = OwnPool(place, self._wakes)
        place.preparing = OwnPool(place, self._wakes)
        place.preparing.open()
        self.places[id] = place
        place.accepting = True
        place.update()
        return place

    def open_worker(self, id: int) -> None:
        """From now on the worker takes any call that it is eligible for."""
        place = self.places[id]
        preparing = place.preparing
        if preparing is not None:
            place.preparing = None
            preparing.close()
            for own in place.own_pools():
                own.open()
            for call in place.inflight.values():
                call.pool = self._router.own(place, call)
            for call in reversed(preparing.queue.drain()):  # left over: nobody waits for it, but it was accepted
                call.pool = own = self._router.own(place, call)
                own.queue.append_left(call)
                own.wake()
        self._pools.open(place)

    def close_worker(self, id: int) -> list[Ended]:
        """The worker drains: it takes no more calls, and keeps those it has. Calls that wait for it alone end."""
        place = self.places[id]
        place.accepting = False
        place.ending = True
        place.update()
        self._pools.leave(place)
        # What the worker runs may wait for one of these: they cannot wait for its end.
        return [self._end(call, Ended(call, self._router.unschedulable(call))) for call in _own_calls(place)]

    def set_accepting(self, id: int, accepting: bool) -> None:
        """Whether the worker's link stands and can take more bytes."""
        place = self.places[id]
        place.accepting = accepting
        place.update()

    def expect(self, expecting: bool) -> list[Ended]:
        """Whether more workers are on their way. Calls that nobody can take, now or later, end as `Unschedulable`."""
        self._router.expecting = expecting
        return self._sweep()

    def never_came(self, id: int, cause: str) -> None:
        """A worker that was to have this id never joins."""
        self._router.lost.add(id, cause)

    def worker_lost(self, id: int, verdict: Verdict, now: float) -> list[Ended]:
        """The worker is gone: calls that never started move, the others end or run again, as their options say.

        If it never joined, those end that waited for it alone.
        """
        self._router.lost.add(id, verdict.cause)
        place = self.places.pop(id, None)
        if place is None:
            return self._sweep()
        place.accepting = False
        self._stacked.pop(place, None)
        self._touched.pop(place, None)
        self._pools.leave(place)
        self._recalls.forget(place)
        for own in place.own_pools():
            self._wakes.pop(own, None)
        ended: list[Ended] = []
        again: list[Call] = []
        judged = [(call, *judge(call, verdict)) for call in place.inflight.values()]
        # Each that had started may be to blame where none is known to have been running, or one that may have been made by
        # another of them: else it could kill forever.
        all_suspect = not any(running and not call.origin for call, _, running in judged)
        for call, started, running in judged:
            if call.state is ABANDONED:
                self._forget(call)
                continue
            if not started:
                again.append(call)
                continue
            if verdict.crashed and (running or all_suspect):
                call.kills += 1
            # A chunk of several items is for its map to split: only one of them was running.
            if call.items == 1 and call.pool.__class__ is not OwnPool and call.may_run_again():
                again.append(call)
                continue
            cause = verdict.cause
            if call.kills >= MAX_KILLS:
                cause += f"; the call has killed {call.kills} workers and is blamed"
            error = WorkerLost(id, cause, maybe_executed=True, call=call.name, running=running, kills=call.kills)
            if call.mode & CHUNK and call.serial == verdict.item_call:
                error.items_started = verdict.item
            ended.append(self._end(call, Ended(call, error)))
        place.inflight.clear()
        for call in reversed(again):
            call.yielded = False
            if call.pool.__class__ is OwnPool:
                error = WorkerLost(id, verdict.cause, maybe_executed=call.may_have_run, call=call.name)
                ended.append(self._end(call, Ended(call, error)))
            else:
                self._put_back(call)
        for call in _own_calls(place):
            error = WorkerLost(id, verdict.cause, maybe_executed=call.may_have_run, call=call.name)
            ended.append(self._end(call, Ended(call, error)))
        ended.extend(self._sweep())
        return ended

    # --- calls -----------------------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> AioclusterError | None:
        """Accept a call, or say why not. An accepted call is returned exactly once by another method."""
        if self._closed is not None:
            return self._closed
        size = call.size
        pending_calls, pending_bytes = self.pending_calls, self.pending_bytes + size
        if pending_calls >= self._max_calls and not _begins_preparing(call):
            return Overloaded(f"{pending_calls} calls are waiting or running already (max_pending_calls)")
        if pending_bytes > self._max_bytes and pending_calls and not _begins_preparing(call):
            return Overloaded(f"{self.pending_bytes} bytes of arguments are waiting already (max_pending_bytes)")
        options, function = call.options, call.function
        pool: Pool | OwnPool
        found: Pool | OwnPool | AioclusterError
        if options is DEFAULT_OPTIONS or (options.workers is None and not options.resources):
            pool = general = self._sync_pool if not function.is_async else self._general[LaneKind.of(call)]
            if not general.members:
                found = self._router.without_members(call, general)
                if isinstance(found, AioclusterError):
                    return found
                pool = found
        else:
            found = self._router.constrained(call, LaneKind.of(call))
            if isinstance(found, AioclusterError):
                return found
            pool = found
        call.pool = pool
        pool.queue.append(call)
        self._wakes[pool] = None
        function.uses += 1
        self.pending_calls = pending_calls + 1
        self.pending_bytes = pending_bytes
        if call.deadline is not None:
            self.deadlines.add(call)
        return None

    def preparing(self, id: int, parent: Call | None) -> int:
        """Which worker a call helps to prepare that this worker makes, from within that call; 0 if none."""
        if isinstance(parent, PreparingCall):
            return parent.prepares
        return id if self.places[id].preparing is not None else 0

    @property
    def has_work(self) -> bool:
        """True if `assign` may place a call, or `recalls` call one back."""
        return bool(self._wakes or self._stacked)

    def assign(self, now: float) -> list[tuple[WorkerPlace, list[Call]]]:
        """Place what can be placed; each worker's calls, in the order in which they must start there."""
        wakes, touched = self._wakes, self._touched
        if not wakes:
            return []
        while wakes:
            if len(wakes) == 1:
                pool, _ = wakes.popitem()
            else:
                pool = min(wakes, key=_urgency)
                del wakes[pool]
            pool.fill(touched, now)
            self._pools.used(pool)
        if not touched:
            return []
        batches = []
        for place in touched:
            batches.append((place, place.outbox))
            place.outbox = []
        touched.clear()
        return batches

    def finished(self, id: int, call_ids: Iterable[int], now: float) -> tuple[list[Call | None], bool]:
        """The worker says that these calls ended there.

        Returns: the calls in order, None for one whose caller already has an outcome or that the worker does not hold;
        and whether all were its own (if not, it has broken the protocol).
        """
        place = self.places[id]
        inflight = place.inflight
        calls: list[Call | None] = []
        honest = True
        nbytes = 0
        held = len(inflight)
        was_full = place.bytes >= place.window_bytes
        lane: Lane | None = None
        for call_id in call_ids:
            call = inflight.pop(call_id, None)
            if call is None:
                honest = False
                calls.append(None)
                continue
            if call.lane is not lane:
                if lane is not None:
                    lane.update()
                lane = call.lane
            assert lane is not None
            lane.count -= 1
            if call.yielded:
                lane.yielded -= 1
            else:
                lane.load -= call.weight
            nbytes += call.size
            if call.options.resources:
                place.reserve(call, -1)
            if call.state is SENT:
                calls.append(call)
            else:
                calls.append(None)
            call.state = ENDED
            call.function.uses -= 1
            call.payload = b""
            call.buffers = ()
            if call.deadline is not None:
                self.deadlines.ended()
        held -= len(inflight)
        self.pending_calls -= held
        self.ended_calls += held
        place.bytes -= nbytes
        self.pending_bytes -= nbytes
        place.progress_at = now
        if was_full:
            place.update()
        elif lane is not None:
            lane.update()
        return calls, honest

    def returned(self, id: int, call_ids: Iterable[int], now: float) -> tuple[list[Call], bool]:
        """The worker gives calls back that never started there; they go to the head of their queues.

        Returns: calls that had ended for their callers meanwhile need no more: they are dropped; whether all were its own.
        """
        place = self.places[id]
        dropped: list[Call] = []
        honest = True
        back: list[Call] = []
        for call_id in call_ids:
            call = place.inflight.pop(call_id, None)
            if call is None:
                honest = False
                continue
            self._leave_lane(place, call)
            if call.state is ABANDONED:
                self._forget(call)
                dropped.append(call)
            else:
                back.append(call)
        self._recalls.answered(place, back, now)
        back.sort(key=lambda call: call.serial, reverse=True)
        for call in back:
            self._put_back(call)
        place.update()
        return dropped, honest

    def recalls(self, now: float) -> list[tuple[WorkerPlace, int]]:
        """Workers that should give back calls that have not started, because others have nothing to do."""
        general = self._sync_pool
        if not general.placement.idle or not self._stacked or general.queue:
            self._recalls.due = None
            return []
        return self._recalls.choose(self._stacked, general.placement.idle, now)

    def yielded(self, id: int, call_id: int, waiting: bool) -> bool:
        """A sync call waits for another call (its place is free), or computes again. False if the worker does not hold it."""
        place = self.places[id]
        call = place.inflight.get(call_id)
        if call is None or call.lane is None or call.yielded is waiting:
            return False
        lane = call.lane
        call.yielded = waiting
        lane.yielded += 1 if waiting else -1
        lane.load += -call.weight if waiting else call.weight
        lane.update()
        return True

    def cancel(self, call: Call) -> WorkerPlace | None:
        """Withdraw the call: its caller has its outcome now. Returns the worker that must be told, if it was sent."""
        if call.state is WAITING:
            assert call.pool is not None
            self._forget(call)
            call.pool.queue.withdrew(call)
            self._pools.used(call.pool)
        elif call.state is SENT:
            call.state = ABANDONED
            assert call.lane is not None
            return call.lane.place
        return None

    def expire(self, now: float) -> list[tuple[Ended, WorkerPlace | None]]:
        """End every call whose deadline has passed; with the worker that must be told, if it was sent."""
        ended: list[tuple[Ended, WorkerPlace | None]] = []
        for call in self.deadlines.expire(now):
            ended.append((Ended(call, CallTimeout(call.name, call.options.timeout_s)), self.cancel(call)))
        return ended

    @property
    def next_deadline(self) -> float | None:
        """When `expire` or `recalls` has something to do."""
        due, recall_at = self.deadlines.due, self._recalls.due
        return recall_at if due is None or (recall_at is not None and recall_at < due) else due

    def close(self, error: ClusterClosed) -> list[Ended]:
        """End every call that is held, and take no more."""
        self._closed = error
        ended: list[Ended] = []
        held: list[Call] = []
        for pool in self._pools.all():
            held.extend(pool.queue.drain())
        for place in self.places.values():
            held.extend(_own_calls(place))
            held.extend(call for call in place.inflight.values() if call.state is SENT)
        for call in held:
            if call.state is SENT:
                call.state = ABANDONED
                ended.append(Ended(call, error))
            else:
                ended.append(self._end(call, Ended(call, error)))
        self._wakes.clear()
        return ended

    @property
    def waiting_calls(self) -> int:
        return sum(len(pool.queue) for pool in self._pools.all()) + sum(
            len(pool.queue) for place in self.places.values() for pool in place.own_pools()
        )

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _leave_lane(self, place: WorkerPlace, call: Call) -> None:
        lane = call.lane
        assert lane is not None
        lane.count -= 1
        if call.yielded:
            lane.yielded -= 1
            call.yielded = False
        else:
            lane.load -= call.weight
        place.bytes -= call.size
        if call.options.resources:
            place.reserve(call, -1)

    def _put_back(self, call: Call) -> None:
        """A call that was sent waits again, at the head of its queue. Its pool may have been discarded meanwhile."""
        call.state = WAITING
        call.lane = None
        pool = call.pool
        assert pool is not None
        if isinstance(pool, Pool):
            call.pool = pool = self._pools.again(pool)
        pool.queue.append_left(call)
        self._wakes[pool] = None

    def _end(self, call: Call, ended: Ended) -> Ended:
        self._forget(call)
        return ended

    def _forget(self, call: Call) -> None:
        call.state = ENDED
        call.function.uses -= 1
        self.pending_calls -= 1
        self.pending_bytes -= call.size
        self.ended_calls += 1
        call.payload = b""
        call.buffers = ()
        if call.deadline is not None:
            self.deadlines.ended()

    def _sweep(self) -> list[Ended]:
        """End the calls of pools that no worker can serve: none that is on its way either, and an id is never given again."""
        ended: list[Ended] = []
        for pool in self._pools.all():
            if pool.members or not pool.queue:
                continue
            for call in pool.queue.take_nested(lambda call: self._router.prepared_by(call) is not None):
                found = self._router.without_members(call, pool)
                if isinstance(found, Unschedulable):
                    ended.append(self._end(call, Ended(call, found)))
                else:
                    call.pool = found
                    found.queue.append(call)
                    self._wakes[found] = None
            if not self._router.may_come(pool):
                ended.extend(self._end(call, Ended(call, self._router.unschedulable(call))) for call in pool.queue.drain())
            self._pools.used(pool)
        return ended


def _own_calls(place: WorkerPlace) -> list[Call]:
    """Take all calls that wait for this worker alone."""
    return [call for pool in place.own_pools() for call in pool.queue.drain()]


def _begins_preparing(call: Call) -> bool:
    """Whether a worker cannot join without this call: it is for the cluster's relief, and is taken however much waits."""
    return isinstance(call, PreparingCall) and not call.origin


def _urgency(pool: Pool | OwnPool) -> tuple[int, int]:
    """Pools that compete for the same room go by their first call: by rank, then by age."""
    head = pool.queue.head()
    return (0, 0) if head is None else (-rank_of(head), head.id)
