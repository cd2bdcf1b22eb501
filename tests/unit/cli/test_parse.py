from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import aiocluster
from aiocluster.cli import parse
from aiocluster.cli.parse import FileReport, keep_journal, parse_file


@pytest.fixture(autouse=True)
def on_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(aiocluster.__dict__, "get_worker", lambda: SimpleNamespace(id=7, pid=77, node="n"))
    monkeypatch.setattr(parse, "_journal", None)


def parsed(tmp_path: Path, source: str | bytes) -> FileReport:
    path = tmp_path / "source.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return parse_file(str(path))


def test_a_report_says_who_parsed_which_file(tmp_path: Path) -> None:
    report = parsed(tmp_path, "x = 1\n")
    assert report == FileReport(str(tmp_path / "source.py"), 7, 77, "n", 1, (), (), "")


def test_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    source = """
import os.path, sys
from json import loads
from . import sibling
from .other import thing
def f():
    try:
        import a
    except ImportError:
        import b
    else:
        import c
    finally:
        import d
    match f:
        case 1:
            import e
    while f:
        import g
    else:
        import h
    with f:
        import sys
"""
    assert parsed(tmp_path, source).modules == ("a", "b", "c", "d", "e", "g", "h", "json", "os", "sys")


def test_functions_have_their_dotted_names_and_the_longest_come_first(tmp_path: Path) -> None:
    source = """
class A:
    def short(self): return lambda: 1
    async def long(self):
        def inner():
            pass
        return inner
"""
    functions = parsed(tmp_path, source).functions
    assert [(found.name, found.lines, found.line) for found in functions] == [
        ("A.long", 4, 4),
        ("A.long.inner", 2, 5),
        ("A.short", 1, 3),
    ]


def test_only_the_longest_functions_travel(tmp_path: Path) -> None:
    report = parsed(tmp_path, "".join(f"def f{n}():\n{'    1' + chr(10)}" * 1 for n in range(50)))
    assert len(report.functions) == parse.LONGEST_KEPT


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("print 1\n", "Missing parentheses in call to 'print'. Did you mean print(...)? (line 1)"),
        (b"# coding: uft-8\n", "unknown encoding: uft-8"),
        (b"x = '\xf6'\n", "utf-8"),
        (b"x = 1\0\n", "null bytes"),
        ("(" * 500 + ")" * 500, "too many nested parentheses"),
    ],
)
def test_what_does_not_parse_is_reported_and_not_raised(tmp_path: Path, source: str | bytes, error: str) -> None:
    assert error in parsed(tmp_path, source).error


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    report = parse_file(str(tmp_path / "missing.py"))
    assert report.error.startswith("FileNotFoundError: ")


def test_wrong_escapes_warn_nobody(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert parsed(tmp_path, "x = '\\d'; 1 is 1\n").error == ""
    assert caught == []


def test_a_journal_has_a_line_for_each_file_that_was_begun(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    keep_journal(str(journal))
    assert parse._journal is not None
    parse_file("/no/such a file.py")
    parse_file("/no/\udcff.py")
    assert journal.read_bytes() == b"7 /no/such a file.py\n7 /no/\xff.py\n"
    os.close(parse._journal)  # a worker keeps it until it ends


def test_workers_import_neither_typer_nor_rich() -> None:
    program = "import sys, aiocluster.cli.parse; sys.exit(bool({'typer', 'rich', 'click', 'asyncio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
