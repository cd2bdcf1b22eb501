"""The jobs of the patch of moto: what all have, and those that run a container. See moto_patch.py."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import docker
from moto import settings
from moto.batch import models
from moto.batch.models import datetime2int_milliseconds as milliseconds
from moto.core.utils import unix_time_millis

from tests.online.moto_properties import required, variables_of

LOG_GROUP = "/aws/batch/job"
LABEL, _, LABEL_VALUE = os.environ.get("MOTO_JOB_LABEL", "moto.batch").partition("=")
STOP_TIMEOUT_S = int(os.environ.get("ECS_CONTAINER_STOP_TIMEOUT", "30"))
ROOM_POLL_S = 0.1
ENDED = ("SUCCEEDED", "FAILED")
GONE = (404, 409)
"""What the engine answers of a container that is not there, or is about to be removed."""
EXITED = "Essential container in task exited"
HOST_GONE = "Host EC2 (instance i-0123456789abcdef0) terminated."
"""Of a container that somebody else has removed: nothing is left of it, as where its instance is gone."""


class Job(models.Job):  # type: ignore[misc]
    """What all jobs have: a state that is set, not guessed, and an end with a reason.

    Args:
        asked: The request of SubmitJob.
        job_id: For children of a parent; others get a new one.
    """

    def __init__(self, backend: Any, definition: Any, queue: Any, asked: dict[str, Any], *, job_id: str | None = None) -> None:
        self.state = "SUBMITTED"
        super().__init__(
            asked["jobName"],
            definition,
            queue,
            backend,
            log_backend=backend.logs_backend,
            container_overrides=asked.get("containerOverrides"),
            eks_properties_override=None,
            depends_on=asked.get("dependsOn"),
            all_jobs=backend._jobs,
            timeout=asked.get("timeout"),
            array_properties={},
            parameters=asked.get("parameters"),
            tags=asked.get("tags") if job_id is None else None,
            provided_job_id=job_id,
        )
        self.asked = asked
        self.job_stopped_reason: str | None = None
        self.log_stream_name: str | None = None
        self.told_to_end = threading.Event()
        self.index: dict[str, Any] = {}
        """What places a child among its siblings, as the API tells it."""
        backend._jobs[self.job_id] = self

    @property
    def status(self) -> str:
        return self.state

    @status.setter
    def status(self, value: str) -> None:
        self.state = str(getattr(value, "value", value))

    @property
    def children(self) -> list[Job]:
        return []

    @property
    def retry_strategy(self) -> dict[str, Any]:
        return self.asked.get("retryStrategy") or self.job_definition.retry_strategy or {}

    @property
    def tries(self) -> int:
        return int(self.retry_strategy.get("attempts", 1))

    def finish(self, *, success: bool, reason: str | None = None) -> None:
        if reason and self.job_stopped_reason is None:
            self.job_stopped_reason = reason
        self._mark_stopped(success=success)

    def terminate(self, reason: str) -> None:
        if self.status in ENDED or self.told_to_end.is_set():
            return
        self.job_stopped_reason = reason
        self.stop = True
        self.told_to_end.set()
        for child in self.children:
            child.terminate(reason)

    def describe_short(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "jobId": self.job_id,
            "jobArn": self.arn,
            "jobName": self.job_name,
            "jobDefinition": self.job_definition.arn,
            "createdAt": milliseconds(self.job_created_at),
            "status": self.status,
        }
        if self.job_stopped_reason is not None:
            told["statusReason"] = self.job_stopped_reason
        if self.job_started_at.year > 1970:
            told["startedAt"] = milliseconds(self.job_started_at)
        if self.job_stopped:
            told["stoppedAt"] = milliseconds(self.job_stopped_at)
        return told | self.index

    def describe(self) -> dict[str, Any]:
        detail: dict[str, Any] = {
            "jobQueue": self.job_queue.arn,
            "dependsOn": self.depends_on or [],
            "parameters": self.parameters,
            "tags": self.backend.list_tags_for_resource(self.arn),
            "retryStrategy": {"attempts": self.tries, "evaluateOnExit": self.retry_strategy.get("evaluateOnExit", [])},
            "attempts": self.attempts,
            **({"timeout": self.timeout} if self.timeout else {}),
            **{name: self.asked[name] for name in ("shareIdentifier", "propagateTags") if name in self.asked},
        }
        return self.describe_short() | detail


class ContainerJob(Job):
    """One container: a plain job, a child of an array, or a node.

    Args:
        container: The container's properties, with all overrides.
        variables: What AWS tells this container beside what it tells every one.
        own_address: Has an address of its own, as nodes have; others share the machine's, or as moto is set up.
        tries: How often it may run at all; by default as it was asked for.
    """

    one_at_a_time: ClassVar[threading.Lock] = threading.Lock()
    """Held to look and then to change what jobs share: the room there is, the groups of logs."""

    def __init__(
        self,
        backend: Any,
        definition: Any,
        queue: Any,
        asked: dict[str, Any],
        *,
        container: dict[str, Any],
        variables: dict[str, str] | None = None,
        job_id: str | None = None,
        own_address: bool = False,
        tries: int | None = None,
    ) -> None:
        super().__init__(backend, definition, queue, asked, job_id=job_id)
        self.properties = container
        self.variables = variables or {}
        self.own_address = own_address
        self.tries_at_most = self.tries if tries is None else tries
        self.container: Any = None
        self.exit_code: int | None = None
        self.exit_reason: str | None = None
        self.hold = threading.Lock()
        """Held while a container is started, so that one that is told to end is never missed."""
        self.under_way = threading.Event()
        """It runs, or never will."""

    def run(self) -> None:
        try:
            if self.depends_on and not self._wait_for_dependencies():
                return
            for number in range(1, self.tries_at_most + 1):
                self.status = "RUNNABLE"
                if not self.finds_room() or self.attempt(number) or self.told_to_end.is_set() or not self.goes_on():
                    break
            success = self.exit_code == 0 and not self.told_to_end.is_set()
            self.finish(success=success, reason=None if success else EXITED)
        except Exception as error:  # whatever it is, who asks for the state of the job is to see it
            self.finish(success=False, reason=f"moto_patch: {error!r}")
            raise
        finally:
            self.under_way.set()

    def goes_on(self) -> bool:
        """True if the retry strategy wants another attempt after one that ended as this one."""
        told = {
            "onExitCode": "" if self.exit_code is None else str(self.exit_code),
            "onReason": self.exit_reason or "",
            "onStatusReason": self.job_stopped_reason or EXITED,
        }
        for rule in self.retry_strategy.get("evaluateOnExit", []):
            if all(fnmatchcase(text, rule[name]) for name, text in told.items() if name in rule):
                return bool(rule["action"].upper() == "RETRY")
        return True

    def finds_room(self) -> bool:
        """Waits until the compute environment has room; false if the job was told to end before."""
        while not self.told_to_end.is_set():
            with self.one_at_a_time:
                if self.fits():
                    self.status = "STARTING"
                    return True
            self.told_to_end.wait(ROOM_POLL_S)
        return False

    def fits(self) -> bool:
        enabled = [environment for environment in self.job_queue.environments if environment.state == "ENABLED"]
        limits = [(environment.compute_resources or {}).get("maxvCpus") for environment in enabled]
        if None in limits:
            return True
        jobs = [job for job in self.job_queue.jobs if isinstance(job, ContainerJob)]
        taken = sum(job.vcpus for job in jobs if job.status in ("STARTING", "RUNNING"))
        return taken + self.vcpus <= sum(float(limit) for limit in limits if limit is not None)

    @property
    def vcpus(self) -> float:
        return float(required(self.properties, "VCPU") or self.properties.get("vcpus") or 1)

    @property
    def log_options(self) -> dict[str, str]:
        return (self.properties.get("logConfiguration") or {}).get("options") or {}

    @property
    def log_group(self) -> str:
        return self.log_options.get("awslogs-group", LOG_GROUP)

    @property
    def memory(self) -> int:
        return int(required(self.properties, "MEMORY") or self.properties.get("memory") or 0)

    def attempt(self, number: int) -> bool:
        """Runs the container to its end; true if it succeeded."""
        self.exit_code, self.exit_reason = None, None
        self.job_started_at = datetime.now()  # noqa: DTZ005 - as moto has it
        prefix = self.log_options.get("awslogs-stream-prefix", self.job_definition.name)
        self.log_stream_name = f"{prefix}/default/{uuid.uuid4().hex}"
        self._start_attempt()
        try:
            with self.hold:
                if self.told_to_end.is_set():
                    return False
                self.container = self.docker_client.containers.run(**self.arguments(number))
        except docker.errors.DockerException as error:
            self.exit_reason = f"CannotStartContainerError: {error}"
            self.job_stopped_reason = "Task failed to start"
        else:
            self.job_stopped_reason = None
            self.status = "RUNNING"
            self.under_way.set()
            self.follow()
        finally:
            self.job_stopped_at = datetime.now()  # noqa: DTZ005 - as moto has it
            told = {"exitCode": self.exit_code, "reason": self.exit_reason}
            self.latest_attempt["container"].update({name: value for name, value in told.items() if value is not None})
            self._stop_attempt()
        return self.exit_code == 0

    def follow(self) -> None:
        """Takes over the container's output until it ends, then its exit code; then the container is gone."""
        with self.one_at_a_time:
            self._log_backend.ensure_log_group(self.log_group)
            self._log_backend.ensure_log_stream(self.log_group, self.log_stream_name)
        timer = self.timer()
        try:
            for entry in self.container.logs(stream=True, follow=True, timestamps=True):
                when, _, text = entry.decode(errors="replace").rstrip("\r\n").partition(" ")
                moment = unix_time_millis(datetime.fromisoformat(when[:26].rstrip("Z")))
                self._log_backend.put_log_events(self.log_group, self.log_stream_name, [{"timestamp": moment, "message": text}])
            self.see_how_it_ended(self.container.wait()["StatusCode"])
        except docker.errors.APIError as error:
            if error.status_code not in GONE:
                raise
            self.job_stopped_reason = HOST_GONE
        finally:
            if timer:
                timer.cancel()
            with self.hold:
                self.remove_container()

    def see_how_it_ended(self, exit_code: int) -> None:
        self.container.reload()
        if self.container.status in ("removing", "dead"):
            self.job_stopped_reason = HOST_GONE
            return
        self.exit_code = exit_code
        if self.container.attrs["State"]["OOMKilled"]:
            self.exit_reason = "OutOfMemoryError: Container killed due to memory usage"

    def remove_container(self) -> None:
        try:
            self.container.remove(force=True)
        except docker.errors.APIError as error:
            if error.status_code not in GONE:
                raise
        self.container = None

    def timer(self) -> threading.Timer | None:
        seconds = self._get_attempt_duration()
        if not seconds:
            return None
        timer = threading.Timer(seconds, self.terminate, ["Job attempt duration exceeded timeout"])
        timer.daemon = True
        timer.start()
        return timer

    def arguments(self, number: int) -> dict[str, Any]:
        told = {
            "AWS_BATCH_JOB_ID": self.job_id,
            "AWS_BATCH_JOB_ATTEMPT": str(number),
            "AWS_BATCH_JQ_NAME": self.job_queue.name,
            "AWS_BATCH_CE_NAME": self.job_queue.environments[0].name,
        }
        volumes = {volume["name"]: volume["host"]["sourcePath"] for volume in self.properties.get("volumes", [])}
        mounts = [
            docker.types.Mount(m["containerPath"], volumes[m["sourceVolume"]], type="bind", read_only=m.get("readOnly", False))
            for m in self.properties.get("mountPoints", [])
        ]
        return {
            "image": self.properties["image"],
            "command": self._add_parameters_to_command(self.properties.get("command", [])),
            "environment": variables_of(self.properties) | told | self.variables,
            "name": "-".join([self.job_name, *self.job_id.replace("#", ":").split(":"), str(number)]),
            "labels": {LABEL: LABEL_VALUE, "moto.batch.job": self.job_id},
            "network_mode": "bridge" if self.own_address else settings.moto_network_mode() or "bridge",
            "extra_hosts": {"host.docker.internal": "host-gateway"},
            "mem_limit": f"{self.memory}m" if self.memory else None,
            "mounts": mounts,
            "user": self.properties.get("user"),
            "privileged": self.properties.get("privileged", False),
            "read_only": self.properties.get("readonlyRootFilesystem", False),
            "detach": True,
        }

    @property
    def address(self) -> str:
        """The address of a container that has one of its own, while it runs."""
        with self.hold:
            if self.container is None:
                return ""
            self.container.reload()
            return str(self.container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])

    def terminate(self, reason: str) -> None:
        super().terminate(reason)
        threading.Thread(target=self.end_container, args=[STOP_TIMEOUT_S], daemon=True).start()

    def end_container(self, grace_s: int) -> None:
        with self.hold:
            container = self.container
        if container is not None:
            with contextlib.suppress(docker.errors.NotFound):  # it has ended by itself
                container.stop(timeout=grace_s)

    def describe_short(self) -> dict[str, Any]:
        told = super().describe_short()
        container = {"exitCode": self.exit_code, "reason": self.exit_reason}
        if any(value is not None for value in container.values()):
            told["container"] = {name: value for name, value in container.items() if value is not None}
        return told

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        kept = (
            "image",
            "command",
            "environment",
            "volumes",
            "mountPoints",
            "resourceRequirements",
            "user",
            "jobRoleArn",
            "logConfiguration",
        )
        container = {name: self.properties[name] for name in kept if name in self.properties} | told.get("container", {})
        if self.log_stream_name:
            container["logStreamName"] = self.log_stream_name
        return told | {"container": container}
