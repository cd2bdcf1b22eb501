"""The caller's handle to a call: an `asyncio.Future` that also knows where the call runs and how to stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from aiocluster.errors import ClusterClosed
from aiocluster.runtime.backend import Backend, CallRef
from aiocluster.wire.messages import CallStatus
from aiocluster.wire.payloads import pack_error, steers, unpack, unpack_error

__all__ = ["Future", "gather_by_worker", "harmless"]

T = TypeVar("T")


def harmless(error: BaseException) -> BaseException:
    """The error as it may be raised in the caller's loop: one that would steer it becomes a `RemoteError`."""
    return unpack_error(pack_error(error)) if steers(error) or not isinstance(error, Exception) else error


class Future(asyncio.Future[T]):
    """One call's outcome: exactly one of its result, an exception, or cancelled.

    It is an `asyncio.Future`: `await`, `gather`, `wait`, `as_completed`, `timeout` and task groups work as they do with any.
    Cancelling it (also by cancelling what awaits it) withdraws the call, or cancels it where it runs.
    """

    __slots__ = ("_backend", "_call")

    _backend: Backend
    _call: CallRef

    @classmethod
    def of(cls, backend: Backend, call: CallRef = None) -> Self:
        """A future for a call of this backend. (Its parts are set from outside: an `__init__` would cost as much as the rest.)"""
        future = cls(loop=backend.loop)
        future._backend = backend
        future._call = call
        return future

    @property
    def worker_id(self) -> int | None:
        """The worker that the call was last sent to; None while it waits for one."""
        return None if self._call is None else self._backend.worker_of(self._call)

    def cancel(self, msg: Any | None = None, *, force: bool = False) -> bool:
        """Cancel the call: a queued one is withdrawn, a running one is interrupted where it runs.

        The future is cancelled at once; the worker's slot is free when the worker says so.

        Args:
            msg: as for `asyncio.Future.cancel`.
            force: also kill the worker process if the call has been sent to it and it holds it still. The worker is
                replaced; other calls that it was running end in `WorkerLost`.

        Returns: False if the future was done already (`force` still kills for a call that was cancelled before and does
            not end), else True.
        """
        cancelled = super().cancel(msg)
        if self._call is not None and (cancelled or (force and self.cancelled())):
            self._backend.withdraw(self._call, force=force)
        return cancelled

    async def logs(self) -> list[str]:
        """The lines that the call has written to stdout and stderr so far, oldest first.

        Lines of Python code are told apart even where calls run side by side. The manager keeps the last lines of all
        calls within a bound (`output_lines`): the oldest are forgotten first.
        """
        return [] if self._call is None else await self._backend.logs(self._call)

    def resolve(self, status: int, payload: bytes, buffers: Sequence[Any], worker_id: int) -> None:
        """The worker's answer is here (for the runtime only)."""
        if self.done():
            return
        if status == CallStatus.OK:
            try:
                value = unpack(payload, buffers)
            except BaseException as error:  # loading runs code of the user's, which may raise anything
                error.add_note(f"the result of worker {worker_id} could not be loaded here")
                self.fail(harmless(error))
            else:
                self.set_result(value)
        elif status == CallStatus.CANCELLED:
            super().cancel("the call was cancelled on its worker")
        else:
            self.fail(unpack_error(payload))

    def fail(self, error: BaseException) -> None:
        """The call ended with an error (for the runtime only)."""
        if not self.done():
            self.set_exception(error)
            if isinstance(error, ClusterClosed):
                self.exception()  # whoever closes a cluster knows it: a call that nobody awaits is not worth a log entry


async def gather_by_worker(futures: Mapping[int, Future[Any]]) -> dict[int, Any]:
    """The results by worker id, in their order, when all calls have ended.

    Raises:
        ExceptionGroup: some failed; it holds their exceptions, with a note that names the worker. Cancelling cancels all.
    """
    futures = dict(sorted(futures.items()))
    outcomes = await asyncio.gather(*futures.values(), return_exceptions=True)
    results: dict[int, Any] = {}
    errors: list[Exception] = []
    for worker_id, outcome in zip(futures, outcomes, strict=True):
        if isinstance(outcome, Exception):
            outcome.add_note(f"on worker {worker_id}")
            errors.append(outcome)
        elif isinstance(outcome, BaseException):  # cancelled by somebody else
            errors.append(RuntimeError(f"the call on worker {worker_id} was cancelled"))
        else:
            results[worker_id] = outcome
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(futures)} workers failed", errors)
    return results
