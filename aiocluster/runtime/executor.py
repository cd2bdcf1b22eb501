"""Executes sync calls, one at a time, on the main thread of a worker, where a signal can interrupt them.

A call that waits for another one gives its place away: a stand-in thread takes over the inbox until the waiting call goes on.

    main:      call A ── waits for B ───────────── goes on with A, then call D
    stand-in:                        call B ── call C ── steps back
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from aiocluster.core.inbox import ArrivedCall, Inbox
from aiocluster.runtime import current

__all__ = ["INTERRUPT_SIGNAL", "Executor", "Runner"]

INTERRUPT_SIGNAL = signal.SIGURG
"""Ignored by default, so that one that comes early or late does no harm, and used by next to nobody."""

KEEP_SPARES = 8

T = TypeVar("T")


class Runner:
    """One thread that executes calls.

    Code of a call may be interrupted anywhere, code of the runtime nowhere: a place that was given up and not handed over, or an
    outcome that was not sent, would be lost for ever. The rules that keep the two apart:

    - `interruptible` becomes True on this thread only, and before it is asked whether the call was cancelled. Who interrupts
      marks the call as cancelled before it looks at `interruptible`. So one of the two sees the other: no interrupt is lost.
    - Interrupting makes it False, on the main thread within the signal handler, else under the `guard` and together with
      raising. So no more than one interrupt is under way.
    - Before the runtime goes on, `interruptible` becomes False, and if the call was cancelled `shield` has to return. On a
      stand-in it waits at the guard for an interrupt that has begun and takes back the exception if it has not been raised yet.
    - An exception that is raised before `shield` has returned leaves it, or what ran before it, as if the call's code had raised
      it. That was the one that was under way: whoever catches it needs no shield.
    """

    __slots__ = ("call", "guard", "interruptible", "is_main", "lock", "thread_id")

    def __init__(self, *, is_main: bool) -> None:
        self.is_main = is_main
        self.thread_id = 0
        self.call: ArrivedCall | None = None
        """The call whose code runs on this thread."""
        self.interruptible = False
        """True while an exception may be raised into the call's code from outside."""
        self.guard = threading.Lock()
        """Held while an exception is raised into a stand-in, or taken back."""
        self.lock = threading.Lock()
        """Released to hand the place to this runner."""
        self.lock.acquire()

    def interrupt(self, call: ArrivedCall) -> None:
        """Raise `CancelledError` in the code of the call, which is marked as cancelled; nothing happens if it does not run."""
        if self.is_main:
            signal.pthread_kill(self.thread_id, INTERRUPT_SIGNAL)
            return
        with self.guard:
            if self.call is call and self.interruptible:
                self.interruptible = False
                # Reaches Python code only: a stand-in that blocks in C goes on until it returns.
                _set_async_exception(self.thread_id, asyncio.CancelledError)

    def expose(self, call: ArrivedCall) -> None:
        """The call's code runs from now on. Raises `CancelledError` if it was cancelled before."""
        self.interruptible = True
        if call.cancelled:
            self.shield()
            raise asyncio.CancelledError("the call was cancelled")

    def shield(self) -> None:
        """When this has returned, no interrupt is under way and none can begin."""
        self.interruptible = False
        if not self.is_main:
            with self.guard:
                _set_async_exception(self.thread_id, None)

    def settle(self) -> None:
        """For when no interrupt can begin: if there is one under way, it leaves this as an exception."""
        if not self.is_main:
            with self.guard:
                pass  # who interrupts has done so
            _checkpoint()


def _checkpoint() -> None:
    """Raises what is under way to this thread: the interpreter looks for that whenever a function begins."""


