"""Values and errors to bytes and back: pickle 5 with large buffers out of band, cloudpickle only where pickle cannot.

A packed value is a capture: what its owner changes afterwards does not show in it. Nothing here may be called with bytes of a
peer that has not proved that it knows the token: to unpickle is to run what the bytes say.
"""

from __future__ import annotations

import os
import sys
from pickle import PickleBuffer, dumps, loads
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from aiocluster.errors import ProtocolError, RemoteError, RemoteTraceback
from aiocluster.wire.buffers import POOL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = [
    "BUFFERS_PER_VALUE",
    "LARGE_DATA_BYTES",
    "OUT_OF_BAND_BYTES",
    "Payload",
    "pack",
    "pack_error",
    "pack_small",
    "steers",
    "unpack",
    "unpack_error",
]

OUT_OF_BAND_BYTES = 16 * 1024
"""A smaller buffer is cheaper to copy into the pickle than to describe beside it."""
BUFFERS_PER_VALUE = 1024
"""What a value has beyond so many is copied into its pickle: a frame holds a bounded number of them."""
LARGE_DATA_BYTES = 64 * 1024
"""A longer pickle travels as the first buffer, with empty `data`: it would be copied twice more inside a header."""
MAX_NAME = 1024
MAX_TEXT = 64 * 1024
MAX_TRACEBACK = 256 * 1024
"""Longer than any traceback that a person reads, and a bound for the others."""
_PROTOCOL = 5
_MAIN = b"__main__"  # looked for with `find`, which costs a third of `in` (that tries to read it as a number first)
_STEERING_NAMES = frozenset(
    (
        "SystemExit",
        "KeyboardInterrupt",
        "GeneratorExit",
        "StopIteration",
        "StopAsyncIteration",
        "asyncio.exceptions.CancelledError",
    )
)
_NO_PICKLE = (
    "it is no longer of its own type because it could not be pickled and loaded again: an exception whose __init__ takes other "
    "arguments than those in its args needs a __reduce__, and one that holds a lock or a socket should not"
)
_OWN_FILES = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Payload(NamedTuple):
    """A value as bytes, with its large buffers beside it; all of it is captured."""

    data: bytes
    buffers: list[memoryview]


_new = tuple.__new__


class _Large(Exception):
    """Ends the hot path: the value has a buffer that should travel out of band."""


def _only_small(buffer: PickleBuffer) -> bool:
    if memoryview(buffer).nbytes >= OUT_OF_BAND_BYTES:
        raise _Large
    return True


def pack_small(value: Any) -> bytes | None:
    """A small value's pickle in one piece, or None where `pack` must do the work; never raises for what cannot be pickled.

    What it gives is what `pack` would give as `data`, without buffers.
    """
    try:
        data = dumps(value, _PROTOCOL, buffer_callback=_only_small)
    except Exception:  # whatever it is, `pack` meets it again and says it
        return None
    return data if len(data) < LARGE_DATA_BYTES and data.find(_MAIN) < 0 else None


def pack(value: Any) -> Payload:
    """Captures any value that can be pickled, with pickle or else with cloudpickle.

    Raises:
        Exception: what pickling raised, with a note that says what cannot travel.
    """
    try:
        data = dumps(value, _PROTOCOL, buffer_callback=_only_small)
    except Exception:  # whatever it is, it is met again and said there
        return _pack_any(value)
    if data.find(_MAIN) >= 0:
        return _pack_any(value)
    if len(data) >= LARGE_DATA_BYTES:
        return Payload(b"", [memoryview(data)])
    return _new(Payload, (data, []))  # half the cost of calling the named tuple


