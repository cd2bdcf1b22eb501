"""The flight recorder: a few words of memory that a worker shares with its agent, and that outlive the worker.

    0 .. 63        eight u64 slots: what has started and finished
    64 .. end      the black box: results that are finished and that the manager may not have yet

The worker only assigns: a slot costs as much as an item of a list. The agent reads after the worker's end, and believes nothing
that does not make sense: a process that crashed may have written anything.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

__all__ = [
    "ASYNC_STARTED",
    "BOX_BYTES",
    "BOX_END",
    "BOX_WRITTEN",
    "ENTRY_BYTES",
    "ITEM",
    "ITEM_BITS",
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
ITEM_BITS = 32
"""The `ITEM` slot holds items below these bits and above them the last bits of the call's serial: one word, written whole."""
RECORDER_BYTES = 256 * 1024
"""As many results of tiny calls as a link leaves unacknowledged."""
BOX_BYTES = RECORDER_BYTES - SLOTS_BYTES
_ITEM_MASK = (1 << ITEM_BITS) - 1
_ENTRY = Struct("=QBI")
ENTRY_BYTES = _ENTRY.size
_LAST_STATUS = 3
_GO_ROUND = 255
"""In place of a status: the next entry is at the beginning of the memory. Where no entry fits, that goes without saying."""


class _Packers(dict[int, Callable[..., None]]):
    """By the length of the payload, what writes a whole entry in one go: a slice of its own would cost half as much again."""

    def __missing__(self, size: int) -> Callable[..., None]:
        pack_into = self[size] = Struct(f"=QBI{size}s").pack_into
        return pack_into


_pack_entry_of = _Packers()


class BlackBox:
    """Finished results that the manager may not have: a ring from `BOX_WRITTEN` to `BOX_END`.

    Both count bytes from the worker's beginning and never go back: the executing thread moves only `BOX_END`, the loop's thread
    only `BOX_WRITTEN`, so neither needs a lock. An entry that does not fit before the end of the memory begins at its beginning.
    """

    __slots__ = ("_area", "_base", "_room_until", "_slots", "_written", "end")

    def __init__(self, slots: memoryview, area: memoryview) -> None:
        self._slots = slots
        self._area = area
        self._written = 0
        self._base = 0
        """What the beginning of the memory stands for in this round."""
        self._room_until = BOX_BYTES
        """Up to here nothing stands in the way; there may be more room by now."""
        self.end = 0
        """Up to where results have been added, for `written`."""

    def add(self, call_id: int, status: int, payload: bytes) -> bool:
        """Keep a result. False if there is no room: it is lost with the process if that ends before it has arrived.

        A result of up to half the box always fits when all before it have arrived.
        """
        size = len(payload)
        end = self.end + ENTRY_BYTES + size
        if end > self._room_until:
            if not self._make_room(ENTRY_BYTES + size):
                return False
            end = self.end + ENTRY_BYTES + size
        _pack_entry_of[size](self._area, self.end - self._base, call_id, status, size, payload)
        self.end = self._slots[BOX_END] = end  # after the bytes: what is published is whole
        return True

    def _make_room(self, size: int) -> bool:
        begin = self._base + BOX_BYTES
        if self.end + size > begin:  # on to the next round
            if begin + size - self._written > BOX_BYTES:
                return False
            at = self.end - self._base
            if at + ENTRY_BYTES <= BOX_BYTES:
                _ENTRY.pack_into(self._area, at, 0, _GO_ROUND, 0)
            self.end = self._base = begin
        self._room_until = min(self._base, self._written) + BOX_BYTES
        return self.end + size <= self._room_until

    def written(self, up_to: int) -> None:
        """All results up to there, an `end` of before, have arrived."""
        if up_to > self._written:
            self._written = self._slots[BOX_WRITTEN] = up_to


class Reading(NamedTuple):
    """What a recorder says after its worker's end."""

    sync_started: int
    sync_finished: int
    async_started: int
    item: int
    """Items that had started of the sync chunk that last began one, and the serial of that chunk; 0 and 0 if there is none."""
    item_call: int
    results: list[tuple[int, int, bytes]]
    """Call id, status and payload of results that may not have arrived."""


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
        position, end = slots[BOX_WRITTEN], slots[BOX_END]
        if end - position > BOX_BYTES:
            end = position  # no worker of sound mind says so
        while position < end:
            at = position % BOX_BYTES
            if at + ENTRY_BYTES > BOX_BYTES:
                position += BOX_BYTES - at
                continue
            call_id, status, size = _ENTRY.unpack_from(self._area, at)
            if status == _GO_ROUND:
                position += BOX_BYTES - at
                continue
            body = at + ENTRY_BYTES
            position += ENTRY_BYTES + size
            if status > _LAST_STATUS or position > end or body + size > BOX_BYTES:
                break
            results.append((call_id, status, bytes(self._area[body : body + size])))
        started = slots[SYNC_STARTED]
        item_call = _serial_of(slots[ITEM] >> ITEM_BITS, started)
        item = slots[ITEM] & _ITEM_MASK if item_call else 0
        return Reading(started, slots[SYNC_FINISHED], slots[ASYNC_STARTED], item, item_call, results)

    def close(self) -> None:
        """Unmap the memory; the recorder is not used any more."""
        self.slots.release()
        self._area.release()
        self.box = BlackBox(memoryview(bytearray(SLOTS_BYTES)).cast("Q"), memoryview(bytearray(BOX_BYTES)))
        self._memory.close()


def _serial_of(last_bits: int, started: int) -> int:
    """The latest serial up to that of the call last started that ends in these bits; 0 if there is none."""
    return max(0, started - (started - last_bits & _ITEM_MASK))
