"""The fault injector: what goes wrong, when, and for how long, drawn before the run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .agent import SimAgent
from .worker import SimWorker

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["Faults"]

MISDEEDS = ("result of an unknown call", "result twice", "returned an unknown call", "a manager's word")


class Faults:
    """Breaks things by the dice. All of it acts from outside: no process is asked."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.open = 0
        """Faults that are still to come, or have not ended."""

    @property
    def over(self) -> bool:
        return self.open == 0

    def plan(self, within_s: float) -> None:
        """Draw the faults of this run, all beginning within that time."""
        rng = self.world.rng
        kinds = {
            "cut_link": 5,
            "kill_worker": 5,
            "kill_by_program": 1,
            "freeze_node": 2,
            "freeze_worker": 2,
            "freeze_manager": 1,
            "freeze_manager_and_power_off": 1,
            "stall_cable": 2,
            "power_off": 1,
            "terminate": 1,
            "misbehave": 2,
            "retire": 2,
            "add_workers": 2,
            "add_node": 1,
            "launching": 1,
        }
        if rng.random() < 0.5:  # many faults of few kinds find other things than some of each
            chosen = rng.sample(sorted(kinds), 3)
            kinds = {name: kinds[name] for name in chosen}
        for _ in range(rng.choice((0, 1, 3, 8, 20))):
            name = rng.choices(list(kinds), list(kinds.values()))[0]
            at = rng.random() * within_s
            self.open += 1
            self.world.at(at, self.world.outside, self._begin, name)

    def _begin(self, name: str) -> None:
        if not self.cluster.checker.closed:
            self.world.say("fault", name)
            getattr(self, name)()
        self.open -= 1

    def _end_after(self, seconds: float, action: str, *args: object) -> None:
        self.open += 1
        self.world.after(seconds, self.world.outside, self._end, action, args)

    def _end(self, action: str, args: tuple[object, ...]) -> None:
        getattr(self, action)(*args)
        self.open -= 1

    # --- whom it hits ------------------------------------------------------------------------------------------------------

    def _agent(self) -> SimAgent | None:
        agents = [agent for agent in self.cluster.agents.values() if not agent.ended]
        return self.world.rng.choice(agents) if agents else None

    def _worker(self) -> SimWorker | None:
        workers = [worker for agent in self.cluster.agents.values() for worker in agent.workers.values() if worker.process.alive]
        busy = [worker for worker in workers if worker.runs]
        rng = self.world.rng
        if busy and rng.random() < 0.7:
            return rng.choice(busy)
        return rng.choice(workers) if workers else None

    # --- faults --------------------------------------------------------------------------------------------------------------

    def cut_link(self) -> None:
        """A connection breaks; each end notices at once, or when its kernel gives it up."""
        rng = self.world.rng
        connections = [one for one in self.cluster.listener.connections if not one.broken]
        if connections:
            connection = rng.choice(connections)
            seen = (rng.choice((0.0, 0.001, 0.5, 10.5)), rng.choice((0.0, 0.001, 0.5, 10.5)))
            self.world.say("fault", f"cuts {connection.name}, seen after {seen}")
            connection.cut(seen)

    def stall_cable(self) -> None:
        """Packets of one node are lost for a while; what takes too long breaks its connections."""
        agent, rng = self._agent(), self.world.rng
        if agent is None:
            return
        seconds = rng.choice((0.3, 2.0, 5.0, 13.0, 25.0))
        self.world.say("fault", f"stalls {agent.name} for {seconds} s")
        agent.cable.stalled_until = max(agent.cable.stalled_until, self.world.now + seconds)
        if seconds > 10.5:
            self._end_after(10.5, "_cut_all", agent)
        self._end_after(seconds, "_nothing")

    def _nothing(self) -> None:
        """A stall ends by itself."""

    def _cut_all(self, agent: SimAgent) -> None:
        for connection in list(self.cluster.listener.connections):
            if connection.cable is agent.cable:
                connection.cut((0.0, 0.0))

    def kill_worker(self) -> None:
        worker = self._worker()
        if worker is not None:
            worker.die("killed by signal 9")

    def kill_by_program(self) -> None:
        worker = self._worker()
        if worker is not None and not self.cluster.process.frozen:
            self.cluster.kill_worker(worker.id)

    def freeze_node(self) -> None:
        agent, rng = self._agent(), self.world.rng
        if agent is None or agent.process.frozen:
            return
        timeout_s = self.cluster.settings.heartbeat_timeout_s
        seconds = rng.choice((0.5, 0.3 * timeout_s, 0.5 * timeout_s, 1.3 * timeout_s, 3.0 * timeout_s))
        self.world.say("fault", f"freezes {agent.name} for {seconds} s")
        agent.freeze(whole=rng.random() < 0.8)
        self._end_after(seconds, "_thaw_node", agent)

    def _thaw_node(self, agent: SimAgent) -> None:
        self.world.say("fault", f"thaws {agent.name}")
        agent.thaw()

    def freeze_worker(self) -> None:
        worker, rng = self._worker(), self.world.rng
        if worker is None or worker.process.frozen:
            return
        seconds = rng.choice((0.01, 1.0, 15.0))
        self.world.say("fault", f"freezes {worker.name} for {seconds} s")
        self.world.clock.freeze(worker.process)
        self._end_after(seconds, "_thaw_worker", worker)

    def _thaw_worker(self, worker: SimWorker) -> None:
        if worker.process.frozen:
            self.world.clock.thaw(worker.process, self.world.rng)

    def freeze_manager(self) -> None:
        """The program blocks its loop, or is stopped."""
        process, rng = self.cluster.process, self.world.rng
        if process.frozen:
            return
        seconds = rng.choice((0.3, 0.8, 3.0, 8.0, 14.0, 30.0))
        self.world.say("fault", f"freezes the manager for {seconds} s")
        self.world.clock.freeze(process)
        self.cluster.checker.manager_froze.append((self.world.now, self.world.now + seconds))
        self._end_after(seconds, "_thaw_manager")

    def _thaw_manager(self) -> None:
        self.world.say("fault", "thaws the manager")
        self.world.clock.thaw(self.cluster.process, self.world.rng)

    def freeze_manager_and_power_off(self) -> None:
        """A node dies soon after the manager thaws: what the manager missed must not make it patient with the dead."""
        if not self.cluster.process.frozen:
            self.freeze_manager()
            _, until = self.cluster.checker.manager_froze[-1]
            self._end_after(until - self.world.now + self.world.rng.random(), "power_off")

    def power_off(self) -> None:
        agent = self._agent()
        if agent is not None:
            agent.power_off()

    def terminate(self) -> None:
        agent = self._agent()
        if agent is not None:
            self.world.after(0.0, agent.process, agent.terminate)

    def misbehave(self) -> None:
        worker = self._worker()
        if worker is not None:
            self.world.after(0.0, worker.process, worker.misbehave, self.world.rng.choice(MISDEEDS))

    # --- what the program does to its cluster ----------------------------------------------------------------------------------

    def retire(self) -> None:
        cluster, rng = self.cluster, self.world.rng
        ids = list(cluster.core.roster.workers)
        if ids:
            grace_s = rng.choice((0.0, 0.5, 5.0, float("inf"), float("inf")))
            self.world.after(0.0, cluster.process, self._retire, rng.choice(ids), grace_s)

    def _retire(self, worker_id: int, grace_s: float) -> None:
        self.world.say("program", f"retires worker {worker_id} with {grace_s} s of grace")
        self.cluster.retire(worker_id, grace_s)

    def add_workers(self) -> None:
        cluster, rng = self.cluster, self.world.rng
        names = [name for name, node in cluster.core.roster.nodes.items() if node.state.value == "joined"]
        if names:
            self.world.after(0.0, cluster.process, cluster.add_workers, rng.choice(names), rng.choice((1, 2)))

    def add_node(self) -> None:
        cluster, rng = self.cluster, self.world.rng
        name = f"node-{len(cluster.agents) + 1}"
        if name not in cluster.agents and f"node-{len(cluster.agents) + 2}" not in cluster.agents:
            self.world.after(0.0, cluster.process, self._add_node, f"extra-{self.world.clock.events}", rng.choice((1, 2)))

    def _add_node(self, name: str, workers: int) -> None:
        self.cluster.expect_node(name, workers, self.world.rng.random(), 0.0)

    def launching(self) -> None:
        """A launcher is at work for a while, or `adapt` is."""
        self.world.after(0.0, self.cluster.process, self.cluster.set_launching, True)
        self._end_after(self.world.rng.choice((1.0, 20.0, 100.0)), "_launched")

    def _launched(self) -> None:
        self.world.after(0.0, self.cluster.process, self.cluster.set_launching, False)
