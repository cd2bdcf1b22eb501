"""The table and the JSON of a run."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator

from bench.model import Figures, Kind, Metric, Outcome, Plan, Side, Workload
from bench.report import as_json, failed, missed, rows, write_table


@contextlib.asynccontextmanager
async def _never(plan: Plan) -> AsyncIterator[Side]:
    raise AssertionError("a report runs nothing")
    yield


def workload(name: str, *metrics: Metric) -> Workload:
    return Workload(name=name, measures="m", against="a", metrics=metrics, limit=_never, ours=_never)


CALLS = workload("submit", Metric(key="call", unit="µs", target=5.0, rate="calls/s"))
WAITING = workload(
    "waiting",
    Metric(key="call", unit="µs", target=1.1),
    Metric(key="memory", unit="bytes", target=1024, kind=Kind.VALUE),
)
ARRAYS = workload("array", Metric(key="array", unit="µs/MB", target=1.2, rate="GB/s", amount=2e-3))


def done(work: Workload, limit: list[Figures], ours: list[Figures]) -> Outcome:
    return Outcome(workload=work, limit=limit, ours=ours)


def test_a_row_names_figures_rates_ratio_spread_target_and_verdict() -> None:
    assert rows([done(CALLS, [{"call": 1.0}, {"call": 1.0}], [{"call": 2.0}, {"call": 4.0}])]) == [
        (
            "submit",
            "1.00 µs (1,000,000 calls/s)",
            "3.00 µs (333,333 calls/s)",
            "3.00 x (2.00 to 4.00)",
            "≤ 5.00 x",
            "met",
        )
    ]


def test_each_metric_of_a_workload_has_a_row_and_only_figures_it_has() -> None:
    memory: Figures = {"call": 1.0, "memory": 2048.0}
    table = rows([done(WAITING, [memory], [memory])])
    assert [line[0] for line in table] == ["waiting: call", "waiting: memory"]
    assert table[1][3:] == ("2,048 bytes (2,048 to 2,048)", "≤ 1,024 bytes", "MISSED")


def test_bandwidth_counts_the_bytes_of_both_ways() -> None:
    assert rows([done(ARRAYS, [{"array": 1000.0}], [])])[0][1:3] == ("1,000 µs/MB (2.00 GB/s)", "-")


def test_a_workload_that_failed_has_its_error_below_the_table_and_no_figures() -> None:
    outcome = Outcome(workload=CALLS, error="WrongResult: the sum is off")
    out = io.StringIO()
    write_table([outcome], "title", ["a note"], out)
    assert "FAILED" in out.getvalue()
    assert out.getvalue().endswith("a note\nsubmit failed: WrongResult: the sum is off\n")
    assert (failed([outcome]), missed([outcome])) == (["submit"], [])


def test_without_a_terminal_the_table_is_plain_aligned_text() -> None:
    out = io.StringIO()
    write_table([done(CALLS, [{"call": 1.0}], [{"call": 9.0}])], "title", [], out)
    title, heading, line = out.getvalue().splitlines()
    assert title == "title"
    assert "\x1b" not in out.getvalue()
    assert heading.index("target") == line.index("≤")


def test_on_a_terminal_the_table_has_the_same_cells() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    write_table([done(CALLS, [{"call": 1.0}], [{"call": 9.0}])], "title", ["[a note]"], out)
    assert "MISSED" in out.getvalue()
    assert "[a note]" in out.getvalue()


def test_missed_targets_are_named() -> None:
    slow: Figures = {"call": 3.0, "memory": 10.0}
    fast: Figures = {"call": 1.0, "memory": 10.0}
    assert missed([done(WAITING, [fast], [slow]), done(CALLS, [fast], [fast])]) == ["waiting: call"]


def test_json_keeps_every_round_and_the_verdict() -> None:
    outcome = done(CALLS, [{"call": 1.0}, {"call": 2.0}], [{"call": 4.0}, {"call": 4.0}])
    plan = Plan(rounds=2)
    document = json.loads(as_json([outcome], plan, {"cpus": 2}, "2026-01-01T00:00:00+00:00"))
    assert document["machine"] == {"cpus": 2}
    assert document["plan"] == {"rounds": 2, "warm_ups": 1, "quick": False}
    assert document["workloads"][0]["metrics"] == [
        {
            "key": "call",
            "unit": "µs",
            "limit_rounds": [1.0, 2.0],
            "ours_rounds": [4.0, 4.0],
            "limit_median": 1.5,
            "ours_median": 4.0,
            "held_against_target": "ratio",
            "score": 3.0,
            "score_lowest": 2.0,
            "score_highest": 4.0,
            "target": 5.0,
            "met": True,
        }
    ]


def test_json_of_a_failed_workload_says_why() -> None:
    document = json.loads(as_json([Outcome(workload=CALLS, error="boom")], Plan(), {}, ""))
    assert (document["workloads"][0]["error"], document["workloads"][0]["metrics"]) == ("boom", [])
