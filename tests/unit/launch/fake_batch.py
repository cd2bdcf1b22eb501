"""An AWS that is a few dictionaries: Batch with the states that a test gives its jobs, logs, and stores of secrets.

It keeps to what AWS documents. Requests can be made to fail, before they have an effect or after it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiocluster.config import Settings
from aiocluster.ids import ClusterId, Token
from aiocluster.launch.aws import AwsError, Fault
from aiocluster.launch.base import LaunchRequest

SAFETY_S = 30.0
"""A safety net: no test counts on it."""
DEFINITION = "arn:aws:batch:eu-west-1:1:job-definition/workers:3"
QUEUE = "arn:aws:batch:eu-west-1:1:job-queue/workers"
ENDED = ("SUCCEEDED", "FAILED")

LOST = AwsError("the answer was lost", Fault.UNAVAILABLE)
THROTTLED = AwsError("too many requests", Fault.THROTTLED, "TooManyRequestsException")
DENIED = AwsError("access denied", Fault.DENIED, "AccessDeniedException")
EXPIRED = AwsError("the AWS credentials have expired", Fault.CREDENTIALS, "ExpiredTokenException")
REFUSED = AwsError("what it was asked makes no sense", Fault.REJECTED, "ClientException")


class FakeAws:
    """The account. `jobs` holds what DescribeJobs tells, by id, and tests change it."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Operations with their arguments, in their order."""
        self.lines: dict[str, list[str]] = {}
        """By log stream."""
        self.secrets: dict[str, dict[str, Any]] = {}
        self.environments: list[dict[str, Any]] = [_environment("one", 8), _environment("two", 8)]
        self.order: dict[str, list[str]] = {}
        """Names of the environments of a queue; all of them for one that is not in here."""
        self.queue: dict[str, Any] = {"jobQueueName": "workers", "jobQueueArn": QUEUE, "state": "ENABLED", "status": "VALID"}
        self.faults: dict[str, list[tuple[AwsError, bool]]] = {}
        self.hold: asyncio.Event | None = None
        """SubmitJob is answered when it is set."""
        self.closed = 0
        self.lag = 0
        """So many lists to come know of no job yet."""
        self._changed = asyncio.Event()
        self._numbers = itertools.count(1)

    def fail(self, operation: str, *errors: AwsError, done: bool = False) -> None:
        """The next requests end so; with `done`, they have had their effect."""
        self.faults.setdefault(operation, []).extend((error, done) for error in errors)

    def count(self, operation: str) -> int:
        return Counter(name for name, _ in self.asked)[operation]

    def arguments(self, operation: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.asked if name == operation]

    def live(self) -> list[str]:
        """The array and plain jobs that have not ended."""
        return [id for id, job in self.jobs.items() if ":" not in id and job["status"] not in ENDED]

    def become(self, id: str, status: str, **told: Any) -> None:
        """The job has a new state."""
        self.jobs[id] = {**self.jobs[id], "status": status, **told}

    async def until(self, reached: Callable[[], Any]) -> None:
        """Return when it is so; looked at after each request, and each answer."""
        async with asyncio.timeout(SAFETY_S):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    # --- what launchers see --------------------------------------------------------------------------------------------------

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        self.asked.append((operation, arguments))
        self._changed.set()
        await asyncio.sleep(0)
        fault, done = self.faults.get(operation) or None, False
        error = None
        if fault:
            error, done = fault.pop(0)
        if error is not None and not done:
            raise error
        answer: dict[str, Any] = getattr(self, f"_{operation}")(**arguments)
        self._changed.set()
        if operation == "submit_job" and self.hold is not None:
            await self.hold.wait()
        if error is not None:
            raise error
        return answer

    async def close(self) -> None:
        self.closed += 1

    # --- Batch ---------------------------------------------------------------------------------------------------------------

    def _submit_job(self, **asked: Any) -> dict[str, Any]:
        id = f"job-{next(self._numbers)}"
        size = asked.get("arrayProperties", {}).get("size")
        job = {
            "jobName": asked["jobName"],
            "jobQueue": QUEUE,
            "status": "SUBMITTED",
            "tags": asked.get("tags", {}),
            "createdAt": len(self.jobs),
            "attempts": [],
            "container": {},
        }
        self.jobs[id] = {**job, "jobId": id}
        for index in range(size or 0):
            self.jobs[f"{id}:{index}"] = {**job, "jobId": f"{id}:{index}", "tags": {}}
        return {"jobId": id, "jobName": asked["jobName"]}

    def _describe_jobs(self, jobs: list[str]) -> dict[str, Any]:
        assert 1 <= len(jobs) <= 100
        return {"jobs": [self.jobs[id] for id in jobs if id in self.jobs]}

    def _list_jobs(self, **asked: Any) -> dict[str, Any]:
        if self.lag:
            self.lag -= 1
            return {"jobSummaryList": []}
        parents = [job for id, job in self.jobs.items() if ":" not in id]
        if "filters" in asked:
            (one,) = asked["filters"]
            found = [job for job in parents if job["jobName"] in one["values"]]
        else:
            found = [job for job in parents if job["status"] == asked.get("jobStatus", "RUNNING")]
        start = int(asked.get("nextToken", 0))
        more = {"nextToken": str(start + 2)} if start + 2 < len(found) else {}
        return {"jobSummaryList": found[start : start + 2], **more}

    def _terminate_job(self, jobId: str, reason: str) -> dict[str, Any]:  # noqa: N803  # the API's word
        for id in [jobId, *(id for id in self.jobs if id.startswith(f"{jobId}:"))]:
            if self.jobs[id]["status"] not in ENDED:
                self.become(id, "FAILED", statusReason=reason)
        return {}

    def _describe_job_queues(self, **asked: Any) -> dict[str, Any]:
        names = [one["computeEnvironmentName"] for one in self.environments]
        for queue in asked.get("jobQueues", ()):
            names = self.order.get(queue, names)
        order = [{"order": i, "computeEnvironment": name} for i, name in enumerate(names)]
        return {"jobQueues": [{**self.queue, "computeEnvironmentOrder": order}] if self.queue else []}

    def _describe_compute_environments(self, **asked: Any) -> dict[str, Any]:
        named = asked["computeEnvironments"]
        return {"computeEnvironments": [one for one in self.environments if one["computeEnvironmentName"] in named]}

    # --- the rest ------------------------------------------------------------------------------------------------------------

    def _get_log_events(self, **asked: Any) -> dict[str, Any]:
        lines = self.lines.get(asked["logStreamName"], [])
        return {"events": [{"timestamp": 0, "message": line} for line in lines]}

    def _put_parameter(self, **asked: Any) -> dict[str, Any]:
        if asked["Name"] in self.secrets:
            raise AwsError("it is there", Fault.REJECTED, "ParameterAlreadyExists")
        self.secrets[asked["Name"]] = asked
        return {}

    def _get_parameter(self, **asked: Any) -> dict[str, Any]:
        assert asked["WithDecryption"]
        return {"Parameter": {"Value": self._secret(asked["Name"], "ParameterNotFound")["Value"]}}

    def _delete_parameter(self, **asked: Any) -> dict[str, Any]:
        self._secret(asked["Name"], "ParameterNotFound")
        del self.secrets[asked["Name"]]
        return {}

    def _create_secret(self, **asked: Any) -> dict[str, Any]:
        if asked["Name"] in self.secrets:
            raise AwsError("it is there", Fault.REJECTED, "ResourceExistsException")
        self.secrets[asked["Name"]] = asked
        return {}

    def _get_secret_value(self, **asked: Any) -> dict[str, Any]:
        return {"SecretString": self._secret(asked["SecretId"], "ResourceNotFoundException")["SecretString"]}

    def _delete_secret(self, **asked: Any) -> dict[str, Any]:
        assert asked["ForceDeleteWithoutRecovery"]
        _, is_arn, rest = asked["SecretId"].partition(":secret:")
        name = rest.rpartition("-")[0] if is_arn else asked["SecretId"]
        self._secret(name, "ResourceNotFoundException")
        del self.secrets[name]
        return {}

    def _get_resources(self, **asked: Any) -> dict[str, Any]:
        """One a page."""
        (wanted,), at = asked["TagFilters"], int(asked.get("PaginationToken", 0))
        assert asked["ResourceTypeFilters"] == ["ssm:parameter", "secretsmanager:secret"]
        found = [(n, one) for n, one in self.secrets.items() if wanted["Key"] in {tag["Key"] for tag in one.get("Tags", ())}]
        account = "eu-west-1:1"
        arns = {
            name: f"arn:aws:ssm:{account}:parameter{name}"
            if "Type" in one
            else f"arn:aws:secretsmanager:{account}:secret:{name}-x"
            for name, one in found
        }
        page = [{"ResourceARN": arns[name], "Tags": one["Tags"]} for name, one in found[at : at + 1]]
        return {"ResourceTagMappingList": page, "PaginationToken": str(at + 1) if at + 1 < len(found) else ""}

    def _secret(self, name: str, code: str) -> dict[str, Any]:
        if name not in self.secrets:
            raise AwsError("it is not there", Fault.REJECTED, code)
        return self.secrets[name]


