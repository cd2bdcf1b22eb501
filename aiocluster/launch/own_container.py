"""Which container this process runs in, if any: its id, and through the engine's API its image and networks.

What the kernel shows of a container is nobody's promise, so each way to tell is a pure function over the text of one file.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

__all__ = ["id_from_cgroup", "id_from_hostname", "id_from_mountinfo", "own_container_id"]

_FILES = frozenset(("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"))
"""What an engine mounts into each container from the folder that it keeps for it, also with the network of the host."""
_FOLDER = re.compile(r"/(?:overlay-)?containers/([0-9a-f]{64})/")
_GROUP = re.compile(
    r"""
    (?:^|[/-])                    # "/docker/ID" where the engine makes the groups, "docker-ID.scope" where systemd does
    ([0-9a-f]{64}                 # an id of Docker, containerd and Podman
    |[0-9a-f]{32}-[0-9]{1,10})    # one of Fargate: the task's id and a number
    (?:\.scope)?(?=/|$)
    """,
    re.VERBOSE,
)
_HOSTNAME = re.compile(r"[0-9a-f]{12}")


def id_from_mountinfo(text: str) -> str | None:
    """The id of the container whose `/proc/self/mountinfo` this is; None where it shows none.

    The fourth field is the root of a mount within its file system, the fifth where it is mounted.

    Source: proc_pid_mountinfo(5).
    """
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in _FILES:
            match = _FOLDER.search(fields[3])
            if match is not None:
                return match[1]
    return None


def id_from_cgroup(text: str) -> str | None:
    """The id of the container whose `/proc/self/cgroup` this is, the innermost where they are nested; None where it shows none.

    With version 2 of cgroups, and a namespace of its own, a container sees only `0::/`.

    Source: cgroups(7).
    """
    for line in text.splitlines():
        found = _GROUP.findall(line.partition(":")[2].partition(":")[2])
        if found:
            return str(found[-1])
    return None


def id_from_hostname(name: str) -> str | None:
    """The beginning of an id, which Docker gives to a container as its host name unless it is told another; or None."""
    return name if _HOSTNAME.fullmatch(name) else None


def own_container_id(root: Path = Path("/")) -> str | None:
    """The id of the container that this process runs in, in full or its first 12 digits; None outside of one.

    Args:
        root: where `/proc` and `/.dockerenv` are found.
    """
    for name, read in (("mountinfo", id_from_mountinfo), ("cgroup", id_from_cgroup)):
        try:
            text = (root / "proc/self" / name).read_text(errors="replace")
        except OSError:  # not Linux, or hidden
            continue
        id = read(text)
        if id is not None:
            return id
    return id_from_hostname(socket.gethostname()) if (root / ".dockerenv").exists() else None
