"""The fork server: a small process that has everything loaded that a worker needs, and forks workers from itself.

The agent forks it before its own loop begins, so nothing here ever forks a process that has threads. It does what it is asked
and says what has ended; it decides nothing, and it must never run a line of user code: only the children do.

    agent ── spec + 3 descriptors ──▶ server ── fork ──▶ worker
    agent ◀── Forked, Exited ──────── server

Each dies with its parent: the kernel kills the server when the agent is gone, and the workers when the server is.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields
from struct import Struct
from typing import Any, NamedTuple, NoReturn

from aiocluster.ids import Token
from aiocluster.runtime.recorder import Recorder
from aiocluster.runtime.spec import WorkerSpec

__all__ = ["Entry", "Exited", "ForkServer", "Forked", "ServerGone"]

Entry = Callable[[WorkerSpec, Recorder], object]
"""What a worker process runs; when it returns, the process ends."""

MAX_REQUEST_BYTES = 200 * 1024
"""A spec: next to nothing, except for the `sys_path` of some programs."""
_SOCKET_BUFFER_BYTES = 208 * 1024  # what an unprivileged process gets; the kernel doubles it for its own bookkeeping
_FDS = 3
_END_WITHIN_MS = 2_000
_PR_SET_PDEATHSIG = 1
_PRELOADED = ("msgpack", "cloudpickle", "aiocluster.runtime.worker")

_EVENT = Struct("=BQqi")
_FORKED, _EXITED = 1, 2


class Forked(NamedTuple):
    """The worker's process exists."""

    worker_id: int
    pid: int


class Exited(NamedTuple):
    """The worker's process has ended and is reaped; exactly one per `spawn`. A `pid` of 0: it could not be forked at all."""

    worker_id: int
    pid: int
    status: int
    """As of `os.waitpid`."""


class ServerGone(NamedTuple):
    """The server has ended, and all its workers with it; said once."""

    reason: str


