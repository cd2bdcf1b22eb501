"""What the workers run: importable everywhere, so that it travels by name, and light, to add little to a start."""

from __future__ import annotations

import time
from typing import TypeVar

__all__ = ["echo", "increment", "sleep_for"]

T = TypeVar("T")


def increment(number: int) -> int:
    """A tiny call: all that it costs is the way there and back."""
    return number + 1


def echo(value: T) -> T:
    """The argument itself."""
    return value


def sleep_for(seconds: float) -> float:
    """Occupies the worker, not the processor; the argument comes back as a receipt."""
    time.sleep(seconds)
    return seconds
