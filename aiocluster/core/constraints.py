"""Which pools there are: one for each kind of lane, and one for each constraint that calls have, or had not long ago."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiocluster.core.places import LaneKind, WorkerPlace
from aiocluster.core.pools import Demand, OwnPool, Pool

__all__ = ["IDLE_POOLS", "Pools"]

IDLE_POOLS = 8
"""Pools that are kept when no call waits in them: making one looks at every worker that it may use, and who submits such calls
one at a time would pay for it with each. Each that is kept costs its workers a little whenever their load changes, and users
make constraints without end: so it is a few, those used last."""


class Pools:
    """The pools of a cluster, and which of its open workers are in them."""

    def __init__(self, places: Mapping[int, WorkerPlace], wakes: dict[Pool | OwnPool, None]) -> None:
        self._places = places
        self._wakes = wakes
        self.general = tuple(Pool(kind, None, (), wakes) for kind in LaneKind)
        """Those of calls without any constraint."""
        self._constrained: dict[tuple[LaneKind, frozenset[int] | None, Demand], Pool] = {}
        self._idle: dict[Pool, None] = {}
        """Those in which no call waits, the least recently used first."""

    def all(self) -> list[Pool]:
        return [*self.general, *self._constrained.values()]

    # --- workers -------------------------------------------------------------------------------------------------------------

    def open(self, place: WorkerPlace) -> None:
        """The worker takes calls from now on."""
        for pool in self.all():
            if pool.admits(place):
                pool.join(place)

    @staticmethod
    def leave(place: WorkerPlace) -> None:
        """The worker takes no more calls."""
        for lane in place.lanes:
            for pool in lane.pools[:]:
                if isinstance(pool, Pool):
                    pool.leave(lane)

    # --- calls ---------------------------------------------------------------------------------------------------------------

    def find(self, kind: LaneKind, workers: frozenset[int] | None, demand: Demand) -> Pool:
        """The pool of these constraints; `use` must follow if a call is put into it."""
        pool = self._constrained.get((kind, workers, demand))
        if pool is None:
            pool = Pool(kind, workers, demand, self._wakes)
            self._fill(pool)
        return pool

    def use(self, pool: Pool) -> None:
        """A call will wait in this pool, which `find` has given."""
        self._constrained[pool.key] = pool
        self._idle.pop(pool, None)

    def again(self, pool: Pool) -> Pool:
        """The pool in which a call waits again that came from this one, which may be gone meanwhile."""
        if pool in self.general:
            return pool
        known = self._constrained.get(pool.key)
        if known is None:
            self._fill(pool)
            known = pool
        self.use(known)
        return known

    def used(self, pool: Pool | OwnPool) -> None:
        """Calls have left the pool. If none waits there, it is kept for a while."""
        if pool.queue or isinstance(pool, OwnPool) or self._constrained.get(pool.key) is not pool:
            return
        self._idle.pop(pool, None)
        self._idle[pool] = None
        if len(self._idle) > IDLE_POOLS:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._constrained[oldest.key]
            for lane in list(oldest.members):
                oldest.leave(lane)

    def _fill(self, pool: Pool) -> None:
        """Let every open worker that may serve the pool join it."""
        places, named = self._places, pool.workers
        candidates: Iterable[WorkerPlace] = places.values()
        if named is not None and len(named) < len(places):
            candidates = [places[id] for id in sorted(named) if id in places]
        open_lanes = self.general[pool.kind].members
        for place in candidates:
            if place.lanes[pool.kind] in open_lanes and pool.admits(place):
                pool.join(place)
