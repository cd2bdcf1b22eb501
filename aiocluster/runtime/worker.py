"""A worker process: the loop with its link, async and nested calls in a thread of its own, sync calls on the main thread.

It executes what its manager sends and answers in batches while there is more to do, at once when there is not. When its manager
is gone it ends itself.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any

from aiocluster.core.inbox import ArrivedCall, Inbox
from aiocluster.ids import new_link_id
from aiocluster.net.dial import dial
from aiocluster.net.link import Link
from aiocluster.runtime import current, forked
from aiocluster.runtime.executor import Executor, Runner
from aiocluster.runtime.invoke import Functions, Invoker, Outcome
from aiocluster.runtime.nested import NestedBackend
from aiocluster.runtime.output import CallStreams
from aiocluster.runtime.recorder import ASYNC_STARTED, Recorder
from aiocluster.runtime.spec import WorkerSpec
from aiocluster.wire import messages as wire
from aiocluster.wire.frames import BUFFERS_AT_ONCE, Frame
from aiocluster.wire.handshake import hello

__all__ = ["Worker", "main"]

logger = logging.getLogger("aiocluster.worker")

ASYNC = wire.Mode.ASYNC
SWITCH_INTERVAL_S = 0.0005
"""How long Python code of a call may keep the loop's thread waiting: results of finished calls leave no later than that."""
DIAL_FOR_S = 30.0
SAFE_PAYLOAD_BYTES = 1024
STAND_IN_GRACE_S = 0.5
"""At the end, for calls on stand-in threads: those that are blocked in C could not be interrupted, however long one waits."""
PATIENT_NS = 20_000_000
"""A call that took so long the last time, or never ran here, begins only when the results before it are on their way."""


