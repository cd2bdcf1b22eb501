"""The pool: every lease its own, memory that is free again is used again, and no more is kept than allowed."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.wire import buffers
from aiocluster.wire.buffers import POOL, SMALLEST_BLOCK, BufferPool, block_size, capture, flat

BIG = SMALLEST_BLOCK


@given(st.integers(0, 2**40))
def test_block_is_large_enough_and_wastes_no_more_than_a_half(size: int) -> None:
    block = block_size(size)
    assert block >= max(size, SMALLEST_BLOCK)
    assert block == SMALLEST_BLOCK or block <= size * 1.5
    assert block_size(block) == block


@pytest.mark.parametrize("size", [0, 1, BIG - 1, BIG, BIG + 1, 3 * BIG + 5])
def test_lease_has_exactly_the_size_and_is_writable(size: int) -> None:
    view = BufferPool().lease(size)
    assert (view.nbytes, view.format, view.ndim, view.readonly) == (size, "B", 1, False)
    view[:] = b"x" * size
    assert bytes(view) == b"x" * size


def test_leases_that_live_share_nothing() -> None:
    pool = BufferPool()
    views = [pool.lease(BIG) for _ in range(5)]
    for index, view in enumerate(views):
        view[:] = bytes([index]) * BIG
    assert [view[BIG - 1] for view in views] == [0, 1, 2, 3, 4]
    assert pool.leased_blocks == 5


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_memory_that_is_free_again_is_leased_again() -> None:
    pool = BufferPool()
    view = pool.lease(2 * BIG)
    first = address(view)
    assert pool.free_bytes == 0
    del view
    assert (pool.free_bytes, pool.leased_blocks) == (2 * BIG, 0)
    again = pool.lease(2 * BIG - 100)
    assert address(again) == first
    assert pool.free_bytes == 0


def test_part_of_a_lease_keeps_all_of_it() -> None:
    pool = BufferPool()
    view = pool.lease(BIG)
    array = np.frombuffer(view[10:20], np.uint8)
    del view
    gc.collect()
    assert pool.leased_blocks == 1
    part = array[2:3]
    del array
    assert pool.leased_blocks == 1
    del part
    gc.collect()
    assert pool.leased_blocks == 0


def test_no_more_than_allowed_is_kept_and_the_oldest_goes_first() -> None:
    pool = BufferPool(keep_bytes=3 * BIG)
    views = [pool.lease(BIG), pool.lease(2 * BIG), pool.lease(BIG)]
    addresses = [address(view) for view in views]
    del views[0]
    del views[0]
    assert pool.free_bytes == 3 * BIG
    del views[0]
    assert pool.free_bytes == 3 * BIG
    assert address(pool.lease(BIG)) == addresses[2]
    assert pool.free_bytes == 3 * BIG


def test_block_larger_than_all_that_is_kept_is_given_back() -> None:
    pool = BufferPool(keep_bytes=BIG)
    pool.lease(2 * BIG)
    assert (pool.free_bytes, pool.leased_blocks) == (0, 0)


def test_memory_that_another_thread_took_is_not_missed() -> None:
    BufferPool()._drop_oldest()


def test_release_in_other_threads_loses_nothing() -> None:
    pool = BufferPool()

    def use() -> None:
        for _ in range(200):
            pool.lease(BIG)[0] = 1

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.leased_blocks == 0
    assert 0 < pool.free_bytes <= pool.keep_bytes


def test_impossible_size_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        BufferPool().lease(2**62)


@pytest.mark.parametrize("size", [0, 10, BIG + 3])
def test_capture_does_not_show_later_changes(size: int) -> None:
    source = bytearray(b"a" * size)
    copy = capture(source)
    source[:] = b"b" * size
    assert bytes(copy) == b"a" * size


def test_capture_uses_the_pool_of_the_process() -> None:
    before = POOL.leased_blocks
    view = buffers.capture(bytes(BIG))
    assert POOL.leased_blocks == before + 1
    del view
    assert POOL.leased_blocks == before


def test_flat_takes_any_contiguous_buffer_without_a_copy() -> None:
    array: Any = np.arange(6, dtype="f8").reshape(2, 3)
    view = flat(array)
    assert (view.nbytes, view.format, view.ndim) == (48, "B", 1)
    array[0, 0] = 9.0
    assert bytes(view) == array.tobytes()
    assert bytes(flat(memoryview(b"abc")[1:])) == b"bc"
    assert bytes(flat(array[:0])) == b""


@pytest.mark.parametrize("source", [memoryview(b"abcdef")[::2], np.arange(9).reshape(3, 3).T])
def test_flat_refuses_what_is_not_contiguous(source: memoryview) -> None:
    with pytest.raises(BufferError, match="not contiguous"):
        flat(source)
