"""One run: a cluster, its load and its faults, all drawn from one seed, and the verdict."""

from __future__ import annotations

from collections.abc import Callable

from aiocluster.errors import WorkerLost

from .checks import Checker
from .clock import Violation, World
from .cluster import Cluster
from .faults import Faults

__all__ = ["Run", "simulate"]

LIMIT_S = 600.0
"""When faults have stopped, all calls end within this: far more than all their work together."""
EVENTS = 400_000


class Run:
    """What a seed makes."""

    def __init__(self, seed: int, write: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, write)
        rng = self.world.rng
        self.world.longest_delay_s = rng.choice((1e-4, 0.002, 0.05, 0.3))
        self.world.encoded = rng.random() < 0.15
        self.cluster = Cluster(self.world)
        self.faults = Faults(self.cluster)
        self.load_for_s = rng.choice((0.5, 3.0, 12.0))
        self.close_early = rng.random() < 0.12
        self._nodes()
        self._calls()
        self.faults.plan(self.load_for_s + 4.0)

    @property
    def checker(self) -> Checker:
        return self.cluster.checker

    def _nodes(self) -> None:
        rng, world, cluster = self.world.rng, self.world, self.cluster
        crashy = rng.random() < 0.15
        for number in range(1, rng.choice((1, 1, 2, 3)) + 1):
            workers = rng.choice((1, 2, 2, 3))
            late = rng.random() < 0.2
            after = rng.uniform(0.0, 8.0) if late and number > 1 else 0.0
            slow = rng.choice((0.01, 0.05, 1.0))
            crashes = rng.choice((0.3, 1.0)) if crashy else 0.0
            world.at(after, cluster.process, cluster.expect_node, f"node-{number}", workers, slow * rng.random(), crashes)

    def _calls(self) -> None:
        rng, world, cluster = self.world.rng, self.world, self.cluster
        count = rng.choice((5, 20, 40, 80))
        bursts = self._bursts = rng.choice((1, 3, count))
        for _ in range(bursts):
            at = rng.random() * self.load_for_s
            world.at(at, cluster.process, self._burst, max(1, count // bursts))

    def _burst(self, count: int) -> None:
        rng, cluster = self.world.rng, self.cluster
        self._bursts -= 1
        if self.checker.closed:
            return
        known = cluster.known_workers()
        for _ in range(count):
            spec = cluster.load.make(known)
            cluster.submit(spec)
            if rng.random() < 0.12:
                after = rng.choice((0.0, 1e-4, 0.01, 1.0, 5.0)) * rng.random()
                self.world.after(after, cluster.process, cluster.cancel, spec, rng.random() < 0.3)

    # --- running ---------------------------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool], limit: float) -> bool:
        clock = self.world.clock
        while not done():
            if clock.now > limit or clock.events > EVENTS or not clock.step():
                return False
        return True

    def go(self) -> None:
        """Run to the end. Raises: `Violation`."""
        world, cluster, checker = self.world, self.cluster, self.checker
        over = self.load_for_s + 0.01
        if self.close_early:
            at = world.rng.random() * over
            self._until(lambda: world.now >= at and not cluster.process.frozen, LIMIT_S)
        else:
            self._until(lambda: world.now >= over and self._all_done(), world.now + LIMIT_S)
            if world.clock.events > EVENTS:
                raise Violation(1, f"{EVENTS} events, and no end: the last at {world.now:.3f} s")
            cluster.join_calls = False  # who joins from now on is prepared by nothing: all shall be quiet
            self._retry_chunks()
            if not checker.all_ended():
                checker.hanging()
            settled = world.now + 1.0
            self._until(lambda: world.now >= settled, LIMIT_S + settled)
            checker.quiet()
        self._close()

    def _all_done(self) -> bool:
        return self._bursts == 0 and self.faults.over and self.checker.all_ended()

    def _retry_chunks(self) -> None:
        """What never started of a chunk is sent again, as a map does: it must not have."""
        cluster = self.cluster
        for spec in list(cluster.load.specs):
            error = None if spec.outcome is None else spec.outcome[1]
            started = error.items_started if isinstance(error, WorkerLost) else None
            if spec.parent is None and started is not None and 0 < started < spec.items:
                cluster.submit(cluster.load.rest_of(spec, started))
        self._until(self.checker.all_ended, self.world.now + LIMIT_S)

    def _close(self) -> None:
        world, cluster, checker = self.world, self.cluster, self.checker
        cluster.close()
        if checker.open_roots:
            raise Violation(1, f"{next(iter(checker.open_roots))} has not ended when the cluster has closed")
        late = cluster.load.make([])
        cluster.submit(late)
        if late.outcome is None or late.outcome[0] != "ClusterClosed":
            raise Violation(1, f"a call made after the end of the cluster ended as {late.outcome}")
        limit = world.now + 200.0
        if not self._until(lambda: all(agent.ended for agent in cluster.agents.values()), limit):
            alive = [agent.name for agent in cluster.agents.values() if not agent.ended]
            raise Violation(5, f"the nodes {alive} outlive their cluster")
        settled = world.now + 30.0
        self._until(lambda: world.now >= settled, settled + 1.0)
        checker.over()


def simulate(seed: int, write: Callable[[str], None] | None = None) -> Run:
    """Run a seed to its end.

    Raises:
        Violation: a promise was broken, or something that the core must not raise came out of it.
    """
    run = Run(seed, write)
    try:
        run.go()
    except Violation:
        raise
    except Exception as error:
        raise Violation("no exception leaves the core", f"at {run.world.now:.6f} s: {type(error).__name__}: {error}") from error
    return run
