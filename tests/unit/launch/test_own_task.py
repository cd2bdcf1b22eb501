"""What a process knows of the ECS task that it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import AwsError
from aiocluster.launch.naming import node_name
from aiocluster.launch.own_task import OwnTask, describe_own_task, own_task, read_own_task, task_id
from tests.unit.launch.fake_batch import DENIED, THROTTLED
from tests.unit.launch.fake_ecs import FakeEcs
from tests.unit.launch.metadata_server import CONTAINER, TASK, Metadata, metadata_served

OWN = OwnTask(arn="arn:aws:ecs:eu-west-1:1:task/nodes/0a1b2c", cluster="nodes", definition="managers:7", container="main")
ATTACHMENT = {
    "type": "ElasticNetworkInterface",
    "details": [{"name": "subnetId", "value": "subnet-1"}, {"name": "networkInterfaceId", "value": "eni-1"}],
}


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with metadata_served() as served:
        yield served


def test_outside_of_a_task_there_is_none() -> None:
    assert read_own_task({}) is None
    assert read_own_task({"ECS_CONTAINER_METADATA_URI_V4": ""}) is None


async def test_a_task_is_told_by_its_metadata(metadata: Metadata) -> None:
    assert await own_task(metadata.environ) == OWN
    assert OWN.id == "0a1b2c"
    assert metadata.asked == ["/v4/container-1/task", "/v4/container-1"]


def test_no_proxy_of_the_environment_is_asked(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert read_own_task(metadata.environ, tries=1) == OWN


def test_an_endpoint_that_is_not_ready_is_asked_again_later_and_later(metadata: Metadata) -> None:
    metadata.task = [500, b"not json", {}, TASK]
    metadata.container = [404, CONTAINER]
    pauses: list[float] = []
    assert read_own_task(metadata.environ, pause=pauses.append) == OWN
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (503, "it answers 503"),
        (b"[]", "not answer with an object"),
        ({"TaskARN": "x"}, "it has no 'Cluster'"),
        (b"", "Expecting value"),
    ],
)
def test_an_endpoint_that_does_not_get_ready_is_an_error_that_says_why(metadata: Metadata, answer: Any, why: str) -> None:
    metadata.task = [answer]
    with pytest.raises(LaunchError, match=f"the metadata of this ECS task cannot be read.*{why}"):
        read_own_task(metadata.environ, tries=3, pause=lambda _seconds: None)
    assert metadata.asked.count("/v4/container-1/task") == 3


def test_a_port_where_nobody_answers_is_an_error() -> None:
    with pytest.raises(LaunchError, match="refused"):
        read_own_task({"ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:1/v4/x"}, tries=2, pause=lambda _seconds: None)


def test_ids_are_the_last_part_of_both_forms_of_arns() -> None:
    assert task_id("arn:aws:ecs:eu-west-1:1:task/nodes/0a1b2c") == "0a1b2c"
    assert task_id("arn:aws:ecs:eu-west-1:1:task/0a1b2c") == "0a1b2c"


# --- the name of a node ------------------------------------------------------------------------------------------------------


def test_the_id_of_the_task_stands_for_the_star(metadata: Metadata) -> None:
    variables = {**metadata.environ, "AWS_BATCH_JOB_ID": "what-batch-says-does-not-count:3"}
    assert node_name("ecs/1f2e/*", variables) == "ecs/1f2e/0a1b2c"


def test_an_agent_that_is_no_task_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="ECS_CONTAINER_METADATA_URI_V4 is not set"):
        node_name("ecs/1f2e/*", {})


# --- what AWS tells ----------------------------------------------------------------------------------------------------------


def own_in(ecs: FakeEcs, **told: Any) -> None:
    ecs.start()
    ecs.tasks["0a1b2c"] = {**ecs.tasks.pop("task1"), "taskArn": OWN.arn, **told}


async def test_launch_type_subnet_and_security_groups_are_asked_for() -> None:
    ecs = FakeEcs()
    own_in(ecs, launchType="FARGATE", attachments=[ATTACHMENT])
    ecs.interfaces["eni-1"] = ["sg-1", "sg-2", "sg-1"]
    detail = await describe_own_task(ecs, OWN)
    assert (detail.launch_type, detail.capacity_provider) == ("FARGATE", None)
    assert (detail.subnets, detail.security_groups) == (("subnet-1",), ("sg-1", "sg-2"))


async def test_a_task_without_an_interface_of_its_own_has_no_subnet() -> None:
    ecs = FakeEcs()
    own_in(ecs, launchType="EC2", capacityProviderName="spot", attachments=[{"type": "Service Connect", "details": []}])
    detail = await describe_own_task(ecs, OWN)
    assert (detail.launch_type, detail.capacity_provider, detail.subnets, detail.security_groups) == ("EC2", "spot", (), ())


async def test_security_groups_that_may_not_be_asked_for_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ecs = FakeEcs()
    own_in(ecs, attachments=[ATTACHMENT])
    ecs.fail("describe_network_interfaces", DENIED)
    assert (await describe_own_task(ecs, OWN)).security_groups == ()
    assert "default security group" in caplog.text
    ecs.fail("describe_network_interfaces", THROTTLED)
    with pytest.raises(AwsError, match="too many requests"):
        await describe_own_task(ecs, OWN)


async def test_a_task_that_aws_does_not_know_is_an_error() -> None:
    with pytest.raises(AwsError, match=r"ECS does not know arn:aws:ecs:eu-west-1:1:task/nodes/0a1b2c.*region"):
        await describe_own_task(FakeEcs(), OWN)
