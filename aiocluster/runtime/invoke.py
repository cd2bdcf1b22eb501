"""Runs the user's functions on a worker and turns what comes of it into bytes.

Everything here holds for one call alone: whatever a function, its arguments or its result do, the outcome is a status and a
payload, and the worker goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pickle import dumps, loads
from time import perf_counter_ns
from typing import Any, NamedTuple

from aiocluster.core.inbox import ArrivedCall
from aiocluster.errors import RemoteError
from aiocluster.runtime import current, forked
from aiocluster.runtime.executor import Runner
from aiocluster.runtime.recorder import ITEM, ITEM_BITS, SYNC_FINISHED, SYNC_STARTED
from aiocluster.wire.functions import load_function
from aiocluster.wire.messages import CallStatus, Mode
from aiocluster.wire.payloads import pack, pack_error, unpack

__all__ = ["Functions", "Invoker", "Outcome"]

OK, ERROR, CANCELLED, OK_PARTLY = CallStatus.OK, CallStatus.ERROR, CallStatus.CANCELLED, CallStatus.OK_PARTLY
CHUNK, STAR, KEEP_GOING = Mode.CHUNK, Mode.STAR, Mode.KEEP_GOING
_SLOT_MASK = 2**64 - 1
_new = tuple.__new__
SMALL = (int, float, bool, type(None))
"""Results of these very types need no look at what they refer to."""


class Outcome(NamedTuple):
    """How one call ended. `ns` is how long its function ran, 0 where it did not; `items` how often."""

    id: int
    status: int
    payload: bytes
    buffers: Sequence[Any]
    function: int
    items: int
    ns: int


class Functions:
    """The functions that this worker has been sent; each is loaded when it is first called."""

    def __init__(self) -> None:
        self._payloads: dict[int, tuple[bytes, str]] = {}
        self.loaded: dict[int, Callable[..., Any]] = {}

    def add(self, id: int, payload: bytes, name: str) -> None:
        self._payloads[id] = (payload, name)

    def drop(self, id: int) -> None:
        self._payloads.pop(id, None)
        self.loaded.pop(id, None)

    def load(self, id: int) -> Callable[..., Any]:
        """The function. Raises what loading it raises, with a note on what to try."""
        try:
            payload, name = self._payloads[id]
        except KeyError:
            raise RemoteError("aiocluster.ProtocolError", f"function {id} was never sent to this worker") from None
        try:
            function = load_function(payload)
        except Exception as error:
            error.add_note(
                f"the function {name} could not be loaded on the worker: is its module installed there, in the same version?"
            )
            raise
        self.loaded[id] = function
        return function


class Invoker:
    """Executes calls: sync ones in the runner's thread, async ones as coroutines of the loop."""

    def __init__(self, functions: Functions, slots: memoryview, call_ended: Callable[[int], None]) -> None:
        self._functions = functions
        self._loaded = functions.loaded
        self._slots = slots
        self._call_ended = call_ended

    def run(self, runner: Runner, call: ArrivedCall) -> Outcome:
        """Execute a sync call. The flight recorder knows of its start before its code runs, and of its end after."""
        slots = self._slots
        mode = call.mode
        if mode & CHUNK:
            slots[ITEM] = _item_mark(call)
        slots[SYNC_STARTED] = call.serial
        outcome: Outcome | None = None
        try:
            outcome = self._chunk(runner, call) if mode & CHUNK else self._plain(runner, call)
            if forked.child:
                forked.leave()
            if call.cancelled:
                runner.shield()
        except asyncio.CancelledError:  # the interrupt came while the call was being wound up: see `Runner` for why no other can
            if outcome is None:
                outcome = _without_value(call, CANCELLED)
        self._call_ended(call.id)
        return outcome

    def _plain(self, runner: Runner, call: ArrivedCall) -> Outcome:
        began = 0
        try:
            function = self._loaded.get(call.function) or self._functions.load(call.function)
            arguments = loads(call.payload) if not call.buffers else unpack(call.payload, call.buffers)
            began = perf_counter_ns()
            runner.interruptible = True
            if call.cancelled:
                raise asyncio.CancelledError
            plain = arguments.__class__ is tuple
            value = function(*arguments) if plain else function(*arguments[0], **arguments[1])
            runner.interruptible = False
            ns = perf_counter_ns() - began
            if value.__class__ in SMALL:
                return _new(Outcome, (call.id, OK, dumps(value, 5), (), call.function, 1, ns))  # half of what calling it takes
            payload, buffers = pack(value)
            return Outcome(call.id, OK, payload, buffers, call.function, 1, ns)
        except BaseException as error:
            runner.interruptible = False
            if forked.child:
                forked.leave(error)
            return _failed(call, error, perf_counter_ns() - began if began else 0)

    def _chunk(self, runner: Runner, call: ArrivedCall) -> Outcome:
        slots = self._slots
        values: list[Any] = []
        errors: dict[int, bytes] = {}
        keep = values.append
        mark = _item_mark(call)
        try:
            function = self._loaded.get(call.function) or self._functions.load(call.function)
            items = iter(unpack(call.payload, call.buffers))
            began = perf_counter_ns()
            runner.interruptible = True
            if call.cancelled:
                raise asyncio.CancelledError
            while True:
                try:
                    if call.mode & STAR:
                        for item in items:
                            if call.cancelled:  # the item before has caught the interrupt
                                raise asyncio.CancelledError
                            mark += 1
                            slots[ITEM] = mark
                            keep(function(*item))
                            if forked.child:
                                forked.leave()
                    else:
                        for item in items:
                            if call.cancelled:  # the item before has caught the interrupt
                                raise asyncio.CancelledError
                            mark += 1
                            slots[ITEM] = mark
                            keep(function(item))
                            if forked.child:
                                forked.leave()
                    break
                except BaseException as error:
                    if forked.child:
                        forked.leave(error)
                    if call.cancelled and _cancels(error):
                        raise
                    errors[len(values)] = pack_error(error)
                    keep(None)
                    if not call.mode & KEEP_GOING:
                        break
            runner.interruptible = False
            return _chunk_outcome(call, values, errors, perf_counter_ns() - began)
        except BaseException as error:
            runner.interruptible = False
            if forked.child:
                forked.leave(error)
            return _failed(call, error, 0)

    async def run_async(self, call: ArrivedCall) -> Outcome:
        """Execute an async call, or all items of an async chunk side by side."""
        call.entered = True
        if call.cancelled:
            return _without_value(call, CANCELLED)
        current.async_call.set(call)
        began = perf_counter_ns()
        try:
            function = self._loaded.get(call.function) or self._functions.load(call.function)
            arguments = unpack(call.payload, call.buffers)
            began = perf_counter_ns()
            if call.mode & CHUNK:
                errors: dict[int, bytes] = {}
                items = [forked.Steps(_item(call, function, item, index, errors)) for index, item in enumerate(arguments)]
                values = await asyncio.gather(*items, return_exceptions=True)  # which waits for all, also when it is cancelled
                return _chunk_outcome(call, values, errors, perf_counter_ns() - began)
            if arguments.__class__ is tuple:
                value = await function(*arguments)
            else:
                value = await function(*arguments[0], **arguments[1])
            if forked.child:
                forked.leave()
            ns = perf_counter_ns() - began
            payload, buffers = pack(value)
            return Outcome(call.id, OK, payload, buffers, call.function, 1, ns)
        except BaseException as error:
            if forked.child:
                forked.leave(error)
            return _failed(call, error, perf_counter_ns() - began)
        finally:
            self._call_ended(call.id)

    def finished(self, call: ArrivedCall) -> None:
        """The outcome of a sync call is safe: the flight recorder may forget that it runs."""
        if call.serial > self._slots[SYNC_FINISHED]:  # one that waited for another may end after later ones
            self._slots[SYNC_FINISHED] = call.serial


