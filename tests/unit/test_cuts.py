"""Chunks whose worker is lost: a killer among them is found and blamed, and nothing else is lost or runs when it must not."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from aiocluster.core.calls import MAX_KILLS
from aiocluster.cuts import Part, Record, cut
from aiocluster.errors import WorkerLost

FOREVER = Record(retries=None)


def lost(items_started: int | None = None, *, running: bool = False, kills: int = 0) -> WorkerLost:
    return WorkerLost(1, "crashed", maybe_executed=True, items_started=items_started, running=running, kills=kills)


def spans(parts: list[Part]) -> list[tuple[int, int]]:
    return [part[:2] for part in parts]


def test_items_that_never_started_go_again_as_if_nothing_had_been() -> None:
    error = lost(3, running=True, kills=1)
    assert cut(10, Record(), error) == [Part(0, 2, None), Part(2, 3, None), Part(3, 10, Record())]


def test_item_that_was_running_goes_alone_and_is_charged_alone() -> None:
    error = lost(3, running=True, kills=1)
    assert cut(3, FOREVER, error) == [Part(0, 2, Record(0, None, error)), Part(2, 3, Record(1, None, error))]


def test_a_retry_is_used_up_by_items_that_may_have_run() -> None:
    error = lost(2, running=True, kills=1)
    before, running, rest = cut(4, Record(retries=1), error)
    assert before.record == Record(0, 0, error)
    assert running.record == Record(1, 0, error)
    assert rest.record == Record(retries=1)
    assert cut(2, Record(0, 0, error), lost()) == [Part(0, 2, None)]


def test_items_of_a_worker_that_was_lost_without_their_fault_stay_together() -> None:
    error = lost(kills=1)
    assert cut(9, Record(1, None), error) == [Part(0, 9, Record(1, None, error))]


def test_suspects_go_in_parts_and_then_each_alone() -> None:
    first = lost(kills=1)
    parts = cut(10, FOREVER, first)
    assert spans(parts) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert {part.record for part in parts} == {Record(1, None, first)}
    second = lost(kills=2)
    parts = cut(3, Record(1, None, first), second)
    assert spans(parts) == [(0, 1), (1, 2), (2, 3)]
    assert {part.record for part in parts} == {Record(2, None, second, alone=True)}


def test_an_item_that_is_alone_stays_so_when_its_worker_is_lost_without_its_fault() -> None:
    error = lost(kills=2)
    assert cut(1, Record(2, None, None, alone=True), error) == [Part(0, 1, Record(2, None, error, alone=True))]


def test_an_item_that_has_killed_three_workers_is_blamed() -> None:
    assert cut(1, Record(2, None, None, alone=True), lost(kills=MAX_KILLS)) == [Part(0, 1, None)]
    assert cut(1, Record(2, None), lost(1, running=True, kills=MAX_KILLS)) == [Part(0, 1, None)]


def test_items_that_cannot_be_loaded_without_a_death_are_found_though_none_has_run() -> None:
    """They may go again whatever their options say, but not for ever."""
    parts = cut(4, Record(), lost(0, running=True, kills=1))
    assert parts == [Part(0, 2, Record(1)), Part(2, 4, Record(1))]
    parts = cut(2, Record(1), lost(0, running=True, kills=2))
    assert parts == [Part(0, 1, Record(2, alone=True)), Part(1, 2, Record(2, alone=True))]
    assert cut(1, Record(2, alone=True), lost(0, running=True, kills=3)) == [Part(0, 1, None)]


def test_a_count_that_cannot_be_is_no_more_than_all() -> None:
    assert spans(cut(3, Record(), lost(2**32 - 1, kills=1))) == [(0, 3)]


@pytest.mark.parametrize("seed", range(50))
def test_of_items_side_by_side_the_killers_are_blamed_after_three_deaths_and_nobody_else(seed: int) -> None:
    """As a map sends them: several at a time where a worker holds them all, those that must be alone when all else has ended."""
    rng = random.Random(seed)
    count = rng.choice([1, 2, 3, 7, 40, 300])
    killers = set(rng.sample(range(count), rng.randint(0, min(count, 3))))
    size = rng.randint(1, count)
    ways = [(first, min(first + size, count), FOREVER) for first in range(0, count, size)]
    alone: list[tuple[int, int, Record]] = []
    deaths: Counter[int] = Counter()
    blamed: set[int] = set()
    done: list[int] = []
    while ways or alone:
        together = [ways.pop(rng.randrange(len(ways))) for _ in range(rng.randint(1, len(ways)))] if ways else [alone.pop(0)]
        items = [item for first, last, _ in together for item in range(first, last)]
        guilty = next((item for item in items if item in killers), None)
        if guilty is None:
            done.extend(items)
            continue
        deaths[guilty] += 1
        for first, last, record in together:
            for part in cut(last - first, record, lost(kills=record.kills + 1)):
                way = (first + part.first, first + part.last)
                if part.record is None:
                    blamed.update(range(*way))
                else:
                    (alone if part.record.alone else ways).append((*way, part.record))
    assert blamed == killers
    assert sorted(done) == sorted(set(range(count)) - killers)
    assert all(deaths[item] <= MAX_KILLS for item in killers)
