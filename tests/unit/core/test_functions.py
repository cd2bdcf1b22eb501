"""The table of functions: one entry for each content, measured, and bounded."""

from __future__ import annotations

import pytest

from aiocluster.core.functions import FunctionTable


def test_the_same_content_is_one_entry_whatever_it_is_called() -> None:
    table = FunctionTable()
    first = table.intern(b"h1", b"code", "f", False)
    assert table.intern(b"h1", b"code", "g", False) is first
    other = table.intern(b"h2", b"code", "f", True)
    assert other.id != first.id
    assert table.get(first.id) is first
    assert table.get(99) is None
    assert len(table) == 2


def test_the_first_measurement_is_believed_and_later_ones_move_it_by_their_number() -> None:
    table = FunctionTable()
    entry = table.intern(b"h", b"", "f", False)
    assert entry.estimate_s is None
    table.observe(entry.id, 2, 4.0)
    assert entry.estimate_s == 2.0
    table.observe(entry.id, 1, 10.0)
    assert entry.estimate_s == pytest.approx(3.0)
    table.observe(entry.id, 1_000_000, 1_000_000.0)
    assert entry.estimate_s == pytest.approx(1.0, rel=1e-3)


def test_measurements_of_nothing_and_of_strangers_are_ignored() -> None:
    table = FunctionTable()
    entry = table.intern(b"h", b"", "f", False)
    table.observe(entry.id, 0, 1.0)
    table.observe(99, 1, 1.0)
    assert entry.estimate_s is None


def test_only_unused_functions_are_forgotten_the_longest_unseen_first() -> None:
    table = FunctionTable(limit=2)
    entries = [table.intern(bytes([n]), b"", str(n), False) for n in range(4)]
    entries[0].uses = 1
    table.intern(bytes([1]), b"", "1", False)  # seen again
    assert table.evict() == [entries[2].id, entries[3].id]
    assert table.get(entries[0].id) is entries[0]
    assert table.evict() == []
    again = table.intern(bytes([2]), b"", "2", False)
    assert again.id not in {entry.id for entry in entries}


def test_many_bytes_are_forgotten_like_many_functions() -> None:
    table = FunctionTable(limit_bytes=10)
    old = table.intern(b"1", b"x" * 8, "old", False)
    new = table.intern(b"2", b"x" * 8, "new", False)
    assert table.evict() == [old.id]
    assert table.get(new.id) is new


def test_what_is_in_use_stays_even_above_the_limits() -> None:
    table = FunctionTable(limit=1)
    for n in range(3):
        table.intern(bytes([n]), b"", str(n), False).uses = 1
    assert table.evict() == []
    assert len(table) == 3
