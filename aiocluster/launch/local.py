"""`Local`: one node on this machine, an agent process that all workers hang from."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from aiocluster.errors import LaunchError
from aiocluster.launch.base import Launcher, LaunchRequest, agent_environment, checked_env, package_folder
from aiocluster.launch.lines import LastLines

__all__ = ["Local"]

logger = logging.getLogger("aiocluster")

REMEMBERED = 100
"""Nodes whose last lines are kept after their end."""
STOP_GRACE_S = 1.0
"""For a node that is lost, or not needed, to end by itself."""
LOOK_S = 0.05
"""How often to look after a process where the kernel cannot give a descriptor of it."""


class _AgentProcess:
    """One agent: its process, watched by a descriptor in the loop, and the last lines of its stderr."""

    def __init__(self, name: str, environment: Mapping[str, str], exited: _Exited) -> None:
        self.name = name
        self.lines = LastLines(self._said, environment["AIOCLUSTER_TOKEN"])
        self.stopping = False
        self._exited = exited
        self._loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(  # returns as soon as the program is loaded: no need for a thread
            [sys.executable, "-P", "-m", "aiocluster.runtime.agent"],  # -P: modules of the current folder are not for the agent
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C in a terminal is for the manager, which ends its nodes in order
        )
        self.ended: asyncio.Future[None] = self._loop.create_future()
        assert self._process.stderr is not None
        self._stderr = self._process.stderr.fileno()
        os.set_blocking(self._stderr, False)
        self._loop.add_reader(self._stderr, self._read)
        self._pidfd = _pidfd_of(self._process.pid)
        if self._pidfd is None:
            self._loop.call_later(LOOK_S, self._look)
        else:
            self._loop.add_reader(self._pidfd, self._ended)

    def _read(self) -> None:
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._stderr)
        self.lines.feed(data)

    def _said(self, line: str) -> None:
        if not self.stopping:
            logger.warning("node %s: %s", self.name, line)

    def _look(self) -> None:
        if self._process.poll() is None:
            self._loop.call_later(LOOK_S, self._look)
        else:
            self._ended()

    def _ended(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        code = self._process.wait()  # it has ended: this takes its status
        self._read()
        self.lines.end()
        self._loop.remove_reader(self._stderr)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self.ended.set_result(None)
        self._exited(self, f"its agent {_how(code)}")

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done():
            self._process.send_signal(number)

    async def end(self, grace_s: float) -> None:
        """Wait for the end; force it after the grace. Cancelling forces it at once."""
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self.ended)
        except TimeoutError:
            pass
        finally:
            self.signal(signal.SIGKILL)
        await asyncio.shield(self.ended)


def _pidfd_of(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old one, or a sandbox that forbids it
        return None


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"was killed by signal {-code}"


class _Exited:
    """What becomes of an agent that has ended."""

    def __init__(self, launcher: Local, request: LaunchRequest) -> None:
        self._launcher = launcher
        self._request = request

    def __call__(self, agent: _AgentProcess, reason: str) -> None:
        self._launcher.forget(agent)
        if not agent.stopping:
            self._request.exited(agent.name, reason)


class Local(Launcher):
    """Nodes on this machine.

    Args:
        env: variables for the workers, on top of this process's environment. A value is seen by every process of the node.
    """

    name = "local"
    workers_per_node: int | None = None

    def __init__(self, *, env: Mapping[str, str] | None = None) -> None:
        self._env = checked_env(env)
        self._agents: dict[str, _AgentProcess] = {}
        self._lines: dict[str, LastLines] = {}

    async def start(self, request: LaunchRequest) -> None:
        for node in request.nodes:
            environment = {**os.environ, **self._env, **agent_environment(request, node)}
            environment["AIOCLUSTER_SYS_PATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
            # The agent must import this very package, and gives its children back what was theirs.
            inherited = environment.get("PYTHONPATH", "")
            environment["AIOCLUSTER_PYTHONPATH"] = inherited
            environment["PYTHONPATH"] = os.pathsep.join([package_folder(), *([inherited] if inherited else [])])
            try:
                agent = _AgentProcess(node, environment, _Exited(self, request))
            except OSError as error:
                raise LaunchError(f"cannot start {sys.executable} for node {node}: {error}") from error
            self._agents[node] = agent
            self._lines[node] = agent.lines
            for ended in [name for name in self._lines if name not in self._agents][:-REMEMBERED]:
                del self._lines[ended]

    def forget(self, agent: _AgentProcess) -> None:
        """The agent has ended."""
        self._agents.pop(agent.name, None)

    def is_running(self, node: str) -> bool:
        """True from its start until its end has been seen."""
        return node in self._agents

    def last_lines(self, node: str) -> Sequence[str]:
        lines = self._lines.get(node)
        return () if lines is None else lines.tail()

    async def stop(self, node: str, *, lost: bool = False) -> None:
        agent = self._agents.get(node)
        if agent is not None:
            agent.stopping = True
            agent.signal(signal.SIGTERM)
            await agent.end(STOP_GRACE_S)

    async def close(self, grace_s: float) -> None:
        agents = list(self._agents.values())
        for agent in agents:
            agent.stopping = True
        await asyncio.gather(*[agent.end(grace_s + STOP_GRACE_S) for agent in agents])
