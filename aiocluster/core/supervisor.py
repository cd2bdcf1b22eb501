"""The agent's brain: the life of each worker process, and of the node itself.

It decides when a worker is forked, killed and reported, and when the node ends: told by its manager, told by the system, or
because its manager has fallen silent. The shell performs the effects; `now` is handed in.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from aiocluster.wire.messages import Message, NodeDraining, StartGaveUp, WorkerExited, WorkerStarted

__all__ = [
    "Effect",
    "EndNode",
    "ForkWorker",
    "KillProcess",
    "Process",
    "ProcessState",
    "Send",
    "Supervisor",
    "SupervisorLimits",
]


class ProcessState(enum.Enum):
    WAITING = "waiting"
    """Its turn has not come: workers before it died while they started."""
    FORKING = "forking"
    RUNNING = "running"
    STOPPING = "stopping"
    """It was told to end; it is killed if it does not."""
    KILLED = "killed"
    """It has been killed; its exit has not been seen."""


TRANSITIONS: dict[tuple[ProcessState, str], ProcessState] = {
    (ProcessState.WAITING, "fork"): ProcessState.FORKING,
    (ProcessState.FORKING, "forked"): ProcessState.RUNNING,
    (ProcessState.FORKING, "stop"): ProcessState.STOPPING,
    (ProcessState.FORKING, "kill"): ProcessState.KILLED,
    (ProcessState.RUNNING, "stop"): ProcessState.STOPPING,
    (ProcessState.RUNNING, "kill"): ProcessState.KILLED,
    (ProcessState.STOPPING, "forked"): ProcessState.STOPPING,
    (ProcessState.STOPPING, "stop"): ProcessState.STOPPING,
    (ProcessState.STOPPING, "kill"): ProcessState.KILLED,
    (ProcessState.KILLED, "forked"): ProcessState.KILLED,
    (ProcessState.KILLED, "stop"): ProcessState.KILLED,
    (ProcessState.KILLED, "kill"): ProcessState.KILLED,
}
"""What is not listed changes nothing: reports of a process may come late, requests may come twice."""


class SupervisorLimits(NamedTuple):
    """Figures of one node's supervision."""

    orphan_timeout_s: float = 60.0
    give_up_after: int = 5
    """Crashes in a row before a worker has joined: the sixth would tell nothing new."""
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    """Also for how long, after giving up, requests are taken for replacements of the same crashes."""
    settled_after_s: float = 5.0
    """A worker that ends by itself sooner after joining, and has finished no call, came to nothing: the next one is delayed.
    What a worker dies of at once, such as a library that it loads or too little memory, takes seconds at most; and with the
    longest delay a node that cannot do better forks no more than a few workers a minute."""
    drain_grace_s: float = 25.0
    """For running calls after SIGTERM: less than the 30 s that containers are given."""


class ForkWorker(NamedTuple):
    worker_id: int


class KillProcess(NamedTuple):
    worker_id: int


class Send(NamedTuple):
    message: Message


class EndNode(NamedTuple):
    code: int
    reason: str


Effect = ForkWorker | KillProcess | Send | EndNode


class Results(Protocol):
    """What a flight recorder says: the shape of its reading."""

    @property
    def sync_started(self) -> int: ...
    @property
    def sync_finished(self) -> int: ...
    @property
    def async_started(self) -> int: ...
    @property
    def item(self) -> int: ...
    @property
    def item_call(self) -> int: ...
    @property
    def results(self) -> Sequence[tuple[int, int, bytes]]: ...


@dataclass(slots=True)
class Process:
    """One worker process."""

    worker_id: int
    state: ProcessState = ProcessState.WAITING
    pid: int = 0
    due: float = 0.0
    """When it is forked (while it waits), or killed (while it stops)."""
    expected: bool = False
    """It was told to end."""
    kill_reason: str | None = None
    joined_at: float | None = None
    """When it was first known to have joined."""

    def apply(self, event: str) -> None:
        self.state = TRANSITIONS.get((self.state, event), self.state)


