"""What the tests of Docker run in containers: calls, and managers. It travels there as a mounted folder."""

from __future__ import annotations

import os
import time


def note(folder: str, n: int, seconds: float) -> int:
    """Takes its time, and leaves a line for each time that it began."""
    descriptor = os.open(f"{folder}/begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, f"{n}\n".encode())
    finally:
        os.close(descriptor)
    time.sleep(seconds)
    return n


def double(x: int) -> int:
    return 2 * x


def wait_for(path: str) -> str:
    """Returns what the fifo is given."""
    with open(path) as fifo:
        return fifo.read()


def leave_orphans(count: int) -> int:
    """Have processes end after those who started them, which makes them children of process 1.

    Returns: how many of its children are dead and stay so.
    """
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.setsid()
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.close(writing)
                os.read(reading, 1)  # until its parent has gone
            os._exit(0)
        os.waitpid(child, 0)
    for _ in range(100):
        if not dead_children_of(1):
            return 0
        time.sleep(0.05)
    return len(dead_children_of(1))


def dead_children_of(parent: int) -> list[str]:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, ppid = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if (state, int(ppid)) == ("Z", parent):
            found.append(pid)
    return found
