"""What workers write to stdout and stderr, and which call wrote it.

A worker's 1 and 2 are pipes to its agent, so prints from C and from child processes are caught too. Which call wrote what
travels inside the stream, as a marker that terminals would ignore: `ESC ] aioc ; <call id> BEL`, written only when the call
changes. Calls that print nothing pay for one look into a set.

The agent's end must never block, nor lose a line, nor change what users wrote other than by removing markers.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Never, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["MAX_LINE_BYTES", "CallStreams", "OutputReader"]

MAX_LINE_BYTES = 64 * 1024
"""A longer line arrives in pieces."""
_READ_BYTES = 64 * 1024  # the size of a pipe
_READS_AT_ONCE = 8
_MAX_UNFINISHED = 256

_MARKER_BEGIN = b"\x1b]aioc;"
_MARKER = re.compile(rb"\x1b\]aioc;([0-9]{1,20})\x07")
_ID_DIGITS = 20


def _marker(call_id: int) -> bytes:
    return b"\x1b]aioc;%d\x07" % call_id


# --- in the worker -------------------------------------------------------------------------------------------------------


class CallStreams:
    """`sys.stdout` and `sys.stderr` of a worker: whole lines of one call stay whole, whoever else prints.

    Args:
        current_call: the id of the call that the calling code belongs to, or 0.
    """

    def __init__(self, current_call: Callable[[], int]) -> None:
        touched: set[int] = set()  # calls that have written something
        streams = _CallText(1, "<stdout>", current_call, touched), _CallText(2, "<stderr>", current_call, touched)

        # A closure, because every call of a worker comes here: a method takes half as long again.
        def call_ended(call_id: int) -> None:
            if touched and call_id in touched:  # looking into an empty set is not free: the id is hashed first
                touched.discard(call_id)
                for stream in streams:
                    stream.call_ended(call_id)

        self.call_ended: Callable[[int], None] = call_ended
        """To be called when a call will write no more: its last line is sent, finished or not."""
        self._streams = streams
        sys.stdout, sys.stderr = streams
        # The originals buffer, and a worker ends without flushing them.
        sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc,assignment]
        os.register_at_fork(after_in_child=self._forked)

    def flush(self) -> None:
        """Send all that is buffered, of all calls."""
        for stream in self._streams:
            stream.flush_all()

    def _forked(self) -> None:
        for stream in self._streams:
            stream.forked()


class _CallText(io.TextIOBase):
    """A text stream over a descriptor that keeps the unfinished line of each call, or thread outside of calls, for itself."""

    def __init__(self, fd: int, name: str, current_call: Callable[[], int], touched: set[int]) -> None:
        self._fd = fd
        self._name = name
        self._current_call = current_call
        self._touched = touched
        self._lock = threading.RLock()  # reentrant: a signal handler may print while this thread prints
        self._lines: dict[int, str] = {}
        """Unfinished lines by call id, or by minus the thread's identifier."""
        self._unfinished: set[int] = set()
        """Calls whose last bytes in the pipe were not the end of a line."""
        self._announced = 0
        self._owed = b""
        """What an exception, a cancel by signal, kept from being written: first of all the next time."""
        self._binary = cast(BinaryIO, _CallBytes(self))

    # What a text stream is asked for:

    @property
    def buffer(self) -> BinaryIO:
        return self._binary

    @property
    def name(self) -> str:
        return self._name

    @property
    def mode(self) -> str:
        return "w"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def line_buffering(self) -> bool:
        return True

    def reconfigure(self, **_options: object) -> None:
        """Do nothing: it is UTF-8 by lines already, and the agent relies on it."""

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Flush only: the stream belongs to the worker, not to the call that closes it."""
        self.flush()

    def detach(self) -> Never:
        raise io.UnsupportedOperation("the output streams of a worker cannot be detached")

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        call = self._current_call()
        key = call or -threading.get_ident()
        with self._lock:
            if call:
                self._touched.add(call)
            whole = self._lines.get(key, "") + text
            end = whole.rfind("\n") + 1
            if not end and len(whole) >= MAX_LINE_BYTES:
                end = len(whole)
            if end < len(whole):
                self._lines[key] = whole[end:]
            else:
                self._lines.pop(key, None)
            if end:
                self._put(call, _encode(whole[:end]))
        return len(text)

    def flush(self) -> None:
        """Send the unfinished line of the calling code."""
        call = self._current_call()
        with self._lock:
            text = self._lines.pop(call or -threading.get_ident(), "")
            if text:
                self._put(call, _encode(text))

    # For the worker:

    def write_bytes(self, data: bytes) -> None:
        """Write at once, after what the calling code has printed so far."""
        call = self._current_call()
        with self._lock:
            if call:
                self._touched.add(call)
            self._put(call, _encode(self._lines.pop(call or -threading.get_ident(), "")) + data)

    def call_ended(self, call: int) -> None:
        with self._lock:
            data = _encode(self._lines.pop(call, ""))
            if data or call in self._unfinished:
                self._put(call, data + b"\n")  # the next call begins a line of its own
            if self._announced == call:
                self._announced = 0
                self._write(_marker(0))

    def flush_all(self) -> None:
        with self._lock:
            for key in list(self._lines):
                self._put(max(key, 0), _encode(self._lines.pop(key)))

    def forked(self) -> None:
        """A child of this process: other threads, which might hold the lock, are not in it, nor are their lines its own."""
        self._lock = threading.RLock()
        self._lines.clear()

    def _put(self, call: int, data: bytes) -> None:
        if not data:
            return
        if call:
            (self._unfinished.discard if data.endswith(b"\n") else self._unfinished.add)(call)
        if call != self._announced:
            self._announced = call
            data = _marker(call) + data
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._owed += data
        while self._owed:
            self._owed = self._owed[os.write(self._fd, self._owed) :]


class _CallBytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes go out at once, in order with the text of the same call."""

    def __init__(self, text: _CallText) -> None:
        self._text = text

    @property
    def name(self) -> str:
        return self._text.name

    @property
    def mode(self) -> str:
        return "wb"

    @property
    def raw(self) -> _CallBytes:
        return self

    def fileno(self) -> int:
        return self._text.fileno()

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        copy = bytes(memoryview(data))
        self._text.write_bytes(copy)
        return len(copy)

    def flush(self) -> None:
        self._text.flush()

    def close(self) -> None:
        self.flush()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


