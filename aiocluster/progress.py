"""The progress of a map: a bar with rate, time left and workers on a terminal, plain lines where there is none.

A reporter is told of finished items and shows them at most ten times a second; it owns no thread, no task and no timer,
so nothing moves while nothing finishes. rich is imported only for a bar on a terminal. A stream that cannot be written
to never harms the map.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TextIO

from aiocluster.terminal import is_terminal, screen_of, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["NoProgress", "Progress", "ProgressReporter", "make_progress"]

UPDATE_INTERVAL_S = 0.1
"""Between two updates of what is shown: as fast as an eye follows, and next to no cost."""
LINE_INTERVAL_S = 2.0
"""Between two plain lines, unless a tenth of all is done sooner."""
LINE_INTERVAL_LONGEST_S = 60.0
"""Plain lines of long maps grow rarer, up to this, for they are kept in log files."""
RATE_WINDOW_S = 10.0
"""The rate and the time left follow this much of the past: short enough to notice a change, long enough to be calm."""
BAR_WIDEST = 30
BAR_NARROWEST = 6


class ProgressReporter(Protocol):
    """What a map tells its progress to, in the loop's thread."""

    def advance(self, done: int, *, workers: int) -> None:
        """So many items are done in all; so many workers take calls now."""
        ...

    def close(self, failed: bool = False) -> None:
        """The map is over; `failed`: before all was done. Doing it again changes nothing."""
        ...


