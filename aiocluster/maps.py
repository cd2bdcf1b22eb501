"""`map`: many calls of one function, with items that are cheap to run sharing calls.

The run pulls items only as fast as results are taken, cuts them into chunks by their measured duration (`sizes`), and puts the
results together. A chunk whose worker died is cut again (`cuts`): items that never started simply go elsewhere, the others are
treated like any call that may have run.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from aiocluster.core.calls import CallOptions
from aiocluster.cuts import Record, cut
from aiocluster.errors import CallTimeout, WorkerLost
from aiocluster.runtime.backend import Backend, CallRef
from aiocluster.runtime.futures import harmless
from aiocluster.sizes import ChunkSizes
from aiocluster.sources import Puller, async_items, is_async_source, length_of, sync_items
from aiocluster.wire.functions import is_async, name_of
from aiocluster.wire.messages import CallStatus, Mode
from aiocluster.wire.payloads import pack, unpack, unpack_error

if TYPE_CHECKING:
    from aiocluster.progress import ProgressReporter

__all__ = ["MapRun"]

T = TypeVar("T")

AHEAD_ITEMS = 100_000
SYNC_CHUNKS_A_WORKER = 3
ASYNC_CHUNKS_A_WORKER = 200


class _Failed:
    """Stands in the results for an item that failed."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Chunk:
    """Consecutive items that share one call."""

    __slots__ = ("call", "items", "record", "run", "start")

    def __init__(self, run: _Run, start: int, items: Sequence[Any], record: Record) -> None:
        self.run = run
        self.start = start
        self.items = items
        self.record = record
        self.call: CallRef = None

    def part(self, first: int, last: int, record: Record) -> _Chunk:
        return _Chunk(self.run, self.start + first, self.items[first:last], record)

    def resolve(self, status: int, payload: bytes, buffers: Sequence[Any], worker_id: int) -> None:
        self.run.chunk_resolved(self, status, payload, buffers)

    def fail(self, error: BaseException) -> None:
        self.run.chunk_failed(self, error)


class MapRun(Generic[T]):
    """The results of a `map`: await it for a list, or iterate over it with `async for`; once."""

    def __init__(
        self,
        backend: Backend,
        fn: Callable[..., Any],
        iterables: tuple[Any, ...],
        options: CallOptions,
        *,
        ordered: bool,
        return_exceptions: bool,
        limit: int | None,
        chunk_size: int | None,
        progress: bool,
    ) -> None:
        self._backend = backend
        self._fn = fn
        self._iterables = iterables
        self._options = options
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._limit = limit
        self._chunk_size = chunk_size
        self._progress = progress
        self._used = False

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            text = f"the map of {name_of(self._fn)} was never awaited or iterated: none of its items has been pulled"
            warnings.warn(text, RuntimeWarning, stacklevel=2, source=self)

    def _start(self, *, streaming: bool) -> _Run:
        if self._used:
            raise RuntimeError("a map runs once: call map() again for another run")
        self._used = True
        return _Run(
            self._backend,
            self._fn,
            self._iterables,
            self._options,
            ordered=self._ordered,
            return_exceptions=self._return_exceptions,
            limit=AHEAD_ITEMS if self._limit is None else self._limit,
            chunk_size=self._chunk_size,
            streaming=streaming,
            progress=self._progress,
        )

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._collect().__await__()

    async def _collect(self) -> list[T]:
        await self._backend.prepare_map()
        run = self._start(streaming=False)
        try:
            return await run.collect()
        finally:
            run.stop()

    async def __aiter__(self) -> AsyncIterator[T]:
        await self._backend.prepare_map()
        run = self._start(streaming=True)
        try:
            while (values := await run.next_values()) is not None:
                for value in values:
                    if value.__class__ is _Failed:
                        raise value.error
                    run.taken += 1
                    yield value
                run.pump()
        finally:
            run.stop()

    def __iter__(self) -> Iterator[T]:
        """In a sync call on a worker: wait for all results; the worker's place is free meanwhile."""
        results: list[T] = self._backend.run_blocking(self._collect())
        return iter(results)


