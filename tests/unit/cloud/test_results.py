"""Where the results of a job are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiocluster import LaunchError
from aiocluster.cloud.results import where_results_are

ID = "0a1b2c3d-0000-4000-8000-123456789abc"


class Jobs:
    """AWS Batch, with one job."""

    def __init__(self, job: dict[str, Any] | None) -> None:
        self.job = job
        self.asked: list[Any] = []

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        self.asked.append((service, operation, arguments))
        return {"jobs": [] if self.job is None else [self.job]}

    async def close(self) -> None:
        raise AssertionError("who was handed it does not own it")


def in_container(value: str) -> dict[str, Any]:
    return {"container": {"environment": [{"name": "OTHER"}, {"name": "AIOCLUSTER_RESULTS", "value": value}]}}


@pytest.mark.parametrize("job", [{"tags": {"aiocluster:results": "s3://b/run"}}, in_container("s3://b/run")])
@pytest.mark.parametrize("id", [ID, f"{ID}:3", f"{ID}#0"])
async def test_a_job_says_where_its_results_are(job: dict[str, Any], id: str) -> None:
    api = Jobs(job)
    assert await where_results_are(id, api=api) == "s3://b/run"
    assert api.asked == [("batch", "describe_jobs", {"jobs": [ID]})]


async def test_the_variable_is_exact_where_the_tag_is_not() -> None:
    job = {"tags": {"aiocluster:results": "s3://b/it_s"}, **in_container("s3://b/it's")}
    assert await where_results_are(ID, api=Jobs(job)) == "s3://b/it's"


async def test_of_a_multi_node_job_the_main_node_says_it() -> None:
    class Nodes(Jobs):
        async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
            self.asked.append(arguments["jobs"])
            return {"jobs": [{"nodeProperties": {"mainNode": 1}} if arguments["jobs"] == [ID] else in_container("s3://b/run")]}

    api = Nodes(None)
    assert await where_results_are(ID, api=api) == "s3://b/run"
    assert api.asked == [[ID], [f"{ID}#1"]]


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (None, f"AWS Batch has no job {ID} here: is the region right"),
        ({"jobId": ID}, f"job {ID} does not say where its results are: .*name it instead of the job"),
        (in_container("out"), "saved its results to the folder out in its own container, which is gone"),
    ],
)
async def test_a_job_without_results_that_can_be_had_is_an_error(job: dict[str, Any] | None, text: str) -> None:
    with pytest.raises(LaunchError, match=text):
        await where_results_are(ID, api=Jobs(job))


async def test_a_folder_and_a_prefix_stand_for_themselves(tmp_path: Path) -> None:
    api = Jobs(None)
    for place in (str(tmp_path), "s3://bucket/prefix"):
        assert await where_results_are(place, api=api) == place
    assert api.asked == []
    with pytest.raises(LaunchError, match="'nowhere' is no id of a job, no folder that is there, and no s3://bucket/prefix"):
        await where_results_are("nowhere", api=api)
