"""The fork server: every worker that is asked for begins, and its end is reported exactly once."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiocluster.ids import Token
from aiocluster.runtime.forkserver import Entry, Exited, Forked, ForkServer, ServerGone
from aiocluster.runtime.recorder import SYNC_STARTED, Recorder
from aiocluster.runtime.spec import WorkerSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="recorders are memfds")


class Agent:
    """What an agent does with a fork server, waiting for it where an agent would go on."""

    def __init__(self, entry: Entry) -> None:
        self.recorder, self._memory = Recorder.create()
        self.server = ForkServer.start(entry=entry)
        self.reports: list[Forked | Exited | ServerGone] = []
        self._pipes: dict[int, tuple[int, int]] = {}

    def spawn(self, worker_id: int, cwd: str | None = None, sys_path: tuple[str, ...] | None = None) -> None:
        spec = WorkerSpec(
            worker_id=worker_id,
            node="node",
            cluster_id="cluster",
            address="unix:/nowhere",
            token=Token(b"t" * 32),
            host="host",
            settings={"a": 1},
            sys_path=sys_path,
            cwd=cwd,
        )
        self._pipes[worker_id] = self.server.spawn(spec, self._memory)

    def wait_for(self, kind: type, count: int = 1) -> list[Forked | Exited | ServerGone]:
        while sum(isinstance(report, kind) for report in self.reports) < count:
            assert select.select([self.server.sock], [], [], 30)[0], f"the server is silent; so far: {self.reports}"
            received = self.server.receive()
            assert received, "the server is gone and was said to be before"
            self.reports += received
        return [report for report in self.reports if isinstance(report, kind)]

    def output(self, worker_id: int, stream: int = 1) -> bytes:
        """All that a worker writes, until nobody has the pipe open any more."""
        descriptor = self._pipes[worker_id][stream - 1]
        assert not os.get_blocking(descriptor)
        os.set_blocking(descriptor, True)
        found = b""
        while data := os.read(descriptor, 65536):
            found += data
        return found

    def close(self) -> None:
        self.server.close()
        self.recorder.close()
        for descriptor in (self._memory, *(end for pipe in self._pipes.values() for end in pipe)):
            os.close(descriptor)


@pytest.fixture
def start() -> Iterator[Callable[[Entry], Agent]]:
    agents: list[Agent] = []

    def make(entry: Entry) -> Agent:
        agents.append(Agent(entry))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


Start = Callable[[Entry], Agent]


def end_of_parent() -> None:
    while True:
        signal.pause()


def test_worker_gets_its_spec_its_recorder_and_its_pipes(start: Start) -> None:
    def entry(spec: WorkerSpec, recorder: Recorder) -> None:
        recorder.slots[SYNC_STARTED] = spec.worker_id
        os.write(1, spec.token.reveal() + spec.node.encode())
        os.write(2, repr(spec.settings).encode())

    agent = start(entry)
    agent.spawn(7)
    [exited] = agent.wait_for(Exited)
    forked, *_ = agent.reports
    assert forked == Forked(7, exited.pid)  # type: ignore[union-attr]
    assert exited == Exited(7, forked.pid, 0)
    assert agent.recorder.slots[SYNC_STARTED] == 7
    assert agent.output(7) == b"t" * 32 + b"node"
    assert agent.output(7, 2) == b"{'a': 1}"


def test_every_end_is_reported_once_however_many_there_are(start: Start) -> None:
    def entry(spec: WorkerSpec, _recorder: Recorder) -> None:
        if spec.worker_id % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(spec.worker_id)

    agent = start(entry)
    ids = range(1, 41)
    for worker_id in ids:  # more than the socket takes at once
        agent.spawn(worker_id)
    exits = agent.wait_for(Exited, len(ids))
    assert {e.worker_id: e.status for e in exits if isinstance(e, Exited)} == {id: 9 if id % 2 else id << 8 for id in ids}
    assert [r.worker_id for r in agent.reports if isinstance(r, Forked)] == list(ids)


def test_what_a_worker_raises_is_printed_and_never_reaches_the_server(start: Start) -> None:
    def entry(spec: WorkerSpec, _recorder: Recorder) -> None:
        if spec.worker_id == 1:
            raise RuntimeError("no luck")
        raise SystemExit(0)

    agent = start(entry)
    agent.spawn(1)
    agent.spawn(2)
    assert {e.status for e in agent.wait_for(Exited, 2) if isinstance(e, Exited)} == {1 << 8}
    assert b"RuntimeError: no luck" in agent.output(1, 2)
    assert b"SystemExit" in agent.output(2, 2)


def test_worker_is_alone_in_a_clean_process(start: Start) -> None:
    def entry(_spec: WorkerSpec, _recorder: Recorder) -> None:
        assert os.getsid(0) == os.getpid()
        assert os.read(0, 1) == b""
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.set_wakeup_fd(-1) == -1
        assert gc.isenabled()
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and _open(fd)]
        assert [link for link in links if "aiocluster-recorder" not in link] == []

    def _open(descriptor: str) -> bool:
        return os.path.lexists(f"/proc/self/fd/{descriptor}")  # not the one that listed the directory

    agent = start(entry)
    agent.spawn(1)
    agent.wait_for(Exited)
    assert agent.output(1, 2) == b""


def test_modules_and_files_are_found_where_the_program_finds_them(start: Start, tmp_path: Path) -> None:
    (tmp_path / "of_the_user.py").write_text("name = 'found'")

    def entry(_spec: WorkerSpec, _recorder: Recorder) -> None:
        import of_the_user  # type: ignore[import-not-found]

        os.write(1, f"{of_the_user.name} {os.getcwd()}".encode())

    agent = start(entry)
    long = tuple(f"/nowhere/{number:090}" for number in range(1500))
    agent.spawn(1, cwd=str(tmp_path), sys_path=(str(tmp_path), *long))
    assert agent.output(1) == f"found {tmp_path}".encode()


def test_spec_that_is_too_large_is_refused(start: Start) -> None:
    agent = start(lambda _spec, _recorder: None)
    with pytest.raises(ValueError, match=r"sys\.path is too long"):
        agent.server.spawn(
            WorkerSpec(
                worker_id=1,
                node="",
                cluster_id="",
                address="",
                token=Token(b"t" * 32),
                host="",
                settings={},
                sys_path=("x" * 300_000,),
            ),
            0,
        )


def test_worker_that_cannot_enter_its_directory_says_so_and_begins(start: Start) -> None:
    agent = start(lambda _spec, _recorder: os.write(1, b"begun"))
    agent.spawn(1, cwd="/no/such/directory")
    assert agent.output(1) == b"begun"
    assert b"/no/such/directory" in agent.output(1, 2)


def test_children_of_a_worker_end_with_it_and_give_its_pipes_back(start: Start) -> None:
    def entry(_spec: WorkerSpec, _recorder: Recorder) -> None:
        if os.fork() == 0:
            end_of_parent()

    agent = start(entry)
    agent.spawn(1)
    agent.wait_for(Exited)
    assert agent.output(1) == b""  # would wait for ever if the child still had the pipe


def test_closing_kills_the_workers_that_are_left(start: Start) -> None:
    agent = start(lambda _spec, _recorder: end_of_parent())
    agent.spawn(1)
    agent.wait_for(Forked)
    agent.server.close()
    agent.server.close()
    assert agent.output(1) == b""


def test_server_that_is_killed_is_said_to_be_gone_and_takes_its_workers_along(start: Start) -> None:
    def entry(_spec: WorkerSpec, _recorder: Recorder) -> None:
        os.write(1, b"begun")
        end_of_parent()

    agent = start(entry)
    agent.spawn(1)
    agent.wait_for(Forked)
    os.kill(agent.server.pid, signal.SIGKILL)
    assert agent.wait_for(ServerGone) == [ServerGone("the fork server was killed by signal 9")]
    assert agent.server.receive() == []
    agent.output(1)  # ends, because the worker has


def test_server_leaves_interrupts_and_terminations_to_the_agent(start: Start) -> None:
    agent = start(lambda _spec, _recorder: None)
    agent.spawn(1)
    agent.wait_for(Exited)
    os.kill(agent.server.pid, signal.SIGINT)
    os.kill(agent.server.pid, signal.SIGTERM)
    agent.spawn(2)
    assert len(agent.wait_for(Exited, 2)) == 2


def test_asking_a_server_that_is_gone_gives_empty_pipes(start: Start) -> None:
    agent = start(lambda _spec, _recorder: None)
    os.kill(agent.server.pid, signal.SIGKILL)
    agent.wait_for(ServerGone)
    agent.spawn(1)
    assert agent.output(1) == b""