class Supervisor:
    """One node. Each method returns what has to be done, in order."""

    def __init__(self, limits: SupervisorLimits, now: float) -> None:
        self._limits = limits
        self._heard_at = now
        self.processes: dict[int, Process] = {}
        self._failed_starts = 0
        """Workers in a row that ended before they had joined."""
        self._early_ends = 0
        """Workers in a row that came to nothing, these among them."""
        self._last_early_end = now
        self._gave_up_at: float | None = None
        self._last_crash: tuple[str, Sequence[str]] = ("", ())
        self._ending = False
        self._ended = False
        self._end_reason = ""
        self._drain_until: float | None = None

    # --- what the manager says -----------------------------------------------------------------------------------------------

    def start_workers(self, worker_ids: Sequence[int], now: float) -> list[Effect]:
        """Fork a worker for each id; later, if workers have been dying at their start; not at all, if too many have."""
        if self._ending:
            return []
        if self._gave_up_at is not None and now >= self._gave_up_at + self._limits.longest_delay_s:
            # This is no echo of those crashes: somebody asks again.
            self._gave_up_at, self._failed_starts, self._early_ends = None, 0, 0
        if self._failed_starts >= self._limits.give_up_after:
            return [self._give_up(worker_ids, now)]
        delay = self._delay(now)
        for worker_id in worker_ids:
            self.processes.setdefault(worker_id, Process(worker_id, due=now + delay))
        return self.tick(now)

    def stop_worker(self, worker_id: int, grace_s: float, now: float) -> list[Effect]:
        """The worker has been told to end; kill it when the grace is over."""
        process = self.processes.get(worker_id)
        if process is None:
            return []
        process.expected = True
        if process.state is ProcessState.WAITING:
            del self.processes[worker_id]
            return [Send(_exited(worker_id, "it had not been started", True, None))]
        if process.state is not ProcessState.STOPPING or now + grace_s < process.due:
            process.due = now + grace_s
        process.apply("stop")
        return self.tick(now)

    def kill_worker(self, worker_id: int, reason: str, now: float) -> list[Effect]:
        """Kill the worker now."""
        process = self.processes.get(worker_id)
        if process is None:
            return []
        process.kill_reason = reason
        if process.state is ProcessState.WAITING:
            return self.stop_worker(worker_id, 0.0, now)
        return self._kill(process)

    def shutdown(self, grace_s: float, now: float, reason: str = "the manager ended this node") -> list[Effect]:
        """End the node; workers have been told, and are killed when the grace is over."""
        self._ending = True
        self._end_reason = self._end_reason or reason
        effects: list[Effect] = []
        for worker_id in list(self.processes):
            effects.extend(self.stop_worker(worker_id, grace_s, now))
        return effects + self._end_if_empty()

    def heard(self, at: float) -> None:
        """The manager was heard at that time."""
        self._heard_at = max(self._heard_at, at)

    # --- what happens on the node --------------------------------------------------------------------------------------------

    def forked(self, worker_id: int, pid: int, now: float) -> list[Effect]:
        """The worker's process exists."""
        process = self.processes.get(worker_id)
        if process is None:
            return []
        process.pid = pid
        process.apply("forked")
        effects: list[Effect] = [Send(WorkerStarted(worker_id, pid))]
        if process.state is ProcessState.KILLED:
            effects.append(KillProcess(worker_id))
        return effects

    def joined(self, worker_id: int, now: float) -> None:
        """The worker has come through its start, and with it the row of those that did not has ended.

        That of workers that come to nothing has not: this one may die of what it is given first.
        """
        process = self.processes.get(worker_id)
        if process is not None and process.joined_at is None:
            process.joined_at = now
            self._failed_starts, self._gave_up_at = 0, None

    def exited(
        self, worker_id: int, cause: str, reading: Results | None, *, last_lines: Sequence[str], now: float
    ) -> list[Effect]:
        """The worker's process is gone, or could not be made. `last_lines` is what it wrote at the end."""
        process = self.processes.pop(worker_id, None)
        if process is None:
            return []
        if not (process.expected or process.kill_reason is not None):
            self._crashed(process, cause, reading, last_lines, now)
        effects: list[Effect] = [Send(_exited(worker_id, cause, process.expected, reading))]
        waiting = [one.worker_id for one in self.processes.values() if one.state is ProcessState.WAITING]
        if self._failed_starts >= self._limits.give_up_after and waiting:
            for one in waiting:
                del self.processes[one]
            effects.append(self._give_up(waiting, now))
        return effects + self._end_if_empty()

    def terminate(self, reason: str, now: float, *, connected: bool, grace_s: float | None = None) -> list[Effect]:
        """The system wants the node to end (SIGTERM, a spot notice): running calls may finish if the manager can be told.

        A second word counts if it leaves less time than the first one.
        """
        grace_s = self._limits.drain_grace_s if grace_s is None else grace_s
        if self._ending or (self._drain_until is not None and now + grace_s >= self._drain_until):
            return []
        if not connected:
            return self.shutdown(0.0, now, reason)
        self._end_reason = reason
        self._drain_until = now + grace_s
        return [Send(NodeDraining(reason, grace_s))]

    def manager_gone(self, reason: str) -> list[Effect]:
        """The manager is no more: nothing on this node has a reason to live."""
        self._ending = True
        effects: list[Effect] = []
        for process in list(self.processes.values()):
            if process.state is ProcessState.WAITING:
                del self.processes[process.worker_id]
            else:
                effects.extend(self._kill(process))
        return [*effects, *self._end(1, reason)]

    # --- time ----------------------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` has something to do."""
        due = [self._heard_at + self._limits.orphan_timeout_s]
        due.extend(one.due for one in self.processes.values() if one.state in (ProcessState.WAITING, ProcessState.STOPPING))
        if self._drain_until is not None:
            due.append(self._drain_until)
        return min(due)

    def tick(self, now: float) -> list[Effect]:
        """Fork whose delay is over, kill whose grace is over, end a node whose manager is silent."""
        if now >= self._heard_at + self._limits.orphan_timeout_s:
            silent_s = now - self._heard_at
            return self.manager_gone(f"the manager has been silent for {silent_s:.0f} s (orphan_timeout)")
        effects: list[Effect] = []
        if self._drain_until is not None and now >= self._drain_until:
            self._drain_until = None
            effects.extend(self.shutdown(0.0, now))
        for process in list(self.processes.values()):
            if process.due > now:
                continue
            if process.state is ProcessState.WAITING:
                process.apply("fork")
                effects.append(ForkWorker(process.worker_id))
            elif process.state is ProcessState.STOPPING:
                process.kill_reason = "it did not end within its grace"
                effects.extend(self._kill(process))
        return effects

    # --- inside --------------------------------------------------------------------------------------------------------------

    def _crashed(self, process: Process, cause: str, reading: Results | None, last_lines: Sequence[str], now: float) -> None:
        """A worker has ended by itself, or by a hand that is not the cluster's."""
        if process.joined_at is None:
            self._failed_starts += 1
            self._last_crash = (cause, last_lines)
        elif now >= process.joined_at + self._limits.settled_after_s or (reading is not None and reading.sync_finished):
            self._early_ends = 0
            return
        self._early_ends = 1 if self._is_calm(now) else self._early_ends + 1
        self._last_early_end = now

    def _is_calm(self, now: float) -> bool:
        """No worker has come to nothing for longer than the next one in a row of those would take."""
        return now > self._last_early_end + self._limits.longest_delay_s + self._limits.settled_after_s

    def _delay(self, now: float) -> float:
        """How long the next worker has to wait."""
        row = max(self._failed_starts, 0 if self._is_calm(now) else self._early_ends)
        if not row:
            return 0.0
        return min(self._limits.first_delay_s * 2.0 ** min(row - 1, 30), self._limits.longest_delay_s)

    def _kill(self, process: Process) -> list[Effect]:
        process.apply("kill")
        return [KillProcess(process.worker_id)] if process.pid else []

    def _give_up(self, worker_ids: Sequence[int], now: float) -> Effect:
        if self._gave_up_at is None:
            self._gave_up_at = now
        cause, lines = self._last_crash
        reason = f"{self._failed_starts} workers in a row ended while they were starting; the last one {cause}"
        return Send(StartGaveUp(list(worker_ids), reason, list(lines)))

    def _end_if_empty(self) -> list[Effect]:
        return self._end(0, self._end_reason) if self._ending and not self.processes else []

    def _end(self, code: int, reason: str) -> list[Effect]:
        if self._ended:
            return []
        self._ended = True
        return [EndNode(code, reason)]


def _exited(worker_id: int, cause: str, expected: bool, reading: Results | None) -> WorkerExited:
    if reading is None:
        return WorkerExited(worker_id, cause, expected, 0, 0, 0, 0, 0, [], b"", [])
    return WorkerExited(
        worker_id,
        cause,
        expected,
        reading.sync_started,
        reading.sync_finished,
        reading.async_started,
        reading.item,
        reading.item_call,
        [one[0] for one in reading.results],
        bytes(one[1] for one in reading.results),
        [one[2] for one in reading.results],
    )
