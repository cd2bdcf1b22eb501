"""The agent: the supervisor process of a node. It never runs the user's code, so its heartbeat is honest.

It starts workers through a fork server, watches their ends, hands their output on, and tells the manager about all of it. When
the manager is gone, so is the node.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, assert_never

from aiocluster.core.supervisor import Effect, EndNode, ForkWorker, KillProcess, Send, Supervisor, SupervisorLimits
from aiocluster.errors import AioclusterError
from aiocluster.ids import new_link_id
from aiocluster.net.address import parse_address
from aiocluster.net.dial import dial
from aiocluster.net.link import Link
from aiocluster.net.sockets import remove_left_socket
from aiocluster.runtime.agent_settings import AgentSettings
from aiocluster.runtime.figures import Figures, OomWatch, describe_exit
from aiocluster.runtime.forkserver import Exited, Forked, ForkServer, ServerGone
from aiocluster.runtime.pump import OutputPump
from aiocluster.runtime.recorder import SYNC_STARTED, Recorder
from aiocluster.runtime.spec import WorkerSpec
from aiocluster.wire import messages as wire
from aiocluster.wire.frames import Frame
from aiocluster.wire.handshake import hello

if TYPE_CHECKING:
    from aiocluster.runtime.notices import SpotNotice

__all__ = ["Agent", "main"]

logger = logging.getLogger("aiocluster.agent")

DIAL_QUIETLY_S = 5.0
"""For so long it is nothing unusual that the manager has not answered."""
LAST_WORDS_S = 1.0
"""For the manager to take what was said last."""
OOM_RECENT_S = 3.0
"""For how long an out-of-memory kill explains why a process was killed."""


class Managed:
    """What the shell holds for one worker process."""

    __slots__ = ("pid", "pump", "recorder")

    def __init__(self, recorder: Recorder, pump: OutputPump) -> None:
        self.recorder = recorder
        self.pump = pump
        self.pid = 0


class Agent:
    """One node's shell. Everything happens in the loop's thread."""

    def __init__(self, settings: AgentSettings, server: ForkServer) -> None:
        self._settings = settings
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._host = socket.gethostname()
        self._node = settings.node
        """What the manager calls it: the name that it was given, unless that was only a hint."""
        self._supervisor = Supervisor(SupervisorLimits(), self._loop.time())
        self._cwd = _working_directory()
        self._figures = Figures()
        self._oom = OomWatch()
        self._managed: dict[int, Managed] = {}
        self._link: Link | None = None
        self._welcome: dict[str, Any] = {}
        self._beats = 0
        self._interval_s = 2.0
        self._timer: asyncio.TimerHandle | None = None
        self._flowing = True
        self._reclaimed = False
        """The instance will be taken away."""
        self._oom_kills: deque[float] = deque()
        """When kills for want of memory were seen; each explains the end of one worker."""
        self._dialling: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._code: asyncio.Future[int] = self._loop.create_future()

    async def run(self) -> int:
        """Serve until the node ends; the exit code."""
        settings = self._settings
        self._loop.add_reader(self._server.sock.fileno(), self._server_speaks)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._terminate, signal.Signals(number).name)
        greeting = hello(
            role="agent",
            cluster_id=settings.cluster_id,
            node=settings.node,
            worker_id=0,
            host=self._host,
            pid=os.getpid(),
            link_id=new_link_id(),
        )
        try:
            self._dialling = self._loop.create_task(
                dial(
                    settings.address,
                    greeting,
                    settings.token,
                    self,
                    retry_for_s=settings.dial_for_s,
                    resume_within_s=3600.0,  # the orphan timeout ends it before
                ),
                name="aiocluster agent: dial the manager",
            )
            await asyncio.wait([self._dialling], timeout=DIAL_QUIETLY_S)
            if not self._dialling.done():  # a launch may be given up before this is: its report shows what was said until then
                logger.warning(
                    "node %s: no manager has answered at %s for %g s; it must be reachable from here (advertise=)",
                    settings.node,
                    settings.address,
                    DIAL_QUIETLY_S,
                )
                await asyncio.wait([self._dialling])
            if not self._dialling.cancelled():
                self._dialling.result()
                self._beat()
                self._watch_for_notices()
            return await self._code
        finally:
            await self._wind_up()

    async def _wind_up(self) -> None:
        for task in (self._dialling, self._watching):
            if task is not None:
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._server.sock.fileno())
        self._server.close()
        for managed in self._managed.values():
            managed.pump.close()
        self._managed.clear()  # the server has ended them
        if self._link is not None:
            self._link.close()
            await asyncio.wait([self._closed], timeout=LAST_WORDS_S)

    # --- the link ------------------------------------------------------------------------------------------------------------

    def link_opened(self, link: Link) -> None:
        self._link = link
        assert link.welcome is not None
        self._welcome = dict(link.welcome.settings)
        self._node = str(self._welcome.get("node", self._node))
        self._interval_s = float(self._welcome.get("heartbeat_interval_s", 2.0))
        limits = SupervisorLimits(orphan_timeout_s=float(self._welcome.get("orphan_timeout_s", 60.0)))
        self._supervisor = Supervisor(limits, self._loop.time())
        self._arm()

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        supervisor = self._supervisor
        now = self._loop.time()
        supervisor.heard(now)
        for message, _buffers in frames:
            match message:
                case wire.Beat():
                    pass
                case wire.StartWorkers():
                    self._perform(supervisor.start_workers(message.worker_ids, now))
                case wire.StopWorker():
                    self._perform(supervisor.stop_worker(message.worker_id, message.grace_s, now))
                case wire.KillWorker():
                    self._perform(supervisor.kill_worker(message.worker_id, message.reason, now))
                case wire.Shutdown():
                    self._perform(supervisor.shutdown(message.grace_s, now))
                case wire.FlushOutput():
                    self._flush_output(message)
                case _:
                    logger.error("the manager sent a %s, which is not for an agent", type(message).__name__)

    def link_writable(self, link: Link, writable: bool) -> None:
        """While the manager does not keep up nothing is read from the workers: what they print waits in their pipes."""
        self._flowing = writable
        for managed in list(self._managed.values()):
            managed.pump.set_flowing(writable)

    def link_broken(self, link: Link) -> None:
        logger.warning("the link to the manager broke; trying to resume it")

    def link_resumed(self, link: Link) -> None:
        logger.warning("the link to the manager is back")

    def link_closed(self, link: Link, error: Exception | None) -> None:
        self._link = None
        self._closed.set_result(None)
        reason = "the manager closed the link" if error is None else str(error)
        self._perform(self._supervisor.manager_gone(reason))

    # --- the node ------------------------------------------------------------------------------------------------------------

    def _terminate(self, name: str) -> None:
        link = self._link
        if link is None:
            self._finish(128 + signal.SIGTERM)
            return
        reason = f"the node was told to end ({name})"
        self._perform(self._supervisor.terminate(reason, self._loop.time(), connected=link.connected))

    def _watch_for_notices(self) -> None:
        endpoint = self._settings.metadata_endpoint
        if endpoint is not None:
            from aiocluster.runtime.notices import watch  # only in AWS: an HTTP client takes its time to import

            self._watching = self._loop.create_task(watch(endpoint, self._noticed), name="aiocluster agent: watch for notices")

    def _noticed(self, notice: SpotNotice) -> None:
        link = self._link
        self._reclaimed = True
        if link is not None:
            now = self._loop.time()
            self._perform(self._supervisor.terminate(notice.reason, now, connected=link.connected, grace_s=notice.grace_s))

    def _beat(self) -> None:
        link = self._link
        if link is None or self._code.done():
            return
        self._supervisor.heard(link.last_heard)
        self._look_who_joined()
        self._note_oom_kills()
        self._reap_strays()
        rows: list[list[Any]] = []
        for worker_id, managed in self._managed.items():
            if managed.pid:
                state, cpu, rss = self._figures.worker(managed.pid)
                rows.append([worker_id, state, cpu, rss, managed.recorder.slots[SYNC_STARTED]])
        self._beats += 1
        link.send(wire.NodeBeat(self._beats, self._figures.node(), rows))
        self._loop.call_later(self._interval_s, self._beat)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._supervisor.deadline, self._on_timer)

    def _on_timer(self) -> None:
        if self._link is not None:
            self._supervisor.heard(self._link.last_heard)
        self._perform(self._supervisor.tick(self._loop.time()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ForkWorker():
                    self._fork(effect.worker_id)
                case KillProcess():
                    self._kill(effect.worker_id)
                case Send():
                    if self._link is not None:
                        self._link.send(effect.message)
                case EndNode():
                    if effect.code:
                        logger.error("node %s ends: %s", self._node, effect.reason)
                    self._finish(effect.code)
                case _:
                    assert_never(effect)
        if not self._code.done():
            self._arm()

    def _finish(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code or (self._settings.reclaimed_code if self._reclaimed else 0))
            if self._dialling is not None:
                self._dialling.cancel()

    # --- workers -------------------------------------------------------------------------------------------------------------

    def _fork(self, worker_id: int) -> None:
        settings = self._settings
        spec = WorkerSpec(
            worker_id=worker_id,
            node=self._node,
            cluster_id=settings.cluster_id,
            address=settings.address,
            token=settings.token,
            host=self._host,
            settings=self._welcome,
            sys_path=settings.sys_path,
            cwd=self._cwd,
        )
        try:
            recorder, descriptor = Recorder.create()
            try:
                stdout, stderr = self._server.spawn(spec, descriptor)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:  # too many open files, no memory, a spec that is too large
            cause = f"could not be started: {error}"
            self._perform(self._supervisor.exited(worker_id, cause, None, last_lines=[], now=self._loop.time()))
            return
        pump = OutputPump(self._loop, worker_id, stdout, stderr, self._send_output, flowing=self._flowing)
        self._managed[worker_id] = Managed(recorder, pump)

    def _kill(self, worker_id: int) -> None:
        managed = self._managed.get(worker_id)
        if managed is not None and managed.pid:
            try:
                os.kill(managed.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended by itself: its exit is on its way

    def _server_speaks(self) -> None:
        for report in self._server.receive():
            match report:
                case Forked():
                    if report.worker_id in self._managed:
                        self._managed[report.worker_id].pid = report.pid
                    self._perform(self._supervisor.forked(report.worker_id, report.pid, self._loop.time()))
                case Exited():
                    self._worker_exited(report)
                case ServerGone():
                    self._loop.remove_reader(self._server.sock.fileno())
                    self._perform(self._supervisor.manager_gone(f"the fork server is gone: {report.reason}"))
                case _:
                    assert_never(report)

    def _worker_exited(self, report: Exited) -> None:
        managed = self._managed.pop(report.worker_id, None)
        if managed is None:
            return
        managed.pump.close()
        process = self._supervisor.processes.get(report.worker_id)
        killed_because = None if process is None else process.kill_reason
        oom = killed_because is None and _was_killed(report.status) and self._take_oom_kill()
        cause = describe_exit(report.status, oom=oom, killed_because=killed_because)
        if not report.pid:
            cause = "could not be forked"  # its last line says why
        self._figures.forget(report.pid)
        self._look_who_joined()
        if managed.recorder.is_ready:
            self._supervisor.joined(report.worker_id, self._loop.time())
        reading = managed.recorder.read()
        managed.recorder.close()
        self._perform(
            self._supervisor.exited(
                report.worker_id, cause, reading, last_lines=list(managed.pump.last_lines), now=self._loop.time()
            )
        )

    def _look_who_joined(self) -> None:
        now = self._loop.time()
        for worker_id, managed in self._managed.items():
            if managed.recorder.is_ready:
                self._supervisor.joined(worker_id, now)

    def _note_oom_kills(self) -> None:
        """With every heartbeat, so that a kill of long ago does not explain the next end of a worker."""
        now = self._loop.time()
        self._oom_kills.extend([now] * self._oom.kills())
        while self._oom_kills and now - self._oom_kills[0] > OOM_RECENT_S:
            self._oom_kills.popleft()

    def _take_oom_kill(self) -> bool:
        self._note_oom_kills()
        if not self._oom_kills:
            return False
        self._oom_kills.popleft()
        return True

    def _reap_strays(self) -> None:
        """In a container the agent is process 1: whom workers have left behind become its children."""
        try:
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid == self._server.pid:
                    return  # its end is told by its socket, and the rest does not matter any more
                os.waitid(os.P_PID, ended.si_pid, os.WEXITED)
        except ChildProcessError:
            pass  # there are none

    # --- output --------------------------------------------------------------------------------------------------------------

    def _send_output(self, message: wire.Output) -> None:
        if self._link is not None:
            self._link.send(message)

    def _flush_output(self, message: wire.FlushOutput) -> None:
        managed = self._managed.get(message.worker_id)
        if managed is not None:
            managed.pump.flush()
        if self._link is not None:
            self._link.send(wire.OutputFlushed(message.request))


def _was_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # somebody has removed it: workers stay where the fork server is
        return None


async def _serve(settings: AgentSettings, server: ForkServer) -> int:
    agent = Agent(settings, server)
    try:
        code = await agent.run()
    except ValueError as error:
        logger.error("node %s cannot join: %s", settings.node, error)
        return 1
    except AioclusterError as error:
        logger.error("node %s cannot join: %s", settings.node, error)
        code = 1
    if code:  # the manager may have been killed: nobody else is left to tidy up after it
        remove_left_socket(parse_address(settings.address))
    return code


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, format="aiocluster agent: %(levelname)s: %(message)s", level=logging.WARNING)


def main() -> int:
    """Be a node's agent until its manager ends it; the exit code. Reads its orders from `AIOCLUSTER_*` variables."""
    try:
        settings = AgentSettings(os.environ)
    except ValueError as error:
        _log_to_stderr()
        logger.error("%s", error)
        return 2
    server = ForkServer.start()
    _log_to_stderr()  # after the fork: in workers logging is as the user's code finds it in any new process
    try:
        import uvloop

        loop_factory: Any = uvloop.new_event_loop
    except ImportError:  # where uvloop does not exist
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(settings, server))


if __name__ == "__main__":
    sys.exit(main())
