"""What jobs of AWS Batch are to be like, and the request of SubmitJob that says so."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiocluster.ids import ClusterId
from aiocluster.launch import batch_jobs

__all__ = ["JobShape"]

LONGEST_NAME = 90
"""The cluster's id and a key come after it, and a job name has 128 characters at most."""


RECLAIMED_CODE = 75
"""With it an agent ends that has heard the spot notice: EX_TEMPFAIL of sysexits.h. A job that ends with 0 is not tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobShape:
    """The same for all jobs of a launcher. Arguments as for `Batch`.

    Raises:
        ValueError: AWS would refuse it later, or it makes no sense.
    """

    name: str
    memory: int | None
    vcpus: float
    gpus: int | None
    tags: Mapping[str, str]
    share_identifier: str | None
    retry: int
    job_timeout: float | None
    command: Sequence[str]
    env: Mapping[str, str]

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "")
        if not self.name or len(self.name) > LONGEST_NAME or not self.name.isascii() or not plain.isalnum():
            raise ValueError(f"name must have letters, digits, - and _, {LONGEST_NAME} at most, not {self.name!r}")
        if not self.name[0].isalnum():
            raise ValueError(f"name must begin with a letter or a digit, not {self.name!r}")
        least = {"memory": 4, "vcpus": 0.25, "gpus": 0, "job_timeout": 60}
        for what, figure in least.items():
            value = getattr(self, what)
            if value is not None and value < figure:
                raise ValueError(f"{what} must be at least {figure}, not {value}")
        if not 0 <= self.retry <= 9:
            raise ValueError(f"retry must be between 0 and 9, not {self.retry}")
        if isinstance(self.command, str) or not self.command:
            raise ValueError(f"command must be a list of strings, not {self.command!r}")
        reserved = [key for key in self.env if key.startswith("AWS_BATCH")]
        if reserved:
            raise ValueError(f"env: {', '.join(reserved)}: names that begin with AWS_BATCH are reserved by AWS")

    def submission(
        self,
        cluster_id: ClusterId,
        environment: Mapping[str, str],
        *,
        marks: Mapping[str, str],
        queue: str,
        definition: str,
        size: int,
    ) -> dict[str, Any]:
        """The arguments of SubmitJob, under a job name that no other has, with these marks among its tags.

        Raises:
            LaunchError: they are larger than AWS allows.
        """
        retry: dict[str, Any] = {"attempts": 1 + self.retry}  # given also when it is 1: definitions may say otherwise
        if self.retry:
            environment = {**environment, "AIOCLUSTER_RECLAIMED_CODE": str(RECLAIMED_CODE)}
            retry["evaluateOnExit"] = [
                {"onStatusReason": "Host EC2*", "action": "RETRY"},
                {"onExitCode": str(RECLAIMED_CODE), "action": "RETRY"},
                {"onReason": "*", "action": "EXIT"},
            ]
        overrides = {
            "command": list(self.command),
            "environment": [{"name": name, "value": value} for name, value in {**self.env, **environment}.items()],
            "resourceRequirements": self._requirements(),
        }
        batch_jobs.check_overrides(overrides)
        arguments: dict[str, Any] = {
            "jobName": f"{self.name}-{cluster_id}-{secrets.token_hex(4)}",
            "jobQueue": queue,
            "jobDefinition": definition,
            "containerOverrides": overrides,
            "retryStrategy": retry,
            "tags": {**self.tags, **marks},
        }
        if size > 1:
            arguments["arrayProperties"] = {"size": size}
        if self.share_identifier is not None:
            arguments["shareIdentifier"] = self.share_identifier
        if self.job_timeout is not None:
            arguments["timeout"] = {"attemptDurationSeconds": round(self.job_timeout)}
        return arguments

    def _requirements(self) -> list[dict[str, str]]:
        wanted = {"VCPU": f"{self.vcpus:g}"}
        if self.memory is not None:
            wanted["MEMORY"] = str(self.memory)
        if self.gpus:
            wanted["GPU"] = str(self.gpus)
        return [{"type": kind, "value": value} for kind, value in wanted.items()]