class _Run:
    """One run of a map, in the loop's thread."""

    def __init__(
        self,
        backend: Backend,
        fn: Callable[..., Any],
        iterables: tuple[Any, ...],
        options: CallOptions,
        *,
        ordered: bool,
        return_exceptions: bool,
        limit: int,
        chunk_size: int | None,
        streaming: bool,
        progress: bool,
    ) -> None:
        self._backend = backend
        self._loop = backend.loop
        # Whether items go again is decided here, for each by itself: a call of several would take the innocent with it.
        self._options = replace(options, retries=0, idempotent=False) if options.retries or options.idempotent else options
        self._record = Record(retries=None if options.idempotent else options.retries)
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._limit = limit
        self._streaming = streaming
        self._function = backend.capture(fn)
        self._chunks_a_worker = ASYNC_CHUNKS_A_WORKER if is_async(fn) else SYNC_CHUNKS_A_WORKER
        self._mode = Mode.CHUNK
        if len(iterables) > 1:
            self._mode |= Mode.STAR
        if return_exceptions:
            self._mode |= Mode.KEEP_GOING
        self._deadline = None if options.timeout_s is None else self._loop.time() + options.timeout_s
        total = length_of(iterables)
        self._sizes = ChunkSizes(chunk_size, total)
        self._pulled = 0
        self._done = 0
        self.taken = 0
        self._exhausted = False
        self._failure: BaseException | None = None
        self._in_flight: dict[_Chunk, None] = {}
        self._alone: deque[_Chunk] = deque()
        """Chunks that go one by one, with nothing beside them; the first is in flight if anything of it is."""
        self._results: list[Any] = []
        self._ready: dict[int, list[Any]] = {}
        self._next_start = 0
        self._came: deque[list[Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._stopped = False
        self._items: Iterator[Any] | None = None
        self._puller: Puller | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._name = options.name or name_of(fn)
        self._reporter: ProgressReporter | None = None
        if progress:
            from aiocluster.progress import make_progress

            self._reporter = make_progress(True, self._name, total)
        if any(is_async_source(one) for one in iterables):
            self._puller = Puller(async_items(iterables), self._room, self._send)
            self._puller.start(self._source_ended)
            if self._deadline is not None:  # what has been sent knows it: who waits for the source does not
                self._timer = self._loop.call_at(self._deadline, self._out_of_time)
        else:
            self._items = sync_items(iterables)

    # --- the consumer ------------------------------------------------------------------------------------------------------

    async def collect(self) -> list[Any]:
        """All results. The first failure ends it, wherever it stands."""
        self.pump()
        while not self._is_over:
            await self._wait()
        if self._failure is not None:
            raise self._failure
        self._report_end(failed=False)
        return self._results

    async def next_values(self) -> list[Any] | None:
        """The next results, or None after the last."""
        self.pump()
        while True:
            if self._ordered:
                values = self._ready.pop(self._next_start, None)
                if values is not None:
                    self._next_start += len(values)
                    return values
            elif self._came:
                return self._came.popleft()
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                self._report_end(failed=False)
                return None
            await self._wait()

    @property
    def _is_over(self) -> bool:
        return self._failure is not None or (self._exhausted and not self._in_flight and not self._alone)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def stop(self) -> None:
        """Withdraw what has not ended; nothing is pulled or delivered after this."""
        if self._stopped:
            return
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._puller is not None:
            self._puller.stop()
            self._puller = None  # it refers to this run: the source is let go of now, and not when the collector comes
        self._alone.clear()
        in_flight, self._in_flight = self._in_flight, {}
        for chunk in in_flight:
            if chunk.call is not None:
                self._backend.withdraw(chunk.call)
        self._report_end(failed=True)

    def _report_end(self, *, failed: bool) -> None:
        if self._reporter is not None:
            self._reporter.close(failed=failed)
            self._reporter = None

    # --- items to chunks ---------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        """How many items may be pulled now for the next chunk; 0 if none."""
        if self._stopped or self._failure is not None or self._alone:
            return 0
        workers = max(1, self._worker_count())
        if len(self._in_flight) >= self._chunks_a_worker * workers + 1:
            return 0
        ahead = self._pulled - (self.taken if self._streaming else self._done)
        items = self._sizes.next(self._pulled, workers, self._backend.estimate_s(self._function))
        return max(0, min(items, self._limit - ahead))

    def _worker_count(self) -> int:
        """How many workers may take chunks."""
        count = self._backend.worker_count()
        return count if self._options.workers is None else min(count, len(self._options.workers))

    def pump(self) -> None:
        """Pull and send what there is room for."""
        if self._stopped:
            return
        if self._alone and not self._in_flight and self._failure is None:
            self._send_now(self._alone[0])
        if self._puller is not None:
            self._exhausted = self._puller.exhausted
            if self._puller.error is not None and self._failure is None:
                self._failure = self._puller.error
            self._puller.pull()
            return
        items = self._items
        assert items is not None
        while not self._exhausted and (room := self._room()):
            try:
                pulled = list(islice(items, room))
            except BaseException as error:  # whatever the source raises: this runs among the callbacks of the loop
                self._failure = harmless(error)
                self._wake()
                return
            if len(pulled) < room:
                self._exhausted = True
            if pulled:
                self._send(pulled)

    def _source_ended(self) -> None:
        self.pump()
        self._wake()

    def _out_of_time(self) -> None:
        if not self._exhausted and self._failure is None:
            self._failure = CallTimeout(self._name, self._options.timeout_s)
            self._wake()

    def _send(self, items: list[Any]) -> None:
        start = self._pulled
        self._pulled += len(items)
        if not self._streaming and self._ordered:
            self._results.extend(items)  # places for the results
        # What an async source has had under way when others must go alone does not go beside them.
        self._send_chunk(_Chunk(self, start, items, self._record._replace(alone=True) if self._alone else self._record))

    def _send_chunk(self, chunk: _Chunk) -> None:
        """Send it now, or in its turn if it goes alone."""
        if chunk.record.alone:
            self._alone.append(chunk)
        else:
            self._send_now(chunk)

    def _send_now(self, chunk: _Chunk) -> None:
        self._in_flight[chunk] = None
        try:
            payload, buffers = pack(chunk.items)
        except Exception as error:
            self._loop.call_soon(self._unpackable, chunk, error)
            return
        chunk.call = self._backend.send(
            self._function,
            payload,
            buffers,
            self._options,
            chunk,
            mode=self._mode,
            items=len(chunk.items),
            deadline=self._deadline,
            kills=chunk.record.kills,
        )

    def _unpackable(self, chunk: _Chunk, error: Exception) -> None:
        """One item that cannot travel must not cost the others their results: send each alone."""
        if len(chunk.items) == 1:
            self.chunk_failed(chunk, error)
        elif self._ended(chunk):
            for index in range(len(chunk.items)):
                self._send_chunk(chunk.part(index, index + 1, chunk.record))
            self.pump()

    # --- chunks to results -------------------------------------------------------------------------------------------------

    def chunk_resolved(self, chunk: _Chunk, status: int, payload: bytes, buffers: Sequence[Any]) -> None:
        """The worker has answered for a chunk."""
        if status == CallStatus.ERROR:
            self.chunk_failed(chunk, unpack_error(payload))
            return
        if status == CallStatus.CANCELLED:
            self.chunk_failed(chunk, asyncio.CancelledError("the call was cancelled on its worker"))
            return
        try:
            ns, values, *rest = unpack(payload, buffers)
        except BaseException as caught:  # loading runs code of the user's, which may raise anything
            error = harmless(caught)
            error.add_note("the results of a chunk of this map could not be loaded here")
            self.chunk_failed(chunk, error)
            return
        self._sizes.learn(ns, len(values))
        if rest:
            for index, data in rest[0].items():
                failure = unpack_error(data)
                values[index] = failure if self._return_exceptions else self._failed(failure)
        self._deliver(chunk, values)

    def _failed(self, error: BaseException) -> _Failed:
        if not self._streaming and self._failure is None:
            self._failure = error
        return _Failed(error)

    def _ended(self, chunk: _Chunk) -> bool:
        """The chunk is not in flight any more. False if nobody waits for it."""
        if self._in_flight.pop(chunk, self) is self:
            return False
        if chunk.record.alone:
            self._alone.popleft()
        return True

    def _deliver(self, chunk: _Chunk, values: list[Any]) -> None:
        if self._ended(chunk):
            self._keep(chunk.start, values)
            self.pump()
            self._wake()

    def _keep(self, start: int, values: list[Any]) -> None:
        self._done += len(values)
        if self._streaming:
            if self._ordered:
                self._ready[start] = values
            else:
                self._came.append(values)
        elif self._ordered:
            self._results[start : start + len(values)] = values
        else:
            self._results.extend(values)
        if self._reporter is not None:
            self._reporter.advance(self._done, workers=self._worker_count())

    def chunk_failed(self, chunk: _Chunk, error: BaseException) -> None:
        """A chunk has no results. What never started goes elsewhere, what may have run as its options say."""
        if isinstance(error, WorkerLost):
            if error.maybe_executed:
                self._cut(chunk, error)
                return
            error = chunk.record.lost or error  # it could not be sent again, but may have run before
        self._deliver(chunk, self._failures(error, len(chunk.items)))

    def _failures(self, error: BaseException, count: int) -> list[Any]:
        return [error if self._return_exceptions else self._failed(error)] * count

    def _cut(self, chunk: _Chunk, error: WorkerLost) -> None:
        """Send the parts of a chunk again that may be; the others fail."""
        if not self._ended(chunk):
            return
        for first, last, record in cut(len(chunk.items), chunk.record, error):
            if record is None:
                self._keep(chunk.start + first, self._failures(error, last - first))
            else:
                self._send_chunk(chunk.part(first, last, record))
        self.pump()
        self._wake()
