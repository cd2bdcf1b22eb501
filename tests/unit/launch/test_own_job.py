"""What a process knows of the job of AWS Batch that it runs in."""

from __future__ import annotations

import pytest

from aiocluster.launch.aws import AwsError
from aiocluster.launch.own_job import OwnJob, describe_own_job, own_job, vcpus_of
from tests.unit.launch.fake_batch import DEFINITION, DENIED, QUEUE, FakeAws


@pytest.mark.parametrize("environ", [{}, {"AWS_BATCH_JOB_ID": ""}, {"AWS_BATCH_JQ_NAME": "queue"}])
def test_outside_of_a_job_there_is_none(environ: dict[str, str]) -> None:
    assert own_job(environ) is None


def test_a_plain_job() -> None:
    job = own_job({"AWS_BATCH_JOB_ID": "abc", "AWS_BATCH_JQ_NAME": "queue", "AWS_BATCH_JOB_ATTEMPT": "2"})
    assert job == OwnJob(id="abc", queue="queue", attempt=2)
    assert job.parent_id == "abc"


@pytest.mark.parametrize("variable", [{"AWS_BATCH_JOB_ARRAY_INDEX": "3"}, {}])
def test_the_child_of_an_array(variable: dict[str, str]) -> None:
    job = own_job({"AWS_BATCH_JOB_ID": "abc:3", "AWS_BATCH_JQ_NAME": "queue", **variable})
    assert job is not None
    assert (job.array_index, job.node_index, job.parent_id) == (3, None, "abc")


def test_a_node_of_a_multi_node_job() -> None:
    job = own_job(
        {
            "AWS_BATCH_JOB_ID": "abc#2",
            "AWS_BATCH_JQ_NAME": "queue",
            "AWS_BATCH_JOB_NODE_INDEX": "2",
            "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
            "AWS_BATCH_JOB_NUM_NODES": "4",
            "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7",
        }
    )
    assert job is not None
    assert (job.node_index, job.main_node_index, job.nodes, job.main_node_address) == (2, 0, 4, "10.0.0.7")
    assert (job.array_index, job.parent_id) == (None, "abc")


async def test_queue_definition_and_vcpus_are_asked_for() -> None:
    aws = FakeAws()
    requirements = [{"type": "MEMORY", "value": "512"}, {"type": "VCPU", "value": "0.5"}]
    container = {"resourceRequirements": requirements}
    aws.jobs["abc"] = {"jobId": "abc", "jobQueue": QUEUE, "jobDefinition": DEFINITION, "container": container}
    detail = await describe_own_job(aws, OwnJob(id="abc", queue="workers"))
    assert (detail.queue, detail.definition, detail.vcpus) == (QUEUE, DEFINITION, 0.5)


async def test_what_aws_does_not_know_or_tell_is_an_error() -> None:
    aws = FakeAws()
    with pytest.raises(AwsError, match="does not know abc"):
        await describe_own_job(aws, OwnJob(id="abc", queue="workers"))
    aws.fail("describe_jobs", DENIED)
    with pytest.raises(AwsError, match="access denied"):
        await describe_own_job(aws, OwnJob(id="abc", queue="workers"))


@pytest.mark.parametrize(
    ("container", "vcpus"),
    [({}, 0.0), ({"vcpus": 4}, 4.0), ({"vcpus": 4, "resourceRequirements": [{"type": "VCPU", "value": "2"}]}, 2.0)],
)
def test_vcpus_are_read_in_both_forms(container: dict[str, object], vcpus: float) -> None:
    assert vcpus_of(container) == vcpus
