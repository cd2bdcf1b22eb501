"""Adds up what `aiocluster demo` gets back, and writes it as plain text. It never prints and never asks the cluster."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aiocluster.cli.parse import FileReport, FoundFunction

__all__ = ["Share", "Tally", "columns", "plural"]

MODULES_SHOWN = 5
FUNCTIONS_SHOWN = 5
BROKEN_SHOWN = 12


@dataclass(slots=True)
class Share:
    """What one worker has done."""

    pid: int
    node: str
    files: int = 0


class _Discrepancy(NamedTuple):
    path: str
    times: int


class Tally:
    """Counts each report that arrives, by file and by worker, and keeps what the tables need."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.shares: dict[int, Share] = {}
        self.lines = 0
        self.modules: Counter[str] = Counter()
        self.functions: list[FoundFunction] = []
        self.broken: list[tuple[str, str]] = []

    @property
    def received(self) -> int:
        """How many reports have arrived, whatever file they are about."""
        return self.counts.total()

    def add(self, report: FileReport) -> None:
        self.counts[report.path] += 1
        share = self.shares.get(report.worker_id)
        if share is None:
            share = self.shares[report.worker_id] = Share(report.pid, report.node)
        share.files += 1
        self.lines += report.lines
        self.modules.update(report.modules)
        if report.functions:
            self.functions = heapq.nlargest(FUNCTIONS_SHOWN, [*self.functions, *report.functions])
        if report.error:
            self.broken.append((report.path, report.error))

    def discrepancies(self, files: Iterable[str]) -> list[_Discrepancy]:
        """Every file that was not counted exactly once, and everything counted that is none of the files."""
        wanted = Counter(files)
        names = sorted(wanted.keys() | self.counts.keys())
        return [_Discrepancy(name, self.counts[name]) for name in names if self.counts[name] != 1 or wanted[name] != 1]

    def findings(self, root: str) -> list[str]:
        """The tables of what is in the files, with paths from `root` on."""
        text = [f"{plural(self.lines, 'line')}. What is in them:", ""]
        rows = [("most imported", "in files"), *((name, f"{count:,}") for name, count in _most(self.modules))]
        text += [*columns(rows), ""]
        functions = [(found.name, f"{found.lines:,}", f"{_below(root, found.path)}:{found.line}") for found in self.functions]
        text += [*columns([("longest functions", "lines", "where"), *functions]), ""]
        broken = sorted((_below(root, path), error) for path, error in self.broken)
        if not broken:
            return [*text, "Every file parses."]
        shown = broken[:BROKEN_SHOWN]
        text += columns([(f"do not parse ({len(broken):,})", "because"), *shown])
        if len(broken) > len(shown):
            text.append(f"  ... and {plural(len(broken) - len(shown), 'more file')}")
        return text


def _most(modules: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent ones; equal ones by name, so that two runs agree however the results arrived."""
    return sorted(modules.items(), key=lambda item: (-item[1], item[0]))[:MODULES_SHOWN]


def _below(root: str, path: str) -> str:
    """The path from `root` on, such as a terminal can show it (names on disk need not be text)."""
    text = path.removeprefix(root).lstrip("/")
    return text.encode("utf-8", "backslashreplace").decode()


def plural(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as aligned lines, indented; a column of figures aligns to the right. The first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    figures = [
        len(rows) > 1 and all(cell.replace(",", "").isdigit() for cell in column[1:]) for column in zip(*rows, strict=True)
    ]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, figures, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
