"""What a launcher is: it starts nodes somewhere, says what becomes of them, and ends every one that it started.

A node is a process, container, task or job that runs an agent. The launcher hands it a few variables, and the agent dials the
manager; everything after that is between those two.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from aiocluster.config import Settings
from aiocluster.ids import ClusterId, Token
from aiocluster.launch.reach import Reach

__all__ = ["Agreed", "LaunchRequest", "Launcher", "agent_environment", "checked_env", "package_folder"]


class Agreed(NamedTuple):
    """What nodes know of their cluster before it exists, because nobody can hand it to them."""

    cluster_id: ClusterId
    token: Token


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchRequest:
    """Nodes to be started for one cluster, and what to say about them. Its functions are called in the loop's thread."""

    cluster_id: ClusterId
    token: Token
    address: str
    """Where agents reach the manager: `unix:/path` or `tcp://host:port`."""
    nodes: Sequence[str]
    """The names of the nodes, each with a number at its end that counts up by one: "batch-4", "batch-5"."""
    workers: Mapping[str, int]
    """How many workers each of them will run."""
    minimum: int
    """How many workers the launch needs at least; what can never give as many is not worth to be started."""
    observed: Callable[[str, str, str], None]
    """Call it with a node's name, its state in the words of the infrastructure, and the reason that is given for it, whenever
    they have changed: it is shown while a launch waits, and told if it fails."""
    exited: Callable[[str, str], None]
    """Call it with a node's name and the reason when one has ended, or will never start, that was not told to."""
    expect: Callable[[str, str], None]
    """Call it with a new name and that of a node that ended, if the infrastructure starts another in its place by itself."""
    settings: Settings


class Launcher(ABC):
    """Starts and stops nodes. It records what it starts before it waits for it, so that `close` ends all of it.

    A launcher serves one cluster. `aiocluster.testing.launcher_conformance` has the tests that each one must pass.
    """

    name: str
    """What its nodes are called after: "local", "docker", …"""
    workers_per_node: int | None = 1
    """How many workers share a node; None: all of them, and a node can be given more later."""
    timeout_s: float | None = None
    """How long a launch waits for the minimum of workers unless its caller says; None: `Settings.launch_timeout_s`."""
    reach: Reach | None = None
    """How its agents reach the manager by TCP; None: by a Unix socket, because they run on the same machine."""
    env_at_join: Mapping[str, str] = MappingProxyType({})
    """Variables for the workers of nodes that nobody can hand any: they are told when they join."""
    agreed: Agreed | None = None
    """For nodes that cannot be handed anything; such a launcher is the first of its cluster, or it is refused."""

    async def find_reach(self) -> Reach | None:
        """As `reach`, for a launcher that has to ask its infrastructure first. Raises `LaunchError`."""
        return self.reach

    @abstractmethod
    async def start(self, request: LaunchRequest) -> None:
        """Start the nodes of the request; returns when they are on their way.

        Raises:
            LaunchError: they cannot be started; the reason says what to try. What was started is stopped by the caller.

        Cancelling leaves what was started recorded, for `stop` and `close`.
        """

    @abstractmethod
    async def stop(self, node: str, *, lost: bool = False) -> None:
        """End the node, also one that does not answer; returns when it has ended. An unknown name is no matter.

        Args:
            node: its name.
            lost: it was not told to end, and is taken for dead. Where the infrastructure starts another one in its place by
                itself, that goes on; what is left of the dead one is ended all the same.
        """

    @abstractmethod
    async def close(self, grace_s: float) -> None:
        """End all nodes: they have been told, and those that do not end within the grace are ended by force."""

    async def look(self, nodes: Sequence[str]) -> None:
        """Find out what there is to know of these nodes, because a launch of them has failed and will be reported."""
        return

    def last_lines(self, node: str) -> Sequence[str]:
        """The last lines that the node has written, as far as they are known."""
        return ()

    def adopt(self, name: str) -> str | None:
        """The node that an agent is which calls itself by a name that is not expected; None if it is none of this launcher's."""
        return None


def agent_environment(request: LaunchRequest, node: str) -> dict[str, str]:
    """The variables by which the agent of a node finds its manager. They hold the token: not for command lines or logs."""
    return {
        "AIOCLUSTER_MANAGER": request.address,
        "AIOCLUSTER_CLUSTER": request.cluster_id,
        "AIOCLUSTER_NODE": node,
        "AIOCLUSTER_TOKEN": request.token.reveal().hex(),
    }


def checked_env(env: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of variables for workers. Raises `TypeError` if they are not strings, `ValueError` if a name can be none."""
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must have strings, not {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env cannot have a variable {name!r}: names are not empty and have no '=', and nothing has a NUL")
    return dict(env or {})


def package_folder() -> str:
    """The folder that `aiocluster` is imported from."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
