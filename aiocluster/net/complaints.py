"""Log lines about peers that misbehave: one clear line each, and never so many that they are an attack themselves."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["Complaints"]

BURST: Final = 20
PER_SECOND: Final = 2.0


class Complaints:
    """Logs up to 20 lines at once and 2 a second after that; what was left out is counted in the next line.

    Nothing that a peer sent is ever part of a line: `about` and `what` are our own words.
    """

    def __init__(self, logger: logging.Logger, now: float) -> None:
        self._logger = logger
        self._budget = float(BURST)
        self._at = now
        self._left_out = 0

    def dropped(self, about: str, what: str, now: float) -> None:
        """A connection was dropped: whose, and why."""
        self._budget = min(float(BURST), self._budget + (now - self._at) * PER_SECOND)
        self._at = now
        if self._budget < 1:
            self._left_out += 1
            return
        self._budget -= 1
        more = f" ({self._left_out} more were dropped before it)" if self._left_out else ""
        self._left_out = 0
        self._logger.warning("dropped a connection from %s: %s%s", about, what, more)