def make_progress(
    enabled: bool | str,
    label: str,
    total: int | None,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ProgressReporter:
    """A reporter that shows the progress of one map; one that shows nothing if `enabled` is false.

    Args:
        enabled: False (or an empty string) for none; a string is shown instead of `label`.
        label: what the map is called.
        total: how many items there are; None where nobody knows.
        stream: where to show it; `sys.stderr` if None.
        clock: gives seconds that only grow.
    """
    stream = sys.stderr if stream is None else stream
    if not enabled or stream is None:  # sys.stderr is None in a process without one
        return NoProgress()
    view: _View = _Bar(stream) if is_terminal(stream) else _Lines(stream)
    return Progress(enabled if isinstance(enabled, str) else label, total, view, clock)


class NoProgress:
    """Shows nothing."""

    __slots__ = ()

    def advance(self, done: int, *, workers: int) -> None:
        """Nothing happens."""

    def close(self, failed: bool = False) -> None:
        """Nothing happens."""


class _Figures(NamedTuple):
    """What is known of a map at one moment."""

    label: str
    done: int
    total: int | None
    elapsed_s: float
    rate: float
    """Items a second; 0 as long as none is done."""
    workers: int

    @property
    def left_s(self) -> float | None:
        if self.total is None or not self.rate:
            return None
        return max(self.total - self.done, 0) / self.rate


class _View(Protocol):
    def show(self, figures: _Figures) -> None:
        """Show the figures if that is worth it now."""
        ...

    def end(self, figures: _Figures, *, failed: bool) -> None:
        """Leave the last figures for good."""
        ...


class Progress:
    """Counts the items of one map and has them shown, at most ten times a second."""

    __slots__ = (
        "_clock",
        "_closed",
        "_done",
        "_label",
        "_recent",
        "_shown_at",
        "_started_at",
        "_total",
        "_view",
        "_workers",
    )

    def __init__(self, label: str, total: int | None, view: _View, clock: Callable[[], float]) -> None:
        self._label = label
        self._total = total
        self._view = view
        self._clock = clock
        self._done = 0
        self._workers = 0
        self._closed = False
        self._started_at = self._shown_at = clock()
        self._recent: deque[tuple[float, int]] = deque([(self._started_at, 0)])
        view.show(self._figures(self._started_at))

    def advance(self, done: int, *, workers: int) -> None:
        self._done = done
        self._workers = workers
        now = self._clock()
        if now - self._shown_at < UPDATE_INTERVAL_S or self._closed:
            return
        self._shown_at = now
        recent = self._recent
        recent.append((now, self._done))
        while len(recent) > 2 and recent[1][0] <= now - RATE_WINDOW_S:
            recent.popleft()
        self._view.show(self._figures(now))

    def close(self, failed: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        elapsed_s = self._clock() - self._started_at
        rate = self._done / elapsed_s if elapsed_s > 0 else 0.0
        figures = _Figures(self._label, self._done, self._total, elapsed_s, rate, self._workers)
        self._view.end(figures, failed=failed)

    def _figures(self, now: float) -> _Figures:
        since, done_then = self._recent[0]
        rate = (self._done - done_then) / (now - since) if now > since else 0.0
        total = self._total
        if total is not None and self._done > total:
            total = None  # the length was wrong: better no percentage than 130 %
        return _Figures(self._label, self._done, total, now - self._started_at, rate, self._workers)


class _Lines:
    """Plain lines, for files, pipes and the logs of a container."""

    __slots__ = ("_at_s", "_done", "_stream")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_s = 0.0
        self._done = 0

    def show(self, figures: _Figures) -> None:
        passed_s = figures.elapsed_s - self._at_s
        tenth = figures.total is not None and (figures.done - self._done) * 10 >= figures.total
        interval_s = min(max(LINE_INTERVAL_S, figures.elapsed_s / 20), LINE_INTERVAL_LONGEST_S)
        if not figures.done or figures.done == figures.total or not (tenth or passed_s >= interval_s):
            return
        self._at_s = figures.elapsed_s
        self._done = figures.done
        parts = [_amount(figures), _speed(figures.rate)]
        if figures.left_s is not None:
            parts.append(f"{_duration(figures.left_s)} left")
        parts.append(_workers(figures.workers))
        write_text(self._stream, f"{figures.label}: {', '.join(parts)}\n")

    def end(self, figures: _Figures, *, failed: bool) -> None:
        write_text(self._stream, _last_line(figures, failed=failed) + "\n")


class _Bar:
    """A bar at the bottom of the terminal, drawn by rich."""

    __slots__ = ("_console", "_screen")

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        # The console only renders: the screen writes, so that the lines of workers can pass above the bars untouched.
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._screen = screen_of(stream)

    def show(self, figures: _Figures) -> None:
        self._screen.update(self, self._render(figures))

    def end(self, figures: _Figures, *, failed: bool) -> None:
        from rich.text import Text

        text = Text(_last_line(figures, failed=failed), style="yellow" if failed else "", no_wrap=True)
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True)
        self._screen.finish(self, captured.get())

    def _render(self, figures: _Figures) -> str:
        from rich.progress_bar import ProgressBar
        from rich.segment import Segments
        from rich.table import Table
        from rich.text import Text

        left_s = figures.left_s
        texts = [
            Text(_amount(figures)),
            Text(_speed(figures.rate), style="cyan"),
            Text("" if left_s is None else f"{_duration(left_s)} left", style="green"),
            Text(_workers(figures.workers) if figures.done else "", style="blue"),
        ]
        label = Text(figures.label)
        # One column stays free: with the last one full some terminals wrap, and the bar could not be taken back.
        width = max(self._console.width - 1, 1)
        free = width - sum(text.cell_len + 1 for text in [label, *texts])
        line: RenderableType
        if free < BAR_NARROWEST:  # figures first: what is cut off is at the end, and never half a number in the middle
            line = Text(" ").join([*texts, label])
            line.truncate(width, overflow="ellipsis")
        else:
            total = figures.total
            bar_width = min(free, BAR_WIDEST)
            bar = ProgressBar(total, figures.done, width=bar_width, pulse=total is None, animation_time=figures.elapsed_s)
            line = Table.grid(padding=(0, 1))
            line.add_row(label, bar, *texts)
        lines = self._console.render_lines(line, self._console.options.update(width=width), pad=False)
        with self._console.capture() as captured:
            self._console.print(Segments(lines[0]), end="", soft_wrap=True)
        return captured.get()


def _last_line(figures: _Figures, *, failed: bool) -> str:
    count = f"{figures.done:,}" if figures.total is None else f"{figures.done:,} of {figures.total:,}"
    how = "stopped after " if failed else ""
    return f"{figures.label}: {how}{count} in {_duration(figures.elapsed_s)}, {_speed(figures.rate)}, {_workers(figures.workers)}"


def _amount(figures: _Figures) -> str:
    if figures.total is None:
        return f"{figures.done:,} done"
    percent = 100 * figures.done // figures.total if figures.total else 100
    return f"{figures.done:,}/{figures.total:,} ({percent} %)"


def _speed(rate: float) -> str:
    if rate >= 10 or not rate:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count:,} workers"
