"""Memory for large buffers, taken again and again instead of fresh each time.

Fresh memory costs a page fault for every 4 KiB: filling 100 MB of it takes 5 to 10 times as long as filling memory that has been
used before. So large leases come from blocks that return to a pool when the last view or array over them is gone; the pool
notices this by itself. It must never hand out a block that anything can still see.
"""

from __future__ import annotations

import mmap
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["POOL", "SMALLEST_BLOCK", "BufferPool", "capture", "flat"]

SMALLEST_BLOCK = 64 * 1024
"""Below this the C allocator recycles memory well by itself."""
KEEP_BYTES = 256 * 2**20
"""Free memory that a process keeps: the target load of arrays of 100 MB going there and back, and little beside it."""


class _Lease(ref[Any]):
    """Notices when the last view of a block is gone. Finalizers may run in any thread, in the middle of anything."""

    __slots__ = ("block", "size")

    block: mmap.mmap
    size: int


def block_size(size: int) -> int:
    """The size of the block that holds so many bytes: a power of two, or one and a half of it, so that blocks fit again."""
    power = SMALLEST_BLOCK
    while power < size:
        if power + power // 2 >= size:
            return power + power // 2
        power *= 2
    return power


class BufferPool:
    """Leases writable memory, each lease its own; what was leased returns when nothing refers to it any more.

    Args:
        keep_bytes: free memory kept for the next leases; what exceeds it goes back to the system, the oldest first.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep_bytes = keep_bytes
        self._free: dict[int, deque[tuple[int, mmap.mmap]]] = {}
        self._leased: dict[int, _Lease] = {}
        self._serials = count()
        self._exporters: dict[int, Any] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes that are kept and not leased."""
        return sum(size * len(blocks) for size, blocks in list(self._free.items()))

    @property
    def leased_blocks(self) -> int:
        """Blocks that something still refers to."""
        return len(self._leased)

    def lease(self, size: int) -> memoryview:
        """A writable view of exactly so many bytes that nothing else refers to; their content is arbitrary.

        Raises:
            MemoryError: the system has no such memory.
        """
        if size < SMALLEST_BLOCK:
            return memoryview(bytearray(size))
        whole = block_size(size)
        try:
            _, block = self._free[whole].pop()
        except (KeyError, IndexError):
            block = self._fresh(whole)
        # The exporter is what every view of this lease keeps alive: a ctypes array, as it can be referred to weakly.
        exporter = self._exporters[whole].from_buffer(block)
        lease = _Lease(exporter, self._released)
        lease.block = block
        lease.size = whole
        self._leased[id(lease)] = lease
        return memoryview(exporter).cast("B")[:size]

    def capture(self, buffer: Buffer) -> memoryview:
        """A copy of the buffer's bytes in memory of its own."""
        source = flat(buffer)
        target = self.lease(source.nbytes)
        target[:] = source
        return target

    def _fresh(self, size: int) -> mmap.mmap:
        if size not in self._exporters:
            import ctypes  # 5 ms that a process without large buffers need not pay

            self._exporters[size] = ctypes.c_char * size
        try:
            # Private: a process that forks must not share its arrays with the child.
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError):
            raise MemoryError(f"the system has no {size} bytes of memory") from None

    def _released(self, lease: _Lease) -> None:
        self._leased.pop(id(lease), None)
        if lease.size > self.keep_bytes:
            return
        self._free.setdefault(lease.size, deque()).append((next(self._serials), lease.block))
        while self.free_bytes > self.keep_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        with suppress(ValueError, IndexError):  # another thread has taken the block just now
            min((blocks for blocks in list(self._free.values()) if blocks), key=lambda blocks: blocks[0][0]).popleft()


def flat(buffer: Buffer) -> memoryview:
    """The buffer's bytes as one flat view, without a copy.

    Raises:
        BufferError: its bytes are not contiguous.
    """
    view = memoryview(buffer)
    if view.ndim == 1 and view.format == "B" and view.contiguous:
        return view
    if not view.nbytes:
        return memoryview(b"")
    if not view.c_contiguous:
        raise BufferError("a buffer whose bytes are not contiguous cannot be sent")
    return view.cast("B")


POOL = BufferPool()
"""The pool of this process."""


def capture(buffer: Buffer) -> memoryview:
    """A copy of the buffer's bytes in memory of the process's pool."""
    return POOL.capture(buffer)
