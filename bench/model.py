"""What a workload is, what is kept of its rounds, and the one way from figures to a verdict. No I/O, no clock."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

__all__ = [
    "Figures",
    "Kind",
    "Metric",
    "Outcome",
    "Plan",
    "Score",
    "Side",
    "Workload",
    "WrongResult",
    "check",
    "score",
]

Figures = Mapping[str, float]
"""One round of one side: the figure of each metric, by its key."""


class WrongResult(AssertionError):
    """A workload got a wrong answer: its speed means nothing."""


def check(condition: bool, text: str) -> None:
    """Raise `WrongResult` unless the condition holds (also under `python -O`)."""
    if not condition:
        raise WrongResult(text)


class Kind(enum.Enum):
    """What of a metric is held against its target."""

    RATIO = "ratio"
    """Ours divided by the limit of the same round."""
    VALUE = "value"
    """Ours itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure of a workload; less is better, for every metric."""

    key: str
    unit: str
    target: float | None
    kind: Kind = Kind.RATIO
    rate: str | None = None
    """If given, people are also told how many of these there are in a second (the unit must be a time)."""
    amount: float = 1.0
    """How many things (calls, GB) take the time that the figure gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How large a run is."""

    rounds: int = 5
    warm_ups: int = 1
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")
        if self.warm_ups < 0:
            raise ValueError(f"warm_ups must be 0 or more, not {self.warm_ups}")


Side = Callable[[], Awaitable[Figures]]
"""Runs one round of one of the two things that take turns. It checks its own results and raises if they are wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One entry of the table: what is measured, what it is held against, and how."""

    name: str
    measures: str
    against: str
    metrics: tuple[Metric, ...]
    limit: Callable[[Plan], AbstractAsyncContextManager[Side]] | None
    """Opens the side of the limit; None if the target is a plain figure."""
    ours: Callable[[Plan], AbstractAsyncContextManager[Side]]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """All rounds of one workload, in order, or the error that ended them."""

    workload: Workload
    limit: list[Figures] = field(default_factory=list)
    ours: list[Figures] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One line of the report: medians over the rounds and what is held against the target."""

    limit: float | None
    ours: float | None
    score: float | None
    lowest: float | None
    highest: float | None
    """The best and the worst round's score."""
    met: bool | None
    """None without a target, or without a figure."""


def score(metric: Metric, limit: list[float], ours: list[float]) -> Score:
    """The verdict on one metric.

    A ratio is taken within each round, and the median of these is held against the target: both sides of a round saw
    the machine in about the same state, so its drift cancels. It is therefore not exactly the ratio of the two medians.

    Raises:
        ValueError: a ratio was asked for and the two sides have different numbers of rounds.
    """
    if metric.kind is Kind.VALUE:
        each = ours
    elif limit and ours:
        each = [our / its for its, our in zip(limit, ours, strict=True)]
    else:
        each = []
    middle = statistics.median(each) if each else None
    return Score(
        limit=statistics.median(limit) if limit else None,
        ours=statistics.median(ours) if ours else None,
        score=middle,
        lowest=min(each, default=None),
        highest=max(each, default=None),
        met=None if metric.target is None or middle is None else middle <= metric.target,
    )
