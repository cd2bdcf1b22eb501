"""An ECS that is a few dictionaries: tasks with the states that a test gives them, task definitions, logs.

It keeps to what AWS documents. Requests can be made to fail, before they have an effect or after it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiocluster.launch.aws import AwsError, Fault

SAFETY_S = 30.0
"""A safety net: no test counts on it."""
CLUSTER = "arn:aws:ecs:eu-west-1:1:cluster/nodes"
DEFINITION = "arn:aws:ecs:eu-west-1:1:task-definition/workers:3"
ENDING = ("DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED")
LOGS = {"awslogs-group": "/workers", "awslogs-region": "eu-west-1", "awslogs-stream-prefix": "w"}


class FakeEcs:
    """The account. `tasks` holds what DescribeTasks tells, by id, and tests change it."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Operations with their arguments, in their order."""
        self.lines: dict[str, list[str]] = {}
        """By log stream."""
        self.definition: dict[str, Any] = {
            "taskDefinitionArn": DEFINITION,
            "networkMode": "host",
            "containerDefinitions": [
                {"name": "agent", "memory": 512, "logConfiguration": {"logDriver": "awslogs", "options": dict(LOGS)}}
            ],
        }
        self.failures: list[dict[str, str]] = []
        """Why the next tasks are not started: each takes the place of one."""
        self.interfaces: dict[str, list[str]] = {}
        """The security groups of network interfaces."""
        self.secrets: dict[str, str] = {}
        self.idempotent = True
        self.hold: asyncio.Event | None = None
        """RunTask is answered when it is set."""
        self.closed = 0
        self._faults: dict[str, list[tuple[AwsError, bool]]] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._changed = asyncio.Event()
        self._numbers = itertools.count(1)

    def fail(self, operation: str, *errors: AwsError, done: bool = False) -> None:
        """The next requests end so; with `done`, they have had their effect."""
        self._faults.setdefault(operation, []).extend((error, done) for error in errors)

    def count(self, operation: str) -> int:
        return Counter(name for name, _ in self.asked)[operation]

    def arguments(self, operation: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.asked if name == operation]

    def live(self) -> list[str]:
        """Tasks that have not ended, and are not on their way to it."""
        return [id for id, task in self.tasks.items() if task["lastStatus"] not in ENDING]

    def become(self, id: str, status: str, *, container: dict[str, Any] | None = None, **told: Any) -> None:
        """The task has a new state."""
        (agent,) = self.tasks[id]["containers"]
        self.tasks[id] = {**self.tasks[id], "lastStatus": status, **told, "containers": [{**agent, **(container or {})}]}

    def all_become(self, status: str) -> None:
        for id in self.live():
            self.become(id, status)

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
        faults = self._faults.get(operation)
        error, done = faults.pop(0) if faults else (None, False)
        if error is not None and not done:
            raise error
        answer: dict[str, Any] = getattr(self, f"_{operation}")(**arguments)
        self._changed.set()
        if operation == "run_task" and self.hold is not None:
            await self.hold.wait()
        if error is not None:
            raise error
        return answer

    async def close(self) -> None:
        self.closed += 1

    # --- ECS -----------------------------------------------------------------------------------------------------------------

    def _describe_task_definition(self, **_asked: Any) -> dict[str, Any]:
        return {"taskDefinition": self.definition}

    def _run_task(self, **asked: Any) -> dict[str, Any]:
        assert 1 <= asked["count"] <= 10
        if self.idempotent and asked["clientToken"] in self._answers:
            return self._answers[asked["clientToken"]]
        failures = [self.failures.pop(0) for _ in range(min(asked["count"], len(self.failures)))]
        tasks = [self.start(**asked) for _ in range(asked["count"] - len(failures))]
        answer = self._answers[asked["clientToken"]] = {"tasks": tasks, "failures": failures}
        return answer

    def start(self, **asked: Any) -> dict[str, Any]:
        """One more task, as RunTask makes it."""
        id = f"task{next(self._numbers)}"
        self.tasks[id] = {
            "taskArn": f"{CLUSTER.replace(':cluster/', ':task/')}/{id}",
            "clusterArn": CLUSTER,
            "lastStatus": "PROVISIONING",
            "startedBy": asked.get("startedBy", ""),
            "tags": asked.get("tags", []),
            "containers": [{"name": "agent", "runtimeId": f"container-of-{id}"}],
        }
        return self.tasks[id]

    def _describe_tasks(self, cluster: str, tasks: list[str], include: list[str] | None = None) -> dict[str, Any]:
        assert 1 <= len(tasks) <= 100
        ids = [task.rpartition("/")[2] for task in tasks]
        found = [self.tasks[id] for id in ids if id in self.tasks]
        if not include:
            found = [{name: value for name, value in task.items() if name != "tags"} for task in found]
        return {"tasks": found, "failures": [{"arn": id, "reason": "MISSING"} for id in ids if id not in self.tasks]}

    def _list_clusters(self) -> dict[str, Any]:
        return {"clusterArns": [CLUSTER]}

    def _list_tasks(self, **asked: Any) -> dict[str, Any]:
        assert set(asked) <= {"cluster", "startedBy", "nextToken"}
        found = [self.tasks[id] for id in self.live() if asked.get("startedBy", "") in ("", self.tasks[id]["startedBy"])]
        start = int(asked.get("nextToken", 0))
        more = {"nextToken": str(start + 2)} if start + 2 < len(found) else {}
        return {"taskArns": [task["taskArn"] for task in found[start : start + 2]], **more}

    def _stop_task(self, cluster: str, task: str, reason: str) -> dict[str, Any]:
        id = task.rpartition("/")[2]
        if id not in self.tasks:
            raise AwsError("The referenced task was not found.", Fault.REJECTED, "InvalidParameterException")
        if self.tasks[id]["lastStatus"] != "STOPPED":
            self.become(id, "STOPPED", stoppedReason=reason, stopCode="UserInitiated")
        return {}

    # --- the rest ------------------------------------------------------------------------------------------------------------

    def _describe_network_interfaces(self, **asked: Any) -> dict[str, Any]:
        (id,) = asked["NetworkInterfaceIds"]
        return {"NetworkInterfaces": [{"Groups": [{"GroupId": group} for group in self.interfaces[id]]}]}

    def _get_log_events(self, **asked: Any) -> dict[str, Any]:
        lines = self.lines.get(asked["logStreamName"], []) if asked["logGroupName"] == "/workers" else []
        return {"events": [{"timestamp": 0, "message": line} for line in lines]}

    def _put_parameter(self, **asked: Any) -> dict[str, Any]:
        self.secrets[asked["Name"]] = asked["Value"]
        return {}

    def _delete_parameter(self, **asked: Any) -> dict[str, Any]:
        del self.secrets[asked["Name"]]
        return {}
