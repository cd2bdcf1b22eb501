"""Relief for the garbage collector while very many calls wait.

Every waiting call is a few objects that live until it ends. Collections that find all of them alive, again and again, are what
makes the hundred-thousandth call dearer than the first; so while there are many, the collector looks less often. Nothing is
switched off, and the thresholds that the program had come back as soon as the calls are done.
"""

from __future__ import annotations

import gc

__all__ = ["CollectorRelief"]

MANY_CALLS = 2048
RELAXED_THRESHOLD = 100_000
"""Allocations between two looks, some 50,000 calls; Python's own is 700."""


class CollectorRelief:
    """Relaxes the collector of this process while any cluster of it holds many calls."""

    _active = 0
    _before: tuple[int, int, int] = (0, 0, 0)

    def __init__(self) -> None:
        self._on = False

    def update(self, pending_calls: int) -> None:
        """Relax or restore, as the number of pending calls asks for."""
        if not self._on and pending_calls >= MANY_CALLS:
            self._on = True
            cls = CollectorRelief
            if cls._active == 0:
                cls._before = gc.get_threshold()
                if 0 < cls._before[0] < RELAXED_THRESHOLD:
                    gc.set_threshold(RELAXED_THRESHOLD, *cls._before[1:])
            cls._active += 1
        elif self._on and pending_calls < MANY_CALLS // 4:
            self.restore()

    def restore(self) -> None:
        """Give the collector back as it was."""
        if self._on:
            self._on = False
            cls = CollectorRelief
            cls._active -= 1
            if cls._active == 0 and gc.get_threshold()[0] == RELAXED_THRESHOLD:
                gc.set_threshold(*cls._before)
