"""Nested calls: what a call submits from its worker travels to the manager, which places it like any other.

An `async def` call awaits a nested future on the loop. A sync call asks it for its `result()`, which blocks the thread and
gives the worker's place away meanwhile, so that nested calls cannot deadlock however deep they go.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from aiocluster.core.calls import CallOptions
from aiocluster.core.inbox import ArrivedCall
from aiocluster.runtime import current, forked
from aiocluster.runtime.executor import Executor
from aiocluster.runtime.futures import Future, gather_by_worker
from aiocluster.wire.frames import BUFFERS_AT_ONCE, PAYLOADS_AT_ONCE_BYTES
from aiocluster.wire.functions import CapturedFunction, FunctionCapture
from aiocluster.wire.messages import (
    Answer,
    Ask,
    CallStatus,
    CancelCalls,
    DropFunctions,
    Functions,
    Message,
    Mode,
    Outcomes,
    Submit,
)
from aiocluster.wire.payloads import pack, pack_error, unpack_error

__all__ = ["BlockingFuture", "NestedBackend"]

T = TypeVar("T")

FUNCTIONS_KEPT = 1024
COUNT_HOLDS_S = 1.0
"""So old may the number of workers be that a map goes by: it says how much to pull ahead, and never decides who takes a call."""


class NestedCall:
    """One call that this worker waits for."""

    __slots__ = ("buffers", "function", "handle", "id", "mode", "options", "parent", "payload", "worker_id")

    def __init__(self, id: int, handle: Any) -> None:
        self.id = id
        self.handle = handle
        self.worker_id: int | None = None
        self.parent = 0
        self.function: CapturedFunction
        self.mode = 0
        self.payload = b""
        self.buffers: Sequence[Any] = ()
        self.options: dict[str, Any] = {}


class BlockingFuture(Future[T]):
    """The future of a nested call that was made in a sync call: `result()` waits, and yields the worker's place."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> T:
        """The call's result, waiting for it as long as it takes, or `timeout` seconds.

        Raises: what the call raised; `TimeoutError` if `timeout` passed (the call goes on); `CancelledError` if the
            calling call was cancelled, which cancels the nested one too.
        """
        self._wait(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The call's exception or None, waiting as `result` does."""
        self._wait(timeout)
        return super().exception()

    def cancel(self, msg: Any | None = None, *, force: bool = False) -> bool:
        backend = self._backend
        assert isinstance(backend, NestedBackend)
        if backend.in_loop_thread():
            return super().cancel(msg, force=force)
        if self.done() and not (force and self.cancelled()):
            return False
        done = self.done()
        super().get_loop().call_soon_threadsafe(lambda: Future.cancel(self, msg, force=force))
        return not done

    def _wait(self, timeout: float | None) -> None:
        backend = self._backend
        assert isinstance(backend, NestedBackend)
        if not self.done() and not backend.in_loop_thread():
            backend.block_until(self, timeout)


class NestedBackend:
    """The backend of the public API inside calls. `submit` works in any thread, the rest in the loop's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        send: Callable[[Message, Sequence[Any]], None],
        cluster_id: str,
    ) -> None:
        self.cluster_id = cluster_id
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._executor = executor
        self._send = send
        self._capture = FunctionCapture()
        self._functions: OrderedDict[bytes, int] = OrderedDict()
        """Numbers of the functions that the manager has been sent, by hash, the longest unused first."""
        self._next_function = 1
        self._next_id = 1
        self._id_lock = threading.Lock()
        self._calls: dict[int, NestedCall] = {}
        self._unsent: deque[NestedCall] = deque()
        self._flush_due = False
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._blocked: dict[ArrivedCall, threading.Event] = {}
        self._worker_count = 1
        self._counted_at = -COUNT_HOLDS_S
        self._counting: asyncio.Task[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def in_loop_thread(self) -> bool:
        return threading.get_ident() == self._loop_thread

    # --- the public API's side -------------------------------------------------------------------------------------------

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> Future[Any]:
        kind = Future if self.in_loop_thread() else BlockingFuture
        future: Future[Any] = kind.of(self)
        try:
            function = self.capture(fn)
            payload, buffers = pack([args, dict(kwargs)] if kwargs else args)
        except Exception as error:
            self._soon(future.fail, error)
            return future
        future._call = self.send(function, payload, buffers, options, future, mode=0, items=1, deadline=None, kills=0)
        return future

    def capture(self, fn: Callable[..., Any]) -> CapturedFunction:
        return self._capture.capture(fn)

    def send(
        self,
        function: CapturedFunction,
        payload: bytes,
        buffers: Sequence[Any],
        options: CallOptions,
        handle: Any,
        *,
        mode: int,
        items: int,
        deadline: float | None,
        kills: int,
    ) -> NestedCall:
        forked.refuse()
        with self._id_lock:
            id = self._next_id
            self._next_id += 1
        call = NestedCall(id, handle)
        parent = current.running_call()
        call.parent = 0 if parent is None else parent.id
        call.function = function
        call.mode = mode | (Mode.ASYNC if function.is_async else 0)
        call.payload, call.buffers = payload, buffers
        call.options = _option_row(options)
        if items != 1:
            call.options["items"] = items
        if kills:
            call.options["kills"] = kills
        if deadline is not None:
            call.options["left_s"] = max(0.0, deadline - self._loop.time())
        self._executor.uninterrupted(lambda: self._enqueue(call))
        return call

    def _enqueue(self, call: NestedCall) -> None:
        self._calls[call.id] = call
        self._unsent.append(call)
        if not self._flush_due:
            self._flush_due = True
            self._soon(self._flush)

    def withdraw(self, call: NestedCall, *, force: bool = False) -> None:
        if self._calls.pop(call.id, None) is not None or force:
            call.handle = None
            self._flush()
            self._send(CancelCalls([call.id], force), ())

    def estimate_s(self, function: CapturedFunction) -> float | None:
        return None

    async def prepare_map(self) -> None:
        if self._count_is_old:
            await self._count_workers()

    def worker_count(self) -> int:
        """How many there were lately; a map that runs for long asks again and again, and is never kept waiting for it."""
        if self._count_is_old and self._counting is None:
            self._counting = self._loop.create_task(self._count_workers(), name="aiocluster count of workers")
            self._counting.add_done_callback(self._counted)
        return self._worker_count

    @property
    def _count_is_old(self) -> bool:
        return self._loop.time() >= self._counted_at + COUNT_HOLDS_S

    async def _count_workers(self) -> None:
        self._worker_count = int(await self.ask("worker_count", []))
        self._counted_at = self._loop.time()

    def _counted(self, _task: asyncio.Task[None]) -> None:
        self._counting = None

    def worker_of(self, call: NestedCall) -> int | None:
        return call.worker_id

    def run_blocking(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a coroutine of the loop in a sync call; the worker's place is free meanwhile."""
        if self.in_loop_thread():
            work.close()
            raise TypeError("in an `async def` call a map is awaited, or iterated with `async for`")
        call = current.call_of_thread()
        outcome: BlockingFuture[Any] = BlockingFuture.of(self)
        try:
            self._executor.uninterrupted(lambda: self._bridge(work, call, outcome))
            return outcome.result()
        except asyncio.CancelledError:
            outcome.cancel()
            raise

    def _bridge(self, work: Coroutine[Any, Any, Any], call: ArrivedCall | None, future: BlockingFuture[Any]) -> None:
        """Run the coroutine on behalf of a sync call, and let the future, which can be waited for there, have its outcome."""
        context = contextvars.copy_context()
        context.run(current.async_call.set, call)

        def start() -> None:
            task = self._loop.create_task(work, name="aiocluster nested", context=context)
            future.add_done_callback(lambda _: task.cancel() if future.cancelled() else None)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[Any]) -> None:
            if future.done():
                return
            if task.cancelled():
                Future.cancel(future)
            elif (error := task.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())

        self._loop.call_soon_threadsafe(start)

    async def everywhere(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        on_join: bool,
    ) -> dict[int, Any]:
        if on_join:
            raise ValueError("on_join=True is for the manager's program: a call on a worker does not outlive its cluster")
        function = self.capture(fn)
        payload, buffers = pack([args, dict(kwargs)] if kwargs else args)
        ids = [row[0] for row in await self.ask("workers", [])]
        if options.workers is not None:
            ids = [id for id in ids if id in options.workers]
        futures: dict[int, Future[Any]] = {}
        for id in ids:
            future: Future[Any] = Future.of(self)
            future._call = self.send(
                function,
                payload,
                buffers,
                replace(options, workers=frozenset((id,))),
                future,
                mode=0,
                items=1,
                deadline=None,
                kills=0,
            )
            futures[id] = future
        return await gather_by_worker(futures)

    async def logs(self, call: NestedCall) -> list[str]:
        lines = await self.ask("logs", [call.id])
        return list(lines)

    async def ask(self, method: str, arguments: list[Any]) -> Any:
        """The manager's answer to a question about the cluster; plain data."""
        forked.refuse()
        with self._id_lock:
            request = self._next_id
            self._next_id += 1
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._answers[request] = answer
        self._send(Ask(request, method, arguments), ())
        try:
            return await answer
        finally:
            self._answers.pop(request, None)

    def block_until(self, future: Future[Any], timeout: float | None) -> None:
        """Block this thread until the future is done; the worker's place is free meanwhile.

        Raises: `TimeoutError`, `CancelledError`; a cancelled caller cancels the nested call as well.
        """
        forked.refuse()
        done = threading.Event()
        caller = current.call_of_thread()
        if caller is None:  # a thread of the user's own holds no place
            self._soon(future.add_done_callback, lambda _: done.set())
            if not done.wait(timeout):
                raise TimeoutError(f"no result within {timeout} s")
            return
        in_time = True

        def wait() -> None:
            nonlocal in_time
            self._blocked[caller] = done
            if not caller.cancelled:
                in_time = done.wait(timeout)
            self._blocked.pop(caller, None)

        try:
            self._executor.uninterrupted(lambda: self._soon(future.add_done_callback, lambda _: done.set()))
            self._executor.wait_away(wait)
        except asyncio.CancelledError:
            future.cancel()
            raise
        if not in_time and not future.done():
            raise TimeoutError(f"no result within {timeout} s")

    # --- the worker's side, in the loop's thread ---------------------------------------------------------------------------

    def caller_cancelled(self, call: ArrivedCall) -> bool:
        """Wake the call if it blocks in a nested `result()`. True if it did."""
        event = self._blocked.get(call)
        if event is not None:
            event.set()
        return event is not None

    def outcomes(self, message: Outcomes, buffers: Sequence[Any]) -> None:
        """Nested calls ended."""
        shares: dict[int, Sequence[Any]] = {}
        start = 0
        for index, count in message.buffers:
            shares[index] = buffers[start : start + count]
            start += count
        rows = zip(message.ids, message.statuses, message.payloads, message.workers, strict=True)
        for index, (id, status, payload, worker_id) in enumerate(rows):
            call = self._calls.pop(id, None)
            if call is not None:
                call.worker_id = worker_id or None
                handle, call.handle = call.handle, None
                handle.resolve(status, payload, shares.get(index, ()), worker_id)

    def answered(self, message: Answer) -> None:
        answer = self._answers.pop(message.request, None)
        if answer is not None and not answer.done():
            if message.ok:
                answer.set_result(message.value)
            else:
                answer.set_exception(unpack_error(message.error))

    def _soon(self, callback: Callable[..., Any], *args: Any) -> None:
        if self.in_loop_thread():
            self._loop.call_soon(callback, *args)
        else:
            self._loop.call_soon_threadsafe(callback, *args)

    def _flush(self) -> None:
        """Send all calls made since the last time, and before them the functions that the manager has not seen."""
        self._flush_due = False
        while self._unsent:
            calls: list[NestedCall] = []
            buffers = payloads = 0
            while self._unsent and buffers < BUFFERS_AT_ONCE and payloads < PAYLOADS_AT_ONCE_BYTES:
                call = self._unsent.popleft()
                if call.id in self._calls:
                    calls.append(call)
                    buffers += len(call.buffers)
                    payloads += len(call.payload)
            if calls:
                self._submit_all(calls)

    def _submit_all(self, calls: Sequence[NestedCall]) -> None:
        new: list[CapturedFunction] = []
        ids: list[int] = []
        for call in calls:
            if call.function.hash in self._functions:
                self._functions.move_to_end(call.function.hash)
            else:
                self._functions[call.function.hash] = self._next_function
                new.append(call.function)
                ids.append(self._next_function)
                self._next_function += 1
        if new:
            self._send(Functions(ids, [one.hash for one in new], [one.payload for one in new], [one.name for one in new]), ())
        try:
            self._send_calls(calls)
        except (ValueError, TypeError, OverflowError, BufferError) as error:  # one of them cannot be sent: it alone fails
            if len(calls) == 1:
                self._fail(calls[0], error)
            else:
                for call in calls:
                    self._submit_all([call])
        if len(self._functions) > FUNCTIONS_KEPT:  # closures made anew for every call have no end
            gone = [self._functions.popitem(last=False)[1] for _ in range(len(self._functions) - FUNCTIONS_KEPT)]
            self._send(DropFunctions(gone), ())

    def _send_calls(self, calls: Sequence[NestedCall]) -> None:
        message = Submit(
            [call.id for call in calls],
            [call.parent for call in calls],
            [self._functions[call.function.hash] for call in calls],
            bytes(call.mode for call in calls),
            [call.payload for call in calls],
            [[index, call.options] for index, call in enumerate(calls) if call.options],
            [[index, len(call.buffers)] for index, call in enumerate(calls) if call.buffers],
        )
        self._send(message, [buffer for call in calls for buffer in call.buffers])
        for call in calls:
            call.payload, call.buffers = b"", ()

    def _fail(self, call: NestedCall, error: Exception) -> None:
        self._calls.pop(call.id, None)
        handle, call.handle = call.handle, None
        handle.resolve(CallStatus.ERROR, pack_error(error), (), 0)


def _option_row(options: CallOptions) -> dict[str, Any]:
    """What is set, as plain data."""
    row: dict[str, Any] = {}
    if options.timeout_s is not None:
        row["timeout_s"] = options.timeout_s
    if options.retries:
        row["retries"] = options.retries
    if options.idempotent:
        row["idempotent"] = True
    if options.workers is not None:
        row["workers"] = sorted(options.workers)
    if options.resources:
        row["resources"] = dict(options.resources)
    if options.priority:
        row["priority"] = options.priority
    if options.name is not None:
        row["name"] = options.name
    return row
