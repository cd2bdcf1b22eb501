"""The flight recorder: what a worker left is read whole, and garbage is not believed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from aiocluster.runtime.recorder import (
    ASYNC_STARTED,
    BOX_END,
    BOX_WRITTEN,
    ITEM,
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
    assert agent.read() == Reading(0, 0, 0, 0, [])
    assert not agent.is_ready


def test_agent_reads_what_the_worker_assigned(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    worker.set_ready()
    for slot, value in ((SYNC_STARTED, 5), (SYNC_FINISHED, 4), (ASYNC_STARTED, 2**63), (ITEM, 3)):
        worker.slots[slot] = value
    assert agent.is_ready
    assert agent.read() == Reading(5, 4, 2**63, 3, [])


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


def test_box_begins_anew_when_all_is_written(pair: tuple[Recorder, Recorder]) -> None:
    worker, agent = pair
    large = bytes(40_000)
    assert worker.box.add(1, 0, large)
    assert not worker.box.add(2, 0, large)
    worker.box.written(worker.box.end)
    assert worker.box.add(3, 0, large)
    assert agent.read().results == [(3, 0, large)]


@pytest.mark.parametrize(("written", "end"), [(0, 2**64 - 1), (2**64 - 1, 5), (7, 3), (65_000, 2**63)])
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
