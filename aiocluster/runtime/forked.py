"""Processes that the code of a call forks: the user's code goes on in them, and nothing of the worker's.

Such a process has the memory of a worker: its queue of calls, its link, its flight recorder. If the worker's code went on in it,
calls would run twice and the manager would hear two voices. So it ends where the code of the call does, or where that gives the
thread to the loop. Children that never come back there, as those of `subprocess` and `multiprocessing`, notice nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Coroutine, Generator
from typing import Any, NoReturn, TypeVar

from aiocluster.runtime import current

__all__ = ["Steps", "leave", "refuse", "watch"]

T = TypeVar("T")

child = False
"""This process was forked by the code of a call."""


def watch() -> None:
    """Know from now on which process is the worker: to be called once in it."""
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    global child
    child = True
    backend, current.backend = current.backend, None
    if backend is not None and backend.in_loop_thread():  # for a task of the user's own, whose steps nobody watches
        backend.loop.call_soon(_cannot_wait)


def refuse() -> None:
    """Raises `RuntimeError` in a process that a call has forked: the cluster does not know it."""
    if child:
        raise RuntimeError("this process was forked by a call and is no worker: submit nested calls from the call itself")


def leave(error: BaseException | None = None) -> NoReturn:
    """End this process, of which the call's code has returned, or raised the error, as Python ends a program."""
    code = 1
    try:
        code = _code_of(error)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # whatever the user's streams and exceptions do: nothing may go on in this process
        code = 1
    finally:
        os._exit(code)


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1


class Steps(Coroutine[Any, Any, T]):
    """A coroutine of which every step ends in the process in which it began; in a forked one the loop is not returned to."""

    __slots__ = ("_coroutine", "_send", "_throw")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._send = coroutine.send
        self._throw = coroutine.throw

    def send(self, value: Any) -> Any:
        try:
            return self._send(value)
        finally:
            if child:
                _cannot_wait()

    def throw(self, *error: Any) -> Any:
        try:
            return self._throw(*error)
        finally:
            if child:
                _cannot_wait()

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()


def _cannot_wait() -> NoReturn:
    leave(RuntimeError("a process that an `async def` call has forked cannot await: its loop is the worker's"))
