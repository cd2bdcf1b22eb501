"""The sizes of a map's chunks follow what was measured, and never leap."""

from __future__ import annotations

from aiocluster.sizes import CHUNK_ITEMS, GROWTH, ChunkSizes

MICROSECOND = 1000


def test_a_fixed_size_is_the_size_whatever_is_measured() -> None:
    sizes = ChunkSizes(7, 10)
    sizes.learn(10**9, 1)
    assert sizes.next(9, 4, 1.0) == 7


def test_the_first_chunk_of_an_unknown_function_has_one_item() -> None:
    assert ChunkSizes(None, None).next(0, 1, None) == 1


def test_chunks_grow_by_a_factor_at_most_up_to_a_millisecond_of_work() -> None:
    sizes = ChunkSizes(None, None)
    assert sizes.next(0, 1, 1e-6) == GROWTH
    sizes.learn(MICROSECOND, 1)
    assert sizes.next(1, 1, None) == GROWTH
    sizes.learn(100 * MICROSECOND, 100)
    assert sizes.next(1, 1, None) == 100 * GROWTH
    sizes.learn(1000 * MICROSECOND, 1000)
    assert 990 <= sizes.next(1, 1, None) <= 1000


def test_items_that_take_long_go_one_by_one() -> None:
    sizes = ChunkSizes(None, None)
    sizes.learn(10**9, 1)
    assert sizes.next(1, 1, None) == 1
    assert ChunkSizes(None, None).next(0, 1, 5.0) == 1


def test_items_that_take_no_time_that_can_be_measured_are_bounded_too() -> None:
    sizes = ChunkSizes(None, None)
    sizes.learn(0, 100_000)
    assert sizes.next(1, 1, None) == CHUNK_ITEMS
    sizes.learn(0, 0)
    assert sizes.next(1, 1, None) == CHUNK_ITEMS


def test_towards_the_end_everybody_has_something_left() -> None:
    sizes = ChunkSizes(None, 1000)
    sizes.learn(0, 1000)
    assert sizes.next(0, 5, None) == 100
    assert sizes.next(960, 5, None) == 4
    assert sizes.next(999, 5, None) == 1
