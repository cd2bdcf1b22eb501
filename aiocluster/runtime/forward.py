"""Nested calls at the manager: placed like any other, their outcomes forwarded to the worker that made them.

Arguments and results pass as bytes: the manager loads nothing of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aiocluster.core.calls import DEFAULT_OPTIONS, Call, CallOptions, CallState, PreparingCall
from aiocluster.errors import ProtocolError
from aiocluster.wire.frames import BUFFERS_AT_ONCE
from aiocluster.wire.messages import CallStatus, CancelCalls, DropFunctions, Functions, Mode, Outcomes, Submit
from aiocluster.wire.payloads import pack_error

if TYPE_CHECKING:
    from aiocluster.runtime.manager import Manager

__all__ = ["ForwardHandle", "NestedCalls"]

LAST_CALLS = 256

_Ended = tuple[int, int, bytes, Sequence[Any], int]
"""Request, status, payload, buffers, worker id."""
WITHDRAWN_CALLS = 256


class ForwardHandle:
    """Who waits for a nested call: its worker."""

    __slots__ = ("_calls", "_request")

    def __init__(self, calls: NestedCalls, request: int) -> None:
        self._calls = calls
        self._request = request

    def resolve(self, status: int, payload: bytes, buffers: Sequence[Any], worker_id: int) -> None:
        self._calls.ended(self._request, status, payload, buffers, worker_id)

    def fail(self, error: BaseException) -> None:
        self._calls.ended(self._request, CallStatus.ERROR, pack_error(error), (), 0)


class NestedCalls:
    """The nested calls of one worker."""

    def __init__(self, manager: Manager, worker_id: int) -> None:
        self._manager = manager
        self._worker_id = worker_id
        self._functions: dict[int, tuple[bytes, bytes, str]] = {}
        self._calls: dict[int, Call] = {}
        self._last: OrderedDict[int, Call] = OrderedDict()
        """The calls that ended last, for those who ask for their output."""
        self._withdrawn: dict[int, Call] = {}
        """Calls that nobody waits for any more and that may still run: the worker may yet want them ended by force."""
        self._withdrawn_limit = WITHDRAWN_CALLS
        self._ended: list[_Ended] = []

    def learn(self, message: Functions) -> None:
        """The worker sends functions that its calls will name."""
        for id, hash, payload, name in zip(message.ids, message.hashes, message.payloads, message.names, strict=True):
            self._functions[id] = (hash, payload, name)

    def forget(self, message: DropFunctions) -> None:
        for id in message.ids:
            self._functions.pop(id, None)

    def submit(self, message: Submit, buffers: Sequence[Any], now: float) -> None:
        """The worker submits calls. A call made from another one has its deadline at the latest."""
        options: dict[int, dict[str, Any]] = {index: row for index, row in message.options}  # noqa: C416  # rows are lists
        shares: dict[int, Sequence[Any]] = {}
        start = 0
        for index, count in message.buffers:
            shares[index] = buffers[start : start + count]
            start += count
        manager = self._manager
        parents = manager.core.dispatch.places[self._worker_id].inflight
        for index, request in enumerate(message.ids):
            function = self._functions.get(message.functions[index])
            if function is None or request in self._calls:
                raise ProtocolError("a nested call names a function that was not sent, or an id in use")
            hash, payload, name = function
            mode = message.modes[index]
            entry = manager.core.functions.intern(hash, payload, name, bool(mode & Mode.ASYNC))
            row = options.get(index, {})
            parent = parents.get(message.parents[index])
            prepares = manager.core.dispatch.preparing(self._worker_id, parent)
            make = partial(PreparingCall, prepares) if prepares else Call
            call = make(
                manager.next_call_id(),
                entry,
                message.payloads[index],
                shares.get(index, ()),
                _options(row) if row else DEFAULT_OPTIONS,
                mode & (Mode.CHUNK | Mode.STAR | Mode.KEEP_GOING),
                max(1, row.get("items", 1)),
                self._worker_id,
                ForwardHandle(self, request),
            )
            call.kills = row.get("kills", 0)
            limits = [parent.deadline if parent is not None else None]
            limits.extend(now + row[key] if key in row else None for key in ("left_s", "timeout_s"))
            call.deadline = min((limit for limit in limits if limit is not None), default=None)
            self._calls[request] = call
            refusal = manager.core.submit(call)
            if refusal is not None:
                self.ended(request, CallStatus.ERROR, pack_error(refusal), (), 0)

    def cancel(self, message: CancelCalls, now: float) -> None:
        """The worker withdraws calls of its own, or has them ended by force after that; those that have ended are no matter."""
        for request in message.ids:
            call = self._calls.pop(request, None) or self._withdrawn.pop(request, None)
            if call is not None:
                call.handle = None
                self._manager.core.cancel(call, now, force=message.force)
                self._withdrawn[request] = call
        if len(self._withdrawn) > self._withdrawn_limit:
            self._withdrawn = {request: call for request, call in self._withdrawn.items() if call.state is not CallState.ENDED}
            self._withdrawn_limit = 2 * len(self._withdrawn) + WITHDRAWN_CALLS

    def call(self, request: int) -> Call | None:
        """The call, also for a while after its end."""
        return self._calls.get(request) or self._last.get(request)

    def ended(self, request: int, status: int, payload: bytes, buffers: Sequence[Any], worker_id: int) -> None:
        """A nested call has its outcome: it is sent with all others of this tick."""
        call = self._calls.pop(request, None)
        if call is not None:
            self._last[request] = call
            if len(self._last) > LAST_CALLS:
                self._last.popitem(last=False)
        if not self._ended:
            self._manager.loop.call_soon(self._flush)
        self._ended.append((request, status, payload, buffers, worker_id))

    def _flush(self) -> None:
        ended, self._ended = self._ended, []
        rows: list[_Ended] = []
        buffers = 0
        for row in ended:
            rows.append(row)
            buffers += len(row[3])
            if buffers >= BUFFERS_AT_ONCE:
                self._send(rows)
                rows, buffers = [], 0
        if rows:
            self._send(rows)

    def _send(self, rows: list[_Ended]) -> None:
        message = Outcomes(
            [row[0] for row in rows],
            bytes(row[1] for row in rows),
            [row[2] for row in rows],
            [row[4] for row in rows],
            [[index, len(row[3])] for index, row in enumerate(rows) if row[3]],
        )
        self._manager.send_to_worker(self._worker_id, message, [buffer for row in rows for buffer in row[3]])


def _options(row: dict[str, Any]) -> CallOptions:
    try:
        return CallOptions(
            timeout_s=row.get("timeout_s"),
            retries=row.get("retries", 0),
            idempotent=row.get("idempotent", False),
            workers=frozenset(row["workers"]) if "workers" in row else None,
            resources=row.get("resources", {}),
            priority=row.get("priority", 0),
            name=row.get("name"),
        )
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"options of a nested call: {error}") from None
