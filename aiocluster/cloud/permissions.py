"""Which requests a process may make of AWS, found out without making those that change something.

What only reads is asked for: a request that AWS refuses for another reason than a lack of rights is allowed. For the rest IAM is
asked what its policies say (SimulatePrincipalPolicy), which takes a right of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aiocluster.launch.aws import Api, AwsError, Fault

__all__ = ["Denied", "Permission", "Permissions", "Unknown"]


class Denied(Exception):
    """It is not allowed, and needed."""


class Unknown(Exception):
    """It cannot be told, or is not needed."""


class Permission(NamedTuple):
    """One action, as policies name it, and how to find out about it."""

    action: str
    look: Callable[[], Awaitable[str]]
    """In words; raises `Denied` or `Unknown`."""


class Permissions:
    """Those of one identity.

    Args:
        api: where requests go; they are made by that identity.
        identity: its ARN, as sts says it.
    """

    def __init__(self, api: Api, identity: str) -> None:
        self._api = api
        self._identity = identity
        self._principal = ""

    async def of_batch(self, queue: str, definition: str, log_group: str) -> list[Permission]:
        """What the launcher `Batch` uses."""
        about = await self._about(queue)
        queue_arn = queue if queue.startswith("arn:") else f"{about.arn('batch')}job-queue/{queue or '*'}"
        name = definition if definition.startswith("arn:") else f"{about.arn('batch')}job-definition/{definition or '*'}"
        definition_arn = name if ":" in name.rpartition("/")[2] else f"{name}:1"
        job = f"{about.arn('batch')}job/{uuid.uuid4()}"
        unknown_job = {"jobs": [str(uuid.uuid4())]}
        return [
            self._written("batch:SubmitJob", [queue_arn, definition_arn]),
            self._written("batch:TagResource", [job]),
            self._written("batch:TerminateJob", [job]),
            self._read("batch:DescribeJobs", "batch", "describe_jobs", unknown_job),
            self._read("batch:ListJobs", "batch", "list_jobs", {"jobQueue": queue, "jobStatus": "RUNNING", "maxResults": 1}),
            self._read(
                "batch:DescribeJobQueues", "batch", "describe_job_queues", {"maxResults": 1}, without="room is not checked"
            ),
            self._read(
                "batch:DescribeComputeEnvironments",
                "batch",
                "describe_compute_environments",
                {"maxResults": 1},
                without="room is not checked",
            ),
            self._logs(log_group),
        ]

    async def of_ecs(self, cluster: str, definition: str, roles: Sequence[str], log_group: str) -> list[Permission]:
        """What the launcher `ECS` uses."""
        about = await self._about(cluster)
        cluster_arn = cluster if cluster.startswith("arn:") else f"{about.arn('ecs')}cluster/{cluster or '*'}"
        name = definition if definition.startswith("arn:") else f"{about.arn('ecs')}task-definition/{definition or '*'}"
        definition_arn = name if ":" in name.rpartition("/")[2] else f"{name}:1"
        id = uuid.uuid4().hex
        task = f"{about.arn('ecs')}task/{cluster_arn.rpartition('/')[2]}/{id}"
        within = {"ecs:cluster": cluster_arn}
        return [
            self._written("ecs:RunTask", [definition_arn], within),
            self._written("ecs:TagResource", [task], {"ecs:CreateAction": "RunTask"}),
            self._written("ecs:StopTask", [task], within),
            *[self._written("iam:PassRole", [role], {"iam:PassedToService": "ecs-tasks.amazonaws.com"}) for role in roles],
            self._read("ecs:DescribeTasks", "ecs", "describe_tasks", {"cluster": cluster, "tasks": [id]}),
            self._read("ecs:ListTasks", "ecs", "list_tasks", {"cluster": cluster, "maxResults": 1}),
            self._read("ecs:DescribeTaskDefinition", "ecs", "describe_task_definition", {"taskDefinition": definition}),
            self._logs(log_group),
        ]

    def _logs(self, group: str) -> Permission:
        which = {"logGroupName": group or "aiocluster", "logStreamName": "aiocluster-doctor", "limit": 1}
        return self._read(
            "logs:GetLogEvents", "logs", "get_log_events", which, without="errors do not show the last lines of nodes"
        )

    def _read(self, action: str, service: str, operation: str, arguments: Mapping[str, Any], *, without: str = "") -> Permission:
        async def look() -> str:
            try:
                await self._api.call(service, operation, **arguments)
            except AwsError as error:
                if error.fault is Fault.DENIED:
                    if without:
                        raise Unknown(f"it is denied, and {without}") from None
                    raise Denied(f"denied to {self._identity}") from None
                if error.fault is not Fault.REJECTED:
                    raise Unknown(f"cannot be known: {error.reason}") from None
            return "allowed"

        return Permission(action, look)

    def _written(self, action: str, resources: Sequence[str], context: Mapping[str, str] | None = None) -> Permission:
        async def look() -> str:
            entries = [
                {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
                for key, value in (context or {}).items()
            ]
            try:
                principal = await self._simulated()
                answer = await self._api.call(
                    "iam",
                    "simulate_principal_policy",
                    patient=False,
                    PolicySourceArn=principal,
                    ActionNames=[action],
                    ResourceArns=list(resources),
                    ContextEntries=entries,
                )
            except AwsError as error:
                raise Unknown(f"cannot be known: IAM does not say what the policies allow ({error.reason})") from None
            results = answer.get("EvaluationResults", ())
            if not results:
                raise Unknown("cannot be known: IAM says nothing of it")
            for result in results:
                if result["EvalDecision"] != "allowed":
                    missing = result.get("MissingContextValues")
                    if missing and result["EvalDecision"] != "explicitDeny":
                        raise Unknown(f"cannot be known: it depends on {', '.join(missing)} of the request")
                    raise Denied(f"denied to {principal} for {result.get('EvalResourceName', '*')} ({result['EvalDecision']})")
            return "allowed, by what IAM says of the policies"

        return Permission(action, look)

    async def _simulated(self) -> str:
        """The user or role whose policies count, by its ARN in IAM."""
        if self._principal:
            return self._principal
        head, _, name = self._identity.partition("/")
        partition, service, account = head.split(":")[1], head.split(":")[2], head.split(":")[4]
        if service == "iam" and ":user" in head:
            self._principal = self._identity
        elif head.endswith(":assumed-role"):
            role = name.partition("/")[0]
            try:
                told = await self._api.call("iam", "get_role", patient=False, RoleName=role)
                self._principal = str(told["Role"]["Arn"])
            except AwsError:  # then it is taken to have no path, as most have
                self._principal = f"arn:{partition}:iam::{account}:role/{role}"
        else:
            raise Unknown(
                f"cannot be known: {self._identity} is neither a user nor a role, whose policies IAM could be asked about"
            )
        return self._principal

    async def _about(self, named: str) -> _Account:
        """Where resources are that were given by name, for their ARNs."""
        partition, account = self._identity.split(":")[1], self._identity.split(":")[4]
        region: Any = getattr(self._api, "region", None)
        where = named.split(":")[3] if named.startswith("arn:") else "*" if region is None else str(await region())
        return _Account(partition, where, account)


class _Account(NamedTuple):
    partition: str
    region: str
    id: str

    def arn(self, service: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.id}:"
