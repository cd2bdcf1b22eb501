"""What a run says: a table for people, JSON for programs. Formats figures, never changes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from bench.model import Kind, Metric, Outcome, Plan, Score, score

__all__ = ["HEADINGS", "SCHEMA", "as_json", "failed", "missed", "rows", "scores", "write_table"]

SCHEMA = 1
"""Grows when a reader of the JSON would have to change."""

HEADINGS = ("workload", "limit", "aiocluster", "score (spread)", "target", "")
_NONE = "-"
_TIMES_S = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}


def scores(outcome: Outcome) -> list[tuple[Metric, Score]]:
    """The verdict on each metric of a workload."""
    return [
        (metric, score(metric, _column(outcome.limit, metric.key), _column(outcome.ours, metric.key)))
        for metric in outcome.workload.metrics
        if outcome.error is None
    ]


def _column(rounds: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return [figures[key] for figures in rounds if key in figures]


def missed(outcomes: Sequence[Outcome]) -> list[str]:
    """The metrics that missed their targets."""
    return [_name(outcome, metric) for outcome in outcomes for metric, verdict in scores(outcome) if verdict.met is False]


def failed(outcomes: Sequence[Outcome]) -> list[str]:
    """The workloads that ended in an error or a wrong result."""
    return [outcome.workload.name for outcome in outcomes if outcome.error is not None]


def _name(outcome: Outcome, metric: Metric) -> str:
    name = outcome.workload.name
    return name if len(outcome.workload.metrics) == 1 else f"{name}: {metric.key}"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}" if magnitude >= 1 else f"{value:.3g}"


def _figure(metric: Metric, value: float | None) -> str:
    if value is None:
        return _NONE
    text = f"{_number(value)} {metric.unit}"
    if metric.rate is not None and value > 0:
        text += f" ({_number(_rate(metric, value))} {metric.rate})"
    return text


def _rate(metric: Metric, value: float) -> float:
    """How many of the rate's things happen in a second: `amount` of them take the time that the figure gives."""
    return metric.amount / (value * _TIMES_S[metric.unit.partition("/")[0]])


def _held(metric: Metric, value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.2f} x" if metric.kind is Kind.RATIO else f"{_number(value)} {metric.unit}"


def _verdict(verdict: Score) -> str:
    return {True: "met", False: "MISSED", None: ""}[verdict.met]


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """The cells of the table, one row for each metric, or for the error of a workload."""
    cells: list[tuple[str, ...]] = []
    for outcome in outcomes:
        if outcome.error is not None:
            cells.append((outcome.workload.name, _NONE, _NONE, _NONE, _NONE, "FAILED"))
            continue
        for metric, verdict in scores(outcome):
            held = _held(metric, verdict.score)
            if metric.kind is Kind.VALUE and metric.target is None:
                held = _NONE
            elif verdict.lowest is not None and verdict.highest is not None:
                held += f" ({_number(verdict.lowest)} to {_number(verdict.highest)})"
            cells.append(
                (
                    _name(outcome, metric),
                    _figure(metric, verdict.limit),
                    _figure(metric, verdict.ours),
                    held,
                    _NONE if metric.target is None else f"≤ {_held(metric, metric.target)}",
                    _verdict(verdict),
                )
            )
    return cells


def write_table(outcomes: Sequence[Outcome], title: str, notes: Sequence[str], stream: TextIO) -> None:
    """The table: coloured on a terminal, aligned plain text of full width where there is none."""
    cells = rows(outcomes)
    errors = [f"{outcome.workload.name} failed: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    if stream.isatty():
        _write_rich(cells, title, [*notes, *errors], stream)
    else:
        _write_plain(cells, title, [*notes, *errors], stream)


def _write_plain(cells: Sequence[Sequence[str]], title: str, notes: Sequence[str], stream: TextIO) -> None:
    lines = [HEADINGS, *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(HEADINGS))]
    print(title, file=stream)
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=stream)
    for note in notes:
        print(note, file=stream)


def _write_rich(cells: Sequence[Sequence[str]], title: str, notes: Sequence[str], stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"met": "green", "MISSED": "yellow", "FAILED": "red"}
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index in (0, len(HEADINGS) - 1) else "right", no_wrap=index == 0)
    for line in cells:
        # Text, not strings: a bracket in a cell is no markup.
        table.add_row(*[Text(cell, style=colours.get(cell, "")) for cell in line])
    console = Console(file=stream)
    console.print(table)
    for note in notes:
        console.print(Text(note))


def as_json(outcomes: Sequence[Outcome], plan: Plan, machine: Mapping[str, Any], started: str) -> str:
    """The whole run: machine, plan, every round of both sides, medians, ratios and verdicts."""
    document = {
        "schema": SCHEMA,
        "started": started,
        "machine": dict(machine),
        "plan": {"rounds": plan.rounds, "warm_ups": plan.warm_ups, "quick": plan.quick},
        "workloads": [_workload_json(outcome) for outcome in outcomes],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _workload_json(outcome: Outcome) -> dict[str, Any]:
    workload = outcome.workload
    return {
        "name": workload.name,
        "measures": workload.measures,
        "against": workload.against,
        "error": outcome.error,
        "metrics": [
            {
                "key": metric.key,
                "unit": metric.unit,
                "limit_rounds": _column(outcome.limit, metric.key),
                "ours_rounds": _column(outcome.ours, metric.key),
                "limit_median": verdict.limit,
                "ours_median": verdict.ours,
                "held_against_target": metric.kind.value,
                "score": verdict.score,
                "score_lowest": verdict.lowest,
                "score_highest": verdict.highest,
                "target": metric.target,
                "met": verdict.met,
            }
            for metric, verdict in scores(outcome)
        ],
    }
