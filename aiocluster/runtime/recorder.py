"""The flight recorder: a few words of memory that a worker shares with its agent, and that outlive the worker.

    0 .. 63        eight u64 slots: what has started and finished
    64 .. end      the black box: results that are finished and not yet written to the socket

The worker only assigns: a slot costs as much as an item of a list. The agent reads after the worker's end, and believes nothing
that does not make sense: a process that crashed may have written anything.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct
from typing import NamedTuple

__all__ = [
    "ASYNC_STARTED",
    "BOX_END",
    "BOX_WRITTEN",
    "ITEM",
    "READY",
    "RECORDER_BYTES",
    "SYNC_FINISHED",
    "SYNC_STARTED",
    "BlackBox",
    "Reading",
    "Recorder",
]

SYNC_STARTED, SYNC_FINISHED, ASYNC_STARTED, ITEM, READY, BOX_WRITTEN, BOX_END = range(7)
SLOTS_BYTES = 64
RECORDER_BYTES = 64 * 1024
_ENTRY = Struct("=QBI")
ENTRY_BYTES = _ENTRY.size


class BlackBox:
    """Finished results, one after the other, from `BOX_WRITTEN` to `BOX_END`; offsets count from the box's beginning."""

    __slots__ = ("_bytes", "_size", "_slots", "end")

    def __init__(self, slots: memoryview, area: memoryview) -> None:
        self._slots = slots
        self._bytes = area
        self._size = len(area)
        self.end = 0

    def add(self, call_id: int, status: int, payload: bytes) -> bool:
        """Keep a result. False if there is no room: it is lost with the process if that ends before it is written."""
        begin = self.end
        body = begin + ENTRY_BYTES
        end = body + len(payload)
        if end > self._size:
            return False
        _ENTRY.pack_into(self._bytes, begin, call_id, status, len(payload))
        self._bytes[body:end] = payload
        self.end = end
        self._slots[BOX_END] = end  # after the bytes: what is published is whole
        return True

    def written(self, up_to: int) -> None:
        """All results up to this offset, an `end` of before, are in the kernel. The box begins anew when all of it is."""
        if up_to >= self.end:
            self._slots[BOX_END] = self._slots[BOX_WRITTEN] = self.end = 0
        elif up_to > self._slots[BOX_WRITTEN]:
            self._slots[BOX_WRITTEN] = up_to


class Reading(NamedTuple):
    """What a recorder says after its worker's end."""

    sync_started: int
    sync_finished: int
    async_started: int
    item: int
    results: list[tuple[int, int, bytes]]
    """Call id, status and payload of results that may not have been sent."""


class Recorder:
    """The shared memory of one worker, made by its agent before the fork."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        view = memoryview(memory)
        self.slots: memoryview = view[:SLOTS_BYTES].cast("Q")
        self._area = view[SLOTS_BYTES:]
        self.box = BlackBox(self.slots, self._area)

    @classmethod
    def create(cls) -> tuple[Recorder, int]:
        """A new recorder and the descriptor of its memory, which its owner closes; untouched pages of it take no memory."""
        descriptor = os.memfd_create("aiocluster-recorder", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, RECORDER_BYTES)
        return cls(mmap.mmap(descriptor, RECORDER_BYTES)), descriptor

    @classmethod
    def attach(cls, descriptor: int) -> Recorder:
        """The recorder behind a descriptor, in another process."""
        return cls(mmap.mmap(descriptor, RECORDER_BYTES))

    def set_ready(self) -> None:
        """The worker has joined: if it ends now, it is no crash at its start."""
        self.slots[READY] = 1

    @property
    def is_ready(self) -> bool:
        return bool(self.slots[READY])

    def read(self) -> Reading:
        """What the worker has left; garbage in the box ends the list of results, and nothing else."""
        slots = self.slots
        results: list[tuple[int, int, bytes]] = []
        at, end = slots[BOX_WRITTEN], min(slots[BOX_END], len(self._area))
        while at + ENTRY_BYTES <= end:
            call_id, status, size = _ENTRY.unpack_from(self._area, at)
            body = at + ENTRY_BYTES
            if body + size > end or status > 3:
                break
            results.append((call_id, status, bytes(self._area[body : body + size])))
            at = body + size
        return Reading(slots[SYNC_STARTED], slots[SYNC_FINISHED], slots[ASYNC_STARTED], slots[ITEM], results)

    def close(self) -> None:
        """Unmap the memory; the recorder is not used any more."""
        self.slots.release()
        self._area.release()
        self.box = BlackBox(memoryview(bytearray(SLOTS_BYTES)).cast("Q"), memoryview(bytearray()))
        self._memory.close()
