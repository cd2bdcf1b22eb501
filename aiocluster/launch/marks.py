"""The marks on all that a launcher starts: whose it is, who started it and when; and what is left over, told by them.

Docker's labels and the tags of AWS are the same. Their values keep to what tags of AWS may hold: letters, digits and `+-=._:/@`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from aiocluster.launch.metadata import METADATA, task_metadata
from aiocluster.launch.own_container import own_container_id

__all__ = ["CLUSTER", "CREATED", "MANAGER", "Leftover", "alive", "leftover", "manager_tag", "tags"]

CLUSTER = "aiocluster:cluster"
MANAGER = "aiocluster:manager"
CREATED = "aiocluster:created"
_arns: dict[str, str] = {}
"""Those of the task that this process runs in, by the address of its metadata, once they have been told."""
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


async def tags(cluster_id: str) -> dict[str, str]:
    """The marks for what is started now for a cluster of this process."""
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {CLUSTER: cluster_id, MANAGER: await manager_tag(), CREATED: created}


def leftover(
    marks: Mapping[str, str], *, kind: str, id: str, name: str, state: str, where: str = "", manager_alive: bool | None = None
) -> Leftover:
    """What is left over, by its marks.

    Args:
        manager_alive: whether the job, task or container of its manager runs, as far as the caller knows. Where that is gone,
            the manager is; while it runs, the process counts that the tag names.
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
        alive=alive(manager) if manager_alive is None or (manager_alive and _process(manager)) else manager_alive,
        where=where,
    )


# --- who the manager is ------------------------------------------------------------------------------------------------------


async def manager_tag(environ: Mapping[str, str] | None = None) -> str:
    """Who starts things here: what ends together with this process, as far as others can find it.

    `batch:JOB` in a job of AWS Batch (a `#` in its id is written as `@`), `ecs:ARN` in a task whose metadata tell,
    `container:ID:MACHINE:PID:START` in another container, else `process:HOST:MACHINE:PID:START`. MACHINE is the boot of the
    machine and the namespace of process ids, PID and START are the process's. Older versions wrote `container:ID`.
    """
    environ = os.environ if environ is None else environ
    address = environ.get(METADATA)
    if address and address not in _arns and not environ.get("AWS_BATCH_JOB_ID"):
        try:
            arn = (await task_metadata(environ) or {}).get("TaskARN")
        except (OSError, ValueError):
            arn = None  # what else is known of this process has to do
        if isinstance(arn, str) and arn:
            _arns[address] = arn
    return _own_tag(environ)


def _own_tag(environ: Mapping[str, str]) -> str:
    """As `manager_tag`, with what is known by now."""
    job = environ.get("AWS_BATCH_JOB_ID")
    if job:
        return f"batch:{job.replace('#', '@')}"
    if arn := _arns.get(environ.get(METADATA, "")):
        return f"ecs:{arn}"
    process = f"{_machine()}:{os.getpid()}:{_started(os.getpid())}"
    container = own_container_id()
    if container is not None:
        return f"container:{container}:{process}"
    host = _NOT_IN_TAGS.sub("_", socket.gethostname().replace(":", "_"))[:64]
    return f"process:{host}:{process}"


def alive(manager: str) -> bool | None:
    """Whether the manager of this tag runs: judged for itself and for processes of this machine, else None.

    Of a process in a container that is looked at from the outside, it can be told that it runs, and never that it does not.
    """
    own = _own_tag(os.environ)
    process = _process(manager)
    if process is None:
        older = manager.startswith("container:") and own.startswith(f"{manager}:")
        return True if manager == own or older else None
    machine, pid, started = process
    if machine == _machine():
        return _started(pid) == started
    same_boot = machine.partition("-")[0] == _machine().partition("-")[0]
    return True if same_boot and _runs_in_another_namespace(pid, started) else None


def _process(manager: str) -> tuple[str, int, str] | None:
    """The machine, the number and the start of the process that a tag names; None if it names none."""
    fields = manager.split(":")
    if fields[0] not in ("process", "container") or len(fields) != 5 or not fields[3].isdecimal():
        return None
    return fields[2], int(fields[3]), fields[4]


def _runs_in_another_namespace(pid: int, started: str) -> bool:
    """Whether a process runs that has this number in its own namespace and began then; those of namespaces below are seen.

    Source: NSpid in proc_pid_status(5). Starts count from the boot of the machine in all namespaces.
    """
    for entry in os.listdir("/proc") if os.path.exists("/proc/self/status") else ():
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/status") as file:
                numbers = next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
        except OSError:  # it has ended meanwhile, or is not for us to see
            continue
        if len(numbers) > 1 and numbers[-1] == str(pid) and _started(int(entry)) == started:
            return True
    return False


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
