"""What must run on every worker before it takes calls, and who waits for workers to join."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiocluster.core.calls import CallOptions, PreparingCall
from aiocluster.core.functions import FunctionEntry
from aiocluster.errors import ClusterClosed, WorkerLost
from aiocluster.runtime.futures import Future, gather_by_worker

if TYPE_CHECKING:
    from aiocluster.runtime.manager import Manager

__all__ = ["JoinCall", "JoinCalls"]

logger = logging.getLogger("aiocluster")


@dataclass(eq=False, slots=True)
class JoinCall:
    """A captured call for every worker."""

    function: FunctionEntry
    payload: bytes
    buffers: Sequence[Any]
    options: CallOptions
    kept: bool = False
    """Each new worker makes it: it has failed on none of those that were there when it was given."""
    failures: list[Exception] = field(default_factory=list)
    """What it raised, while it was tried, on workers that joined meanwhile."""


class JoinCalls:
    """The calls of `everywhere(..., on_join=True)`, in the order in which they were given.

    A call is kept for the workers that join later if it fails on none that is there: else it would cost every later one. While
    that is not known, workers that join make it too, and it counts as a failure of the call, not of the worker, if they fail.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._calls: list[JoinCall] = []

    async def everywhere(self, call: JoinCall, worker_ids: Sequence[int]) -> dict[int, Any]:
        """Make the call on these workers, and on each that joins from now on. It is kept if it fails on none of them.

        Raises:
            ExceptionGroup: it failed, and is not kept. It is not kept either if this is cancelled.
        """
        call.function.uses += 1  # later workers need it: it is not forgotten
        self._calls.append(call)
        try:
            results = await gather_by_worker({id: self.call_on(id, call) for id in worker_ids})
            if call.failures:
                raise ExceptionGroup(f"{len(call.failures)} workers that joined meanwhile failed", call.failures)
        except BaseException as error:
            self._calls.remove(call)
            call.function.uses -= 1
            error.add_note("the call is not kept for workers that join later (on_join)")
            raise
        call.kept = True
        return results

    def run(self, worker_id: int) -> None:
        """Prepare the worker, then open it to calls."""
        if self._calls:
            self._manager.spawn(self._prepare(worker_id), f"preparing worker {worker_id}")
        else:
            self._manager.core.open_worker(worker_id, self._manager.loop.time())

    async def _prepare(self, worker_id: int) -> None:
        manager = self._manager
        try:
            done: set[JoinCall] = set()
            while (call := next((one for one in self._calls if one not in done), None)) is not None:  # they may change meanwhile
                done.add(call)
                await self._try(worker_id, call)
        except (WorkerLost, ClusterClosed):
            return  # its replacement, if there is one, is prepared in its turn
        except asyncio.CancelledError:
            raise
        except Exception as error:
            record = manager.core.roster.workers.get(worker_id)
            if record is not None:
                record.node.reason = f"what must run when a worker joins failed on worker {worker_id}: {error!r}"
            logger.error("worker %d is not used: what must run when a worker joins failed there", worker_id, exc_info=error)
            manager.core.retire(worker_id, 0.0, manager.loop.time())
        else:
            manager.core.open_worker(worker_id, manager.loop.time())
        manager.perform()
        manager.schedule_flush()

    async def _try(self, worker_id: int, call: JoinCall) -> None:
        try:
            await self._prepare_with(worker_id, call)
        except (WorkerLost, ClusterClosed):
            raise
        except Exception as error:
            if call.kept:
                raise
            error.add_note(f"on worker {worker_id}")
            call.failures.append(error)

    def _prepare_with(self, worker_id: int, wanted: JoinCall) -> Future[Any]:
        """Make the call on a worker that is not open."""
        manager = self._manager
        future: Future[Any] = Future.of(manager)
        options = _options_for(worker_id, wanted)
        call = PreparingCall(
            worker_id, manager.next_call_id(), wanted.function, wanted.payload, wanted.buffers, options, 0, 1, 0, future
        )
        call.deadline = self._deadline(options)
        future._call = call
        refusal = manager.core.submit(call)
        if refusal is not None:
            call.handle = None
            future.fail(refusal)
        manager.schedule_flush()
        return future

    def call_on(self, worker_id: int, call: JoinCall) -> Future[Any]:
        """Make the call on that worker."""
        manager = self._manager
        future: Future[Any] = Future.of(manager)
        options = _options_for(worker_id, call)
        deadline = self._deadline(options)
        future._call = manager.send(call.function, call.payload, call.buffers, options, future, deadline=deadline)
        return future

    def _deadline(self, options: CallOptions) -> float | None:
        return None if options.timeout_s is None else self._manager.loop.time() + options.timeout_s


def _options_for(worker_id: int, call: JoinCall) -> CallOptions:
    return CallOptions(timeout_s=call.options.timeout_s, workers=frozenset((worker_id,)), name=call.options.name)
