from __future__ import annotations

import asyncio
import io
import logging

import pytest

from aiocluster.console import make_output
from aiocluster.progress import make_progress

from .terminal_double import FakeTerminal


@pytest.fixture(autouse=True)
def colour_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def test_lines_go_to_the_stream_they_came_from_tagged_with_their_worker() -> None:
    out, err = io.StringIO(), io.StringIO()
    sink = make_output("forward", out, err)
    sink(3, 1, ["one", "two"])
    sink(12, 2, ["three"])
    sink(12, 2, [])
    assert out.getvalue() == "[3] one\n[3] two\n"
    assert err.getvalue() == "[12] three\n"


def test_plain_lines_pass_unchanged() -> None:
    out = io.StringIO()
    line = "\x1b[31mred [bold]markup[/bold] :smile: %d {x} \\u20ac"
    make_output("forward", out, out)(1, 1, [line, ""])
    assert out.getvalue() == f"[1] {line}\n[1] \n"


def test_a_terminal_gets_a_coloured_tag_and_the_line_as_it_was() -> None:
    terminal = FakeTerminal()
    sink = make_output("forward", terminal, terminal)
    sink(1, 1, ["[bold]x[/bold] :smile: https://example.org/ 12"])
    sink(2, 1, ["\x1b[31mred"])
    first, second = terminal.getvalue().splitlines()
    tag, text = first.split("\x1b[0m ", 1)
    assert tag.startswith("\x1b[")
    assert tag.endswith("[1]")
    assert text == "[bold]x[/bold] :smile: https://example.org/ 12"
    assert second.endswith("[2]\x1b[0m \x1b[31mred\x1b[0m")
    assert first[:5] != second[:5]


def test_long_lines_are_not_wrapped() -> None:
    terminal = FakeTerminal()
    make_output("forward", terminal, terminal)(1, 1, ["x" * 1000])
    assert terminal.screen() == ["[1] " + "x" * 1000]


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = FakeTerminal()
    make_output("forward", terminal, terminal)(1, 1, ["x"])
    assert terminal.getvalue() == "[1] x\n"


def test_lines_appear_above_the_progress_bar() -> None:
    terminal = FakeTerminal()
    sink = make_output("forward", terminal, terminal)
    reporter = make_progress(True, "work", 10, stream=terminal)
    sink(1, 1, ["one"])
    sink(2, 2, ["two"])
    assert [line.split()[:2] for line in terminal.screen()[:2]] == [["[1]", "one"], ["[2]", "two"]]
    assert terminal.screen()[2].startswith("work ")
    assert len(terminal.screen()) == 3
    reporter.close()


def test_a_closed_stream_ends_the_forwarding_to_it_alone() -> None:
    out, err = io.StringIO(), io.StringIO()
    sink = make_output("forward", out, err)
    out.close()
    sink(1, 1, ["lost"])
    sink(1, 1, ["lost"])
    sink(1, 2, ["kept"])
    assert err.getvalue() == "[1] kept\n"


def test_characters_that_the_stream_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1")
    make_output("forward", out, out)(1, 1, ["\xe9 \u20ac", "next"])
    assert raw.getvalue() == b"[1] \xe9 \\u20ac\n[1] next\n"


def test_lone_surrogates_do_not_crash() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8")
    make_output("forward", out, out)(1, 1, ["a\udcffb"])
    assert raw.getvalue() == b"[1] a\\udcffb\n"


def test_the_streams_of_the_moment_are_used_unless_some_are_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make_output("forward")
    sink(1, 1, ["out"])
    sink(1, 2, ["err"])
    assert capsys.readouterr() == ("[1] out\n", "[1] err\n")
    replaced = io.StringIO()
    monkeypatch.setattr("sys.stdout", replaced)
    sink(1, 1, ["elsewhere"])
    assert replaced.getvalue() == "[1] elsewhere\n"
    monkeypatch.setattr("sys.stdout", None)
    sink(1, 1, ["nowhere"])


def test_log_makes_records_with_worker_and_stream(caplog: pytest.LogCaptureFixture) -> None:
    sink = make_output("log")
    with caplog.at_level(logging.INFO, logger="aiocluster.worker"):
        sink(4, 2, ["100 % {done}"])
    [record] = caplog.records
    assert record.name == "aiocluster.worker"
    assert record.levelno == logging.INFO
    assert record.getMessage() == "[4] 100 % {done}"
    assert (record.__dict__["worker_id"], record.__dict__["stream"]) == (4, "stderr")


def test_quiet_drops_lines(capsys: pytest.CaptureFixture[str]) -> None:
    make_output("quiet")(1, 1, ["x"])
    assert capsys.readouterr() == ("", "")


def test_a_function_gets_each_line() -> None:
    seen: list[tuple[int, str, str]] = []
    sink = make_output(lambda worker_id, stream, line: seen.append((worker_id, stream, line)))
    sink(1, 1, ["a", "b"])
    sink(2, 2, ["c"])
    assert seen == [(1, "stdout", "a"), (1, "stdout", "b"), (2, "stderr", "c")]


@pytest.mark.parametrize(
    "kind", [KeyError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError, BaseException]
)
def test_a_function_that_raises_is_reported_once_and_called_on(
    caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    seen: list[str] = []

    def fails(worker_id: int, stream: str, line: str) -> None:
        seen.append(line)
        raise kind(line)

    make_output(fails)(1, 1, ["a", "b"])
    assert seen == ["a", "b"]
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_what_is_no_mode_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "forward", "log", "quiet" or a function, not \'loud\''):
        make_output("loud")

    async def nobody_awaits(worker_id: int, stream: str, line: str) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        make_output(nobody_awaits)
