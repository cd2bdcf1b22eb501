"""What must run on every worker before it takes calls, and who waits for workers to join."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aiocluster.core.calls import CallOptions, PreparingCall
from aiocluster.core.functions import FunctionEntry
from aiocluster.errors import ClusterClosed, WorkerLost
from aiocluster.runtime.futures import Future

if TYPE_CHECKING:
    from aiocluster.runtime.manager import Manager

__all__ = ["JoinCall", "JoinCalls"]

logger = logging.getLogger("aiocluster")


class JoinCall(NamedTuple):
    """A captured call that each new worker makes first."""

    function: FunctionEntry
    payload: bytes
    buffers: Sequence[Any]
    options: CallOptions


class JoinCalls:
    """The calls of `everywhere(..., on_join=True)`, in the order in which they were given."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._calls: list[JoinCall] = []

    def add(self, call: JoinCall) -> None:
        call.function.uses += 1  # later workers need it: it is never forgotten
        self._calls.append(call)

    def run(self, worker_id: int) -> None:
        """Prepare the worker, then open it to calls."""
        if self._calls:
            self._manager.spawn(self._prepare(worker_id), f"preparing worker {worker_id}")
        else:
            self._manager.core.open_worker(worker_id, self._manager.loop.time())

    async def _prepare(self, worker_id: int) -> None:
        manager = self._manager
        try:
            done = 0
            while done < len(self._calls):  # one may be added meanwhile
                await self._prepare_with(worker_id, self._calls[done])
                done += 1
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
