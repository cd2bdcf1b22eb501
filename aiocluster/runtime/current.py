"""Who am I: the worker process this is, if it is one, and the call that runs here.

A sync call is found by the thread that executes it, an async call by its context; so the hot path of sync calls sets one
attribute of its executor and nothing else.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiocluster.core.inbox import ArrivedCall

if TYPE_CHECKING:
    from aiocluster.runtime.executor import Runner
    from aiocluster.runtime.nested import NestedBackend

__all__ = ["ThisWorker", "async_call", "call_of_thread", "running_call", "this_worker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThisWorker:
    """The worker that the calling code runs on."""

    id: int
    node: str
    host: str
    pid: int
    cluster_id: str


this_worker: ThisWorker | None = None
"""Set once, when a worker process begins."""
backend: NestedBackend | None = None
"""Set once, when a worker process begins."""
runners: dict[int, Runner] = {}
"""The executing threads by their identifiers."""
async_call: ContextVar[ArrivedCall | None] = ContextVar("aiocluster_call", default=None)


def call_of_thread() -> ArrivedCall | None:
    """The sync call that this thread executes."""
    runner = runners.get(threading.get_ident())
    return None if runner is None else runner.call


def running_call() -> ArrivedCall | None:
    """The call that the calling code belongs to; None outside of calls."""
    return async_call.get() or call_of_thread()
