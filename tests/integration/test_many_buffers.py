"""Values with more buffers than a frame may have: split, and no harm to anybody."""

from __future__ import annotations

import asyncio

from aiocluster import Cluster

from . import work

PIECE = 16 * 1024
MANY = 700


async def test_results_with_very_many_buffers_in_all_arrive_in_several_frames(single: Cluster) -> None:
    """The worker's loop sees all of them at once: the calls are over before it may send any."""
    futures = [single.submit(work.pieces, MANY, PIECE) for _ in range(30)]
    for future in asyncio.as_completed(futures):
        assert [len(piece) for piece in await future] == [PIECE] * MANY
    assert set(single.workers) == {1}


async def test_nested_calls_with_very_many_buffers_both_ways(cluster: Cluster) -> None:
    assert await cluster.submit(work.nested_pieces, 30, MANY, PIECE) == 30 * MANY
    assert set(cluster.workers) == {1, 2}


async def test_an_argument_with_more_buffers_than_a_frame_holds(cluster: Cluster) -> None:
    pieces = [work.Piece(PIECE) for _ in range(66_000)]
    assert await cluster.submit(len, pieces) == 66_000
    assert set(cluster.workers) == {1, 2}
