"""Which queue a call waits in: that of a constraint, or of one worker; or why there is none that it could ever leave."""

from __future__ import annotations

from collections.abc import Mapping

from aiocluster.core.calls import Call, PreparingCall
from aiocluster.core.constraints import Pools
from aiocluster.core.losses import LostWorkers
from aiocluster.core.places import LaneKind, WorkerPlace
from aiocluster.core.pools import OwnPool, Pool
from aiocluster.errors import Unschedulable, WorkerLost

__all__ = ["Router"]


class Router:
    """Knows who is there, who may come, and who cannot come any more."""

    def __init__(self, places: Mapping[int, WorkerPlace], wakes: dict[Pool | OwnPool, None]) -> None:
        self._places = places
        self._wakes = wakes
        self.pools = Pools(places, wakes)
        self.lost = LostWorkers()
        self.expecting = False
        """More workers are on their way."""

    def constrained(self, call: Call, kind: LaneKind) -> Pool | OwnPool | Unschedulable | WorkerLost:
        """Where a call waits that names workers or resources."""
        workers, demand = call.options.workers, call.options.demand
        if workers is not None and len(workers) == 1:
            (id,) = workers
            place = self._places.get(id)
            if place is not None:
                if place.ending or not place.can_ever_fit(demand):
                    return self.unschedulable(call)
                preparing, prepared = place.preparing, self.prepared_by(call)
                if preparing is None or prepared is None:
                    return self.own(place, call)
                return preparing if prepared is place else self.unschedulable(call)
            cause = self.lost.cause_of(id)
            if cause is not None:
                return WorkerLost(id, cause, maybe_executed=False, call=call.name)
        pool = self.pools.find(kind, workers, demand)
        found = pool if pool.members else self.without_members(call, pool)
        if found is pool:
            self.pools.use(pool)
        return found

    def without_members(self, call: Call, pool: Pool) -> Pool | OwnPool | Unschedulable:
        """Where a call waits for which this would be the pool, if no worker that is open can take it."""
        place = self.prepared_by(call)
        if place is None:
            return pool if self.may_come(pool) else self.unschedulable(call)
        # Who is on the way prepares itself in turn: they could wait for each other forever. But the worker whose preparation
        # waits for this call has a place free for it.
        fits = (pool.workers is None or place.id in pool.workers) and place.can_ever_fit(pool.demand)
        return self.unschedulable(call) if place.preparing is None or place.ending or not fits else place.preparing

    def own(self, place: WorkerPlace, call: Call) -> OwnPool:
        """Where a call waits that is for this worker alone."""
        if not call.origin:
            return place.own
        if place.own_nested is None:
            place.own_nested = OwnPool(place, self._wakes)
            if place.preparing is None:
                place.own_nested.open()
        return place.own_nested

    def may_come(self, pool: Pool) -> bool:
        """True if a worker that is on its way may be one of the pool's: no id is given twice."""
        if not self.expecting or pool.workers is None:
            return self.expecting
        places = self._places
        return any(not places[id].ending if id in places else self.lost.cause_of(id) is None for id in pool.workers)

    def prepared_by(self, call: Call) -> WorkerPlace | None:
        """The worker that waits for this call before it can be opened, if there is one."""
        if not isinstance(call, PreparingCall):
            return None
        place = self._places.get(call.prepares)
        return None if place is None or place.preparing is None else place

    def unschedulable(self, call: Call) -> Unschedulable:
        return Unschedulable(call.name, self._why_unschedulable(call), maybe_executed=call.may_have_run)

    def _why_unschedulable(self, call: Call) -> str:
        options = call.options
        if (prepared := self.prepared_by(call)) is not None:
            return f"no open worker can take it, and worker {prepared.id}, which cannot join before it ends, waits for no other"
        if not self._places:
            return "the cluster has no workers and expects none; `await cluster.scale(n)` starts some"
        if options.workers is not None:
            named = ", ".join(map(str, sorted(options.workers)))
            have = ", ".join(map(str, list(self._places)[:20]))
            return f"none of the workers {named} can take it; the cluster has {have}"
        wants = ", ".join(f"{name}={amount:g}" for name, amount in options.demand)
        if wants:
            return f"no worker has the resources {wants}; give them to workers when launching"
        return "all workers of the cluster are ending; `await cluster.scale(n)` starts others"