def _set_async_exception(thread_id: int, kind: type[BaseException] | None) -> None:
    """Have the thread raise this before its next step in Python code; None takes back what it has not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None if kind is None else ctypes.py_object(kind))


class Executor:
    """The runners of one worker and the place that they hand around.

    Args:
        execute: executes one call and sends its outcome on its way.
        report: called with a call and whether it waits (True) or computes again (False).
        stopped: called, in an executing thread, when the active runner has stopped.
    """

    def __init__(
        self,
        inbox: Inbox,
        execute: Callable[[Runner, ArrivedCall], None],
        report: Callable[[ArrivedCall, bool], None],
        stopped: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._execute = execute
        self._report = report
        self._stopped = stopped
        self._wake = threading.Lock()
        self._wake.acquire()
        self._idle = False
        self._stopping = False
        self._lock = threading.Lock()
        self._active = 1
        """Runners that compute or wait for calls; more than one only until the others' calls have ended."""
        self._spares: list[Runner] = []
        self._main = Runner(is_main=True)

    # --- from the loop's thread ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something has changed that the active runner should look at. Any thread may say so, and several at once."""
        if self._idle:
            self._idle = False
            try:
                self._wake.release()
            except RuntimeError:
                pass  # it is released: another wake-up has not been taken yet, and the look that follows it serves for both

    def stop(self) -> None:
        """Begin no more calls; `stopped` is called when the one that runs now has ended."""
        self._stopping = True
        self.wake()

    @property
    def has_stand_in(self) -> bool:
        """True if a stand-in executes a call, or did while its caller waited: no signal reaches it there."""
        return self._main in self._spares or self._active > 1

    def interrupt(self, call: ArrivedCall) -> None:
        """Raise `CancelledError` in the code of a started sync call, which is marked as cancelled; nothing if it has ended."""
        runner = call.runner
        if isinstance(runner, Runner) and runner.call is call:
            runner.interrupt(call)

    # --- from the executing threads --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Execute calls on the main thread; never returns: who owns the process ends it."""
        main = self._main
        main.thread_id = threading.get_ident()
        current.runners[main.thread_id] = main
        signal.signal(INTERRUPT_SIGNAL, self._on_signal)
        self._serve(main)
        while True:
            signal.pause()

    def _on_signal(self, _number: int, _frame: Any) -> None:
        runner = self._main
        if runner.interruptible and runner.call is not None and runner.call.cancelled:
            runner.interruptible = False
            raise asyncio.CancelledError("the call was cancelled")

    def _serve(self, runner: Runner) -> None:
        take = self._inbox.take
        while True:
            if self._active > 1 or (not runner.is_main and self._main in self._spares):
                if not self._step_back(runner):
                    return
                continue
            if self._stopping:
                self._stopped()
                return
            call = take()
            if call is None:
                self._sleep()
                continue
            call.runner = runner
            runner.call = call
            self._execute(runner, call)
            runner.call = None

    def _sleep(self) -> None:
        """Wait until there is something to do. The flag is set before the last look, so no wake-up is lost."""
        self._idle = True
        if self._idle and (self._inbox.waiting or self._active > 1 or self._stopping):
            self._idle = False
            return
        self._wake.acquire()

    def _step_back(self, runner: Runner) -> bool:
        """Leave the inbox to another runner and become a spare. False if there are spares enough."""
        with self._lock:
            if self._active > 1:
                self._active -= 1
            elif not runner.is_main and self._main in self._spares:
                self._spares.remove(self._main)
                self._main.lock.release()
            else:
                return True
            if not runner.is_main and len(self._spares) >= KEEP_SPARES:
                current.runners.pop(runner.thread_id, None)
                return False
            self._spares.append(runner)
        runner.lock.acquire()
        return True

    def wait_away(self, wait: Callable[[], None]) -> None:
        """Call `wait` (which blocks) while another runner has the place.

        For the thread of a running sync call only. `wait` must return when the call is cancelled. The call goes on as soon as
        `wait` returns; a call that another runner has begun meanwhile ends beside it, and no further one is begun.

        Raises:
            CancelledError: the call was cancelled while it waited.
        """
        runner = current.runners[threading.get_ident()]
        call = runner.call
        assert call is not None
        was_interruptible = runner.interruptible  # False after an interrupt: there is one, and code that cleans up may wait
        runner.shield()
        with self._lock:
            if self._active > 1:
                self._active -= 1
            else:
                self._hand_over()  # if that fails, the place is still this runner's
        self._report(call, True)
        try:
            wait()
        finally:
            with self._lock:
                self._active += 1
            self.wake()
            self._report(call, False)
            if was_interruptible:
                runner.expose(call)
        if call.cancelled:
            raise asyncio.CancelledError("the call was cancelled")

    def uninterrupted(self, step: Callable[[], T]) -> T:
        """Run a step of the runtime's that the code of a call has asked for; an interrupt meanwhile is raised after it."""
        runner = current.runners.get(threading.get_ident())
        call = None if runner is None else runner.call
        if runner is None or call is None:
            return step()
        if not runner.interruptible:
            runner.settle()
            return step()
        runner.shield()
        try:
            return step()
        finally:
            runner.expose(call)

    def _hand_over(self) -> None:
        """Make another runner the active one, the main thread if it can be had."""
        if self._main in self._spares:
            self._spares.remove(self._main)
            self._main.lock.release()
        elif self._spares:
            self._spares.pop().lock.release()
        else:
            stand_in = Runner(is_main=False)
            threading.Thread(target=self._stand_in, args=(stand_in,), name="aiocluster stand-in", daemon=True).start()

    def _stand_in(self, runner: Runner) -> None:
        runner.thread_id = threading.get_ident()
        current.runners[runner.thread_id] = runner
        try:
            self._serve(runner)
        except (
            BaseException
        ):  # the place would be lost with this thread: better the worker is, as where it happens to the main one
            os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
            os._exit(1)
