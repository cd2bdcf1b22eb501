"""An account with AWS Batch, its logs and an identity: what `aiocluster job` asks for, beside what launchers do."""

from __future__ import annotations

from typing import Any

from aiocluster.launch.aws import AwsError, Fault
from tests.unit.launch.fake_batch import QUEUE, FakeAws

ME = "arn:aws:iam::1:user/me"


class FakeAccount(FakeAws):
    """Events of streams are (milliseconds, text); a page holds `page` of them, and an empty one comes before each."""

    def __init__(self) -> None:
        super().__init__()
        self.arn = ME
        self.events: dict[str, list[tuple[int, str]]] = {}
        self.page = 3
        self.definitions: list[dict[str, Any]] = [{"jobDefinitionName": "manager", "revision": 1, "type": "container"}]

    def add(self, id: str, **told: Any) -> str:
        """A job, as DescribeJobs tells of it."""
        plain = {"jobName": id, "jobQueue": QUEUE, "status": "RUNNING", "createdAt": 1000, "container": {}, "attempts": []}
        self.jobs[id] = {**plain, "jobId": id, **told}
        return id

    def _list_jobs(self, **asked: Any) -> dict[str, Any]:
        parent = asked.get("arrayJobId") or asked.get("multiNodeJobId")
        if parent:
            sign = ":" if "arrayJobId" in asked else "#"
            wanted = asked["jobStatus"]
            return {
                "jobSummaryList": [
                    job for id, job in self.jobs.items() if id.startswith(parent + sign) and job["status"] == wanted
                ]
            }
        filters = asked.get("filters") or [{}]
        if filters[0].get("name") == "AFTER_CREATED_AT":
            after = int(filters[0]["values"][0])
            plain = [job for id, job in self.jobs.items() if not {":", "#"} & set(id)]
            return {"jobSummaryList": [{"jobId": job["jobId"]} for job in plain if job["createdAt"] > after]}
        return super()._list_jobs(**asked)

    def _describe_job_definitions(self, **asked: Any) -> dict[str, Any]:
        name = asked.get("jobDefinitionName") or asked["jobDefinitions"][0].partition(":")[0]
        return {"jobDefinitions": [one for one in self.definitions if one["jobDefinitionName"] == name]}

    def _get_caller_identity(self) -> dict[str, Any]:
        return {"Arn": self.arn}

    def _get_log_events(self, **asked: Any) -> dict[str, Any]:
        name = asked["logStreamName"]
        if name not in self.events:
            raise AwsError("there is no such stream", Fault.REJECTED, "ResourceNotFoundException")
        assert asked["startFromHead"]
        found = [event for event in self.events[name] if event[0] >= asked.get("startTime", 0)]
        at, _, empty = asked.get("nextToken", "0:full").partition(":")
        start = int(at)
        if start >= len(found):
            return {"events": [], "nextForwardToken": f"{start}:full"}
        if empty != "empty":
            return {"events": [], "nextForwardToken": f"{start}:empty"}
        page = found[start : start + self.page]
        return {
            "events": [{"timestamp": time, "message": text} for time, text in page],
            "nextForwardToken": f"{start + len(page)}:full",
        }
