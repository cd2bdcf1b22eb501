"""Which workers are gone for good, and why. Ids are never given again, so what is known of them must not grow with them."""

from __future__ import annotations

__all__ = ["LostWorkers"]

CAUSES_KEPT = 1000
"""Of so many workers, the last ones lost, it is known why."""


class LostWorkers:
    """The workers that are gone."""

    def __init__(self) -> None:
        self._causes: dict[int, str] = {}
        self._forgotten = 0
        """The highest id that was lost so long ago that its cause is not kept."""

    def add(self, id: int, cause: str) -> None:
        self._causes[id] = cause
        if len(self._causes) > CAUSES_KEPT:
            oldest = next(iter(self._causes))
            del self._causes[oldest]
            self._forgotten = max(self._forgotten, oldest)

    def cause_of(self, id: int) -> str | None:
        """Why the worker is gone, which is not there now; None if it may still come.

        One that was asked for before so many others that came and went would have come by now, or have been given up.
        """
        cause = self._causes.get(id)
        if cause is None and id <= self._forgotten:
            return "it ended long ago"
        return cause