def _environment(name: str, vcpus: int) -> dict[str, Any]:
    return {
        "computeEnvironmentName": name,
        "state": "ENABLED",
        "status": "VALID",
        "computeResources": {"maxvCpus": vcpus},
    }


class Told:
    """What a launcher has said of its nodes, in order."""

    def __init__(self) -> None:
        self.news: list[tuple[str, ...]] = []
        self.token = Token.generate()
        self._changed = asyncio.Event()

    def say(self, *news: str) -> None:
        self.news.append(news)
        self._changed.set()

    def request(self, *nodes: str, minimum: int | None = None, workers: int = 1) -> LaunchRequest:
        return LaunchRequest(
            cluster_id=ClusterId("c-fake"),
            token=self.token,
            address="tcp://10.0.0.1:7000",
            nodes=nodes,
            workers=dict.fromkeys(nodes, workers),
            minimum=len(nodes) * workers if minimum is None else minimum,
            observed=lambda node, state, reason: self.say("observed", node, state, reason),
            exited=lambda node, reason: self.say("exited", node, reason),
            expect=lambda node, before: self.say("expect", node, before),
            settings=Settings(),
        )

    def of(self, kind: str) -> list[tuple[str, ...]]:
        return [news[1:] for news in self.news if news[0] == kind]

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(SAFETY_S):
            while not reached():
                self._changed.clear()
                await self._changed.wait()
