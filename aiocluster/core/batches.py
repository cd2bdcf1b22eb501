"""Batches of calls as messages: one frame of columns for a worker and a tick, and before it the functions it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiocluster.core.calls import Call
from aiocluster.core.functions import FunctionEntry
from aiocluster.core.places import WorkerPlace
from aiocluster.core.pools import OwnPool
from aiocluster.wire.messages import Calls, Functions, Mode

__all__ = ["calls_messages"]

ORDERED, ASYNC = Mode.ORDERED, Mode.ASYNC


def calls_messages(place: WorkerPlace, calls: Sequence[Call], now: float) -> list[tuple[Functions | Calls, list[Any]]]:
    """The messages, each with its buffers, that carry `calls` to their worker in this order."""
    messages: list[tuple[Functions | Calls, list[Any]]] = []
    known = place.known
    new: dict[int, FunctionEntry] = {}
    ids: list[int] = []
    functions: list[int] = []
    modes = bytearray()
    payloads: list[bytes] = []
    timeouts: list[list[int]] = []
    counts: list[list[int]] = []
    names: list[list[Any]] = []
    buffers: list[Any] = []
    for call in calls:
        entry = call.function
        function = entry.id
        if function not in known and function not in new:
            new[function] = entry
        if call.deadline is not None:
            timeouts.append([len(ids), max(0, int((call.deadline - now) * 1e6))])
        if call.buffers:
            counts.append([len(ids), len(call.buffers)])
            buffers.extend(call.buffers)
        if call.options.name is not None:
            names.append([len(ids), call.options.name])
        ids.append(call.id)
        functions.append(function)
        mode = call.mode | ASYNC if entry.is_async else call.mode
        modes.append(mode | ORDERED if call.pool.__class__ is OwnPool else mode)
        payloads.append(call.payload)
    if new:
        known.update(new)
        entries = list(new.values())
        columns = (
            [entry.id for entry in entries],
            [entry.hash for entry in entries],
            [entry.payload for entry in entries],
            [entry.name for entry in entries],
        )
        messages.append((Functions(*columns), []))
    frame = Calls(calls[0].serial, ids, functions, bytes(modes), payloads, timeouts, counts, names)
    messages.append((frame, buffers))
    return messages
