"""What the public API needs of the process it is used in: the manager's own program, or a call on a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aiocluster.core.calls import CallOptions

if TYPE_CHECKING:
    from aiocluster.runtime.futures import Future

__all__ = ["Backend", "CallHandle", "CallRef", "FunctionRef"]

FunctionRef = Any
"""A captured function, as its backend knows it."""
CallRef = Any
"""A call on its way, as its backend knows it."""


class CallHandle(Protocol):
    """Who waits for a call. Exactly one of the two is called, once, in the loop's thread, unless the call is withdrawn."""

    def resolve(self, status: int, payload: bytes, buffers: Sequence[Any], worker_id: int) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Backend(Protocol):
    """Sends calls for the public API. Used in the thread of `loop`, but for `submit` on a worker."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> Future[Any]:
        """A future for one call. Never raises for what is wrong with the call: the future does."""
        ...

    def capture(self, fn: Callable[..., Any]) -> FunctionRef:
        """The function as it is now. Raises what pickling raises."""
        ...

    def send(
        self,
        function: FunctionRef,
        payload: bytes,
        buffers: Sequence[Any],
        options: CallOptions,
        handle: CallHandle,
        *,
        mode: int,
        items: int,
        deadline: float | None,
        kills: int,
    ) -> CallRef:
        """Send a call whose outcome goes to `handle`, in a later tick at the earliest."""
        ...

    def withdraw(self, call: CallRef, *, force: bool = False) -> None:
        """Nobody waits for the call any more: its handle is not called, what runs is cancelled."""
        ...

    def estimate_s(self, function: FunctionRef) -> float | None:
        """Measured seconds of one execution, if it is known."""
        ...

    async def prepare_map(self) -> None:
        """Learn what a map that begins now will ask for."""
        ...

    def worker_count(self) -> int:
        """How many workers take calls, as far as this process knows."""
        ...

    def worker_of(self, call: CallRef) -> int | None:
        """The worker that the call was last sent to."""
        ...

    def run_blocking(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop and wait for it in this thread, which is not the loop's; else a `TypeError`."""
        ...

    async def everywhere(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        on_join: bool,
    ) -> dict[int, Any]:
        """One call on each worker that takes calls."""
        ...

    async def logs(self, call: CallRef) -> list[str]:
        """The lines that the call has written so far."""
        ...
