from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aiocluster import terminal
from aiocluster.progress import NoProgress, Progress, make_progress
from aiocluster.terminal import above_bars, is_terminal, screen_of, write_text

from .terminal_double import FakeTerminal


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def no_bar_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    yield
    assert not terminal._screens


def test_progress_that_is_off_shows_nothing() -> None:
    stream = io.StringIO()
    for off in (False, ""):
        reporter = make_progress(off, "work", 10, stream=stream)
        reporter.advance(10, workers=2)
        reporter.close()
        assert isinstance(reporter, NoProgress)
    assert stream.getvalue() == ""


def test_progress_without_a_stream_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(make_progress(True, "work", 10), NoProgress)


def test_progress_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    make_progress(True, "work", 10).close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("work: 0 of 10 in ")


def test_plain_lines_come_every_two_seconds_with_rate_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", 1000, stream=stream, clock=clock)
    for done in range(5, 45, 5):
        clock.tick(0.5)
        reporter.advance(done, workers=3)
    assert stream.getvalue().splitlines() == [
        "work: 20/1,000 (2 %), 10/s, 1:38 left, 3 workers",
        "work: 40/1,000 (4 %), 10/s, 1:36 left, 3 workers",
    ]
    reporter.close()


def test_plain_lines_come_every_tenth_of_a_fast_map(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress("mine", "work", 100, stream=stream, clock=clock)
    for done in range(1, 101):
        clock.tick(0.125)
        reporter.advance(done, workers=1)
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10  # nine tenths and the last line
    assert lines[0] == "mine: 10/100 (10 %), 8.0/s, 11.2 s left, 1 worker"
    assert lines[-1] == "mine: 100 of 100 in 12.5 s, 8.0/s, 1 worker"


def test_a_map_faster_than_an_eye_gives_only_the_last_line(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", 100, stream=stream, clock=clock)
    for done in range(1, 101):
        clock.tick(0.00075)
        reporter.advance(done, workers=2)
    reporter.close()
    assert stream.getvalue() == "work: 100 of 100 in 0.1 s, 1,333/s, 2 workers\n"


def test_plain_lines_of_a_long_map_grow_rarer(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", None, stream=stream, clock=clock)
    for done in range(1, 8 * 3600 + 1):
        clock.tick(1)
        reporter.advance(done, workers=2)
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert 400 < len(lines) < 700
    assert lines[-1] == "work: 28,800 in 8:00:00, 1.0/s, 2 workers"


def test_an_unknown_total_shows_a_count_and_no_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", None, stream=stream, clock=clock)
    clock.tick(4)
    reporter.advance(1, workers=2)
    reporter.close(failed=True)
    assert stream.getvalue().splitlines() == [
        "work: 1 done, 15.0/min, 2 workers",
        "work: stopped after 1 in 4.0 s, 15.0/min, 2 workers",
    ]


def test_closing_twice_and_going_on_after_it_say_nothing_more(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", 0, stream=stream, clock=clock)
    reporter.close()
    before = stream.getvalue()
    reporter.close(failed=True)
    clock.tick(10)
    reporter.advance(1, workers=1)
    assert stream.getvalue() == before == "work: 0 of 0 in 0.0 s, 0/s, 0 workers\n"


def test_more_items_than_were_announced_show_no_percentage(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", 2, stream=stream, clock=clock)
    clock.tick(3)
    reporter.advance(3, workers=1)
    reporter.close()
    assert stream.getvalue().splitlines()[0] == "work: 3 done, 1.0/s, 1 worker"


def test_the_rate_follows_the_last_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", None, stream=stream, clock=clock)
    for second in range(1, 31):
        clock.tick(1)
        reporter.advance(100 * second, workers=1)
    for second in range(1, 31):
        clock.tick(1)
        reporter.advance(3000 + 20 * second, workers=1)
    assert "20/s" in stream.getvalue().splitlines()[-1]
    reporter.close()


def test_a_closed_stream_harms_nobody(clock: Clock) -> None:
    stream = io.StringIO()
    reporter = make_progress(True, "work", 10, stream=stream, clock=clock)
    stream.close()
    clock.tick(5)
    reporter.advance(5, workers=1)
    reporter.close()
    assert not is_terminal(stream)


def test_a_terminal_shows_one_bar_and_leaves_one_line(clock: Clock) -> None:
    stream = FakeTerminal()
    reporter = make_progress(True, "work", 200, stream=stream, clock=clock)
    assert isinstance(reporter, Progress)
    clock.tick(2)
    reporter.advance(50, workers=2)
    [line] = stream.screen()
    assert line.startswith("work ━━━━━━━")
    assert line.split()[-8:] == ["(25", "%)", "25/s", "6.0", "s", "left", "2", "workers"]
    clock.tick(6)
    reporter.advance(200, workers=2)
    reporter.close()
    assert stream.screen() == ["work: 200 of 200 in 8.0 s, 25/s, 2 workers"]
    assert stream.getvalue().endswith("\n")


def test_a_terminal_is_updated_ten_times_a_second_at_most(clock: Clock) -> None:
    stream = FakeTerminal()
    reporter = make_progress(True, "work", None, stream=stream, clock=clock)
    drawn = 0
    for done in range(1, 1001):
        clock.tick(0.001)
        before = len(stream.getvalue())
        reporter.advance(done, workers=2)
        drawn += len(stream.getvalue()) != before
    assert 9 <= drawn <= 10
    reporter.close(failed=True)
    assert stream.screen() == ["work: stopped after 1,000 in 1.0 s, 1,000/s, 2 workers"]


def test_a_bar_fits_a_narrow_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    stream = FakeTerminal()
    reporter = make_progress(True, "a label that is rather long [bold]", 200, stream=stream, clock=clock)
    clock.tick(2)
    reporter.advance(50, workers=2)
    assert all(len(line) < 24 for line in stream.screen())
    assert len(stream.screen()) == 1
    reporter.close()


def test_a_label_is_no_markup(clock: Clock) -> None:
    stream = FakeTerminal()
    reporter = make_progress("[red]f[/red] :smile:", "", 2, stream=stream, clock=clock)
    assert stream.screen()[0].startswith("[red]f[/red] :smile: ━")
    reporter.close()
    assert stream.screen()[0].startswith("[red]f[/red] :smile: 0 of 2".replace(": 0", ":: 0"))


def test_lines_written_above_the_bars_leave_the_bars_below(clock: Clock) -> None:
    stream = FakeTerminal()
    first = make_progress(True, "first", 10, stream=stream, clock=clock)
    second = make_progress(True, "second", 10, stream=stream, clock=clock)
    with above_bars():
        write_text(stream, "one\ntwo\n")
        clock.tick(1)
        first.advance(5, workers=1)
        write_text(stream, "three\n")
    assert [line.split()[0] for line in stream.screen()] == ["one", "two", "three", "first", "second"]
    first.close()
    assert [line.split()[0] for line in stream.screen()] == ["one", "two", "three", "first:", "second"]
    second.close()
    assert [line.split()[0] for line in stream.screen()] == ["one", "two", "three", "first:", "second:"]


def test_a_bar_that_ends_while_lines_are_written_leaves_its_last_line(clock: Clock) -> None:
    stream = FakeTerminal()
    reporter = make_progress(True, "work", 10, stream=stream, clock=clock)
    with above_bars():
        write_text(stream, "one\n")
        reporter.close()
    assert [line.split()[0] for line in stream.screen()] == ["one", "work:"]


def test_above_bars_without_bars_writes_nothing() -> None:
    stream = FakeTerminal()
    with above_bars():
        pass
    assert stream.getvalue() == ""


def test_bars_come_back_if_the_writer_raises(clock: Clock) -> None:
    stream = FakeTerminal()
    reporter = make_progress(True, "work", 10, stream=stream, clock=clock)
    with pytest.raises(ZeroDivisionError), above_bars():
        1 / 0  # noqa: B018
    assert stream.screen()[0].startswith("work")
    reporter.close()


def test_a_stream_has_one_screen() -> None:
    stream = FakeTerminal()
    screen = screen_of(stream)
    assert screen_of(stream) is screen
    screen.finish("nobody", "done")


def test_a_dumb_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_terminal(FakeTerminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(FakeTerminal())
    assert not is_terminal(None)


def test_a_bar_on_a_terminal_without_unicode_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    assert write_text(stream, "20 \u20ac\n")
    assert raw.getvalue() == b"20 \\u20ac\n"


def test_a_full_non_blocking_stream_is_not_given_up() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise BlockingIOError

    assert write_text(Full(), "text")


def test_a_closed_pipe_is_given_up() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    raw = os.fdopen(writing, "wb", buffering=0)
    stream = io.TextIOWrapper(raw, write_through=True)
    assert not write_text(stream, "text")
    raw.close()


def test_plain_progress_does_not_import_rich() -> None:
    program = (
        "import sys, io\n"
        "from aiocluster.progress import make_progress as p; from aiocluster.console import make_output\n"
        "p(True, 'x', 1, stream=io.StringIO()).close(); make_output('forward', io.StringIO())(1, 1, ['x'])\n"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
