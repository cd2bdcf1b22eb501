"""The stack that jobs run on: found, made, changed, deleted, and what is said when that fails."""

from __future__ import annotations

import pytest

from aiocluster.cloud.stack import Stack, StackEvent, delete_stack, deploy_stack, find_stack, stack_name
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import AwsError, Fault
from tests.unit.cloud.fake_cloudformation import REGION, STACK, FakeCloudFormation

DENIED = AwsError("access denied: the role or user needs cloudformation:DescribeStacks", Fault.DENIED, "AccessDenied")


@pytest.fixture
def api() -> FakeCloudFormation:
    return FakeCloudFormation()


def told(events: list[StackEvent]) -> list[tuple[str, str]]:
    return [(event.resource, event.status) for event in events]


# --- finding -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "environ", "name"),
    [
        ("mine", {"AIOCLUSTER_STACK": "ours"}, "mine"),
        (None, {"AIOCLUSTER_STACK": "ours"}, "ours"),
        (None, {"AIOCLUSTER_STACK": ""}, "aiocluster"),
        (None, {}, "aiocluster"),
    ],
)
def test_the_stack_that_is_meant_is_named_by_an_option_or_a_variable_or_is_called_aiocluster(
    given: str | None, environ: dict[str, str], name: str
) -> None:
    assert stack_name(given, environ) == name


async def test_a_stack_is_found_with_its_region_and_outputs(api: FakeCloudFormation) -> None:
    api.add("mine")
    stack = await find_stack("mine", api=api)
    assert stack == Stack("mine", REGION, {"Ecr": "images", "Subnets": "subnet-1,subnet-2"})
    assert stack.repository == "images"
    assert stack.subnets == ("subnet-1", "subnet-2")


async def test_outputs_of_both_templates_have_one_name_each() -> None:
    batch = Stack("b", REGION, {"JobRoleArn": "role", "LogGroup": "logs"})
    ecs = Stack("e", REGION, {"TaskRoleArn": "role", "TaskLogGroup": "logs", "SubnetIds": "a"})
    assert (batch.job_role, batch.log_group) == (ecs.job_role, ecs.log_group) == ("role", "logs")
    assert ecs.subnets == ("a",)


async def test_an_output_that_is_not_there_is_an_error_that_names_it(api: FakeCloudFormation) -> None:
    api.add("mine")
    stack = await find_stack("mine", api=api)
    with pytest.raises(LaunchError, match=f"the stack mine in {REGION} has no output EcsClusterArn: another template"):
        _ = stack.cluster


async def test_no_stack_is_an_error_that_says_how_to_make_one(api: FakeCloudFormation) -> None:
    with pytest.raises(LaunchError, match=f"no stack mine in {REGION}: make it with `aiocluster stack deploy`"):
        await find_stack("mine", REGION, api=api)


@pytest.mark.parametrize("status", ["CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE", "DELETE_FAILED", "REVIEW_IN_PROGRESS"])
async def test_a_stack_that_is_not_ready_is_not_used(api: FakeCloudFormation, status: str) -> None:
    api.add("mine", status)
    with pytest.raises(LaunchError, match=f"cannot be used: it is {status}"):
        await find_stack("mine", api=api)


