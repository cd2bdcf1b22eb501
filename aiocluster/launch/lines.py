"""What a node has written, in lines: the last of them are kept, within bounds, for whoever asks why it has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["LastLines"]

LAST_LINES = 50
MAX_LINE_BYTES = 8 * 1024
"""A longer line comes in pieces: who writes without end, and no end of a line, costs no more than that."""


class LastLines:
    """Bytes in, lines out.

    Args:
        seen: called with every line.
        secret: what no line shows, whatever the node prints: its environment, for one.
    """

    def __init__(self, seen: Callable[[str], None], secret: str = "") -> None:
        self._seen = seen
        self._secret = secret
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._rests: dict[int, bytes] = {}
        """By stream, what has no end yet: shorter than the longest line."""

    def feed(self, data: bytes, stream: int = 2) -> None:
        """The node has written this to that stream."""
        *lines, rest = (self._rests.pop(stream, b"") + data).split(b"\n")
        for line in lines:
            for at in range(0, max(1, len(line)), MAX_LINE_BYTES):
                self._keep(line[at : at + MAX_LINE_BYTES])
        whole = len(rest) - len(rest) % MAX_LINE_BYTES
        for at in range(0, whole, MAX_LINE_BYTES):
            self._keep(rest[at : at + MAX_LINE_BYTES])
        if rest[whole:]:
            self._rests[stream] = rest[whole:]

    def end(self) -> None:
        """The node writes no more."""
        for rest in self._rests.values():
            self._keep(rest)
        self._rests.clear()

    def tail(self) -> tuple[str, ...]:
        """The last lines, the oldest first."""
        return tuple(self._lines)

    def _keep(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        if self._secret:
            text = text.replace(self._secret, "***")
        self._lines.append(text)
        self._seen(text)
