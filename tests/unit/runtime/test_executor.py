"""Interrupts and wake-ups of the executing threads, at every moment at which they may come.

A trace function stops the thread before each single step of the code in question, in one run after the other, and does there
what another thread might do: what a race does once in a million runs happens in one of these for certain.
"""

from __future__ import annotations

import itertools
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import pytest

from aiocluster.core.inbox import ArrivedCall, Inbox
from aiocluster.runtime import current, executor
from aiocluster.runtime.executor import Executor, Runner
from aiocluster.runtime.invoke import Functions, Invoker, Outcome
from aiocluster.wire.messages import Calls, CallStatus

SAFETY_S = 30.0
"""A safety net: nothing is expected to take any time."""


class Bench:
    """An executor whose calls run on stand-ins, as if the main thread waited for another call; no worker around it."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.functions = Functions()
        self.outcomes: dict[int, Outcome] = {}
        self.reports: list[tuple[int, bool]] = []
        self._changed = threading.Condition()
        self._ends = 0
        self._invoker = Invoker(self.functions, memoryview(bytearray(64)).cast("Q"), lambda _id: None)
        self.executor = Executor(
            self.inbox, self._execute, lambda call, waits: self.reports.append((call.id, waits)), self._ended
        )
        self._next = 1
        self._known_threads = set(threading.enumerate())

    def _execute(self, runner: Runner, call: ArrivedCall) -> None:
        outcome = self._invoker.run(runner, call)
        sys.settrace(None)
        self.inbox.finish(call)
        with self._changed:
            self.outcomes[call.id] = outcome
            self._changed.notify_all()

    def _report(self, call: ArrivedCall, waits: bool) -> None:
        self.reports.append((call.id, waits))

    def _ended(self) -> None:
        with self._changed:
            self._ends += 1
            self._changed.notify_all()

    def submit(self, function: Callable[[], Any]) -> ArrivedCall:
        id, self._next = self._next, self._next + 1
        self.functions.loaded[id] = function
        self.inbox.receive(Calls(id, [id], [id], bytes(1), [pickle.dumps(())], [], [], []), ())
        call = self.inbox.held[id]
        self.executor.wake()
        return call

    def cancel(self, call: ArrivedCall) -> None:
        """What the loop's thread does when the manager cancels a call."""
        started = self.inbox.cancel(call.id)
        if started is not None:
            self.executor.interrupt(started)

    def outcome(self, call: ArrivedCall) -> Outcome:
        with self._changed:
            assert self._changed.wait_for(lambda: call.id in self.outcomes, SAFETY_S), f"call {call.id} never ended"
        return self.outcomes[call.id]

    def no_place_is_lost_or_doubled(self) -> bool:
        """For when no call waits: who is no spare is active, and knows of all others who are."""
        with self.executor._lock:
            stand_ins = set(threading.enumerate()) - self._known_threads
            return len(stand_ins) - len(self.executor._spares) == self.executor._active

    def stop(self) -> None:
        self.executor.stop()
        with self._changed:
            assert self._changed.wait_for(lambda: self._ends > 0, SAFETY_S), "no runner holds the place"


@contextmanager
def bench() -> Iterator[Bench]:
    known = set(current.runners)
    one = Bench()
    one.executor._hand_over()
    try:
        yield one
    finally:
        one.stop()
        for id in set(current.runners) - known:
            del current.runners[id]


def guard_is_held() -> bool:
    return current.runners[threading.get_ident()].guard.locked()