def main(spec: WorkerSpec, recorder: Recorder) -> None:
    """Be a worker; never returns. Called in a process of its own, on its main thread."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    forked.watch()
    worker = Worker(spec, recorder)
    current.this_worker = current.ThisWorker(
        id=spec.worker_id, node=spec.node, host=spec.host, pid=os.getpid(), cluster_id=spec.cluster_id
    )
    threading.Thread(target=worker.run_loop, name="aiocluster loop", daemon=True).start()
    worker.executor.run()


class Worker:
    """One worker. `executor.run` is for the main thread, `run_loop` for another; all other methods are the loop's."""

    def __init__(self, spec: WorkerSpec, recorder: Recorder) -> None:
        self._spec = spec
        self._recorder = recorder
        self._box = recorder.box
        self._inbox = Inbox()
        self._functions = Functions()
        self._streams = CallStreams(self._current_call)
        self._invoker = Invoker(self._functions, recorder.slots, self._streams.call_ended)
        self.executor = Executor(self._inbox, self._execute, self._report, self._stopped)
        self._outcomes: deque[Outcome] = deque()
        self._unacked: deque[tuple[int, int]] = deque()
        """Frames of results that the manager may not have: their number, and up to where the black box holds them."""
        self._flush_due = False
        self._loop: asyncio.AbstractEventLoop
        self._link: Link | None = None
        self._nested: NestedBackend
        self._tasks: dict[ArrivedCall, asyncio.Task[None]] = {}
        self._ending = False
        self._busy_ns: dict[int, int] = {}

    @staticmethod
    def _current_call() -> int:
        call = current.running_call()
        return 0 if call is None else call.id

    # --- the executing thread ----------------------------------------------------------------------------------------------

    def _execute(self, runner: Runner, call: ArrivedCall) -> None:
        if call.after is not None:
            self._wait_for_begin(call.after)
            call.after = None
        if call.mode & ASYNC:  # its turn among the ordered calls has come
            self._loop.call_soon_threadsafe(self._start_async, call)
            self._wait_for_begin(call)
            return
        if call.cancelled:
            self._post(Outcome(call.id, wire.CallStatus.CANCELLED, b"", (), call.function, 0, 0))
        else:
            if self._outcomes and self._busy_ns.get(call.function, PATIENT_NS) >= PATIENT_NS:
                self._turn_loop()
            self._post(self._invoker.run(runner, call))
        self._invoker.finished(call)
        self._inbox.finish(call)

    def _post(self, outcome: Outcome) -> None:
        """Send the outcome on its way. It is in the black box until it has been written, for the case of a crash."""
        self._outcomes.append(outcome)  # first: what is sent twice is known by its id, what the box forgets too early is lost
        id, status, payload, buffers, function, items, ns = outcome
        if items:
            self._busy_ns[function] = ns
        if not buffers and len(payload) <= SAFE_PAYLOAD_BYTES:
            self._box.add(id, status, payload)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon_threadsafe(self._flush)

    def _turn_loop(self) -> None:
        """Wait until the loop has done what it was asked for, such as sending what is finished."""
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        turned.wait()

    def _wait_for_begin(self, call: ArrivedCall) -> None:
        """Wait until an `async def` call has begun, which takes a turn of the loop or two."""
        while not call.begun:
            self._turn_loop()

    def _report(self, call: ArrivedCall, waiting: bool) -> None:
        message = wire.Yielded(call.id) if waiting else wire.Resumed(call.id)
        self._loop.call_soon_threadsafe(self._send, message)

    def _stopped(self) -> None:
        self._loop.call_soon_threadsafe(self._exit_when_done)

    # --- the loop's thread -------------------------------------------------------------------------------------------------

    def run_loop(self) -> None:
        """Run the loop until the process ends, which it does with the loop: a worker that hears nobody is of no use."""
        try:
            self._run_loop()
        except BaseException as error:
            _complain("the worker's loop has ended, and the worker ends with it", error)
        finally:
            if not self._ending:
                os._exit(1)

    def _run_loop(self) -> None:
        self._loop = loop = _new_loop()
        asyncio.set_event_loop(loop)
        self._nested = current.backend = NestedBackend(loop, self.executor, self._send, self._spec.cluster_id)
        task = loop.create_task(self._join(), name="aiocluster join")
        while True:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # raised in a task of the user's: it ends that, not the worker
                _complain("a task raised what would end the process; the worker goes on", error)
            if task.done() and self._ending:
                return

    async def _join(self) -> None:
        spec = self._spec
        greeting = hello(
            role="worker",
            cluster_id=spec.cluster_id,
            node=spec.node,
            worker_id=spec.worker_id,
            host=spec.host,
            pid=os.getpid(),
            link_id=new_link_id(),
        )
        try:
            timeout_s = float(spec.settings.get("heartbeat_timeout_s", 10.0))
            self._link, _welcome = await dial(
                spec.address, greeting, spec.token, self, retry_for_s=DIAL_FOR_S, resume_within_s=timeout_s
            )
            self._recorder.set_ready()
        except Exception as error:
            sys.stderr.write(f"worker {spec.worker_id} cannot join the cluster: {error}\n")
            sys.stderr.flush()
            os._exit(1)

    def link_opened(self, link: Link) -> None:
        self._link = link

    def link_writable(self, link: Link, writable: bool) -> None:
        pass  # what is sent here is bounded by what the manager sent before

    def link_broken(self, link: Link) -> None:
        pass  # calls go on; their results are kept until the link is back

    def link_resumed(self, link: Link) -> None:
        pass

    def link_closed(self, link: Link, error: Exception | None) -> None:
        """The manager is gone, or does not want this worker any more: there is nothing to live for."""
        if not self._ending:
            os._exit(0 if error is None else 1)

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        for message, buffers in frames:
            match message:
                case wire.Calls():
                    self._receive(message, buffers)
                case wire.Functions():
                    for id, payload, name in zip(message.ids, message.payloads, message.names, strict=True):
                        self._functions.add(id, payload, name)
                case wire.DropFunctions():
                    for id in message.ids:
                        self._functions.drop(id)
                        self._busy_ns.pop(id, None)
                case wire.CancelCalls():
                    for id in message.ids:
                        self._cancel(id)
                case wire.Recall():
                    self._send(wire.Returned(self._inbox.recall(message.count)))
                    self.executor.wake()
                case wire.Outcomes():
                    self._nested.outcomes(message, buffers)
                case wire.Answer():
                    self._nested.answered(message)
                case wire.Shutdown():
                    self._shut_down(message.grace_s)
                case _:
                    logger.error("the manager sent a %s, which is not for a worker", type(message).__name__)

    def _receive(self, message: wire.Calls, buffers: Sequence[Any]) -> None:
        for call in self._inbox.receive(message, buffers):
            self._start_async(call)
        self.executor.wake()

    def _start_async(self, call: ArrivedCall) -> None:
        slots = self._recorder.slots
        slots[ASYNC_STARTED] = max(slots[ASYNC_STARTED], call.serial)
        call.started = True
        task = self._loop.create_task(forked.Steps(self._run_async(call)), name=f"call {call.id}")
        self._tasks[call] = task

    async def _run_async(self, call: ArrivedCall) -> None:
        if call.mode & wire.Mode.ORDERED:
            self._loop.call_soon(setattr, call, "begun", True)  # when this first step of it is over
        try:
            outcome = await self._invoker.run_async(call)
        finally:
            self._tasks.pop(call, None)
        self._inbox.finish(call)
        self._outcomes.append(outcome)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _cancel(self, id: int) -> None:
        call = self._inbox.cancel(id)
        if call is None:
            return
        task = self._tasks.get(call)
        if task is not None:
            if call.entered:  # else it will find that it was cancelled: a task that has not begun would end without a word
                task.cancel()
        elif not self._nested.caller_cancelled(call):
            self.executor.interrupt(call)

    def _send(self, message: wire.Message, buffers: Sequence[Any] = ()) -> None:
        if self._link is not None:
            self._link.send(message, buffers)

    def _flush(self) -> None:
        """Send all outcomes that there are: one frame, unless they have very many buffers."""
        if forked.child:
            forked.leave()
        self._flush_due = False
        while self._flush_frame():
            pass

    def _flush_frame(self) -> bool:
        """Send a frame of outcomes. True if it is full, and so may not hold all of them."""
        outcomes = self._outcomes
        ids: list[int] = []
        statuses = bytearray()
        payloads: list[bytes] = []
        counts: list[list[int]] = []
        buffers: list[Any] = []
        busy: dict[int, list[int]] = {}
        mark = self._box.end
        while len(buffers) < BUFFERS_AT_ONCE:
            try:
                id, status, payload, beside, function, items, ns = outcomes.popleft()
            except IndexError:
                break
            if beside:
                counts.append([len(ids), len(beside)])
                buffers.extend(beside)
            ids.append(id)
            statuses.append(status)
            payloads.append(payload)
            if items:
                row = busy.get(function)
                if row is None:
                    busy[function] = [function, items, ns]
                else:
                    row[1] += items
                    row[2] += ns
        full = len(buffers) >= BUFFERS_AT_ONCE
        if ids:
            self._send(wire.Results(ids, bytes(statuses), payloads, counts, list(busy.values())), buffers)
            link = self._link
            if link is not None:
                link.flush()
                if not full:  # else outcomes from before the mark may not be in this frame
                    self._unacked.append((link.sent, mark))
                self._forget_acked(link.acked)
        return full

    def _forget_acked(self, acked: int) -> None:
        """The black box may forget what the manager says that it has.

        What the kernel has taken is not enough: a manager that writes to a process that has just died gets a broken pipe, and
        with it loses what it had not read yet.
        """
        unacked = self._unacked
        mark = 0
        while unacked and unacked[0][0] <= acked:
            mark = unacked.popleft()[1]
        self._box.written(mark)

    def _shut_down(self, grace_s: float) -> None:
        """End when the running sync call has ended, or the grace is over."""
        if not self._ending:
            self._ending = True
            self.executor.stop()
            if self.executor.has_stand_in:
                grace_s = min(grace_s, STAND_IN_GRACE_S)
            self._loop.call_later(grace_s, self._exit)

    def _exit_when_done(self) -> None:
        """No sync call runs any more: leave when the async ones have ended, or when the grace is over."""
        if self._tasks:
            self._loop.call_later(0.01, self._exit_when_done)
        else:
            self._exit()

    def _exit(self) -> None:
        self._flush()
        if self._link is not None:
            self._link.close()
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        try:
            atexit._run_exitfuncs()
            self._streams.flush()
        finally:
            os._exit(0)


def _complain(text: str, error: BaseException) -> None:
    """Log the error; never raises, whatever the user's logging does."""
    try:
        logger.error(text, exc_info=error)
    except BaseException:
        os.write(2, f"aiocluster: {text}\n{traceback.format_exc()}".encode(errors="backslashreplace"))


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # where uvloop does not exist
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
