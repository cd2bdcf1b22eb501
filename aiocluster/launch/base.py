"""What a launcher is: it starts nodes somewhere, says what becomes of them, and ends every one that it started.

A node is a process, container, task or job that runs an agent. The launcher hands it four variables, and the agent dials the
manager; everything after that is between those two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiocluster.config import Settings
from aiocluster.ids import ClusterId, Token

__all__ = ["LaunchRequest", "Launcher", "agent_environment", "package_folder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchRequest:
    """Nodes to be started for one cluster."""

    cluster_id: ClusterId
    token: Token
    address: str
    """Where agents reach the manager: `unix:/path` or `tcp://host:port`."""
    nodes: Sequence[str]
    """The names of the nodes."""
    workers: Mapping[str, int]
    """How many workers each of them will run."""
    exited: Callable[[str, str], None]
    """To be called in the loop, with its name and a reason, when a node has ended that was not told to."""
    settings: Settings


class Launcher(Protocol):
    """Starts and stops nodes. It records what it starts before it waits for it, so that `close` ends all of it."""

    name: str
    """What its nodes are called after: "local", "docker", …"""
    workers_per_node: int | None
    """How many workers share a node; None: all of them, and a node can be given more later."""

    async def start(self, request: LaunchRequest) -> None:
        """Start the nodes of the request; returns when they are on their way.

        Raises:
            LaunchError: they cannot be started; the reason says what to try. What was started is stopped by the caller.

        Cancelling leaves what was started recorded, for `stop` and `close`.
        """
        ...

    def last_lines(self, node: str) -> Sequence[str]:
        """The last lines that the node has written, as far as they are known."""
        ...

    async def stop(self, node: str) -> None:
        """End the node, also one that does not answer; returns when it has ended. An unknown name is no matter."""
        ...

    async def close(self, grace_s: float) -> None:
        """End all nodes: they have been told, and those that do not end within the grace are ended by force."""
        ...


def agent_environment(request: LaunchRequest, node: str) -> dict[str, str]:
    """The variables by which the agent of a node finds its manager. They hold the token: not for command lines or logs."""
    return {
        "AIOCLUSTER_MANAGER": request.address,
        "AIOCLUSTER_CLUSTER": request.cluster_id,
        "AIOCLUSTER_NODE": node,
        "AIOCLUSTER_TOKEN": request.token.reveal().hex(),
    }


def package_folder() -> str:
    """The folder that `aiocluster` is imported from."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
