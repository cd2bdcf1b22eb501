"""Waiting for what only tells its state when it is asked."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.1
PATIENCE_S = 1800.0 if os.environ.get("STACK_NAME") else 60.0
"""The compute environments of an account come up in minutes."""


async def until(look: Callable[[], T], ready: Callable[[T], bool] = bool, *, timeout: float = PATIENCE_S) -> T:
    """What `look` gives once it is `ready`. It is called in a thread, since it may wait for an answer.

    Raises:
        AssertionError: It was not ready in time; says what was seen last.
    """
    deadline = time.monotonic() + timeout
    while True:
        seen = await asyncio.to_thread(look)
        if ready(seen):
            return seen
        assert time.monotonic() < deadline, f"not within {timeout:g} s; seen last: {seen!r}"
        await asyncio.sleep(POLL_S)
