"""What calls do to the worker that runs them: processes forked in the middle of them, exceptions that raise when looked at."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from aiocluster import get_cluster, get_worker
from aiocluster.core.calls import CallOptions
from aiocluster.runtime import worker

# --- forks ----------------------------------------------------------------------------------------------------------------


def mark(journal: str, number: int) -> int:
    """Write the number into the journal, in one piece, whichever process this is."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    return number


def fork(how: str) -> int:
    """Fork; the child ends the call in this way, which must end the child. Gives what the child ended with."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return end(how)


def end(how: str) -> int:
    if how == "raises":
        raise LookupError("on purpose, in a child")
    if how == "exits":
        sys.exit(7)
    if how == "exits with text":
        sys.exit("a text")
    if how == "executes what is not there":
        os.execv("/nonexistent", ["x"])
    if how == "closes its streams":
        sys.stdout = sys.stderr = None
        raise LookupError("nobody can hear it")
    return 0


def mark_and_fork(journal: str, number: int, forking: int, how: str) -> int:
    mark(journal, number)
    return fork(how) if number == forking else 0


async def async_mark_and_fork(journal: str, number: int, forking: int, how: str) -> int:
    await asyncio.sleep(0)
    mark(journal, number)
    if number != forking:
        await asyncio.sleep(0)
        return 0
    pid = os.fork()
    if pid:
        return await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    if how == "awaits":
        await asyncio.sleep(0)
    return end(how)


async def fork_in_a_task() -> int:
    """A task of the call's own forks, and the child awaits."""

    async def forking() -> int:
        pid = os.fork()
        await asyncio.sleep(0)
        return pid

    pid = await asyncio.create_task(forking())
    return await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def fork_by(tool: str) -> Any:
    context = multiprocessing.get_context("fork")
    if tool == "multiprocessing":
        process = context.Process(target=len, args=("abc",))
        process.start()
        process.join()
        return process.exitcode
    if tool == "a pool of processes":
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            return sum(pool.map(len, ["a", "bc"]))
    return subprocess.run(["true"], preexec_fn=lambda: None).returncode


def submit_in_a_child() -> list[str]:
    """What the child of a call is told when it wants to submit, by a cluster that it asks for and by one that it has."""
    cluster = get_cluster()
    future = cluster.submit(get_worker)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        for attempt in (get_cluster, lambda: cluster.submit(len, "a"), future.result, lambda: list(cluster.map(len, ["a"]))):
            try:
                attempt()
            except RuntimeError as error:
                os.write(writing, f"{error}\n".encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        lines = told.read().splitlines()
    os.waitpid(pid, 0)
    future.result()
    return lines


async def submit_among_others() -> list[Any]:
    """A call that cannot be sent, which the public API would not have let through, and at the same moment others."""
    cluster = get_cluster()
    backend: Any = cluster._backend
    odd = backend.submit(len, ("b",), {}, CallOptions(workers=frozenset((2**64,))))
    outcomes = await asyncio.gather(cluster.submit(len, "a"), odd, cluster.submit(len, "cd"), return_exceptions=True)
    return [type(one).__name__ if isinstance(one, BaseException) else one for one in outcomes]


# --- exceptions -----------------------------------------------------------------------------------------------------------


class NoTraceback(Exception):
    @property
    def __traceback__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("on purpose")


class NoAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


class NoClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("on purpose")


class NoName(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__"):
            raise KeyboardInterrupt(name)
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=NoName):
    pass


class Text(str):
    __slots__ = ()

    def __len__(self) -> NoReturn:
        raise RuntimeError("on purpose")

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> NoReturn:
        raise RuntimeError("on purpose")


class OddText(Exception):
    def __str__(self) -> str:
        return Text("odd")


class NoNotes(Exception):
    @property
    def __notes__(self) -> NoReturn:  # type: ignore[override]
        raise SystemExit("on purpose")


HOSTILE: dict[str, type[Exception]] = {
    kind.__name__ if kind is not Nameless else "Nameless": kind
    for kind in (NoTraceback, NoAttributes, NoClass, Nameless, OddText, NoNotes)
}


def raises(name: str) -> NoReturn:
    raise HOSTILE[name]("hostile")


async def async_raises(name: str) -> NoReturn:
    raise HOSTILE[name]("hostile")


def raises_sometimes(name: str, number: int) -> int:
    if number == 5:
        raises(name)
    return number


async def async_raises_sometimes(name: str, number: int) -> int:
    return raises_sometimes(name, number)


# --- the loop and its logging ---------------------------------------------------------------------------------------------


class _RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise SystemExit("the filter does")


async def end_the_loop_with_hostile_logging() -> int:
    """A task ends the loop by `SystemExit`, and the log that says so raises."""
    logging.getLogger("aiocluster.worker").addFilter(_RaisingFilter())

    async def leave() -> NoReturn:
        sys.exit(3)

    task = asyncio.create_task(leave())
    await asyncio.wait([task])
    return get_worker().pid


async def end_the_loop() -> None:
    """End the worker's loop as no code of the runtime foresees it, and wait for ever."""

    def raises(text: str, error: BaseException) -> NoReturn:
        raise RuntimeError("on purpose")

    worker._complain = raises

    async def leave() -> NoReturn:
        sys.exit(3)

    task = asyncio.create_task(leave())
    await asyncio.sleep(3600)
    task.cancel()


def journal_of(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]
