"""Pools: calls that may run on the same workers wait in one queue, beside the lanes that may take them.

A pool exists for each constraint in use: no constraint, a set of workers, a demand of resources. A worker that gets room wakes
only the pools that have calls for it, so the cost of a call grows neither with the workers nor with the calls that wait.
"""

from __future__ import annotations

from aiocluster.core.calls import Call, CallState
from aiocluster.core.places import CLOSED, Lane, LaneKind, Placement, WorkerPlace
from aiocluster.core.queues import CallQueue

__all__ = ["Demand", "OwnPool", "Pool"]

Demand = tuple[tuple[str, float], ...]

SENT = CallState.SENT
SYNC = LaneKind.SYNC

LARGE_CALL = 4096
"""Bytes of arguments from which a lane is looked at again after each call."""


class Pool:
    """Calls of one lane kind that may run on any of several workers."""

    __slots__ = ("demand", "key", "kind", "members", "placement", "queue", "wakes", "workers")

    def __init__(self, kind: LaneKind, workers: frozenset[int] | None, demand: Demand, wakes: dict[Pool | OwnPool, None]) -> None:
        self.kind = kind
        self.workers = workers
        self.demand = demand
        self.key = (kind, workers, demand)
        self.queue = CallQueue()
        self.placement = Placement()
        self.members: dict[Lane, None] = {}
        self.wakes = wakes

    def admits(self, place: WorkerPlace) -> bool:
        """True if the worker could ever take calls of this pool."""
        return (self.workers is None or place.id in self.workers) and place.can_ever_fit(self.demand)

    def join(self, place: WorkerPlace) -> None:
        lane = place.lanes[self.kind]
        if lane not in self.members:
            lane.pools.append(self)
            self.members[lane] = None
            self.refresh(lane)

    def leave(self, lane: Lane) -> None:
        lane.pools.remove(self)
        del self.members[lane]
        self.placement.put(lane, CLOSED)

    def refresh(self, lane: Lane) -> None:
        """The lane's level, or what its worker has free, has changed."""
        level = lane.level
        if level >= 0:
            if self.demand and not lane.place.fits_now(self.demand):
                level = CLOSED
            elif self.queue:
                self.wakes[self] = None
        self.placement.put(lane, level)

    def fill(self, touched: dict[WorkerPlace, None], now: float) -> None:
        """Give waiting calls to the least loaded lanes until one of both runs out."""
        queue = self.queue
        while queue:
            lane = self.placement.least()
            if lane is None:
                return
            ceiling = lane.ceiling()
            touched[lane.place] = None
            while True:
                call = queue.pop()
                if call is None:
                    break
                send(lane, call, now)
                if lane.load >= ceiling or lane.count >= lane.limit or self.demand or call.size > LARGE_CALL:
                    break
            lane.update()


class OwnPool:
    """Calls for one worker alone: they start there in the order of submission, sync and async alike, while the pool is open."""

    __slots__ = ("place", "queue", "wakes")

    demand: Demand = ()

    def __init__(self, place: WorkerPlace, wakes: dict[Pool | OwnPool, None]) -> None:
        self.place = place
        self.queue = CallQueue()
        self.wakes = wakes

    @property
    def is_open(self) -> bool:
        return self.place.preparing in (None, self)

    def open(self) -> None:
        for lane in self.place.lanes:
            lane.pools.append(self)
        self.wake()

    def close(self) -> None:
        for lane in self.place.lanes:
            lane.pools.remove(self)

    def wake(self) -> None:
        if self.queue:
            self.wakes[self] = None

    def refresh(self, lane: Lane) -> None:
        if lane.level >= 0 and self.queue:
            self.wakes[self] = None

    def fill(self, touched: dict[WorkerPlace, None], now: float) -> None:
        place = self.place
        if not self.is_open:
            return
        while (call := self.queue.head()) is not None:
            lane = place.lanes[LaneKind.of(call)]
            if lane.level < 0 or (call.options.resources and not place.fits_now(call.options.demand)):
                return
            self.queue.pop()
            send(lane, call, now)
            touched[place] = None
            lane.update()


def send(lane: Lane, call: Call, now: float) -> None:
    """Put the call into its worker's outbox and count it there; the caller updates the lane."""
    place = lane.place
    if not place.inflight:
        place.progress_at = now
    call.state = SENT
    call.lane = lane
    call.serial = serial = place.next_serial
    place.next_serial = serial + 1
    estimate = call.function.estimate_s
    if estimate is None or lane.kind is not SYNC:
        call.weight = weight = lane.weight_of(call)
    else:
        call.weight = weight = estimate * call.items
    lane.load += weight
    lane.count += 1
    place.bytes += call.size
    place.inflight[call.id] = call
    place.outbox.append(call)
    if call.options.resources:
        place.reserve(call, 1)
