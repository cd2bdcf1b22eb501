"""Writing to the manager's own streams: without ever raising, and around lines that stay at the bottom of a terminal.

Progress bars and the output of workers share a terminal: whoever writes lines does it inside `above_bars`, so that the
bars are taken away first and drawn again below. There is no thread and no task here, and no line of a user is
interpreted: what workers write, escape sequences included, passes as it is. Nothing here may raise because a stream is
closed, full or of another encoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Screen", "above_bars", "is_terminal", "screen_of", "write_text"]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream shows on a terminal that understands escape sequences; False for a closed one."""
    if stream is None or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except (OSError, ValueError, AttributeError):  # closed, or an object with nothing but `write`
        return False


def write_text(stream: TextIO, text: str) -> bool:
    """Write and flush the text, as much of it as the stream takes; never raises what a stream raises.

    Characters that the stream's encoding lacks are written as escapes (`\\u20ac`).

    Returns: False if the stream is closed or broken, so that there is no use in writing to it again.
    """
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BlockingIOError:  # somebody made it non-blocking, and it is full: these lines are cut, later ones may pass
        return True
    except (OSError, ValueError):  # ValueError: closed
        return False
    return True


class Screen:
    """The lines at the bottom of one terminal that are drawn over and over, one for each owner."""

    __slots__ = ("_drawn", "_hidden", "_lines", "_stream")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: dict[object, str] = {}
        self._drawn = 0
        self._hidden = False

    def update(self, owner: object, line: str) -> None:
        """Show this line for the owner, instead of the one it had."""
        self._lines[owner] = line
        if not self._hidden:
            self._write(self._erasure() + self._drawing())

    def finish(self, owner: object, line: str) -> None:
        """Leave this line on the terminal for good, above what other owners have; the owner has none from now on."""
        self._lines.pop(owner, None)
        self._write(self._erasure() + line + "\n" + ("" if self._hidden else self._drawing()))
        if not self._lines:
            _screens.pop(id(self._stream), None)

    def hide(self) -> None:
        self._hidden = True
        self._write(self._erasure())

    def show(self) -> None:
        self._hidden = False
        self._write(self._drawing())

    def _erasure(self) -> str:
        drawn, self._drawn = self._drawn, 0
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (drawn - 1) if drawn else ""

    def _drawing(self) -> str:
        self._drawn = len(self._lines)
        return "\n".join(self._lines.values())

    def _write(self, text: str) -> None:
        if text:
            write_text(self._stream, text)


_screens: dict[int, Screen] = {}
"""The screens with bars on them, by the identity of their streams, which they keep alive."""


def screen_of(stream: TextIO) -> Screen:
    """The one screen of this stream, so that bars that are shown at once do not overwrite each other."""
    return _screens.setdefault(id(stream), Screen(stream))


@contextmanager
def above_bars() -> Iterator[None]:
    """Take all bars from the terminal while the body writes whole lines, and draw them again below."""
    screens = list(_screens.values())
    for screen in screens:
        screen.hide()
    try:
        yield
    finally:
        for screen in screens:
            screen.show()
