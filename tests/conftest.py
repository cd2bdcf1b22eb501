"""What holds for every test: it leaves no task, thread, process or file descriptor behind.

A test that means to leave something says so: `@pytest.mark.leaves_behind("fds")`, with the reason beside it. An async test
that is marked `both_loops` runs on asyncio's own loop and on uvloop. The profiles of hypothesis are chosen here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import inspect
import os
import select
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

PATIENCE_S = 5.0
"""How long what was told to end may take to do so: waited for by its end, not by the clock, so that it costs nothing."""
TICKS = 20
"""Turns of the loop that tasks which were told to end may take; what needs more of them is waiting for something."""

# No example is judged by how long it takes: machines differ. On CI, every run sees the same examples.
settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Tests interrupt programs that they start. Those would ignore it, as these tests do where a shell runs them in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of linux/prctl.h."""


def pytest_configure() -> None:
    # Processes whose parent has died become children of the tests: an orphan is a leak that is seen as well.
    if ctypes.CDLL(None, use_errno=True).prctl(ADOPT_ORPHANS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "orphans cannot be adopted")
    # The first uvloop of a process makes a pipe for all the later ones, and keeps it.
    uvloop.new_event_loop().close()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops that an async test runs on, once each."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test fails if a thread, a process or a file descriptor is there after it that was not there before.

    This comes before all other fixtures of the test, so that it looks when they have been torn down.
    """
    allowed = may_leave_behind(request)
    threads, children, descriptors = set(threading.enumerate()), child_pids(), open_descriptors()
    yield
    # In this order: a thread may be waiting for a process, and both hold descriptors.
    left = []
    if "children" not in allowed:
        left += children_left(children)
    if "threads" not in allowed:
        left += threads_left(threads)
    if "fds" not in allowed:
        left += descriptors_left(descriptors)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_running(request: pytest.FixtureRequest, nothing_left_behind: None) -> None:
    """An async test fails if its loop still has a task; the loop is closed before the look for threads and all the rest."""
    is_async = inspect.iscoroutinefunction(getattr(request.node, "obj", None))
    if is_async and "tasks" not in may_leave_behind(request):
        request.getfixturevalue("no_task_left_behind")


def may_leave_behind(request: pytest.FixtureRequest) -> set[str]:
    marker = request.node.get_closest_marker("leaves_behind")
    return set(marker.args) if marker else set()


@pytest.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    """The test fails if its loop still has a task when the test and its other fixtures are done."""
    before = asyncio.all_tasks()
    yield
    for _ in range(TICKS):
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0)
    lines = [f"task {task.get_name()!r} of {task.get_coro()!r}, in {where(task)}" for task in left]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    pytest.fail("the test left behind:\n  " + "\n  ".join(sorted(lines)), pytrace=False)


def where(task: asyncio.Task[object]) -> str:
    stack = task.get_stack(limit=1)
    return f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "no frame"


def threads_left(before: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + PATIENCE_S
    left = []
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)
            at = f", in {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
            left.append(f"thread {thread.name!r}{at}")
    return sorted(left)


def child_pids() -> set[int]:
    found: set[int] = set()
    for task in os.scandir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found.update(int(pid) for pid in Path(task.path, "children").read_text().split())
    return found


def children_left(before: set[int]) -> list[str]:
    """Waits until the children that are new have ended, adopted ones too; names those that have not, and ends them."""
    deadline = time.monotonic() + PATIENCE_S
    left = []
    while new := child_pids() - before:  # the death of one may bring its children here
        for pid in new:
            if not ends_by(deadline, pid):
                left.append(f"process {pid}: {command_of(pid)}")
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
                os.waitpid(pid, 0)
    return sorted(left)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "(just ended)"
    except OSError:
        return "(just ended)"


def ends_by(deadline: float, pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(descriptor)


def open_descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that reads this folder
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def descriptors_left(before: dict[int, str]) -> list[str]:
    left = open_descriptors().items() - before.items()
    if left:
        gc.collect()  # slow, and for this only; what is collected unclosed warns, which is an error as well
        left = open_descriptors().items() - before.items()
    return [f"file descriptor {number}: {target}" for number, target in sorted(left)]