class Interrupter:
    """Interrupts a call of this thread before one step of some code, and raises what that leads to some steps later.

    It stands in for the interpreter, which raises such an exception at a step of its own choice: never between the
    body of a `with` and its end, and at a checkpoint for certain.
    """

    def __init__(self, codes: set[CodeType], interrupt: Callable[[], None], *, at: int, after: int) -> None:
        self._codes = codes
        self._interrupt = interrupt
        self._at = at
        self._after = after
        self._step = 0
        self.pending: type[BaseException] | None = None

    @property
    def has_begun(self) -> bool:
        return self._step > self._at

    def set_exception(self, _thread_id: int, kind: type[BaseException] | None) -> None:
        self.pending = kind

    def begin(self) -> None:
        """Count steps of the functions that are being called, and of those that will be."""
        sys.settrace(self._enter)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code in self._codes:
                frame.f_trace, frame.f_trace_opcodes = self._before_step, True
            frame = frame.f_back

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code not in self._codes:
            return None
        frame.f_trace_opcodes = True
        if frame.f_code is executor._checkpoint.__code__:
            self._after = 0
        return self._before_step

    def _before_step(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event != "opcode":
            return self._before_step
        if self._step == self._at:
            self._interrupt()
        self._step += 1
        if self.pending is not None and self._step > self._at + self._after and not guard_is_held():
            kind, self.pending = self.pending, None
            raise kind
        return self._before_step


MOMENTS = {
    "waits": {Executor.wait_away.__code__, Executor._hand_over.__code__, Runner.shield.__code__, Runner.expose.__code__},
    "ends": {Invoker.run.__code__, Invoker._plain.__code__, Runner.shield.__code__},
}


@pytest.mark.leaves_behind("threads")  # stand-ins wait for work as long as their process lives
@pytest.mark.parametrize("after", [*range(0, 100, 10), 1000])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_at_any_step_costs_no_place_and_no_outcome(moment: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: set[int] = set()
    for number in itertools.count():
        with bench() as here:

            def interrupt(here: Bench = here) -> None:
                runner = current.runners[threading.get_ident()]
                assert runner.call is not None
                if not runner.guard.locked():  # else who interrupts waits, and does with a later step what it does
                    here.cancel(runner.call)

            interrupter = Interrupter(MOMENTS[moment], interrupt, at=number, after=after)
            monkeypatch.setattr(executor, "_set_async_exception", interrupter.set_exception)

            def function(here: Bench = here, interrupter: Interrupter = interrupter) -> str:
                interrupter.begin()
                if moment == "waits":
                    here.executor.wait_away(lambda: None)
                return "done"

            call = here.submit(function)
            outcome = here.outcome(call)
            statuses.add(outcome.status)
            assert interrupter.pending is None, "it would hit the next call"
            assert [waits for id, waits in here.reports if id == call.id] in ([], [True, False])
            other = here.submit(lambda: "unharmed")
            assert pickle.loads(here.outcome(other).payload) == "unharmed"
            assert here.no_place_is_lost_or_doubled()
        if not interrupter.has_begun:
            assert number > 20, "the steps were counted"
            break
    assert statuses <= {CallStatus.OK, CallStatus.CANCELLED}
    assert CallStatus.OK in statuses, "the one that was not interrupted"


@pytest.mark.leaves_behind("threads")  # likewise
@pytest.mark.parametrize("after", [0, 10, 20, 30])
def test_a_step_of_the_runtime_is_done_whole_or_not_at_all(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: set[int] = set()
    for number in itertools.count():
        done: list[int] = []

        def step(done: list[int] = done) -> None:
            done.append(1)
            done.append(2)

        with bench() as here:

            def interrupt(here: Bench = here) -> None:
                runner = current.runners[threading.get_ident()]
                assert runner.call is not None
                if not runner.guard.locked():
                    here.cancel(runner.call)

            runner_codes = {Runner.shield.__code__, Runner.expose.__code__, Runner.settle.__code__, executor._checkpoint.__code__}
            codes = {step.__code__, Executor.uninterrupted.__code__, *runner_codes}
            interrupter = Interrupter(codes, interrupt, at=number, after=after)
            monkeypatch.setattr(executor, "_set_async_exception", interrupter.set_exception)

            def function(here: Bench = here, interrupter: Interrupter = interrupter, step: Callable[[], None] = step) -> None:
                interrupter.begin()
                here.executor.uninterrupted(step)

            statuses.add(here.outcome(here.submit(function)).status)
        assert done in ([], [1, 2])
        if not interrupter.has_begun:
            assert number > 20, "the steps were counted"
            break
    assert statuses == {CallStatus.OK, CallStatus.CANCELLED}


def test_wake_ups_by_several_threads_at_once_are_one() -> None:
    """Each waker is stopped before every step, and another one goes through there."""
    for number in itertools.count():
        here = Bench()
        one = here.executor
        one._idle = True

        def other(one: Executor = one) -> None:
            one._idle = True  # as the first waker found it
            one.wake()

        interrupter = Interrupter({Executor.wake.__code__}, other, at=number, after=0)
        interrupter.begin()
        try:
            one.wake()
        finally:
            sys.settrace(None)
        assert one._wake.acquire(blocking=False), "the sleeper wakes up"
        assert not one._wake.acquire(blocking=False), "once"
        if not interrupter.has_begun:
            assert number > 5, "the steps were counted"
            break
