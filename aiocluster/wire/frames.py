"""Messages and their buffers to frames, and back as the bytes arrive.

    u32 length | header of that length: a msgpack array [tag, *fields, sizes] | buffers of those sizes

The decoder believes no length before it is checked against the limits, and takes memory only for what is allowed. Small frames
are received into one staging area and parsed there; a large header or buffer is received straight into memory of its own. It
never imports pickle, and its errors never quote what was decoded.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgpack  # type: ignore[import-untyped]

from aiocluster.errors import ProtocolError
from aiocluster.wire.buffers import POOL, flat
from aiocluster.wire.checks import column_u64, plain_within
from aiocluster.wire.messages import Message
from aiocluster.wire.table import buffer_count, decode, fields_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BEFORE_WELCOME", "Frame", "FrameDecoder", "FrameLimits", "encode"]

_LENGTH = Struct(">I")
_PREFIX = _LENGTH.size
_TOO_LONG = 2**32
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
STAGING_BYTES = 256 * 1024
"""What is received at once where frames are small: the usual size of a socket's buffer."""
DIRECT_BYTES = 64 * 1024
"""What still misses so much is received straight into its own memory; less is not worth a system call of its own."""
_PACKER_KEEPS = 4 * 2**20
"""A packer never gives back the memory of its largest message, so that one which packed more is replaced."""


class Frame(NamedTuple):
    """One message and the buffers that came with it: each writable, flat and in memory of its own."""

    message: Message
    buffers: list[memoryview]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameLimits:
    """What a peer may send in one frame. The defaults are for authenticated peers, and bound what one of them can take
    by mistake."""

    header_bytes: int = 2**30
    buffer_bytes: int = 16 * 2**30
    buffers_total_bytes: int = 32 * 2**30
    buffers_count: int = 65_536
    depth: int = 0
    """How deep a header may nest; 0: as deep as its message allows."""

    def __post_init__(self) -> None:
        if not 0 < self.header_bytes < 2**32:
            raise ValueError("header_bytes must be positive and fit into 32 bits")
        if min(self.buffer_bytes, self.buffers_total_bytes, self.buffers_count, self.depth) < 0:
            raise ValueError("limits must not be negative")


BEFORE_WELCOME = FrameLimits(header_bytes=4096, buffer_bytes=0, buffers_total_bytes=0, buffers_count=0, depth=8)
"""For a peer that has not been welcomed yet."""


BUFFERS_AT_ONCE = 16_384
"""Who gathers calls or results into a frame begins another one from so many buffers on; each of them has few in comparison."""
PAYLOADS_AT_ONCE_BYTES = 64 * 2**20
"""The same for the bytes within headers."""

# --- out -----------------------------------------------------------------------------------------------------------------

_packer = msgpack.Packer()


def encode(message: Message, buffers: Sequence[Buffer] = ()) -> list[bytes | memoryview]:
    """One frame in pieces, to be written one after the other; the buffers are not copied.

    Returns:
        The length with the header, then each buffer that is not empty.

    Raises:
        ValueError: the number of buffers is not the one that the message says, or the header is too large.
        TypeError, OverflowError: a field is nothing that msgpack can say.
    """
    global _packer
    if len(buffers) != buffer_count(message):
        raise ValueError(f"{type(message).__name__} speaks of {buffer_count(message)} buffers, but comes with {len(buffers)}")
    views = [flat(buffer) for buffer in buffers]
    header = _packer.pack([*fields_of(message), [view.nbytes for view in views]])
    if len(header) > _PACKER_KEEPS:
        _packer = msgpack.Packer()
    if len(header) >= _TOO_LONG:
        raise ValueError(f"the header of {type(message).__name__} is too large for one frame")
    first = _LENGTH.pack(len(header)) + header
    return [first, *(view for view in views if view.nbytes)] if views else [first]


