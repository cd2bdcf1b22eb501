"""A simulated worker process: the real `Inbox`, and an executor by the rules of `runtime.executor` and `runtime.worker`.

Sync calls begin one at a time in the order of the inbox; one that waits for a nested call gives its place to a stand-in, and goes
on at once when it can. Async calls run side by side. The flight recorder says the same words as the real one, and outlives the
process.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aiocluster.core.inbox import ArrivedCall, Inbox
from aiocluster.runtime.recorder import Reading
from aiocluster.wire import messages as wire
from aiocluster.wire.frames import Frame

from .clock import Process, Timer, Violation
from .load import BY_HASH, Spec, Start, Work
from .network import Dialler, SimLink

if TYPE_CHECKING:
    from .agent import SimAgent

__all__ = ["SimWorker"]

OK, ERROR, CANCELLED = wire.CallStatus.OK, wire.CallStatus.ERROR, wire.CallStatus.CANCELLED
ASYNC, CHUNK = wire.Mode.ASYNC, wire.Mode.CHUNK
DIAL_FOR_S = 30.0
RECALLS = 60
"""More questions for calls in a row, between two starts, ask a busy worker without end."""


class Request:
    """One nested call that this worker has made."""

    __slots__ = ("done", "id", "ok", "run", "spec")

    def __init__(self, id: int, spec: Spec, run: Run) -> None:
        self.id = id
        self.spec = spec
        self.run = run
        self.done = False
        self.ok = False


class Run:
    """One call while it is executed."""

    __slots__ = ("away", "call", "ended", "failed", "is_async", "spec", "start", "step", "timer", "waits")

    def __init__(self, call: ArrivedCall, spec: Spec, start: Start, is_async: bool) -> None:
        self.call = call
        self.spec = spec
        self.start = start
        self.is_async = is_async
        self.step = 0
        self.timer: Timer | None = None
        self.waits: list[Request] = []
        self.away = False
        """It has given its place away."""
        self.failed = False
        self.ended = False


class SimWorker:
    """One worker. `crash_at_start` ends it before it has joined."""

    def __init__(self, agent: SimAgent, worker_id: int, crash_at_start: bool, join_after_s: float) -> None:
        self.agent = agent
        self.cluster = agent.cluster
        self.world = agent.world
        self.id = worker_id
        self.name = f"w{worker_id}"
        self.pid = 1000 + worker_id
        self.process = Process(self.name)
        self.inbox = Inbox()
        self.sync_started = self.sync_finished = self.async_started = self.item = self.item_call = 0
        self.box: list[tuple[int, int, bytes]] = []
        self._box_from = 0
        self.link: SimLink | None = None
        self.vain_recalls = 0
        self.misdeed: int | None = None
        """The number of the first frame that breaks the protocol."""
        self.computing: dict[Run, None] = {}
        """Sync calls that run and do not wait; one is begun only if there is none."""
        self.runs: dict[ArrivedCall, Run] = {}
        self._stopping = False
        self._ending = False
        self._outcomes: deque[tuple[int, int, bytes, int, int, float]] = deque()
        self._flush_due = False
        self._known: set[int] = set()
        self._requests: dict[int, Request] = {}
        self._next_request = 1
        self._sent_functions: set[bytes] = set()
        self.world.after(join_after_s, self.process, self._die_at_start if crash_at_start else self._join)

    def _say(self, text: str) -> None:
        if self.world.tracing:
            self.world.say(self.name, text)

    # --- joining and ending ----------------------------------------------------------------------------------------------

    def _die_at_start(self) -> None:
        self.die("exited with code 1 at its start")

    def _join(self) -> None:
        hello = wire.Hello(
            "worker", "c-sim", 1, "0", "3.11", self.agent.name, self.id, "host", self.pid, b"w%015d" % self.id, 0, False
        )
        Dialler(
            self.world,
            self.process,
            self.agent.cable,
            self.cluster.listener,
            hello,
            self,
            retry_for_s=DIAL_FOR_S,
            resume_within_s=self.cluster.settings.heartbeat_timeout_s,
            failed=self._cannot_join,
        )

    def _cannot_join(self, reason: str) -> None:
        self.die(f"cannot join the cluster: {reason}")

    def die(self, cause: str) -> None:
        """The process ends here and now; what it has written to the network still travels."""
        if not self.process.alive:
            return
        self._say(f"dies: {cause}")
        self.process.alive = False
        for run in self.runs.values():
            run.start.ended_at = self.world.now
        self.cluster.process_died(self.process)
        self.agent.worker_died(self, cause)

    def reading(self) -> Reading:
        box = self.box[self._box_from :]
        return Reading(self.sync_started, self.sync_finished, self.async_started, self.item, self.item_call, box)

    # --- the link --------------------------------------------------------------------------------------------------------

    def link_opened(self, link: SimLink) -> None:
        self.link = link
        self.agent.worker_joined(self)

    def link_writable(self, link: SimLink, writable: bool) -> None:
        pass

    def link_broken(self, link: SimLink) -> None:
        pass

    def link_resumed(self, link: SimLink) -> None:
        pass

    def link_closed(self, link: SimLink, error: Exception | None) -> None:
        if not self._ending:
            self.die(f"its link closed: {error}")

    def frames_received(self, link: SimLink, frames: list[Frame]) -> None:
        for message, buffers in frames:
            if not self.process.alive:
                return
            match message:
                case wire.Calls():
                    for call in self.inbox.receive(message, buffers):
                        self._start_async(call)
                    self._pump()
                case wire.Functions():
                    self._known.update(message.ids)
                case wire.DropFunctions():
                    self._known.difference_update(message.ids)
                case wire.CancelCalls():
                    for id in message.ids:
                        self._cancel(id)
                case wire.Recall():
                    self._give_back(message.count)
                    self._pump()
                case wire.Outcomes():
                    self._outcomes_arrived(message)
                case wire.Shutdown():
                    self._shut_down(message.grace_s)
                case _:
                    raise Violation("wire", f"the manager sent a worker {type(message).__name__}")

    def _send(self, message: wire.Message) -> None:
        if self.link is not None:
            self.link.send(message)

    def _give_back(self, count: int) -> None:
        self.vain_recalls += 1
        if self.vain_recalls > RECALLS:
            raise Violation(10, f"worker {self.id} was asked {self.vain_recalls} times for calls, and has started none meanwhile")
        self._send(wire.Returned(self.inbox.recall(count)))

    def _shut_down(self, grace_s: float) -> None:
        if not self._ending:
            self._ending = True
            self._stopping = True
            self.world.after(grace_s, self.process, self._exit)
            self._pump()

    def _exit(self) -> None:
        self._flush()
        if self.link is not None:
            self.link.close()
        self.die("exited with code 0")

    # --- executing -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Begin the next call of the inbox, if the place is free."""
        while not self.computing and self.process.alive:
            if self._stopping:
                self.world.after(1e-5, self.process, self._exit)
                return
            call = self.inbox.take()
            if call is None:
                return
            if call.mode & ASYNC:  # an ordered one whose turn has come
                self._start_async(call)
                continue
            if call.cancelled:
                self._post(call, CANCELLED, b"", 0, 0.0)
                self.sync_finished = call.serial
                self.inbox.finish(call)
                continue
            if call.mode & CHUNK:
                self.item, self.item_call = 0, call.serial
            self.sync_started = call.serial
            run = self._begin(call, False)
            self.computing[run] = None
            self._advance(run)

    def _start_async(self, call: ArrivedCall) -> None:
        self.async_started = max(self.async_started, call.serial)
        call.started = True
        if call.cancelled:
            self.inbox.finish(call)
            self._outcome(call, CANCELLED, b"", 0, 0.0)
            return
        self._advance(self._begin(call, True))

    def _begin(self, call: ArrivedCall, is_async: bool) -> Run:
        if call.function not in self._known:
            raise Violation("wire", f"worker {self.id} was sent a call of function {call.function}, which it does not know")
        spec = self.cluster.spec_of(call.payload)
        start = Start(self.world.now, self.id, call.id)
        run = Run(call, spec, start, is_async)
        call.runner = run
        self.runs[call] = run
        self.vain_recalls = 0
        self._say(f"starts {spec} as {call.id}, serial {call.serial}")
        self.cluster.checker.started(self, spec, start, bool(call.mode & wire.Mode.ORDERED))
        if is_async and spec.items > 1:
            for item in range(spec.items):
                self._item_started(run, item)
        return run

    def _item_started(self, run: Run, item: int) -> None:
        run.start.items = item + 1
        self.cluster.checker.item_started(self, run.spec, item)

    def _advance(self, run: Run) -> None:
        """Go on with a call that holds its place, until it computes or waits."""
        spec = run.spec
        while self.process.alive and not run.ended:
            if run.call.cancelled:
                self._finish(run, CANCELLED)
                return
            if run.step == len(spec.steps):
                self._end(run)
                return
            step = spec.steps[run.step]
            run.step += 1
            if isinstance(step, Work):
                if spec.items > 1 and not run.is_async:
                    self.item, self.item_call = run.step, run.call.serial
                    self._item_started(run, run.step - 1)
                run.timer = self.world.after(step.seconds, self.process, self._worked, run)
                return
            requests = [self._request(run, self.cluster.load.fresh(nested, run.spec)) for nested in step.specs]
            self._submit(run, requests)
            if step.wait:
                run.waits = requests
                if self._wait(run):
                    return

    def _worked(self, run: Run) -> None:
        run.timer = None
        self._advance(run)
        self._pump()

    def _end(self, run: Run) -> None:
        end = run.spec.end
        if end == "crash":
            run.start.crashed = True
            run.start.blamable = self.sync_started <= self.sync_finished or self.sync_started == run.call.serial
            self.die("exited with code 7: the call's own doing")
        elif end == "error" or run.failed:
            self._finish(run, ERROR)
        else:
            self._finish(run, OK)
        if end == "post_crash":
            run.start.crashed = True
            self.die("killed by signal 11 after the call")
        if end == "flush_crash":
            self._flush()
            self.die("killed by signal 11 as its result was sent")

    def _finish(self, run: Run, status: int) -> None:
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        call = run.call
        run.ended = True
        run.start.ended_at = self.world.now
        self.runs.pop(call, None)
        self._say(f"ends call {run.spec.id} with status {status}")
        self.cluster.checker.stopped(self, run.spec)
        mine = [request.id for request in self._requests.values() if request.run is run and request in run.waits]
        if status == CANCELLED and mine:
            self._withdraw(mine)
        payload = b"" if status == CANCELLED else self.cluster.result_of(run.spec, self.id)
        items = 0 if status == CANCELLED else run.spec.items
        busy_s = self.world.now - run.start.at
        if run.is_async:
            self.inbox.finish(call)
            self._outcome(call, status, payload, items, busy_s)
        else:
            self._post(call, status, payload, items, busy_s)
            self.sync_finished = call.serial
            self.inbox.finish(call)
            self.computing.pop(run, None)

    def _post(self, call: ArrivedCall, status: int, payload: bytes, items: int, busy_s: float) -> None:
        self.box.append((call.id, status, payload))
        self._outcome(call, status, payload, items, busy_s)

    def _outcome(self, call: ArrivedCall, status: int, payload: bytes, items: int, busy_s: float) -> None:
        self._outcomes.append((call.id, status, payload, call.function, items, busy_s))
        if not self._flush_due:
            self._flush_due = True
            self.world.after(self.world.rng.choice((1e-6, 1e-5, 5e-4)), self.process, self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        rows = list(self._outcomes)
        self._outcomes.clear()
        if not rows:
            return
        busy = [[row[3], row[4], int(row[5] * 1e9)] for row in rows if row[4]]
        mark = len(self.box)
        self._send(wire.Results([row[0] for row in rows], bytes(row[1] for row in rows), [row[2] for row in rows], [], busy))
        self.world.after(1e-6, self.process, self._written, mark, self.box)

    def _written(self, mark: int, box: list[tuple[int, int, bytes]]) -> None:
        """The box may forget what the kernel has."""
        if box is not self.box:
            return
        if self.link is not None and self.link.connected:
            self._box_from = max(mark, self._box_from)
            if mark >= len(self.box):
                self.box, self._box_from = [], 0
        elif not self._ending:
            self.world.after(0.005, self.process, self._written, mark, box)

    def _cancel(self, id: int) -> None:
        call = self.inbox.cancel(id)
        run = None if call is None else call.runner
        if not isinstance(run, Run) or run.ended:
            return
        self._say(f"cancels call {run.spec.id}")
        if run.away:
            self._wake(run)
        elif run.timer is not None:
            step = run.spec.steps[run.step - 1]
            if isinstance(step, Work) and step.stubborn:
                return
            self._finish(run, CANCELLED)
            self._pump()
        elif run.is_async:
            self._finish(run, CANCELLED)

    # --- nested calls ----------------------------------------------------------------------------------------------------

    def _request(self, run: Run, spec: Spec) -> Request:
        request = Request(self._next_request, spec, run)
        self._next_request += 1
        self._requests[request.id] = request
        return request

    def _submit(self, run: Run, requests: list[Request]) -> None:
        kinds = list(BY_HASH)
        new = [one.spec.kind for one in requests if one.spec.kind.hash not in self._sent_functions]
        new = list(dict.fromkeys(new))
        if new:
            self._sent_functions.update(kind.hash for kind in new)
            hashes = [kind.hash for kind in new]
            ids = [kinds.index(hash) + 1 for hash in hashes]
            self._send(wire.Functions(ids, hashes, [b"code"] * len(new), [kind.name for kind in new]))
        options: list[list[Any]] = []
        for index, request in enumerate(requests):
            spec, chosen = request.spec, request.spec.options
            row: dict[str, Any] = {}
            if chosen.timeout_s is not None:
                row["timeout_s"] = chosen.timeout_s
            if chosen.retries:
                row["retries"] = chosen.retries
            if chosen.idempotent:
                row["idempotent"] = True
            if chosen.workers is not None:
                row["workers"] = sorted(chosen.workers)
            if chosen.priority:
                row["priority"] = chosen.priority
            if spec.left_s is not None:
                row["left_s"] = spec.left_s
            if spec.items > 1:
                row["items"] = spec.items
            if row:
                options.append([index, row])
            spec.origin = self.id
        self._send(
            wire.Submit(
                [request.id for request in requests],
                [run.call.id] * len(requests),
                [kinds.index(request.spec.kind.hash) + 1 for request in requests],
                bytes(
                    (ASYNC if request.spec.kind.is_async else 0) | (CHUNK if request.spec.items > 1 else 0)
                    for request in requests
                ),
                [self.cluster.payload_of(request.spec) for request in requests],
                options,
                [],
            )
        )

    def _wait(self, run: Run) -> bool:
        """True if the call has to wait for a nested one now; a sync call gives its place away."""
        if all(request.done for request in run.waits):
            run.failed = run.failed or any(not request.ok for request in run.waits)
            return False
        if not run.is_async:
            run.away = True
            self.computing.pop(run, None)
            self._send(wire.Yielded(run.call.id))
        return True

    def _outcomes_arrived(self, message: wire.Outcomes) -> None:
        for id, status in zip(message.ids, message.statuses, strict=True):
            request = self._requests.pop(id, None)
            if request is None:
                continue
            request.done, request.ok = True, status == OK
            self.cluster.checker.nested_answered(request.spec)
            run = request.run
            if run.ended or request not in run.waits:
                continue
            if run.is_async:
                if all(one.done for one in run.waits):
                    self._woken(run)
            elif run.away and self._first_open(run) is None:
                self._wake(run)

    @staticmethod
    def _first_open(run: Run) -> Request | None:
        return next((request for request in run.waits if not request.done), None)

    def _woken(self, run: Run) -> None:
        run.failed = run.failed or any(not request.ok for request in run.waits)
        self._advance(run)

    def _wake(self, run: Run) -> None:
        """A sync call that waits goes on; a call that was begun meanwhile runs beside it."""
        run.away = False
        run.failed = run.failed or any(request.done and not request.ok for request in run.waits)
        self.computing[run] = None
        self._send(wire.Resumed(run.call.id))
        self._advance(run)
        self._pump()

    def _withdraw(self, ids: list[int]) -> None:
        for id in ids:
            request = self._requests.pop(id)
            self.cluster.checker.given_up(request.spec)
        self._send(wire.CancelCalls(ids, False))

    # --- faults ----------------------------------------------------------------------------------------------------------

    def misbehave(self, how: str) -> None:
        """Say what no honest worker says."""
        if self.link is None or not self.process.alive or self._ending:
            return
        self._say(f"misbehaves: {how}")
        self.misdeed = self.link.ledger.sent + 1
        match how:
            case "result of an unknown call":
                self._send(wire.Results([987654321], bytes([OK]), [b"?"], [], []))
            case "result twice":
                call = next((call for call, run in self.runs.items() if not run.away), None)
                if call is None:
                    self._send(wire.Results([987654321], bytes([OK]), [b"?"], [], []))
                    return
                payload = self.cluster.result_of(self.runs[call].spec, self.id)
                for _ in range(2):
                    self._send(wire.Results([call.id], bytes([OK]), [payload], [], []))
            case "returned an unknown call":
                self._send(wire.Returned([987654321]))
            case "a manager's word":
                self._send(wire.Beat(1))
            case _:
                raise AssertionError(how)
