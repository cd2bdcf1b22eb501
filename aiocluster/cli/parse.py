"""What the workers of `aiocluster demo` run: parse one file of Python source and say what is in it.

Workers import this module, so it imports next to nothing: no typer, no rich, nothing of the manager's side.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import aiocluster

__all__ = ["FileReport", "FoundFunction", "keep_journal", "parse_file"]

LONGEST_KEPT = 5
"""Functions that one file reports: as many as the table of the whole library shows."""

_journal: int | None = None


class FoundFunction(NamedTuple):
    """One function and where it is."""

    lines: int
    name: str
    path: str
    line: int


class FileReport(NamedTuple):
    """What one file contains, and who parsed it."""

    path: str
    worker_id: int
    pid: int
    node: str
    lines: int
    modules: tuple[str, ...]
    """The top-level modules that it imports, each once; relative imports are left out."""
    functions: tuple[FoundFunction, ...]
    """Its longest functions."""
    error: str
    """Why it does not parse; empty if it does."""


def keep_journal(path: str) -> None:
    """From now on this process adds a line to the file whenever it starts to parse one.

    The demo reads there which files ran twice after it has killed a worker. Lines of several processes do not mix.
    """
    global _journal
    _journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def parse_file(path: str) -> FileReport:
    """What the file contains; a file that cannot be read or parsed gives a report with an error and does not raise."""
    me = aiocluster.get_worker()
    if _journal is not None:
        os.write(_journal, f"{me.id} {path}\n".encode(errors="surrogateescape"))
    lines, error = 0, ""
    modules: set[str] = set()
    functions: list[FoundFunction] = []
    try:
        with open(path, "rb") as file:
            source = file.read()
        lines = source.count(b"\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wrong escapes in strings: tests of the library are full of them
            tree = ast.parse(source, path)
        for name, statement in _statements(tree):
            if isinstance(statement, ast.Import):
                modules.update(alias.name.partition(".")[0] for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                if statement.module and not statement.level:
                    modules.add(statement.module.partition(".")[0])
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (statement.end_lineno or statement.lineno) - statement.lineno + 1
                functions.append(FoundFunction(length, name, path, statement.lineno))
    except SyntaxError as problem:
        error = problem.msg if not problem.lineno else f"{problem.msg} (line {problem.lineno})"
    except (OSError, ValueError, RecursionError, MemoryError) as problem:  # ValueError: bytes that are no text
        error = f"{type(problem).__name__}: {problem}"
    functions.sort(key=lambda found: found.lines, reverse=True)
    longest = tuple(functions[:LONGEST_KEPT])
    return FileReport(path, me.id, me.pid, me.node, lines, tuple(sorted(modules)), longest, error)


def _statements(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Each statement with its dotted name, or that of what it is in.

    Imports and functions are never inside expressions, so those, which are most of a tree, are left out.
    """
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
        if isinstance(node, ast.stmt):
            yield name, node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            if isinstance(inner, list):  # the body of a lambda or a conditional is no list
                waiting.extend((name, child) for child in inner)