# --- in ------------------------------------------------------------------------------------------------------------------


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)  # the decoder lets only text and bytes be keys
    if len(result) != len(pairs):
        raise ProtocolError("a header has a map with the same key twice")
    return result


def _extension(code: int, data: bytes) -> NoReturn:
    raise ProtocolError("a header has a msgpack extension type")


_COMPLAINTS: dict[type[Exception], str] = {
    msgpack.ExtraData: "a header goes on after its array",
    msgpack.FormatError: "a header has a byte that msgpack does not know",
    msgpack.StackError: "a header is nested too deeply",
    UnicodeDecodeError: "a header has text that is not UTF-8",
    MemoryError: "a header needs more memory than there is",
}


def _unpack(header: memoryview) -> Any:
    """What msgpack says of a header. Lengths inside are bounded by that of the header: nothing larger is ever allocated."""
    complaint = "a header is not valid msgpack"
    try:
        return msgpack.unpackb(header, raw=False, strict_map_key=True, use_list=True, object_pairs_hook=_map, ext_hook=_extension)
    except (ValueError, TypeError, RecursionError, MemoryError, OverflowError, msgpack.UnpackException) as error:
        complaint = _COMPLAINTS.get(type(error), complaint)
    # Raised out here, so that the new error does not refer to one that holds what was decoded.
    raise ProtocolError(complaint)


