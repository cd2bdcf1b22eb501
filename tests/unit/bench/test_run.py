"""The order of rounds, and what becomes of errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from bench.model import Figures, Metric, Plan, Side, Workload, check
from bench.run import run_workload


class Journal:
    """A workload whose sides write down when they run."""

    def __init__(self, ours: Callable[[], None] = lambda: None) -> None:
        self.lines: list[str] = []
        self._ours = ours

    def side(self, name: str) -> Callable[[Plan], contextlib.AbstractAsyncContextManager[Side]]:
        @contextlib.asynccontextmanager
        async def open_side(plan: Plan) -> AsyncIterator[Side]:
            async def measure() -> Figures:
                self.lines.append(name)
                if name == "ours":
                    self._ours()
                return {"x": float(len(self.lines))}

            self.lines.append(f"open {name}")
            try:
                yield measure
            finally:
                self.lines.append(f"close {name}")

        return open_side

    def workload(self, *, limit: bool = True) -> Workload:
        return Workload(
            name="journal",
            measures="",
            against="",
            metrics=(Metric(key="x", unit="s", target=None),),
            limit=self.side("limit") if limit else None,
            ours=self.side("ours"),
        )


def run(journal: Journal, plan: Plan, *, limit: bool = True, limit_only: bool = False) -> tuple[int, int, str | None]:
    outcome = asyncio.run(run_workload(journal.workload(limit=limit), plan, limit_only=limit_only))
    return len(outcome.limit), len(outcome.ours), outcome.error


def test_both_sides_take_turns_and_warm_ups_do_not_count() -> None:
    journal = Journal()
    assert run(journal, Plan(rounds=2, warm_ups=1)) == (2, 2, None)
    assert journal.lines[:2] == ["open limit", "open ours"]
    assert journal.lines[2:-2] == ["limit", "ours"] * 3
    assert journal.lines[-2:] == ["close ours", "close limit"]


def test_the_limit_alone_opens_nothing_else() -> None:
    journal = Journal()
    assert run(journal, Plan(rounds=2, warm_ups=0), limit_only=True) == (2, 0, None)
    assert "open ours" not in journal.lines


def test_a_workload_without_a_limit_runs_ours_alone() -> None:
    assert run(Journal(), Plan(rounds=3), limit=False) == (0, 3, None)


def test_a_wrong_result_fails_the_workload_and_closes_both_sides() -> None:
    journal = Journal(ours=lambda: check(False, "the sum is off"))
    assert run(journal, Plan(rounds=2)) == (0, 0, "WrongResult: the sum is off")
    assert journal.lines[-2:] == ["close ours", "close limit"]


def test_cancelling_closes_both_sides_and_is_not_swallowed() -> None:
    def interrupt() -> None:
        raise asyncio.CancelledError

    journal = Journal(ours=interrupt)
    with pytest.raises(asyncio.CancelledError):
        run(journal, Plan(rounds=2))
    assert journal.lines[-2:] == ["close ours", "close limit"]
