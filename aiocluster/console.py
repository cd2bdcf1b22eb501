"""What workers write, on the manager: lines tagged with the worker's id, log records, nothing, or calls of a function.

A line passes as the worker wrote it: its escape sequences are kept and no markup is interpreted. A stream that is
closed or lacks a character, and a user's function that raises, cost those lines and nothing else: no call ever fails
for its output.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import TextIO

from aiocluster.terminal import above_bars, is_terminal, write_text

__all__ = ["OutputMode", "OutputSink", "make_output"]

OutputMode = str | Callable[[int, str, str], object]
"""`output=` of a cluster: "forward", "log", "quiet", or a function of worker id, "stdout" or "stderr", and line."""
OutputSink = Callable[[int, int, list[str]], None]
"""Takes the worker's id, the stream (1 or 2) and whole lines without their ends."""

STREAM_NAMES = {1: "stdout", 2: "stderr"}
# Easy to tell apart on light and dark backgrounds alike.
TAG_STYLES = ("cyan", "yellow", "green", "magenta", "blue", "bright_red", "bright_cyan", "bright_magenta")

logger = logging.getLogger("aiocluster.worker")


def make_output(mode: OutputMode, stdout: TextIO | None = None, stderr: TextIO | None = None) -> OutputSink:
    """A function that takes the lines of workers, and never raises.

    Args:
        mode: "forward" writes them to the streams as `[3] text`; "log" makes them records of the logger
            `aiocluster.worker` (level INFO, with `worker_id` and `stream`); "quiet" drops them; a function is called
            with each, in the loop's thread.
        stdout, stderr: the streams of "forward"; those of `sys`, as they are at that moment, if None.

    Raises:
        ValueError: there is no such mode.
        TypeError: the function is an `async def`.
    """
    if mode == "forward":
        return _Forwarder(stdout, stderr)
    if mode == "log":
        return _log
    if mode == "quiet":
        return _drop
    if not callable(mode):
        raise ValueError(f'output must be "forward", "log", "quiet" or a function, not {mode!r}')
    if asyncio.iscoroutinefunction(mode):
        raise TypeError("output must be a plain function: nobody would await an `async def`")
    return _Caller(mode)


def _drop(worker_id: int, stream: int, lines: list[str]) -> None:
    """Nothing happens."""


def _log(worker_id: int, stream: int, lines: list[str]) -> None:
    extra = {"worker_id": worker_id, "stream": STREAM_NAMES[stream]}
    for line in lines:
        logger.info("[%d] %s", worker_id, line, extra=extra)


class _Caller:
    """Hands each line to the user's function."""

    __slots__ = ("_function", "_reported")

    def __init__(self, function: Callable[[int, str, str], object]) -> None:
        self._function = function
        self._reported = False

    def __call__(self, worker_id: int, stream: int, lines: list[str]) -> None:
        name = STREAM_NAMES[stream]
        for line in lines:
            try:
                self._function(worker_id, name, line)
            except BaseException:  # whatever it raises: this runs among the callbacks of the loop
                if not self._reported:  # once: a function that raises for every line would bury everything else
                    self._reported = True
                    logger.exception("the function given as output= failed; later failures of it are not logged")


class _Forwarder:
    """Writes the lines to the manager's own streams."""

    __slots__ = ("_given", "_writers")

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self._given = {1: stdout, 2: stderr}
        self._writers: dict[int, _Writer] = {}

    def __call__(self, worker_id: int, stream: int, lines: list[str]) -> None:
        target = self._given[stream]
        if target is None:  # as print() does: a test or a notebook may have replaced it since
            target = sys.stdout if stream == 1 else sys.stderr
        if target is None:  # a process without that stream
            return
        writer = self._writers.get(stream)
        if writer is None or writer.stream is not target:
            writer = self._writers[stream] = _Writer(target)
        writer.write(worker_id, lines)


class _Writer:
    """One stream of the manager, and how a tag looks on it."""

    __slots__ = ("_broken", "_is_terminal", "_tags", "stream")

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._is_terminal = is_terminal(stream)
        self._tags: dict[str, tuple[str, str]] = {}
        self._broken = False

    def write(self, worker_id: int, lines: list[str]) -> None:
        if self._broken or not lines:
            return
        if not self._is_terminal:
            self._broken = not write_text(self.stream, "".join([f"[{worker_id}] {line}\n" for line in lines]))
            return
        before, after = self._tag(TAG_STYLES[worker_id % len(TAG_STYLES)])
        tag = f"{before}{worker_id}{after} "
        # A line that sets a colour and does not reset it would colour the lines of other workers too.
        text = "".join([f"{tag}{line}\x1b[0m\n" if "\x1b" in line else f"{tag}{line}\n" for line in lines])
        with above_bars():
            self._broken = not write_text(self.stream, text)

    def _tag(self, style: str) -> tuple[str, str]:
        """What comes before and after the id; plain brackets on a terminal without colours (or with NO_COLOR set)."""
        known = self._tags.get(style)
        if known is None:
            from rich.console import Console
            from rich.text import Text

            console = Console(file=self.stream)
            with console.capture() as captured:
                console.print(Text("[@]", style=style), end="")
            before, _, after = captured.get().partition("@")
            known = self._tags[style] = (before, after)
        return known
