"""A simulated node: the real `Supervisor`, and the machine around it with its processes and its cable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from aiocluster.core.supervisor import Effect as SupervisorEffect
from aiocluster.core.supervisor import EndNode, ForkWorker, KillProcess, Send, Supervisor, SupervisorLimits
from aiocluster.wire import messages as wire
from aiocluster.wire.frames import Frame

from .clock import Process, Timer, Violation
from .network import Cable, Dialler, SimLink
from .worker import SimWorker

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["SimAgent"]


class SimAgent:
    """One node."""

    def __init__(self, cluster: Cluster, name: str, join_after_s: float, start_crashes: float) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.cable = Cable()
        self.process = Process(name)
        self.start_crashes = start_crashes
        """How likely a worker ends before it has joined."""
        self.workers: dict[int, SimWorker] = {}
        self.joined: dict[int, None] = {}
        self.link: SimLink | None = None
        self.ended = False
        self.supervisor = Supervisor(self._limits(), self.world.now)
        self._beats = 0
        self._timer: Timer | None = None
        self.world.after(join_after_s, self.process, self._join)

    def _limits(self) -> SupervisorLimits:
        return SupervisorLimits(orphan_timeout_s=self.cluster.settings.orphan_timeout_s)

    def _join(self) -> None:
        hello = wire.Hello("agent", "c-sim", 1, "0", "3.11", self.name, 0, "host", 1, b"n%15s" % self.name.encode(), 0, False)
        Dialler(
            self.world,
            self.process,
            self.cable,
            self.cluster.listener,
            hello,
            self,
            retry_for_s=60.0,
            resume_within_s=3600.0,
            failed=self._cannot_join,
        )

    def _cannot_join(self, reason: str) -> None:
        self.end(f"cannot join: {reason}")

    # --- the link --------------------------------------------------------------------------------------------------------

    def link_opened(self, link: SimLink) -> None:
        self.link = link
        self.supervisor = Supervisor(self._limits(), self.world.now)
        self._beat()
        self._arm()

    def link_writable(self, link: SimLink, writable: bool) -> None:
        pass

    def link_broken(self, link: SimLink) -> None:
        pass

    def link_resumed(self, link: SimLink) -> None:
        pass

    def link_closed(self, link: SimLink, error: Exception | None) -> None:
        self.link = None
        if not self.ended:
            self._perform(self.supervisor.manager_gone(f"the link closed: {error}"))

    def frames_received(self, link: SimLink, frames: list[Frame]) -> None:
        supervisor, now = self.supervisor, self.world.now
        supervisor.heard(now)
        for message, _buffers in frames:
            match message:
                case wire.Beat():
                    pass
                case wire.StartWorkers():
                    self._perform(supervisor.start_workers(message.worker_ids, now))
                case wire.StopWorker():
                    self._perform(supervisor.stop_worker(message.worker_id, message.grace_s, now))
                case wire.KillWorker():
                    self._perform(supervisor.kill_worker(message.worker_id, message.reason, now))
                case wire.Shutdown():
                    self._perform(supervisor.shutdown(message.grace_s, now))
                case _:
                    raise Violation("wire", f"the manager sent an agent {type(message).__name__}")

    def _beat(self) -> None:
        link = self.link
        if link is None or self.ended:
            return
        self.supervisor.heard(link.last_heard)
        rows: list[list[Any]] = [
            [worker.id, "sleeping", 0.0, 1, worker.sync_started] for worker in self.workers.values() if worker.process.alive
        ]
        self._look_who_joined()
        self._beats += 1
        link.send(wire.NodeBeat(self._beats, {}, rows))
        self.world.after(self.cluster.settings.heartbeat_interval_s, self.process, self._beat)

    def _look_who_joined(self) -> None:
        for worker_id in self.joined:
            self.supervisor.joined(worker_id, self.world.now)
        self.joined.clear()

    # --- the supervisor's shell ------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.world.at(self.supervisor.deadline, self.process, self._on_timer)

    def _on_timer(self) -> None:
        if self.link is not None:
            self.supervisor.heard(self.link.last_heard)
        self._perform(self.supervisor.tick(self.world.now))

    def _perform(self, effects: list[SupervisorEffect]) -> None:
        for effect in effects:
            match effect:
                case ForkWorker():
                    self.world.after(self.world.rng.uniform(0.0005, 0.02), self.process, self._forked, effect.worker_id)
                case KillProcess():
                    worker = self.workers.get(effect.worker_id)
                    if worker is not None:
                        worker.die("killed by signal 9")
                case Send():
                    if self.link is not None:
                        self.link.send(effect.message)
                case EndNode():
                    self.end(effect.reason)
                case _:
                    assert_never(effect)
        if not self.ended:
            self._arm()

    def _forked(self, worker_id: int) -> None:
        rng = self.world.rng
        crashes = rng.random() < self.start_crashes
        worker = SimWorker(self, worker_id, crashes, rng.choice((0.01, 0.05, 0.05, self.cluster.slowest_join_s)) * rng.random())
        self.workers[worker_id] = worker
        self._perform(self.supervisor.forked(worker_id, worker.pid, self.world.now))

    def worker_joined(self, worker: SimWorker) -> None:
        """The worker's recorder says that it has joined; the agent looks there when it beats, and when the worker has ended."""
        self.joined[worker.id] = None

    def worker_died(self, worker: SimWorker, cause: str) -> None:
        """The kernel tells the agent of the end of its child."""
        if self.process.alive:
            self.world.after(self.world.rng.choice((0.0002, 0.002, 0.1)), self.process, self._reaped, worker, cause)

    def _reaped(self, worker: SimWorker, cause: str) -> None:
        self.workers.pop(worker.id, None)
        self._look_who_joined()
        effects = self.supervisor.exited(worker.id, cause, worker.reading(), last_lines=["last words"], now=self.world.now)
        self._perform(effects)

    # --- the machine -----------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM."""
        if self.process.alive and not self.ended:
            connected = self.link is not None and self.link.connected
            if self.link is None:
                self.end("told to end before it had joined")
            else:
                self._perform(self.supervisor.terminate("the node was told to end", self.world.now, connected=connected))

    def freeze(self, whole: bool) -> None:
        self.world.clock.freeze(self.process)
        if whole:
            for worker in self.workers.values():
                self.world.clock.freeze(worker.process)

    def thaw(self) -> None:
        if self.process.frozen:
            self.world.clock.thaw(self.process, self.world.rng)
        for worker in list(self.workers.values()):
            if worker.process.frozen:
                self.world.clock.thaw(worker.process, self.world.rng)

    def end(self, reason: str) -> None:
        """The agent's process ends, and its workers with it."""
        if self.ended:
            return
        self.ended = True
        self.world.say(self.name, f"ends: {reason}")
        for worker in list(self.workers.values()):
            worker.die("its node ended")
        if self.link is not None:
            self.link.close()
        self.process.alive = False
        self.cluster.process_died(self.process)
        self.cluster.node_ended(self, reason)

    def power_off(self) -> None:
        """The machine is gone: nothing more is sent, and nobody is told."""
        if self.ended:
            return
        self.ended = True
        self.world.say(self.name, "loses power")
        self.process.alive = False
        for worker in self.workers.values():
            if worker.process.alive:
                worker.process.alive = False
                for run in worker.runs.values():
                    run.start.ended_at = self.world.now
                self.cluster.process_vanished(worker.process)
        self.cluster.process_vanished(self.process)
        if self.world.rng.random() < 0.5:
            self.cluster.node_ended(self, "the machine is gone")
