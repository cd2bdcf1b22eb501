"""Moves what one worker writes from its pipes to the manager: in batches, in order, and no faster than the manager takes it.

Nothing is lost: while the link does not take more, what a worker prints waits in its pipe, and then in the worker. Must never
block, and never wait for the end of a pipe: whoever a worker has left behind may hold it open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from aiocluster.runtime.output import OutputReader
from aiocluster.wire.messages import Output

__all__ = ["OutputPump"]

LAST_LINES = 20
PAUSE_S = 0.02
"""After a read its pipe is left alone for so long: who prints line by line costs 50 messages a second at most, and no line
waits longer than this."""
BUSY_BYTES = 64 * 1024
"""Who writes so much at once has filled the pipe, and is not kept waiting."""
QUIET_S = 0.25
"""An unfinished line is sent when nothing followed for so long: a prompt, or a bar that moves."""


class _Tap:
    """One pipe."""

    __slots__ = ("ended", "pause", "quiet", "reader")

    def __init__(self, reader: OutputReader) -> None:
        self.reader = reader
        self.ended = False
        self.pause: asyncio.TimerHandle | None = None
        self.quiet: asyncio.TimerHandle | None = None


class OutputPump:
    """The agent's ends of the two pipes of one worker.

    Args:
        stdout, stderr: the read ends, non-blocking; `close` closes them.
        send: takes each message.
        flowing: False if nothing is to be read for now.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker_id: int,
        stdout: int,
        stderr: int,
        send: Callable[[Output], None],
        *,
        flowing: bool = True,
    ) -> None:
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        """What the worker has written last, for who asks why it has ended."""
        self._loop = loop
        self._worker_id = worker_id
        self._send = send
        self._flowing = flowing
        self._taps: Sequence[_Tap] = [
            _Tap(OutputReader(stdout, worker_id, 1)),
            _Tap(OutputReader(stderr, worker_id, 2)),
        ]
        for tap in self._taps:
            self._watch(tap)

    def set_flowing(self, flowing: bool) -> None:
        """Read on, or stop reading until further notice."""
        self._flowing = flowing
        for tap in self._taps:
            if flowing:
                self._watch(tap)
            else:
                self._unwatch(tap)

    def flush(self) -> None:
        """Send all that the worker has written so far, unfinished lines too."""
        for tap in self._taps:
            if not tap.ended:
                tap.ended = not tap.reader.read()
            self._hand_on(tap, partial=True)
            if tap.ended:
                self._unwatch(tap)

    def close(self) -> None:
        """Send the rest; the worker has ended."""
        self.flush()
        for tap in self._taps:
            self._unwatch(tap)
            tap.ended = True
            tap.reader.close()

    def _watch(self, tap: _Tap) -> None:
        if self._flowing and not tap.ended and tap.pause is None:
            self._loop.add_reader(tap.reader.fd, self._readable, tap)

    def _unwatch(self, tap: _Tap) -> None:
        if tap.pause is not None:
            tap.pause.cancel()
            tap.pause = None
        if tap.reader.fd >= 0:
            self._loop.remove_reader(tap.reader.fd)

    def _readable(self, tap: _Tap) -> None:
        going_on = tap.reader.read()
        busy = tap.reader.pending_bytes >= BUSY_BYTES
        if not going_on:
            self._unwatch(tap)
            tap.ended = True
        elif not busy:
            self._loop.remove_reader(tap.reader.fd)
            tap.pause = self._loop.call_later(PAUSE_S, self._go_on, tap)
        # Last of all: sending may say that the link takes no more, and then everything above is undone.
        self._hand_on(tap, partial=tap.ended)

    def _go_on(self, tap: _Tap) -> None:
        tap.pause = None
        self._watch(tap)

    def _hand_on(self, tap: _Tap, *, partial: bool) -> None:
        """Send what lines there are, and see to it that an unfinished one is not kept for ever."""
        if tap.quiet is not None:
            tap.quiet.cancel()
            tap.quiet = None
        reader = tap.reader
        lines = reader.take(partial=partial)
        if reader.pending_bytes:
            tap.quiet = self._loop.call_later(QUIET_S, self._fell_quiet, tap)
        if lines:
            texts = [text for _call, text in lines]
            self.last_lines.extend(texts)
            self._send(Output(self._worker_id, reader.stream, [call for call, _text in lines], texts))

    def _fell_quiet(self, tap: _Tap) -> None:
        tap.quiet = None
        self._hand_on(tap, partial=True)
