"""What is known of workers that are gone: without end which they are, of the last ones why."""

from __future__ import annotations

from aiocluster.core.losses import CAUSES_KEPT, LostWorkers


def test_the_causes_of_the_last_losses_are_kept_and_of_all_others_that_they_are_lost() -> None:
    lost = LostWorkers()
    assert lost.cause_of(1) is None
    for id in range(1, 3 * CAUSES_KEPT):
        lost.add(id, f"cause {id}")
        assert lost.cause_of(id) == f"cause {id}"
        assert lost.cause_of(id + 1) is None
    assert lost.cause_of(1) == lost.cause_of(2 * CAUSES_KEPT - 1) == "it ended long ago"
    assert lost.cause_of(2 * CAUSES_KEPT) == f"cause {2 * CAUSES_KEPT}"
    assert len(lost._causes) == CAUSES_KEPT


def test_a_worker_that_has_outlived_many_others_is_lost_for_its_own_reason() -> None:
    lost = LostWorkers()
    for id in range(2, 2 + 2 * CAUSES_KEPT):
        lost.add(id, "another one")
    lost.add(1, "killed at last")
    assert lost.cause_of(1) == "killed at last"
