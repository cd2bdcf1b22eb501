"""The last lines of a node, within bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.launch.lines import LAST_LINES, MAX_LINE_BYTES, LastLines


def fed(*pieces: bytes) -> tuple[list[str], tuple[str, ...]]:
    seen: list[str] = []
    lines = LastLines(seen.append)
    for piece in pieces:
        lines.feed(piece)
    lines.end()
    return seen, lines.tail()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"a\nb\n",), ["a", "b"]),
        ((b"a", b"b\nc"), ["ab", "c"]),
        ((b"a\r\n\nb",), ["a", "", "b"]),
        ((b"\xff\n",), ["\ufffd"]),
        ((), []),
    ],
)
def test_lines_are_those_that_were_written(pieces: tuple[bytes, ...], expected: list[str]) -> None:
    assert fed(*pieces) == (expected, tuple(expected))


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_how_bytes_arrive_changes_no_line(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[first:last] for first, last in itertools.pairwise(edges)]
    assert fed(*pieces) == fed(data)


def test_only_the_last_are_kept() -> None:
    seen, tail = fed(*[b"%d\n" % number for number in range(LAST_LINES + 7)])
    assert len(seen) == LAST_LINES + 7
    assert tail == tuple(seen[7:])


@pytest.mark.parametrize("size", [1, 1000, MAX_LINE_BYTES, 3 * MAX_LINE_BYTES + 5])
def test_a_line_without_end_comes_in_pieces_and_is_kept_no_longer_than_one(size: int) -> None:
    seen: list[str] = []
    lines = LastLines(seen.append)
    total = 0
    for _ in range(100_000 // size + 2):
        lines.feed(b"x" * size)
        total += size
        assert sum(map(len, lines._rests.values())) < MAX_LINE_BYTES
        assert sum(map(len, seen)) > total - MAX_LINE_BYTES
    lines.end()
    assert sum(map(len, seen)) == total
    assert max(map(len, seen)) == MAX_LINE_BYTES


def test_what_is_secret_is_in_no_line() -> None:
    seen: list[str] = []
    lines = LastLines(seen.append, "feed" * 8)
    lines.feed(b"AIOCLUSTER_TOKEN=" + b"feed" * 8 + b"\n")
    assert seen == list(lines.tail()) == ["AIOCLUSTER_TOKEN=***"]


def test_streams_do_not_mix() -> None:
    seen: list[str] = []
    lines = LastLines(seen.append)
    lines.feed(b"out", 1)
    lines.feed(b"err\n", 2)
    lines.feed(b"put\n", 1)
    assert seen == ["err", "output"]
