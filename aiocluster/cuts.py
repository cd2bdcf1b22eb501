"""What becomes of the items of a chunk whose worker is lost: which may run again, and in what parts.

Where it is known which item was running, that one goes alone and the blame is exact. Where it is not, as with items that ran
side by side, all that had started are suspects, and a killer must be told from the innocent before it has killed three times:

    first death     in parts, beside everything else: most workers die for reasons of their own, and little time is lost
    second death    each item by itself, one after the other, with nothing else of the map beside it
    third death     the item that was alone is the killer
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

from aiocluster.core.calls import MAX_KILLS
from aiocluster.errors import WorkerLost

__all__ = ["Part", "Record", "cut"]


class Record(NamedTuple):
    """What the items of a chunk have behind them, and may have before them.

    `kills`: workers that they may have killed. `retries`: how often they may run again, None without end. `lost`: with what they
    may have run; None if they never did. `alone`: they go with nothing of the map beside them.
    """

    kills: int = 0
    retries: int | None = 0
    lost: WorkerLost | None = None
    alone: bool = False


class Part(NamedTuple):
    """Items `first` to before `last` of a chunk; they fail if there is no record with which they may go again."""

    first: int
    last: int
    record: Record | None


def cut(count: int, record: Record, error: WorkerLost) -> list[Part]:
    """The parts of a chunk of so many items that was running on a lost worker, in order and without gaps."""
    started = count if error.items_started is None else min(count, error.items_started)
    if not started:  # no item has run, but to load them may be what killed the worker
        return _suspects(count, record, error)
    again = None
    if record.retries != 0:
        again = Record(record.kills, None if record.retries is None else record.retries - 1, error)
    if error.running and error.items_started is not None:
        running = started - 1
        parts = [Part(0, running, again)] if running else []
        parts.append(Part(running, started, _charged(again, error)))
    else:
        parts = _suspects(started, again, error)
    if started < count:
        parts.append(Part(started, count, record))
    return parts


def _charged(record: Record | None, error: WorkerLost) -> Record | None:
    return None if record is None or error.kills >= MAX_KILLS else record._replace(kills=error.kills)


def _suspects(count: int, record: Record | None, error: WorkerLost) -> list[Part]:
    """The first items of a chunk, each of which may be to blame."""
    charged = _charged(record, error)
    if record is None or charged is None:
        return [Part(0, count, None)]
    alone = charged.kills == MAX_KILLS - 1
    size = count
    if alone:
        size = 1
    elif charged.kills > record.kills:
        size = isqrt(count)
    charged = charged._replace(alone=alone)
    return [Part(first, min(first + size, count), charged) for first in range(0, count, size)]