@pytest.mark.parametrize("status", ["UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "UPDATE_IN_PROGRESS"])
async def test_a_stack_that_was_changed_in_whatever_way_is_used(api: FakeCloudFormation, status: str) -> None:
    api.add("mine", status)
    assert (await find_stack("mine", api=api)).repository == "images"


async def test_what_aws_does_not_tell_is_not_taken_for_no_stack(api: FakeCloudFormation) -> None:
    api.errors["describe_stacks"] = DENIED
    with pytest.raises(AwsError, match="needs cloudformation:DescribeStacks"):
        await find_stack("mine", api=api)


# --- making ------------------------------------------------------------------------------------------------------------------


async def test_a_stack_is_made_and_each_step_is_told_once_and_in_order(api: FakeCloudFormation) -> None:
    api.plans = [
        [
            ("Vpc", "AWS::EC2::VPC", "CREATE_IN_PROGRESS", ""),
            ("Vpc", "AWS::EC2::VPC", "CREATE_COMPLETE", ""),
            ("", STACK, "CREATE_COMPLETE", ""),
        ]
    ]
    events: list[StackEvent] = []
    stack, change = await deploy_stack("mine", "text", {"Size": "2"}, kind="batch", api=api, tell=events.append, pause=api.pause)
    assert change == "created"
    assert stack.repository == "images"
    assert told(events) == [
        ("mine", "CREATE_IN_PROGRESS"),
        ("Vpc", "CREATE_IN_PROGRESS"),
        ("Vpc", "CREATE_COMPLETE"),
        ("mine", "CREATE_COMPLETE"),
    ]
    (asked,) = api.arguments("create_stack")
    assert asked["Parameters"] == [{"ParameterKey": "Size", "ParameterValue": "2"}]
    assert asked["OnFailure"] == "DELETE"
    assert asked["Capabilities"] == ["CAPABILITY_IAM"]


async def test_a_stack_that_cannot_be_made_says_which_resource_and_why(api: FakeCloudFormation) -> None:
    api.plans = [
        [
            ("Queue", "AWS::Batch::JobQueue", "CREATE_FAILED", "no such compute environment"),
            ("Vpc", "AWS::EC2::VPC", "CREATE_FAILED", "Resource creation cancelled"),
            ("", STACK, "CREATE_FAILED", "The following resource(s) failed to create: [Queue, Vpc]."),
        ]
    ]
    with pytest.raises(LaunchError) as raised:
        await deploy_stack("mine", "text", api=api, pause=api.pause)
    assert str(raised.value) == (
        "the stack mine could not be made (CREATE_FAILED)\n  Queue (AWS::Batch::JobQueue): no such compute environment"
    )


async def test_a_stack_that_was_taken_away_again_is_a_failure(api: FakeCloudFormation) -> None:
    api.plans = [
        [
            ("Vpc", "AWS::EC2::VPC", "CREATE_FAILED", "no more VPCs"),
            ("", STACK, "DELETE_IN_PROGRESS", ""),
            ("", STACK, "DELETE_COMPLETE", ""),
        ]
    ]
    with pytest.raises(LaunchError, match=r"could not be made \(DELETE_COMPLETE\)\n  Vpc \(AWS::EC2::VPC\): no more VPCs"):
        await deploy_stack("mine", "text", api=api, pause=api.pause)


async def test_where_no_resource_failed_the_reason_is_that_of_the_stack(api: FakeCloudFormation) -> None:
    api.plans = [[("", STACK, "CREATE_FAILED", "it took too long")]]
    with pytest.raises(LaunchError, match="it took too long"):
        await deploy_stack("mine", "text", api=api, pause=api.pause)


async def test_parameters_that_the_template_does_not_have_are_refused_with_those_it_has(api: FakeCloudFormation) -> None:
    with pytest.raises(LaunchError, match="no parameter Colour, Sise; it has Size, Kind"):
        await deploy_stack("mine", "text", {"Sise": "2", "Colour": "red", "Kind": "x"}, api=api, pause=api.pause)
    assert api.count("create_stack") == 0


# --- changing ----------------------------------------------------------------------------------------------------------------


async def test_parameters_that_are_not_given_stay_as_they_were(api: FakeCloudFormation) -> None:
    await deploy_stack("mine", "text", {"Size": "2", "Kind": "large"}, api=api, pause=api.pause)
    api.parameters["New"] = "default"
    events: list[StackEvent] = []
    _, change = await deploy_stack("mine", "text", {"Size": "3"}, api=api, tell=events.append, pause=api.pause)
    assert change == "updated"
    assert api.stacks[0].parameters == {"Size": "3", "Kind": "large", "New": "default"}
    assert told(events) == [("mine", "UPDATE_IN_PROGRESS"), ("mine", "UPDATE_COMPLETE")]  # none of those of the creation


async def test_the_same_again_changes_nothing(api: FakeCloudFormation) -> None:
    await deploy_stack("mine", "text", {"Size": "2"}, api=api, pause=api.pause)
    stack, change = await deploy_stack("mine", "text", api=api, pause=api.pause)
    assert (stack.name, change) == ("mine", "unchanged")


async def test_a_change_that_fails_is_told_with_its_cause(api: FakeCloudFormation) -> None:
    api.add("mine")
    api.plans = [
        [
            ("Queue", "AWS::Batch::JobQueue", "UPDATE_FAILED", "no"),
            ("", STACK, "UPDATE_ROLLBACK_IN_PROGRESS", ""),
            ("", STACK, "UPDATE_ROLLBACK_COMPLETE", ""),
        ]
    ]
    with pytest.raises(LaunchError, match=r"could not be changed, and is as it was \(UPDATE_ROLLBACK_COMPLETE\)\n  Queue"):
        await deploy_stack("mine", "text", api=api, pause=api.pause)


async def test_a_change_that_could_not_be_taken_back_is_not_said_to_be(api: FakeCloudFormation) -> None:
    api.add("mine")
    api.plans = [[("", STACK, "UPDATE_ROLLBACK_FAILED", "stuck")]]
    with pytest.raises(LaunchError, match=r"could not be changed \(UPDATE_ROLLBACK_FAILED\)"):
        await deploy_stack("mine", "text", api=api, pause=api.pause)


async def test_a_stack_on_its_way_is_waited_for_and_then_changed(api: FakeCloudFormation) -> None:
    stack = api.add("mine", "CREATE_IN_PROGRESS")
    stack.coming = [("Vpc", "AWS::EC2::VPC", "CREATE_COMPLETE", ""), ("", STACK, "CREATE_COMPLETE", "")]
    events: list[StackEvent] = []
    _, change = await deploy_stack("mine", "text", api=api, tell=events.append, pause=api.pause)
    assert change == "updated"
    assert told(events) == [
        ("Vpc", "CREATE_COMPLETE"),
        ("mine", "CREATE_COMPLETE"),
        ("mine", "UPDATE_IN_PROGRESS"),
        ("mine", "UPDATE_COMPLETE"),
    ]


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "DELETE_FAILED", "REVIEW_IN_PROGRESS"])
async def test_a_stack_that_can_only_be_deleted_is_not_changed(api: FakeCloudFormation, status: str) -> None:
    api.add("mine", status)
    with pytest.raises(LaunchError, match=f"it is {status}; `aiocluster stack delete --stack mine` first"):
        await deploy_stack("mine", "text", api=api, pause=api.pause)
    assert api.count("update_stack") == 0