def _pack_any(value: Any) -> Payload:
    buffers: list[memoryview] = []

    def beside(buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES or len(buffers) >= BUFFERS_PER_VALUE:
            return True
        buffers.append(POOL.capture(raw))
        return False

    try:
        data = dumps(value, _PROTOCOL, buffer_callback=beside)
        if data.find(_MAIN) >= 0:  # this program's own script: it is another module where the value arrives
            buffers.clear()
            data = by_value(value, beside)
    except RecursionError as error:
        _with_note(error, value)
        raise
    except Exception:  # a `__reduce__` may raise anything; cloudpickle may know better
        buffers.clear()
        try:
            data = by_value(value, beside)
        except Exception as error:  # as above; raised with a note
            raise _with_note(error, value) from None
    if len(data) >= LARGE_DATA_BYTES:
        return Payload(b"", [memoryview(data), *buffers])
    return Payload(data, buffers)


def by_value(value: Any, buffer_callback: Any = None) -> bytes:
    """The value by cloudpickle, which takes functions and classes along that cannot be imported elsewhere."""
    from aiocluster.wire.by_value import dumps_by_value  # cloudpickle: 35 ms that most processes need not pay

    return dumps_by_value(value, buffer_callback)


def _with_note(error: Exception, value: Any) -> Exception:
    error.add_note(f"aiocluster could not pickle this {type(value).__name__}, so that it cannot travel to another process")
    return error


def unpack(data: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """The value that was packed; arrays in it use the memory of the buffers, and are writable if those are.

    Raises:
        Exception: whatever loading it raised: the bytes are the peer's, and so may be the classes.
    """
    if not buffers:
        return loads(data)
    if not data:
        return loads(buffers[0], buffers=buffers[1:])
    return loads(data, buffers=buffers)


# --- errors --------------------------------------------------------------------------------------------------------------


def pack_error(exc: BaseException, *, traceback: str | None = None) -> bytes:
    """An exception as bytes; never raises, however badly the exception behaves.

    On the wire it is the msgpack array `[type_name, text, traceback, pickle or nil]`. The pickle, of the exception and its notes,
    is left out where it does not load again here, and for those exceptions that would steer the caller's own loop.

    Args:
        traceback: the formatted traceback; by default that of the exception, without the runtime's own first frames.
    """
    fields = [
        _sendable(_name_of(type(exc)), MAX_NAME),
        _sendable(_text_of(exc), MAX_TEXT),
        _sendable(_traceback_of(exc) if traceback is None else traceback, MAX_TRACEBACK),
        _pickle_of(exc),
    ]
    packed: Any = msgpack.packb(fields)
    data: bytes = packed
    return data


def unpack_error(data: Buffer) -> BaseException:
    """The exception that was packed, or a `RemoteError` that tells of it; never raises.

    Its `__cause__` is a `RemoteTraceback` with the traceback as text.
    """
    try:
        name, text, traceback, pickled = msgpack.unpackb(data)
        if not (type(name) is type(text) is type(traceback) is str and type(pickled) in (bytes, type(None))):
            raise TypeError
    except Exception:  # the bytes are no error at all; what they are instead must not be quoted
        return ProtocolError("an error arrived that is not of the form that the protocol says")
    error: BaseException | None = _loaded(pickled) if pickled is not None else None
    if error is None:
        error = RemoteError(name, text, traceback)
        if name not in _STEERING_NAMES:
            error.add_note(_NO_PICKLE)
    error.__cause__ = RemoteTraceback(traceback)
    return error


def steers(exc: BaseException) -> bool:
    """True if raising it would end the catcher's program, generator or task, alone or as a part of a group."""
    if isinstance(exc, BaseExceptionGroup):
        return any(map(steers, exc.exceptions))
    if isinstance(exc, SystemExit | KeyboardInterrupt | GeneratorExit | StopIteration | StopAsyncIteration):
        return True
    asyncio = sys.modules.get("asyncio.exceptions")  # where nobody has imported it, nothing of it can be raised
    return asyncio is not None and isinstance(exc, asyncio.CancelledError)


def _pickle_of(exc: BaseException) -> bytes | None:
    """The pickle of the exception and its notes, if it loads again; it is written and loaded by code of the exception's own."""
    try:
        if steers(exc):
            return None
        _ = str(exc), repr(exc)  # one that cannot be shown would fail again wherever it is logged
        whole = (exc, getattr(exc, "__notes__", None))
        try:
            pickled = dumps(whole, _PROTOCOL)
            if pickled.find(_MAIN) >= 0:
                pickled = by_value(whole)
        except Exception:  # as in `pack`
            pickled = by_value(whole)
        return pickled if type(_loaded(pickled)) is type(exc) else None
    except BaseException:  # a `__reduce__` may raise anything, and the failure must be told all the same
        return None


def _loaded(pickled: bytes) -> BaseException | None:
    try:
        exc, notes = loads(pickled)
        if not isinstance(exc, BaseException) or steers(exc):
            return None
        if notes and not hasattr(exc, "__notes__"):  # lost by a `__reduce__` that does not know of them
            for note in notes:
                exc.add_note(note)
        exc.__cause__ = None  # can be set, as it will be
        return exc
    except BaseException:  # its `__setstate__` may raise anything too
        return None


def _name_of(kind: type[BaseException]) -> str:
    try:
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # a metaclass may raise anything
        return str(type.__dict__["__qualname__"].__get__(kind))


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException:  # a `__str__` may raise anything
        return "(its text cannot be shown: `str()` of it raises)"


def _traceback_of(exc: BaseException) -> str:
    import traceback

    try:
        frames = exc.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
            frames = frames.tb_next
        return "".join(traceback.format_exception(type(exc), exc, frames or exc.__traceback__))
    except BaseException:  # it asks the exception for its text and notes
        return "(the traceback cannot be shown: formatting it raises)"


def _sendable(text: str, limit: int) -> str:
    """The text in UTF-8 and within the limit; of a long one, its begin and its end."""
    text = str.__str__(text)  # the very type: a `__str__` may give one of a type of its own, that does anything when it is used
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n[... {len(text) - limit} characters left out ...]\n{text[-(limit // 2) :]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
