"""The parents of the patch of moto: jobs that are as their children are. See moto_patch.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from moto.batch.models import datetime2int_milliseconds as milliseconds

from tests.online.moto_jobs import ENDED, ContainerJob, Job
from tests.online.moto_properties import of_node, overridden

STATES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")


class ArrayJob(Job):
    """The parent of an array: it has no container, and is as its children are."""

    def __init__(self, backend: Any, definition: Any, queue: Any, asked: dict[str, Any], container: dict[str, Any]) -> None:
        self.members: list[Job] = []
        super().__init__(backend, definition, queue, asked)
        size = asked["arrayProperties"]["size"]
        for i in range(size):
            variables = {"AWS_BATCH_JOB_ARRAY_INDEX": str(i), "AWS_BATCH_JOB_ARRAY_SIZE": str(size)}
            child = ContainerJob(
                backend, definition, queue, asked, container=container, variables=variables, job_id=f"{self.job_id}:{i}"
            )
            child.index = {"arrayProperties": {"index": i}}
            self.members.append(child)

    @property
    def children(self) -> list[Job]:
        return self.members

    def start(self) -> None:
        for child in self.members:
            child.start()

    @property
    def status(self) -> str:
        states = [child.status for child in self.members]
        if any(state not in ENDED for state in states) or not states:
            return "SUBMITTED" if all(state == "SUBMITTED" for state in states) else "PENDING"
        return "FAILED" if "FAILED" in states else "SUCCEEDED"

    @status.setter
    def status(self, value: str) -> None:
        raise AttributeError("a parent is as its children are")

    def describe_short(self) -> dict[str, Any]:
        told = super().describe_short()
        told["arrayProperties"] = {"size": len(self.members)}
        if told["status"] in ENDED:
            told["stoppedAt"] = milliseconds(max(child.job_stopped_at for child in self.members))
        if told["status"] == "FAILED":
            told.setdefault("statusReason", "Array Child Job failed")
        return told

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        states = [child.status for child in self.members]
        told["arrayProperties"]["statusSummary"] = {state: states.count(state) for state in STATES}
        return told


class NodesJob(Job):
    """The parent of a multi-node job: the nodes are its children, and the end of the main node is its end."""

    def __init__(self, backend: Any, definition: Any, queue: Any, asked: dict[str, Any]) -> None:
        self.members: list[ContainerJob] = []
        super().__init__(backend, definition, queue, asked)
        overrides = asked.get("nodeOverrides") or {}
        properties = definition.node_properties
        self.number = int(overrides.get("numNodes") or properties["numNodes"])
        self.main = int(properties["mainNode"])
        self.containers = [
            overridden(
                of_node(i, properties["nodeRangeProperties"])["container"], of_node(i, overrides.get("nodePropertyOverrides"))
            )
            for i in range(self.number)
        ]

    @property
    def children(self) -> list[Job]:
        return list(self.members)

    def run(self) -> None:
        if self.depends_on and not self._wait_for_dependencies():
            return
        for _ in range(self.tries):
            self.status = "RUNNABLE"
            if self.told_to_end.is_set() or self.attempt() or self.told_to_end.is_set():
                break
        success = bool(self.members) and self.members[self.main].status == "SUCCEEDED"
        reason = self.members[self.main].job_stopped_reason if self.members else None
        self.finish(success=success, reason=reason)

    def attempt(self) -> bool:
        """Runs all nodes until the main node has ended; true if it succeeded."""
        self.job_started_at = datetime.now()  # noqa: DTZ005 - as moto has it
        self.members = [self.node(i) for i in range(self.number)]
        main = self.members[self.main]
        others = [node for node in self.members if node is not main]
        self.status = "STARTING"
        main.start()
        main.under_way.wait()
        self.status = "RUNNING"
        address = main.address
        for node in others:
            if address:
                node.variables["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = address
            node.start()
        if self.told_to_end.is_set():  # before the nodes were there to be told
            main.terminate(self.job_stopped_reason or "")
        main.join()
        for node in others:
            node.terminate("The main node has ended")
        for node in others:
            node.join()
        return main.status == "SUCCEEDED"

    def node(self, i: int) -> ContainerJob:
        variables = {
            "AWS_BATCH_JOB_NODE_INDEX": str(i),
            "AWS_BATCH_JOB_NUM_NODES": str(self.number),
            "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(self.main),
        }
        node = ContainerJob(
            self.backend,
            self.job_definition,
            self.job_queue,
            self.asked | {"dependsOn": []},
            container=self.containers[i],
            variables=variables,
            job_id=f"{self.job_id}#{i}",
            own_address=True,
            tries=1,
        )
        node.index = {"nodeProperties": {"isMainNode": i == self.main, "nodeIndex": i, "numNodes": self.number}}
        return node

    def describe_short(self) -> dict[str, Any]:
        return super().describe_short() | {"nodeProperties": {"numNodes": self.number}}

    def describe(self) -> dict[str, Any]:
        ranges = [
            {"targetNodes": f"{i}:{i}", "container": container} for i, container in enumerate(self.containers)
        ]  # as they are after overrides
        return super().describe() | {
            "nodeProperties": {"mainNode": self.main, "numNodes": self.number, "nodeRangeProperties": ranges}
        }