async def test_a_stack_made_from_another_template_is_not_touched(api: FakeCloudFormation) -> None:
    await deploy_stack("mine", "text", kind="ecs", api=api, pause=api.pause)
    with pytest.raises(LaunchError, match="made from the template 'ecs', and 'batch' would replace all it has"):
        await deploy_stack("mine", "other", kind="batch", api=api, pause=api.pause)
    assert api.count("update_stack") == 0


# --- deleting ----------------------------------------------------------------------------------------------------------------


async def test_a_stack_is_deleted_and_each_step_is_told(api: FakeCloudFormation) -> None:
    api.add("mine")
    events: list[StackEvent] = []
    assert await delete_stack("mine", api=api, tell=events.append, pause=api.pause)
    assert told(events) == [("mine", "DELETE_IN_PROGRESS"), ("mine", "DELETE_COMPLETE")]
    assert not await delete_stack("mine", api=api, pause=api.pause)


async def test_nothing_is_deleted_while_there_are_results_or_images(api: FakeCloudFormation) -> None:
    api.add("mine")
    api.objects = {"results": ["a", "b", "c"], "empty": []}
    api.images = {"repository": ["latest"]}
    with pytest.raises(LaunchError) as raised:
        await delete_stack("mine", api=api, pause=api.pause)
    assert str(raised.value) == (
        "nothing was deleted, since this would be lost with the stack mine: results in the bucket results (a, b, …); "
        "images in the repository repository (latest); --empty deletes it, too"
    )
    assert api.count("delete_stack") == 0
    assert api.objects["results"] == ["a", "b", "c"]


async def test_results_and_images_are_deleted_when_that_is_asked_for(api: FakeCloudFormation) -> None:
    stack = api.add("mine")
    api.objects = {"results": ["a", "b", "c", "d", "e"]}
    api.images = {"repository": ["latest"]}
    assert await delete_stack("mine", empty=True, api=api, pause=api.pause)
    assert api.objects == {"results": []}
    assert api.images == {}
    assert stack.status == "DELETE_COMPLETE"


async def test_what_cannot_be_emptied_is_named_and_the_stack_stays(api: FakeCloudFormation) -> None:
    api.add("mine")
    api.objects = {"results": ["locked"]}
    with pytest.raises(LaunchError, match="locked in the bucket results cannot be deleted: Access Denied"):
        await delete_stack("mine", empty=True, api=api, pause=api.pause)
    assert api.count("delete_stack") == 0


async def test_a_bucket_that_is_gone_already_holds_nothing_up(api: FakeCloudFormation) -> None:
    api.add("mine", "DELETE_FAILED")
    api.objects = {"results": ["a"]}
    api.errors["list_object_versions"] = AwsError("no such bucket", Fault.REJECTED, "NoSuchBucket")
    assert await delete_stack("mine", api=api, pause=api.pause)


async def test_a_deletion_that_fails_names_what_is_left(api: FakeCloudFormation) -> None:
    api.add("mine")
    api.plans = [[("Vpc", "AWS::EC2::VPC", "DELETE_FAILED", "has dependencies"), ("", STACK, "DELETE_FAILED", "failed: [Vpc]")]]
    with pytest.raises(LaunchError, match=r"could not be deleted \(DELETE_FAILED\)\n  Vpc \(AWS::EC2::VPC\): has dependencies"):
        await delete_stack("mine", api=api, pause=api.pause)


async def test_a_second_attempt_is_judged_by_its_own_events(api: FakeCloudFormation) -> None:
    stack = api.add("mine")
    api.happen(stack, ("Vpc", "AWS::EC2::VPC", "DELETE_FAILED", "has dependencies"), ("", STACK, "DELETE_FAILED", ""))
    events: list[StackEvent] = []
    assert await delete_stack("mine", api=api, tell=events.append, pause=api.pause)
    assert told(events) == [("mine", "DELETE_IN_PROGRESS"), ("mine", "DELETE_COMPLETE")]


async def test_a_deletion_on_its_way_is_waited_for_and_not_asked_for_again(api: FakeCloudFormation) -> None:
    stack = api.add("mine", "DELETE_IN_PROGRESS")
    api.objects = {"results": ["a"]}
    stack.coming = [("", STACK, "DELETE_COMPLETE", "")]
    assert await delete_stack("mine", api=api, pause=api.pause)
    assert api.count("delete_stack") == 0
    assert api.objects == {"results": ["a"]}
