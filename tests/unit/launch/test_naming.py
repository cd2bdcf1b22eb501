"""Which node an agent is, where many were started with one environment."""

from __future__ import annotations

import pytest

from aiocluster.launch.naming import batch_index, node_name


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ID": "j:2"}, "batch-6"),
        ({"AWS_BATCH_JOB_ID": "j:2"}, "batch-6"),
        ({"AWS_BATCH_JOB_ID": "j", "AWS_BATCH_JOB_ATTEMPT": "1"}, "batch-4"),
        ({"AWS_BATCH_JOB_ID": "j:2", "AWS_BATCH_JOB_ATTEMPT": "3"}, "batch-6.3"),
        ({"AWS_BATCH_JOB_ID": "j#1", "AWS_BATCH_JOB_NODE_INDEX": "1"}, "batch-5"),
    ],
)
def test_the_index_of_a_job_stands_for_the_star(environ: dict[str, str], name: str) -> None:
    assert node_name("batch-*", {"AIOCLUSTER_NODE_FIRST": "4", **environ}) == name


def test_a_name_without_a_star_is_taken_as_it_is() -> None:
    assert node_name("docker-1", {"AWS_BATCH_JOB_ID": "j:2"}) == "docker-1"


def test_a_star_that_nothing_stands_for_is_told() -> None:
    with pytest.raises(ValueError, match="AWS_BATCH_JOB_ID"):
        node_name("batch-*", {})


def test_outside_of_a_job_there_is_no_index() -> None:
    assert batch_index({}) is None
