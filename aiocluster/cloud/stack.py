"""The CloudFormation stack that jobs run on: found, made or changed, and deleted.

What AWS does with a stack goes on whether or not anybody waits for it: to stop waiting changes nothing, and to ask again goes on
from there. Nothing that holds somebody's results or images is deleted unless that is asked for.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from aiocluster.cloud.stack_contents import contents, empty_all
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, Aws, AwsError, items, region_of_arn

__all__ = [
    "DEFAULT_NAME",
    "VARIABLE",
    "Deployed",
    "Stack",
    "StackEvent",
    "delete_stack",
    "deploy_stack",
    "find_stack",
    "stack_name",
]

VARIABLE = "AIOCLUSTER_STACK"
DEFAULT_NAME = "aiocluster"
TEMPLATE_TAG = "aiocluster:template"
CAPABILITIES = ["CAPABILITY_IAM"]
"""The templates make roles, whose names AWS chooses."""
POLL_S = 2.0
STACK = "AWS::CloudFormation::Stack"
UNUSABLE = ("REVIEW_IN_PROGRESS", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""AWS changes no stack that is so: it can only be deleted."""
CANCELLED = ("Resource creation cancelled", "Resource update cancelled")
"""What AWS says of resources that have failed because others have."""


def stack_name(given: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The name of the stack that is meant: that which is given, else `$AIOCLUSTER_STACK`, else "aiocluster"."""
    return given or (os.environ if environ is None else environ).get(VARIABLE) or DEFAULT_NAME


@dataclass(frozen=True)
class Stack:
    """A stack that is there.

    Args:
        name: of the stack.
        region: where it is.
        outputs: what it tells of itself, by name.
    """

    name: str
    region: str
    outputs: Mapping[str, str]

    def output(self, *names: str) -> str:
        """The first of these outputs that it has.

        Raises:
            LaunchError: it has none of them.
        """
        for name in names:
            if self.outputs.get(name):
                return self.outputs[name]
        raise LaunchError(
            f"the stack {self.name} in {self.region} has no output {' or '.join(names)}: "
            "another template has made it, or an older one, which `aiocluster stack deploy` brings up to date"
        )

    @property
    def manager_queue(self) -> str:
        return self.output("ManagerJobQueueArn")

    @property
    def worker_queue(self) -> str:
        return self.output("WorkerJobQueueArn")

    @property
    def job_definition(self) -> str:
        """Its name; without a revision it means the newest."""
        return self.output("JobDefinitionName")

    @property
    def job_role(self) -> str:
        """The role of managers and workers, jobs or tasks."""
        return self.output("JobRoleArn", "TaskRoleArn")

    @property
    def repository(self) -> str:
        """The name of the repository for images."""
        return self.output("Ecr")

    @property
    def results_bucket(self) -> str:
        return self.output("ResultsBucket")

    @property
    def log_group(self) -> str:
        return self.output("LogGroup", "TaskLogGroup")

    @property
    def cluster(self) -> str:
        """The ECS cluster."""
        return self.output("EcsClusterArn")

    @property
    def task_definition(self) -> str:
        return self.output("TaskDefinitionArn")

    @property
    def subnets(self) -> tuple[str, ...]:
        return tuple(self.output("Subnets", "SubnetIds").split(","))

    @property
    def security_group(self) -> str:
        return self.output("SecurityGroup")


class StackEvent(NamedTuple):
    """What AWS tells of one step."""

    id: str
    time: datetime
    resource: str
    """Its name in the template; the stack's own name where it is about the stack."""
    kind: str
    """Such as "AWS::EC2::VPC"."""
    status: str
    """Such as "CREATE_IN_PROGRESS"."""
    reason: str

    @property
    def of_stack(self) -> bool:
        return self.kind == STACK

    @property
    def failed(self) -> bool:
        return self.status.endswith("_FAILED")


class Deployed(NamedTuple):
    """What came of `deploy_stack`."""

    stack: Stack
    change: str
    """ "created", "updated" or "unchanged"."""


Tell = Callable[[StackEvent], None]
Pause = Callable[[float], Awaitable[None]]


def _untold(event: StackEvent) -> None:
    """For those who do not want to hear."""


# --- finding -----------------------------------------------------------------------------------------------------------------


async def find_stack(name: str | None = None, region: str | None = None, api: Api | None = None) -> Stack:
    """The stack of this name, which is ready to be used.

    Args:
        name: default: `$AIOCLUSTER_STACK`, else "aiocluster".
        region: where to look; default: as for all requests. Of no use with `api`.
        api: where requests go; default: AWS.

    Raises:
        LaunchError: there is none, or it is not ready.
        AwsError: AWS does not tell.
    """
    name = stack_name(name)
    async with _asking(api, region) as asked:
        told = await _described(asked, name)
        if told is None:
            raise LaunchError(f"no stack {name} in {await _region(asked, region)}: make it with `aiocluster stack deploy`")
        status = str(told["StackStatus"])
        if status in UNUSABLE or status.startswith(("CREATE_IN", "DELETE_", "ROLLBACK_")):
            raise LaunchError(f"the stack {name} cannot be used: it is {status}; `aiocluster stack deploy` says more")
        return _stack(told)


@asynccontextmanager
async def _asking(api: Api | None, region: str | None) -> AsyncIterator[Api]:
    """Where requests go; what is made here is closed here."""
    asked = Aws(region) if api is None else api
    try:
        yield asked
    finally:
        if api is None:
            await asked.close()


async def _region(api: Api, region: str | None) -> str:
    """Where that is, as far as it is known."""
    ask: Callable[[], Awaitable[str]] | None = getattr(api, "region", None)
    return region or (await ask() if ask else "this region")


async def _described(api: Api, name: str) -> Mapping[str, Any] | None:
    """What AWS says of a stack, by its name or its id; None if there is none."""
    try:
        answer = await api.call("cloudformation", "describe_stacks", StackName=name)
    except AwsError as error:
        if error.code == "ValidationError" and "does not exist" in error.reason:
            return None
        raise
    (told,) = answer["Stacks"]
    return dict(told)


def _stack(told: Mapping[str, Any]) -> Stack:
    outputs = {str(one["OutputKey"]): str(one["OutputValue"]) for one in told.get("Outputs", ())}
    return Stack(str(told["StackName"]), region_of_arn(str(told["StackId"])) or "", outputs)


# --- making and changing -----------------------------------------------------------------------------------------------------


async def deploy_stack(
    name: str,
    template: str,
    parameters: Mapping[str, str] | None = None,
    *,
    kind: str = "",
    api: Api,
    tell: Tell = _untold,
    pause: Pause = asyncio.sleep,
) -> Deployed:
    """The stack is there, and as the template and the parameters say.

    One that cannot be made is taken away again, one that cannot be changed is put back as it was. A change that is on its way is
    waited for first. Cancelling stops the waiting alone: AWS goes on, and the same call later finds what came of it.

    Args:
        name: of the stack.
        template: its text.
        parameters: those that are not to be as they were, or, for a new stack, as the template says.
        kind: what the template is called. A stack that was made from one of another name is not touched.
        api: where requests go.
        tell: hears each step, the oldest first.
        pause: between two questions.

    Raises:
        LaunchError: it cannot be; names the resources that have failed, and why.
        AwsError: AWS was not reached or did not take the request.
    """
    given = dict(parameters or {})
    known = await _parameters(api, template)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise LaunchError(f"the template has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    found, after = await _look(api, name)
    while found is not None and _moves(found):
        await _follow(api, str(found["StackId"]), after, tell, pause)
        found, after = await _look(api, name)
    request: dict[str, Any] = {
        "StackName": name,
        "TemplateBody": template,
        "Capabilities": CAPABILITIES,
        # By it AWS knows a request that it hears again, because an answer was lost.
        "ClientRequestToken": f"aiocluster-{secrets.token_hex(8)}",
    }
    if found is None:
        request["Parameters"] = [_parameter(key, value) for key, value in given.items()]
        tags = [{"Key": TEMPLATE_TAG, "Value": kind}] if kind else []
        answer = await api.call("cloudformation", "create_stack", **request, OnFailure="DELETE", Tags=tags)
        id, change = str(answer["StackId"]), "created"
    else:
        _check_changeable(found, kind)
        id, change = str(found["StackId"]), "updated"
        kept = [str(one["ParameterKey"]) for one in found.get("Parameters", ())]
        request["Parameters"] = [_parameter(key, given.get(key)) for key in known if key in given or key in kept]
        try:
            await api.call("cloudformation", "update_stack", **request)
        except AwsError as error:
            if "No updates are to be performed" not in error.reason:
                raise
            return Deployed(_stack(found), "unchanged")
    events = await _follow(api, id, after, tell, pause)
    told = await _described(api, id)
    status = str(told["StackStatus"]) if told else "gone"
    if told is None or status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        what = "could not be made" if found is None else "could not be changed, and is as it was"
        if found is not None and status != "UPDATE_ROLLBACK_COMPLETE":
            what = "could not be changed"
        raise LaunchError(_failure(name, what, status, events))
    return Deployed(_stack(told), change)


async def _parameters(api: Api, template: str) -> list[str]:
    """The names of a template's parameters."""
    answer = await api.call("cloudformation", "get_template_summary", TemplateBody=template)
    return [str(one["ParameterKey"]) for one in answer.get("Parameters", ())]


def _parameter(key: str, value: str | None) -> dict[str, Any]:
    """As AWS writes it; None: as it was."""
    return {"ParameterKey": key, "UsePreviousValue": True} if value is None else {"ParameterKey": key, "ParameterValue": value}


def _moves(told: Mapping[str, Any]) -> bool:
    status = str(told["StackStatus"])
    return status.endswith("_IN_PROGRESS") and status not in UNUSABLE


def _check_changeable(found: Mapping[str, Any], kind: str) -> None:
    name, status = found["StackName"], found["StackStatus"]
    if status in UNUSABLE:
        raise LaunchError(f"the stack {name} cannot be changed: it is {status}; `aiocluster stack delete --stack {name}` first")
    made_of = next((str(tag["Value"]) for tag in found.get("Tags", ()) if tag["Key"] == TEMPLATE_TAG), kind)
    if kind and made_of != kind:
        raise LaunchError(
            f"the stack {name} was made from the template {made_of!r}, and {kind!r} would replace all it has: "
            f"say --template {made_of}, or take another name with --stack"
        )


# --- deleting ----------------------------------------------------------------------------------------------------------------


async def delete_stack(name: str, *, empty: bool = False, api: Api, tell: Tell = _untold, pause: Pause = asyncio.sleep) -> bool:
    """The stack is not there any more. Jobs in its queues end, and its logs are gone.

    Cancelling stops the waiting alone: AWS goes on.

    Args:
        name: of the stack.
        empty: also delete what is in its buckets and repositories: results and images.
        api: where requests go.
        tell: hears each step, the oldest first.
        pause: between two questions.

    Returns: False if there was none.

    Raises:
        LaunchError: it could not be deleted; names the resources that are left, and why. Before anything is deleted, if something
            is in its buckets or repositories and `empty` is not set.
        AwsError: AWS was not reached or did not take the request.
    """
    found, after = await _look(api, name)
    if found is None:
        return False
    id = str(found["StackId"])
    if found["StackStatus"] != "DELETE_IN_PROGRESS":
        held = await contents(api, id)
        if held and not empty:
            what = "; ".join(str(one) for one in held)
            raise LaunchError(
                f"nothing was deleted, since this would be lost with the stack {name}: {what}; --empty deletes it, too"
            )
        await empty_all(api, held)
        await api.call("cloudformation", "delete_stack", StackName=id)
    events = await _follow(api, id, after, tell, pause)
    told = await _described(api, id)
    if told is not None and told["StackStatus"] != "DELETE_COMPLETE":
        raise LaunchError(_failure(name, "could not be deleted", str(told["StackStatus"]), events))
    return True


# --- events ------------------------------------------------------------------------------------------------------------------


async def _follow(api: Api, id: str, after: str, tell: Tell, pause: Pause) -> list[StackEvent]:
    """All events since the one whose id is `after`, told as they come, until the stack is at rest."""
    events: list[StackEvent] = []
    while True:
        told = await _described(api, id)  # before the events, which then are those up to its end
        for event in await _events(api, id, after):
            events.append(event)
            tell(event)
            after = event.id
        # A request of a moment ago may not show in the status yet, but it does in the events.
        if told is None or (not _moves(told) and any(event.of_stack and event.status == told["StackStatus"] for event in events)):
            return events
        await pause(POLL_S)


async def _events(api: Api, id: str, after: str) -> list[StackEvent]:
    """Those since the one whose id is `after`, the oldest first."""
    found: list[StackEvent] = []
    async for one in items(api, "cloudformation", "describe_stack_events", "StackEvents", page="NextToken", StackName=id):
        if one["EventId"] == after:
            break
        found.append(
            StackEvent(
                id=str(one["EventId"]),
                time=one["Timestamp"],
                resource=str(one.get("LogicalResourceId", "")),
                kind=str(one.get("ResourceType", "")),
                status=str(one.get("ResourceStatus", "")),
                reason=str(one.get("ResourceStatusReason") or ""),
            )
        )
    return found[::-1]


async def _look(api: Api, name: str) -> tuple[Mapping[str, Any] | None, str]:
    """What AWS says of a stack, if there is one, and the id of its newest event: what comes to pass from now on is after that."""
    found = await _described(api, name)
    if found is None:
        return None, ""
    id = str(found["StackId"])
    answer = await api.call("cloudformation", "describe_stack_events", StackName=id)
    after = next((str(one["EventId"]) for one in answer["StackEvents"]), "")
    return await _described(api, id), after  # once more: it may have come to rest before that event


def _failure(name: str, what: str, status: str, events: list[StackEvent]) -> str:
    """Which resources have failed, and why: those that have by themselves, where there are such."""
    failed = [event for event in events if event.failed]
    causes = [event for event in failed if not event.of_stack and not event.reason.startswith(CANCELLED)] or failed
    lines = [f"the stack {name} {what} ({status})"]
    lines += dict.fromkeys(f"  {event.resource} ({event.kind}): {event.reason or event.status}" for event in causes)
    return "\n".join(lines)
