"""A CloudFormation that is a few dictionaries, with the buckets and repositories of its stacks.

It keeps to what AWS documents. A test says what becomes of the next operation; each question is a step of it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiocluster.launch.aws import AwsError, Fault

REGION = "eu-west-1"
STACK = "AWS::CloudFormation::Stack"
BUCKET = "AWS::S3::Bucket"
REPOSITORY = "AWS::ECR::Repository"
NOTHING = AwsError("cloudformation:UpdateStack: No updates are to be performed.", Fault.REJECTED, "ValidationError")

Asked = dict[str, Any]
Step = tuple[str, str, str, str]
"""Logical name ("" for the stack), kind, status, reason; that of the stack becomes its status."""


@dataclass
class FakeStack:
    id: str
    name: str
    template: str
    parameters: dict[str, str]
    tags: list[dict[str, str]] = field(default_factory=list)
    status: str = "CREATE_COMPLETE"
    outputs: dict[str, str] = field(default_factory=lambda: {"Ecr": "images", "Subnets": "subnet-1,subnet-2"})
    events: list[dict[str, Any]] = field(default_factory=list)
    """The oldest first."""
    coming: list[Step] = field(default_factory=list)


class FakeCloudFormation:
    """The account.

    Args:
        parameters: the names of those of every template, with their defaults.
        page: events in one answer.
    """

    def __init__(self, parameters: dict[str, str] | None = None, *, page: int = 2) -> None:
        self.stacks: list[FakeStack] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.plans: list[list[Step]] = []
        """What becomes of the next operations, in their order; without, they succeed."""
        self.objects: dict[str, list[str]] = {}
        """Keys by bucket, of the stack whose resource it is."""
        self.images: dict[str, list[str]] = {}
        """Tags by repository."""
        self.errors: dict[str, AwsError] = {}
        """By operation."""
        self.parameters = {"Size": "1", "Kind": "small"} if parameters is None else parameters
        self._page = page
        self._numbers = itertools.count(1)

    def count(self, operation: str) -> int:
        return Counter(name for name, _ in self.asked)[operation]

    def arguments(self, operation: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.asked if name == operation]

    def add(self, name: str, status: str = "CREATE_COMPLETE", **more: Any) -> FakeStack:
        stack = FakeStack(f"arn:aws:cloudformation:{REGION}:1:stack/{name}/{next(self._numbers)}", name, "", {}, **more)
        self.stacks.append(stack)
        self.happen(stack, ("", STACK, status, ""))
        return stack

    def happen(self, stack: FakeStack, *steps: Step) -> None:
        for name, kind, status, reason in steps:
            number = next(self._numbers)
            event = {
                "EventId": f"e-{number}",
                "Timestamp": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
                "LogicalResourceId": name or stack.name,
                "ResourceType": kind,
                "ResourceStatus": status,
            }
            stack.events.append({**event, "ResourceStatusReason": reason} if reason else event)
            if kind == STACK:
                stack.status = status

    # --- what is called ------------------------------------------------------------------------------------------------------

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        self.asked.append((operation, arguments))
        if operation in self.errors:
            raise self.errors[operation]
        answer: dict[str, Any] = getattr(self, f"_{operation}")(arguments)
        return answer

    async def close(self) -> None:
        """There is nothing to release."""

    async def pause(self, _: float) -> None:
        """What is coming comes, a step a time."""
        for stack in self.stacks:
            if stack.coming:
                self.happen(stack, stack.coming.pop(0))

    def _of(self, name: str) -> FakeStack:
        """By its name while it is there, by its id for ever."""
        for stack in self.stacks:
            if name == stack.id or (name == stack.name and stack.status != "DELETE_COMPLETE"):
                return stack
        raise AwsError(f"Stack with id {name} does not exist", Fault.REJECTED, "ValidationError")

    def _plan(self, stack: FakeStack, verb: str) -> None:
        steps: Sequence[Step] = self.plans.pop(0) if self.plans else [("", STACK, f"{verb}_COMPLETE", "")]
        self.happen(stack, ("", STACK, f"{verb}_IN_PROGRESS", "User Initiated"))
        stack.coming = list(steps)

    def _get_template_summary(self, asked: Asked) -> dict[str, Any]:
        return {"Parameters": [{"ParameterKey": name} for name in self.parameters]}

    def _describe_stacks(self, asked: Asked) -> dict[str, Any]:
        stack = self._of(asked["StackName"])
        told = {
            "StackName": stack.name,
            "StackId": stack.id,
            "StackStatus": stack.status,
            "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in stack.parameters.items()],
            "Tags": stack.tags,
        }
        outputs = [{"OutputKey": key, "OutputValue": value} for key, value in stack.outputs.items()]
        return {"Stacks": [told if stack.status.startswith("CREATE_IN") else {**told, "Outputs": outputs}]}

    def _describe_stack_events(self, asked: Asked) -> dict[str, Any]:
        events = self._of(asked["StackName"]).events[::-1]
        start = int(asked.get("NextToken", 0))
        end = start + self._page
        answer: dict[str, Any] = {"StackEvents": events[start:end]}
        return {**answer, "NextToken": str(end)} if end < len(events) else answer

    def _create_stack(self, asked: Asked) -> dict[str, Any]:
        given = {one["ParameterKey"]: one["ParameterValue"] for one in asked["Parameters"]}
        stack = FakeStack(
            f"arn:aws:cloudformation:{REGION}:1:stack/{asked['StackName']}/{next(self._numbers)}",
            asked["StackName"],
            asked["TemplateBody"],
            {**self.parameters, **given},
            tags=asked["Tags"],
        )
        self.stacks.append(stack)
        self._plan(stack, "CREATE")
        return {"StackId": stack.id}

    def _update_stack(self, asked: Asked) -> dict[str, Any]:
        stack = self._of(asked["StackName"])
        after = {
            one["ParameterKey"]: stack.parameters[one["ParameterKey"]] if one.get("UsePreviousValue") else one["ParameterValue"]
            for one in asked["Parameters"]
        }
        after = {**self.parameters, **after}
        if (stack.template, stack.parameters) == (asked["TemplateBody"], after):
            raise NOTHING
        stack.template, stack.parameters = asked["TemplateBody"], after
        self._plan(stack, "UPDATE")
        return {"StackId": stack.id}

    def _delete_stack(self, asked: Asked) -> dict[str, Any]:
        self._plan(self._of(asked["StackName"]), "DELETE")
        return {}

    def _list_stack_resources(self, asked: Asked) -> dict[str, Any]:
        self._of(asked["StackName"])
        kinds = {**dict.fromkeys(self.objects, BUCKET), **dict.fromkeys(self.images, REPOSITORY), "vpc-1": "AWS::EC2::VPC"}
        return {
            "StackResourceSummaries": [
                {"ResourceType": kind, "PhysicalResourceId": name, "ResourceStatus": "CREATE_COMPLETE"}
                for name, kind in kinds.items()
            ]
        }

    def _list_object_versions(self, asked: Asked) -> dict[str, Any]:
        keys = self.objects[asked["Bucket"]][: asked.get("MaxKeys", 2)]
        return {"Versions": [{"Key": key, "VersionId": "null"} for key in keys]} if keys else {}

    def _delete_objects(self, asked: Asked) -> dict[str, Any]:
        gone = {one["Key"] for one in asked["Delete"]["Objects"]}
        locked = [key for key in gone if key.startswith("locked")]
        self.objects[asked["Bucket"]] = [key for key in self.objects[asked["Bucket"]] if key not in gone or key in locked]
        return {"Errors": [{"Key": key, "Message": "Access Denied"} for key in locked]}

    def _list_images(self, asked: Asked) -> dict[str, Any]:
        return {"imageIds": [{"imageTag": tag} for tag in self.images[asked["repositoryName"]][: asked["maxResults"]]]}

    def _delete_repository(self, asked: Asked) -> dict[str, Any]:
        assert asked["force"]
        del self.images[asked["repositoryName"]]
        return {}