class ForkServer:
    """The agent's end. Of one thread; nothing but `start` and `close` blocks."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        """For the loop's `add_reader`; `receive` reads it."""
        self.pid = pid
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._gone = False

    @classmethod
    def start(cls, *, entry: Entry | None = None) -> ForkServer:
        """Fork the server. To be called before the process has a loop or a thread: what is forked has none of either.

        Args:
            entry: what workers run; by default `aiocluster.runtime.worker.main`, loaded by the server while the agent goes on.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # or both processes would print what is buffered
        agent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _in_child(lambda: _Server(theirs, agent, entry).run())
        theirs.close()
        return cls(ours, pid)

    def spawn(self, spec: WorkerSpec, recorder_fd: int) -> tuple[int, int]:
        """Ask for a worker.

        Args:
            recorder_fd: the memory of the worker's flight recorder; the caller keeps it and may close it at once.

        Returns:
            The read ends of the worker's stdout and stderr: non-blocking, owned by the caller.

        Raises:
            ValueError: the spec is too large to be sent (over 200 KB).
        """
        request = _pack_spec(spec)
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self._waiting.append((request, (os.dup(recorder_fd), out_end, err_end)))
        self._send_waiting()
        return out, err

    def receive(self) -> list[Forked | Exited | ServerGone]:
        """What the server has said since the last call, in order; never blocks."""
        said: list[Forked | Exited | ServerGone] = []
        while not self._gone:
            try:
                event = self.sock.recv(_EVENT.size)
            except BlockingIOError:
                break
            except OSError:
                event = b""
            if not event:
                self._gone = True
                self._drop_waiting()
                said.append(ServerGone(self._why_gone()))
                break
            kind, worker_id, pid, status = _EVENT.unpack(event)
            said.append(Forked(worker_id, pid) if kind == _FORKED else Exited(worker_id, pid, status))
        # The socket takes about ten requests at once. Each that the server has taken makes it say something, so who waits here
        # is sent after one of the next events, and the agent needs no `add_writer`.
        self._send_waiting()
        return said

    def close(self) -> None:
        """End the server and reap it; workers that are left are killed. May block for the moment that this takes."""
        self._drop_waiting()
        self.sock.close()
        if self._gone:
            return
        self._gone = True
        if not _ended_within(self.pid, _END_WITHIN_MS):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _send_waiting(self) -> None:
        while self._waiting:
            request, descriptors = self._waiting[0]
            try:
                socket.send_fds(self.sock, [request], descriptors)
            except BlockingIOError:
                return
            except OSError:
                self._drop_waiting()  # the server is gone: `receive` will say so
                return
            self._waiting.popleft()
            _close(descriptors)

    def _drop_waiting(self) -> None:
        for _request, descriptors in self._waiting:
            _close(descriptors)
        self._waiting.clear()

    def _why_gone(self) -> str:
        # Its sockets close before it is a zombie: one short wait tells why it ended.
        if not _ended_within(self.pid, _END_WITHIN_MS):
            os.kill(self.pid, signal.SIGKILL)
        try:
            _pid, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "the fork server is gone"
        if os.WIFSIGNALED(status):
            return f"the fork server was killed by signal {os.WTERMSIG(status)}"
        return f"the fork server exited with code {os.WEXITSTATUS(status)}"


class _Server:
    """The server's process: one loop around `poll`."""

    def __init__(self, sock: socket.socket, agent: int, entry: Entry | None) -> None:
        _die_with(agent)
        # First of all: who types Ctrl-C, or stops the task, talks to the agent. The agent decides when workers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _close_all_but({sock.fileno()})
        self._pid = os.getpid()
        self._sock = sock
        self._woken, self._wakeup = socket.socketpair()
        self._woken.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)  # a handler of Python's is what makes the wake-up be written
        self._entry = entry if entry is not None else _load()
        self._workers: dict[int, int] = {}
        """Worker ids by pid."""
        self._events: deque[bytes] = deque()
        # What is loaded stays shared between all workers: no collection ever writes to these pages.
        gc.disable()
        gc.freeze()

    def run(self) -> None:
        """Serve until the agent has closed its end."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        agent = self._sock.fileno()
        while True:
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._events else 0))
            for descriptor, happened in poll.poll():
                if descriptor != agent:
                    self._reap()
                elif happened & (select.POLLHUP | select.POLLERR) or (happened & select.POLLIN and not self._receive()):
                    self._end_workers()
                    return
            if not self._send():
                self._end_workers()
                return

    def _receive(self) -> bool:
        """Serve one request. False if there will be no more."""
        try:
            request, descriptors, _flags, _address = socket.recv_fds(self._sock, MAX_REQUEST_BYTES, _FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not request:
            return False
        try:
            self._fork(_unpack_spec(request), descriptors)
        finally:
            _close(descriptors)
        return True

    def _fork(self, spec: WorkerSpec, descriptors: list[int]) -> None:
        try:
            if len(descriptors) != _FDS:
                raise OSError("too many open files in the fork server")
            pid = os.fork()
        except OSError as error:
            if descriptors:
                text = f"aiocluster: worker {spec.worker_id} could not be forked: {error}\n"
                os.write(descriptors[-1], text.encode())
            self._events.append(_EVENT.pack(_EXITED, spec.worker_id, 0, 1 << 8))
            return
        if pid == 0:
            _in_child(lambda: _be_worker(spec, descriptors, self._pid, self._entry))
        self._workers[pid] = spec.worker_id
        self._events.append(_EVENT.pack(_FORKED, spec.worker_id, pid, 0))

    def _reap(self) -> None:
        """Say of every worker that has ended how it did."""
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(1024):
                pass
        while self._workers:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            status = _take_away(ended.si_pid)
            worker_id = self._workers.pop(ended.si_pid, None)
            if worker_id is not None:
                self._events.append(_EVENT.pack(_EXITED, worker_id, ended.si_pid, status))

    def _send(self) -> bool:
        """Say what the socket takes; the rest waits. False if nobody listens any more."""
        while self._events:
            try:
                self._sock.send(self._events[0])
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._events.popleft()
        return True

    def _end_workers(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still this worker's
        for pid in self._workers:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            _take_away(pid)


# --- in the children -----------------------------------------------------------------------------------------------------


def _in_child(run: Callable[[], object]) -> NoReturn:
    """Run something as all that this process does: whatever happens, the code of the parent is not returned to."""
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        # Not by `sys.stderr`: that may be anything by now.
        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
    finally:
        os._exit(code)


def _be_worker(spec: WorkerSpec, descriptors: list[int], server: int, entry: Entry) -> None:
    _die_with(server)
    os.setsid()  # a Ctrl-C in the agent's terminal is not for workers, and a worker's own children end with it
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    recorder_fd, out, err = descriptors
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    _close_all_but({recorder_fd})
    faulthandler.enable(file=2)
    recorder = Recorder.attach(recorder_fd)
    _take_up_surroundings(spec)
    gc.enable()
    entry(spec, recorder)


def _take_up_surroundings(spec: WorkerSpec) -> None:
    """Find modules and files where the manager's program finds them, and the variables that came with the agent's welcome."""
    os.environ.update(json.loads(spec.settings.get("env", "{}")))
    if spec.cwd is not None:
        try:
            os.chdir(spec.cwd)
        except OSError as error:
            os.write(2, f"aiocluster: worker {spec.worker_id} stays in {os.getcwd()}: {error}\n".encode())
    if spec.sys_path is not None:
        wanted = set(spec.sys_path)
        sys.path[:] = [*spec.sys_path, *(path for path in sys.path if path not in wanted)]
        importlib.invalidate_caches()  # the server may have looked into these directories long ago


def _load() -> Entry:
    for name in _PRELOADED:
        importlib.import_module(name)
    with contextlib.suppress(ModuleNotFoundError):  # not every platform has it
        importlib.import_module("uvloop")
    main: Entry = sys.modules["aiocluster.runtime.worker"].main
    return main


# --- processes and descriptors -------------------------------------------------------------------------------------------


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Only Linux can; elsewhere the sockets tell, a little later."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the kernel was asked


def _take_away(pid: int) -> int:
    """Reap a worker that has ended, with the processes it left behind: they would hold its pipes, and its memory, for ever."""
    # While the worker is a zombie its pid, and so its group's, belongs to nobody else.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _ended_within(pid: int, timeout_ms: int) -> bool:
    """Whether a child of this process has ended, or does so in time; it is not reaped."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_ms))
    finally:
        os.close(descriptor)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _close_all_but(kept: set[int]) -> None:
    """Close what was inherited, except for 0, 1, 2 and these. Nothing else of the process's past may stay open in a worker."""
    for name in os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):  # the one that listed the directory is closed already
                os.close(descriptor)


def _nothing(_number: int, _frame: Any) -> None:
    pass


# --- requests ------------------------------------------------------------------------------------------------------------


def _pack_spec(spec: WorkerSpec) -> bytes:
    values = {item.name: getattr(spec, item.name) for item in fields(spec)}
    values["token"] = spec.token.reveal()
    values["settings"] = dict(spec.settings)
    request = pickle.dumps(values, protocol=pickle.HIGHEST_PROTOCOL)
    if len(request) > MAX_REQUEST_BYTES:
        raise ValueError(f"the spec of worker {spec.worker_id} takes {len(request):,} bytes: sys.path is too long, or env")
    return request


def _unpack_spec(request: bytes) -> WorkerSpec:
    values = pickle.loads(request)
    values["token"] = Token(values["token"])
    return WorkerSpec(**values)