async def _item(call: ArrivedCall, function: Callable[..., Any], item: Any, index: int, errors: dict[int, bytes]) -> Any:
    """One item of an async chunk. No exception leaves it but the cancelling of the chunk."""
    try:
        value = await (function(*item) if call.mode & STAR else function(item))
        if forked.child:
            forked.leave()
        return value
    except BaseException as error:
        if forked.child:
            forked.leave(error)
        if call.cancelled and _cancels(error):
            raise
        errors[index] = pack_error(error)
        return None


def _item_mark(call: ArrivedCall) -> int:
    """What the flight recorder says of a chunk of which no item has started; one more for each that has.

    The call is a part of it, as another chunk may run beside this one, on a stand-in thread.
    """
    return call.serial << ITEM_BITS & _SLOT_MASK


def _cancels(error: BaseException) -> bool:
    return issubclass(type(error), asyncio.CancelledError)  # `isinstance` would also ask the error itself, which may do anything


def _without_value(call: ArrivedCall, status: int) -> Outcome:
    return Outcome(call.id, status, b"", (), call.function, 0, 0)


def _failed(call: ArrivedCall, error: BaseException, ns: int) -> Outcome:
    if call.cancelled and _cancels(error):
        return _without_value(call, CANCELLED)
    return Outcome(call.id, ERROR, pack_error(error), (), call.function, 1 if ns else 0, ns)


def _chunk_outcome(call: ArrivedCall, values: list[Any], errors: dict[int, bytes], ns: int) -> Outcome:
    """A chunk's values as one payload: `(ns, values)`, or `(ns, values, errors by index)` if some items failed."""
    count = len(values)
    try:
        payload, buffers = pack((ns, values, errors) if errors else (ns, values))
    except Exception:
        # One value that cannot travel must not cost the others: find it.
        for index, value in enumerate(values):
            try:
                pack(value)
            except Exception as error:
                errors[index] = pack_error(error)
                values[index] = None
        payload, buffers = pack((ns, values, errors))
    return Outcome(call.id, OK_PARTLY if errors else OK, payload, buffers, call.function, count, ns)