# --- in the agent --------------------------------------------------------------------------------------------------------


class OutputReader:
    """The agent's end of one pipe: bytes in, lines and the calls that wrote them out."""

    def __init__(self, fd: int, worker_id: int, stream: int) -> None:
        self.fd = fd
        self.worker_id = worker_id
        self.stream = stream
        self.pending_bytes = 0
        """What was read and not yet taken: who reads on only while this is small has bounded memory, and slows the writer."""
        self._call = 0
        self._held = b""
        """The end of what was read, if it may be the beginning of a marker."""
        self._unfinished: dict[int, bytes] = {}
        self._lines: deque[tuple[int, bytes]] = deque()

    def read(self) -> bool:
        """Read what is there, up to half a megabyte. False at the end of the stream: then nothing more will come."""
        for _ in range(_READS_AT_ONCE):
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                held, self._held = self._held, b""
                self._add(held)
                return False
            self.feed(data)
            if len(data) < _READ_BYTES:
                return True
        return True

    def feed(self, data: bytes) -> None:
        """Take in what was read."""
        data = self._held + data
        end = _complete(data)
        self._held = data[end:]
        at = 0
        for marker in _MARKER.finditer(data, 0, end):
            self._add(data[at : marker.start()])
            self._call = int(marker[1])
            at = marker.end()
        self._add(data[at:end])

    def take(self, *, partial: bool = False) -> list[tuple[int, str]]:
        """The lines since the last call, without their ends, each with the id of its call, or 0.

        Args:
            partial: also lines that are not finished; what comes later begins a new line.
        """
        if partial:
            self._lines.extend(self._unfinished.items())
            self._unfinished.clear()
        taken = [(call, _decode(line)) for call, line in self._lines]
        self._lines.clear()
        self.pending_bytes = sum(map(len, self._unfinished.values())) if self._unfinished else 0
        return taken

    def close(self) -> None:
        """Close the pipe; what was read can still be taken."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _add(self, data: bytes) -> None:
        if not data:
            return
        call = self._call
        self.pending_bytes += len(data)
        *lines, rest = (self._unfinished.pop(call, b"") + data).split(b"\n")
        for line in lines:
            self._lines.append((call, self._cut(call, line)))
        rest = self._cut(call, rest)
        if rest:
            self._unfinished[call] = rest
            if len(self._unfinished) > _MAX_UNFINISHED:  # of calls that have ended: nobody will finish these
                oldest = next(iter(self._unfinished))
                self._lines.append((oldest, self._unfinished.pop(oldest)))

    def _cut(self, call: int, line: bytes) -> bytes:
        """What is left of a line when all pieces of the greatest length are taken from it."""
        begin = 0
        while len(line) - begin > MAX_LINE_BYTES:
            end = begin + MAX_LINE_BYTES
            for shorter in range(4):  # not within a character, if these are characters
                if line[end - shorter] & 0xC0 != 0x80:
                    end -= shorter
                    break
            self._lines.append((call, line[begin:end]))
            begin = end
        return line[begin:] if begin else line


def _complete(data: bytes) -> int:
    """How much of the data surely does not end within a marker."""
    at = data.rfind(b"\x1b", max(0, len(data) - len(_MARKER_BEGIN) - _ID_DIGITS))
    if at < 0:
        return len(data)
    tail = data[at:]
    digits = tail[len(_MARKER_BEGIN) :]
    unfinished = (tail.startswith(_MARKER_BEGIN) and digits.isdigit()) or _MARKER_BEGIN.startswith(tail)
    return at if unfinished else len(data)


def _decode(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
