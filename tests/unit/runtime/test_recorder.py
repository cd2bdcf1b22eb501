"""The flight recorder: what a worker left is read whole, and garbage is not believed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from aiocluster.runtime.recorder import (
    ASYNC_STARTED,
    BOX_BYTES,
    BOX_END,
    BOX_WRITTEN,
    ENTRY_BYTES,
    ITEM,
    ITEM_BITS,
    SYNC_FINISHED,
    SYNC_STARTED,
    Reading,
    Recorder,
)


@pytest.fixture
def pair() -> Iterator[tuple[Recorder, Recorder]]:
    """The worker's end and the agent's."""
    agent, descriptor = Recorder.create()
    worker = Recorder.attach(descriptor)
    os.close(descriptor)
    yield worker, agent
    worker.close()
    agent.close()


def test_new_recorder_says_that_nothing_happened(pair: tuple[Recorder, Recorder]) -> None:
    _worker, agent = pair
    assert agent.read() == Reading(0, 0, 0, 0, 0, [])
    assert not agent.is_ready


def test_agent_reads_what_the_worker_assigned(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    worker.set_ready()
    for slot, value in ((SYNC_STARTED, 5), (SYNC_FINISHED, 4), (ASYNC_STARTED, 2**63), (ITEM, (5 << ITEM_BITS) + 3)):
        worker.slots[slot] = value
    assert agent.is_ready
    assert agent.read() == Reading(5, 4, 2**63, 3, 5, [])


@pytest.mark.parametrize("serial", [1, 2**ITEM_BITS - 1, 2**ITEM_BITS, 2**40 + 7])
def test_items_are_told_with_the_chunk_that_they_belong_to(pair: tuple[Recorder, Recorder], serial: int) -> None:
    worker, agent = pair
    for started in (serial, serial + 5):
        worker.slots[SYNC_STARTED] = started
        worker.slots[ITEM] = ((serial << ITEM_BITS) + 3) % 2**64
        assert agent.read()[3:5] == (3, serial)


def test_items_of_a_chunk_that_has_not_started_are_nobodys(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    worker.slots[SYNC_STARTED], worker.slots[ITEM] = 5, (6 << ITEM_BITS) + 3
    assert agent.read()[3:5] == (0, 0)


def test_results_not_yet_written_survive(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    assert worker.box.add(1, 0, b"one")
    mark = worker.box.end
    assert worker.box.add(2, 1, b"")
    assert agent.read().results == [(1, 0, b"one"), (2, 1, b"")]
    worker.box.written(mark)
    assert agent.read().results == [(2, 1, b"")]
    worker.box.written(worker.box.end)
    assert agent.read().results == []


def test_box_takes_no_more_than_it_has_room_for(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    large = bytes(BOX_BYTES // 2 - ENTRY_BYTES)
    assert worker.box.add(1, 0, large)
    mark = worker.box.end
    assert worker.box.add(2, 0, large)
    assert not worker.box.add(3, 0, b"")
    worker.box.written(mark)
    assert worker.box.add(4, 0, large)
    assert agent.read().results == [(2, 0, large), (4, 0, large)]


def test_a_mark_that_comes_late_takes_nothing_back(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    worker.box.add(1, 0, b"one")
    early = worker.box.end
    worker.box.add(2, 0, b"two")
    worker.box.written(worker.box.end)
    worker.box.add(3, 0, b"three")
    worker.box.written(early)
    assert agent.read().results == [(3, 0, b"three")]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_added_and_not_written_is_read_however_often_the_memory_goes_round(
    pair: tuple[Recorder, Recorder], seed: int
) -> None:
    worker, agent = pair
    rng = random.Random(seed)
    largest = 1024
    kept: list[tuple[int, int, bytes]] = []
    marks: list[int] = []
    for call_id in range(6000):
        payload = rng.randbytes(rng.choice([0, 8, rng.randrange(largest), largest]))
        if worker.box.add(call_id, call_id % 4, payload):
            kept.append((call_id, call_id % 4, payload))
            marks.append(worker.box.end)
        else:
            waiting = sum(ENTRY_BYTES + len(entry[2]) for entry in kept)
            assert waiting > BOX_BYTES - 2 * (ENTRY_BYTES + largest)
        if kept and rng.random() < 0.02:
            written = rng.randint(1, len(kept))
            worker.box.written(marks[written - 1])
            del kept[:written], marks[:written]
        assert agent.read().results == kept
    assert worker.box.end > 3 * BOX_BYTES


@pytest.mark.parametrize(("written", "end"), [(0, 2**64 - 1), (2**64 - 1, 5), (7, 3), (65_000, 2**63), (2**63, 2**63 + 99)])
def test_garbage_offsets_are_not_believed(pair: tuple[Recorder, Recorder], written: int, end: int) -> None:
    worker, agent = pair
    worker.slots[BOX_WRITTEN], worker.slots[BOX_END] = written, end
    for _call, status, payload in agent.read().results:
        assert status <= 3
        assert len(payload) < 65_536


def test_garbage_after_good_results_ends_the_list(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    worker.box.add(1, 0, b"good")
    worker.box.add(2, 250, b"no such status")
    assert agent.read().results == [(1, 0, b"good")]
