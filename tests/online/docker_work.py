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