class FrameDecoder:
    """Gives each frame exactly once, complete and checked, however its bytes were split.

    Write into `get_buffer`, then say how much with `received`. After a `ProtocolError` the decoder is dead: it gives nothing more
    and repeats the error.

    Args:
        limits: what the peer may send; may be set anew at any time, and holds from the next frame on.
        allocate: where the memory of buffers comes from; each must be writable and its own.
    """

    __slots__ = (
        "_allocate",
        "_buffers",
        "_direct",
        "_end",
        "_failure",
        "_filled",
        "_message",
        "_sizes",
        "_staging",
        "_start",
        "_target",
        "limits",
    )

    def __init__(self, limits: FrameLimits, allocate: Callable[[int], memoryview] = POOL.lease) -> None:
        self.limits = limits
        self._allocate = allocate
        self._staging: memoryview | None = None
        self._failure: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._start = 0
        self._end = 0
        self._direct = False
        self._target: memoryview | None = None  # a header or a buffer that is received into memory of its own
        self._filled = 0
        self._message: Message | None = None  # its header has been read, its buffers are being received
        self._sizes: list[int] = []
        self._buffers: list[memoryview] = []

    @property
    def at_boundary(self) -> bool:
        """True if the stream may end here: no frame has begun, and none was wrong."""
        return self._failure is None and self._start == self._end and self._target is None and self._message is None

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes must be written, from its begin on; never empty, and valid until `received`."""
        target = self._target
        if target is not None and len(target) - self._filled >= DIRECT_BYTES:
            self._direct = True
            return target[self._filled :]
        self._direct = False
        staging = self._staging
        if staging is None:
            # Anonymous memory costs nothing until it is written, so that a thousand quiet links stay small.
            staging = self._staging = memoryview(mmap.mmap(-1, STAGING_BYTES, flags=_PRIVATE))
        if self._start == self._end:
            self._start = self._end = 0
        elif STAGING_BYTES - self._end < DIRECT_BYTES:
            rest = self._end - self._start  # less than DIRECT_BYTES and a length: what is longer has its own memory
            staging[:rest] = bytes(staging[self._start : self._end])
            self._start, self._end = 0, rest
        return staging[self._end :]

    def received(self, n: int) -> list[Frame]:
        """Takes `n` bytes that were written into the last `get_buffer`; gives the frames that they completed.

        Raises:
            ProtocolError: the peer sent what the protocol does not allow. Frames that the same bytes completed before it are lost
                with the link.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure)
        frames: list[Frame] = []
        try:
            if self._direct:
                self._filled += n
            else:
                self._end += n
            while self._advance(frames):
                pass
        except ProtocolError as error:
            self._fail(error.reason)
            raise
        except MemoryError:
            self._fail("a frame needs more memory than there is")
            raise ProtocolError("a frame needs more memory than there is") from None
        return frames

    def feed(self, data: Buffer) -> list[Frame]:
        """The frames that these bytes complete: `get_buffer` and `received` in a loop, for whoever has the bytes already."""
        frames: list[Frame] = []
        rest = flat(data)
        while rest.nbytes:
            room = self.get_buffer(rest.nbytes)
            n = min(len(room), rest.nbytes)
            room[:n] = rest[:n]
            rest = rest[n:]
            frames += self.received(n)
        return frames

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._reset()

    def _advance(self, frames: list[Frame]) -> bool:
        """One step with the bytes at hand; False if it needs more of them."""
        if self._target is not None:
            if not self._fill(self._target, frames):
                return False
        elif self._message is None and not self._begin(frames):
            return False
        if self._message is not None:
            self._next_buffer(self._message, frames)
        return True

    def _begin(self, frames: list[Frame]) -> bool:
        """Reads a header that is complete, or gives a long one memory of its own."""
        available = self._end - self._start - _PREFIX
        if available < 0:
            return False
        staging = self._staging
        assert staging is not None
        (length,) = _LENGTH.unpack_from(staging, self._start)
        if not 0 < length <= self.limits.header_bytes:
            raise ProtocolError("a frame without a header" if length == 0 else "a header larger than is allowed here")
        if available >= length:
            begin = self._start + _PREFIX
            self._start = begin + length
            self._read_header(staging[begin : self._start], frames)
            return True
        if length < DIRECT_BYTES:
            return False
        self._start += _PREFIX
        self._target, self._filled = self._allocate(length), 0
        return True

    def _fill(self, target: memoryview, frames: list[Frame]) -> bool:
        """Moves what is at hand into a header or buffer that has memory of its own; True if that completed it."""
        n = min(len(target) - self._filled, self._end - self._start)
        if n:
            assert self._staging is not None
            target[self._filled : self._filled + n] = self._staging[self._start : self._start + n]
            self._filled += n
            self._start += n
        if self._filled < len(target):
            return False
        self._target = None
        if self._message is None:
            self._read_header(target, frames)
        else:
            self._buffers.append(target)
        return True

    def _read_header(self, header: memoryview, frames: list[Frame]) -> None:
        fields = _unpack(header)
        if type(fields) is not list or len(fields) < 2:
            raise ProtocolError("a header is not an array of a tag, fields and sizes")
        if self.limits.depth and not plain_within(fields, self.limits.depth):
            raise ProtocolError("a header with data that is deeper, or other, than is allowed here")
        sizes = fields.pop()
        if not column_u64(sizes):
            raise ProtocolError("the sizes of a frame are not a list of numbers")
        message = decode(fields)
        if buffer_count(message) != len(sizes):
            raise ProtocolError(f"{type(message).__name__} speaks of another number of buffers than its frame has")
        if sizes:
            self._check_sizes(sizes)
            self._message, self._sizes, self._buffers = message, sizes, []
        else:
            frames.append(Frame(message, []))

    def _check_sizes(self, sizes: list[int]) -> None:
        limits = self.limits
        if len(sizes) > limits.buffers_count:
            raise ProtocolError("a frame with more buffers than are allowed here")
        if max(sizes) > limits.buffer_bytes or sum(sizes) > limits.buffers_total_bytes:
            raise ProtocolError("a frame with larger buffers than are allowed here")

    def _next_buffer(self, message: Message, frames: list[Frame]) -> None:
        done = len(self._buffers)
        if done < len(self._sizes):
            self._target, self._filled = self._allocate(self._sizes[done]), 0
        else:
            frames.append(Frame(message, self._buffers))
            self._message = None
