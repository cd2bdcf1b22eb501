"""The marks on all that a launcher starts: whose it is, who started it and when; and what is left over, told by them.

Docker's labels and the tags of AWS are the same. Their values keep to what tags of AWS may hold: letters, digits and `+-=._:/@`.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from aiocluster.launch.own_container import own_container_id

__all__ = ["CLUSTER", "CREATED", "MANAGER", "Leftover", "alive", "leftover", "manager_tag", "tags"]

CLUSTER = "aiocluster:cluster"
MANAGER = "aiocluster:manager"
CREATED = "aiocluster:created"
METADATA_TIMEOUT_S = 1.0
"""The metadata of an ECS task come from its own machine, in milliseconds."""
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9+\-=._:/@]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """Something that a launcher has started and that is still there."""

    kind: str
    """What it is: "docker container", "batch job", "ecs task"."""
    id: str
    name: str
    state: str
    """In the words of the infrastructure."""
    cluster: str
    """The id of the cluster that it belongs to."""
    manager: str
    """The tag of the manager that started it."""
    created: datetime | None
    """When it was started; None if its tag makes no sense."""
    alive: bool | None
    """Whether its manager still runs; None where that cannot be known from here."""
    where: str = ""
    """The engine, or the region and cluster, that it is found in."""


def tags(cluster_id: str) -> dict[str, str]:
    """The marks for what is started now for a cluster of this process."""
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {CLUSTER: cluster_id, MANAGER: manager_tag(), CREATED: created}


def leftover(
    marks: Mapping[str, str], *, kind: str, id: str, name: str, state: str, where: str = "", manager_alive: bool | None = None
) -> Leftover:
    """What is left over, by its marks.

    Args:
        manager_alive: what the caller knows of its manager; None: what this machine can tell.
    """
    manager = marks.get(MANAGER, "")
    try:
        created = datetime.fromisoformat(marks.get(CREATED, "")).astimezone(UTC)
    except ValueError:
        created = None
    return Leftover(
        kind=kind,
        id=id,
        name=name,
        state=state,
        cluster=marks.get(CLUSTER, ""),
        manager=manager,
        created=created,
        alive=alive(manager) if manager_alive is None else manager_alive,
        where=where,
    )


# --- who the manager is ------------------------------------------------------------------------------------------------------


def manager_tag(environ: Mapping[str, str] | None = None) -> str:
    """Who starts things here: what ends together with this process, as far as others can find it.

    `batch:JOB` in a job of AWS Batch (a `#` in its id is written as `@`), `ecs:ARN` in a task, `container:ID` in another
    container, else `process:HOST:MACHINE:PID:START`.
    """
    environ = os.environ if environ is None else environ
    job = environ.get("AWS_BATCH_JOB_ID")
    if job:
        return f"batch:{job.replace('#', '@')}"
    metadata = environ.get("ECS_CONTAINER_METADATA_URI_V4")
    if metadata:
        arn = _task_arn(metadata)
        if arn is not None:
            return f"ecs:{arn}"
    container = own_container_id()
    if container is not None:
        return f"container:{container}"
    host = _NOT_IN_TAGS.sub("_", socket.gethostname().replace(":", "_"))[:64]
    return f"process:{host}:{_machine()}:{os.getpid()}:{_started(os.getpid())}"


def alive(manager: str) -> bool | None:
    """Whether the manager of this tag runs: judged for itself and for processes of this machine, else None."""
    if manager == manager_tag():
        return True
    kind, _, rest = manager.partition(":")
    fields = rest.split(":")
    if kind != "process" or len(fields) != 4:
        return None
    _host, machine, pid, started = fields
    if machine != _machine() or not pid.isdecimal():
        return None
    return _started(int(pid)) == started


def _machine() -> str:
    """This boot of this machine, and the namespace that process ids count in: in another, the same id is another process."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()[:8]
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux: process ids count for the whole machine
        import uuid

        return f"{uuid.getnode():012x}"
    return f"{boot}-{namespace:x}"


def _started(pid: int) -> str | None:
    """When the process began, on a clock that is never set; None if there is none, or one that has ended and waits to be seen.

    Source: fields 3 and 22 of proc_pid_stat(5), counted behind the name, which may hold anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    except OSError:
        pass
    if os.path.exists("/proc/self/stat"):
        return None
    import psutil

    try:
        return str(int(psutil.Process(pid).create_time()))
    except psutil.Error:
        return None


@functools.cache
def _task_arn(metadata: str) -> str | None:
    """The ARN of the ECS task that this process runs in, by the address of its metadata; None where they do not say."""
    url = urllib.parse.urlsplit(metadata)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=METADATA_TIMEOUT_S)
    try:
        connection.request("GET", f"{url.path}/task")
        arn = json.loads(connection.getresponse().read(1 << 20)).get("TaskARN")
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return arn if isinstance(arn, str) and arn else None
