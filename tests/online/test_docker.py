"""`Docker` on an engine: from outside and from inside a container, with faults while calls run, and however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from aiocluster import Cluster, Docker, LaunchError, WorkerLost
from aiocluster.launch import docker as docker_module
from tests.online import docker_work
from tests.online.engine import PROJECT, Engine
from tests.online.waiting import until

pytestmark = [pytest.mark.online("docker"), pytest.mark.timeout(240)]

SAFETY_S = 90.0
CALLS = 1000
CALL_S = 0.01
SHORT_PAUSE_S = 5.0
"""Half of the heartbeat timeout."""


def containers(engine: Engine, cluster_id: str) -> list[str]:
    """The names of those of a cluster, also of those that do not run."""
    label = f"label=aiocluster:cluster={cluster_id}"
    return sorted(engine.docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").split())


async def nothing_left(engine: Engine, cluster_id: str) -> None:
    await until(lambda: containers(engine, cluster_id), lambda found: not found, timeout=SAFETY_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shared by the test and its containers, whoever their users are."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    return shared


@pytest.fixture
def network(docker: Engine) -> Iterator[str]:
    """A network of its own."""
    name = f"aiocluster-{uuid.uuid4().hex[:8]}"
    docker.docker("network", "create", name)
    yield name
    docker.docker("network", "rm", name)


def started(engine: Engine, n: int, folder: Path, network: str = "host", **arguments: Any) -> Any:
    """A cluster whose containers can import what the tests call."""
    env = {"PYTHONPATH": "/source"}
    mounts = [f"{PROJECT}/tests:/source/tests:ro", f"{folder}:{folder}"]
    return Cluster.docker(n, image=engine.image, network=network, env=env, mounts=mounts, output="quiet", **arguments)


# --- where it runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 0])
async def test_workers_from_outside_a_container(docker: Engine, n: int) -> None:
    async with Cluster.docker(n, image=docker.image, output="quiet") as cluster:
        assert len(cluster.workers) == n
        assert len(containers(docker, cluster.id)) == n
        if n:
            assert await cluster.map(abs, range(-100, 0)) == list(range(100, 0, -1))
    assert containers(docker, cluster.id) == []


MANAGER = """
import asyncio, sys
import aiocluster
from aiocluster import Cluster

async def main():
    n, network = int(sys.argv[1]), sys.argv[2]
    async with Cluster.docker(n, image=sys.argv[3] or None, network=network, output="quiet") as cluster:
        assert len(cluster.workers) == n
        if n:
            assert await cluster.map(abs, [-1, -2, -3]) == [1, 2, 3]
        print(cluster.id, *sorted({worker.node for worker in cluster.workers.values()}), flush=True)
        if sys.argv[4] == "stay":
            await asyncio.Event().wait()

aiocluster.run(main())
"""


def inside(engine: Engine, network: str, n: int, what: str = "go") -> list[str]:
    """A command that runs a manager in a container; it does not say which image its nodes are made of."""
    socket = engine.host.removeprefix("unix://")
    run = ["docker", "--host", engine.host, "run", "--rm", "--interactive", "--user", "0", "--network", network]
    run += ["--volume", f"{socket}:/run/docker.sock", "--label", "aiocluster-test=manager", engine.image]
    return [*run, "python", "-c", MANAGER, str(n), network, "", what]


@pytest.mark.parametrize("n", [3, 0])
async def test_workers_from_inside_a_container_on_the_hosts_network(docker: Engine, n: int) -> None:
    done = await asyncio.to_thread(subprocess.run, inside(docker, "host", n), capture_output=True, text=True, timeout=SAFETY_S)
    assert done.returncode == 0, done.stderr
    cluster_id, *nodes = done.stdout.split()
    assert nodes == [f"docker-{i + 1}" for i in range(n)]
    assert containers(docker, cluster_id) == []


async def test_workers_from_inside_a_container_on_a_network_of_their_own(docker: Engine, network: str) -> None:
    done = await asyncio.to_thread(subprocess.run, inside(docker, network, 2), capture_output=True, text=True, timeout=SAFETY_S)
    assert done.returncode == 0, done.stderr
    cluster_id, *nodes = done.stdout.split()
    assert nodes == ["docker-1", "docker-2"]
    assert containers(docker, cluster_id) == []


async def test_a_bridge_network_reaches_the_manager_at_its_gateway(docker: Engine, network: str) -> None:
    gateway = docker.docker("network", "inspect", network, "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    launcher = Docker(image=docker.image, network=network)
    async with Cluster.start(launcher, 2, output="quiet") as cluster:
        reach = await launcher.find_reach()
        assert (reach.advertise, reach.host) == (gateway, gateway)
        assert await cluster.map(abs, [-1, -2]) == [1, 2]
    assert containers(docker, cluster.id) == []


async def test_a_local_cluster_grows_by_containers_and_lets_them_go(docker: Engine) -> None:
    async with Cluster.local(n=1, output="quiet") as cluster:
        await cluster.add(Docker(image=docker.image), n=2)
        assert set(cluster.workers) == {1, 2, 3}
        assert len(containers(docker, cluster.id)) == 2
        await cluster.retire(3)
        await until(lambda: containers(docker, cluster.id), lambda found: len(found) == 1)
        assert await cluster.workers[2].submit(abs, -7) == 7
    assert containers(docker, cluster.id) == []


async def test_the_environment_opens_a_cluster_of_containers(docker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"LAUNCHER": "docker", "WORKERS": "1,2", "DOCKER_IMAGE": docker.image, "OUTPUT": "quiet"}
    for name, value in variables.items():
        monkeypatch.setenv(f"AIOCLUSTER_{name}", value)
    async with Cluster.from_env() as cluster:
        assert {worker.node for worker in cluster.workers.values()} <= {"docker-1", "docker-2"}
        assert await cluster.submit(abs, -3) == 3
    assert containers(docker, cluster.id) == []


async def test_scale_and_adapt_start_and_end_containers(docker: Engine) -> None:
    async with Cluster.docker(1, image=docker.image, output="quiet") as cluster:
        await cluster.scale(3)
        assert len(containers(docker, cluster.id)) == 3
        await cluster.scale(1)
        await until(lambda: containers(docker, cluster.id), lambda found: len(found) == 1)
        await cluster.adapt(minimum=2, maximum=2)
        assert len(cluster.workers) == 2
    assert containers(docker, cluster.id) == []


async def test_containers_carry_the_marks_and_the_token_is_in_no_command_line(docker: Engine) -> None:
    async with Cluster.docker(1, image=docker.image, labels={"team": "blue"}, output="quiet") as cluster:
        (name,) = containers(docker, cluster.id)
        assert name == f"aiocluster-{cluster.id}-docker-1"
        show = "{{json .Config.Labels}} {{json .Config.Cmd}} {{.HostConfig.AutoRemove}}"
        shown = docker.docker("inspect", name, "--format", show)
        assert '"team":"blue"' in shown
        assert '["aiocluster","agent"] true' in shown
        (found,) = [one for one in await docker_module.leftovers() if one.cluster == cluster.id]
        assert (found.name, found.state, found.alive, found.kind) == (name, "running", True, "docker container")
        assert found.created is not None


async def test_what_is_left_over_is_ended(docker: Engine) -> None:
    cluster_id = f"c-{uuid.uuid4().hex[:12]}"
    gone = ("--label", "aiocluster:manager=process:elsewhere:0-0:1:1", "--label", "aiocluster:created=2020-01-01T00:00:00Z")
    name = f"aiocluster-{cluster_id}-docker-1"
    docker.docker("create", "--name", name, "--label", f"aiocluster:cluster={cluster_id}", *gone, docker.image)
    (found,) = [one for one in await docker_module.leftovers() if one.cluster == cluster_id]
    assert (found.name, found.state, found.alive) == (name, "created", None)
    await docker_module.end(found)
    await docker_module.end(found)  # it is gone, and that is no matter
    assert containers(docker, cluster_id) == []


# --- faults while calls run --------------------------------------------------------------------------------------------------


async def storm(cluster: Cluster, folder: Path, fault: Callable[[], Awaitable[None]]) -> Counter[str]:
    """A thousand calls, with a fault when a hundred have ended; how they ended. None hangs, and none ran twice.

    Every outcome is true: what has a result ran once, and what "never started" never did.
    """
    futures = [cluster.submit(docker_work.note, str(folder), n, CALL_S) for n in range(CALLS)]
    async with asyncio.timeout(SAFETY_S):
        await asyncio.gather(*futures[:100])
        await fault()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
    begun = Counter(int(line) for line in (folder / "begun").read_text().split())
    assert max(begun.values()) == 1, "a call ran twice"
    kinds: Counter[str] = Counter()
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, WorkerLost), repr(outcome)
            assert outcome.maybe_executed or begun[n] == 0
            kinds["lost"] += 1
        else:
            assert outcome == n
            assert begun[n] == 1
            kinds["result"] += 1
    return kinds


async def test_a_container_that_is_killed_costs_only_the_call_that_ran_there(docker: Engine, folder: Path) -> None:
    async with started(docker, 3, folder) as cluster:

        async def kill() -> None:
            await asyncio.to_thread(docker.docker, "kill", f"aiocluster-{cluster.id}-docker-2")

        kinds = await storm(cluster, folder, kill)
        assert len(cluster.workers) == 2
        assert kinds["result"] >= CALLS - 100, kinds
        lost = [event.text for event in cluster.events() if event.kind == "node_lost" and event.node == "docker-2"]
        assert lost == ["its container was killed by signal 9 (SIGKILL)"]
    assert containers(docker, cluster.id) == []


async def test_a_short_pause_costs_nothing(docker: Engine, folder: Path) -> None:
    async with started(docker, 3, folder) as cluster:

        async def pause() -> None:
            await asyncio.to_thread(docker.docker, "pause", f"aiocluster-{cluster.id}-docker-2")
            await asyncio.sleep(SHORT_PAUSE_S)  # what is tested is a time
            await asyncio.to_thread(docker.docker, "unpause", f"aiocluster-{cluster.id}-docker-2")

        kinds = await storm(cluster, folder, pause)
        assert kinds == {"result": CALLS}
        states = [event.text for event in cluster.events() if event.kind == "node_state" and event.node == "docker-2"]
        assert states[:4] == ["created", "running", "paused", "running"]
        assert set(cluster.workers) == {1, 2, 3}


async def test_a_container_that_stays_paused_is_lost_and_removed(docker: Engine, folder: Path) -> None:
    async with started(docker, 3, folder) as cluster:

        async def pause() -> None:
            await asyncio.to_thread(docker.docker, "pause", f"aiocluster-{cluster.id}-docker-2")

        kinds = await storm(cluster, folder, pause)
        assert kinds["result"] + kinds["lost"] == CALLS
        (lost,) = [event for event in cluster.events() if event.kind == "node_lost"]
        (paused,) = [event for event in cluster.events() if event.kind == "node_state" and event.text == "paused"]
        assert lost.at - paused.at >= 8.0, "beats come every 2 s, and 10 s without one are the end"
        assert len(cluster.workers) == 2
        await until(lambda: containers(docker, cluster.id), lambda found: len(found) == 2)
    assert containers(docker, cluster.id) == []


async def test_a_container_that_is_cut_off_and_comes_back_loses_nothing(docker: Engine, folder: Path, network: str) -> None:
    async with started(docker, 3, folder, network) as cluster:

        async def cut() -> None:
            name = f"aiocluster-{cluster.id}-docker-2"
            await asyncio.to_thread(docker.docker, "network", "disconnect", network, name)
            await asyncio.sleep(1.0)  # what is tested is a time
            await asyncio.to_thread(docker.docker, "network", "connect", network, name)

        kinds = await storm(cluster, folder, cut)
        assert kinds == {"result": CALLS}
        assert set(cluster.workers) == {1, 2, 3}
    assert containers(docker, cluster.id) == []


async def test_a_container_that_stays_cut_off_is_lost_and_removed(docker: Engine, folder: Path, network: str) -> None:
    async with started(docker, 3, folder, network) as cluster:

        async def cut() -> None:
            await asyncio.to_thread(docker.docker, "network", "disconnect", network, f"aiocluster-{cluster.id}-docker-2")

        kinds = await storm(cluster, folder, cut)
        assert kinds["result"] + kinds["lost"] == CALLS
        assert len(cluster.workers) == 2
        await until(lambda: containers(docker, cluster.id), lambda found: len(found) == 2)
    assert containers(docker, cluster.id) == []


async def test_a_container_that_is_told_to_end_lets_its_calls_finish(docker: Engine, folder: Path) -> None:
    async with started(docker, 3, folder) as cluster:

        async def terminate() -> None:
            await asyncio.to_thread(docker.docker, "kill", "--signal", "TERM", f"aiocluster-{cluster.id}-docker-2")

        kinds = await storm(cluster, folder, terminate)
        assert kinds == {"result": CALLS}
        await until(lambda: containers(docker, cluster.id), lambda found: len(found) == 2)
        assert len(cluster.workers) == 2
    assert containers(docker, cluster.id) == []


async def test_an_agent_that_is_process_1_buries_whom_it_adopts(docker: Engine, folder: Path) -> None:
    async with started(docker, 1, folder) as cluster:
        assert await cluster.submit(docker_work.leave_orphans, 20) == 0
        assert set(cluster.workers) == {1}


# --- the end of the manager --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def manager(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A manager that has its workers, and the id of its cluster."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield process, line.split()[0]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_nothing_is_left_however_the_manager_ends(docker: Engine, number: signal.Signals) -> None:
    with manager([sys.executable, "-c", MANAGER, "2", "host", docker.image, "stay"]) as (process, cluster_id):
        assert len(containers(docker, cluster_id)) == 2
        process.send_signal(number)
        code = await asyncio.to_thread(process.wait, SAFETY_S)
        if number is not signal.SIGKILL:
            assert code != 0
            assert containers(docker, cluster_id) == []  # they were gone before it ended
        await nothing_left(docker, cluster_id)


@pytest.mark.parametrize("number", ["TERM", "KILL"])
async def test_nothing_is_left_when_the_container_of_the_manager_ends(docker: Engine, number: str) -> None:
    with manager(inside(docker, "host", 2, "stay")) as (_process, cluster_id):
        mine = docker.docker("ps", "--quiet", "--filter", "label=aiocluster-test=manager").split()
        assert len(mine) == 1
        assert len(containers(docker, cluster_id)) == 2
        (found, _other) = [one for one in await docker_module.leftovers() if one.cluster == cluster_id]
        assert found.alive is True
        docker.docker("kill", "--signal", number, *mine)
        await nothing_left(docker, cluster_id)


async def test_two_clusters_on_one_engine_do_not_touch_each_other(docker: Engine) -> None:
    async with Cluster.docker(2, image=docker.image, output="quiet") as one:
        async with Cluster.docker(2, image=docker.image, output="quiet") as other:
            first, second = await asyncio.gather(one.map(abs, [-1, -2]), other.map(abs, [-3, -4]))
            assert (first, second) == ([1, 2], [3, 4])
        assert containers(docker, other.id) == []
        assert len(containers(docker, one.id)) == 2
        assert await one.map(abs, [-5, -6]) == [5, 6]
    assert containers(docker, one.id) == []


# --- an engine whose connections break ---------------------------------------------------------------------------------------


class Wire:
    """Stands between a manager and its engine, and can be cut."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._to = engine.host.removeprefix("unix://")
        self._path = path
        self._links: dict[asyncio.StreamWriter, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._carry, self._path)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        tasks = list(self._links.values())
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> int:
        """All connections that are there break; later ones are carried. Returns how many broke."""
        for writer in self._links:
            writer.transport.abort()
        return len(self._links) // 2

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        back_reader, back_writer = await asyncio.open_unix_connection(self._to)
        self._links.update({writer: task, back_writer: task})
        try:
            await asyncio.gather(self._copy(reader, back_writer), self._copy(back_reader, writer))
        finally:
            del self._links[writer], self._links[back_writer]

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def first_loss(cluster: Cluster) -> str:
    async with asyncio.timeout(SAFETY_S):
        async with contextlib.aclosing(aiter(cluster.events())) as events:  # type: ignore[type-var]
            async for event in events:
                if event.kind == "node_lost":
                    return event.text
    raise AssertionError("the cluster closed")


async def test_an_engine_whose_connections_break_is_heard_again(docker: Engine, tmp_path: Path) -> None:
    async with Wire(docker, tmp_path / "docker.sock") as wire:
        host = f"unix://{tmp_path}/docker.sock"
        async with Cluster.docker(2, image=docker.image, engine=host, output="quiet") as cluster:
            assert wire.cut() >= 3  # that of the events, and those of the output of two containers
            await asyncio.to_thread(docker.docker, "kill", f"aiocluster-{cluster.id}-docker-1")
            assert await first_loss(cluster) in ("its container was killed by signal 9 (SIGKILL)", "its container is gone")
            assert await cluster.submit(abs, -3) == 3
        assert containers(docker, cluster.id) == []


# --- what cannot be ----------------------------------------------------------------------------------------------------------


async def fails(opening: Any) -> str:
    with pytest.raises(LaunchError) as caught:
        async with asyncio.timeout(SAFETY_S):
            await opening
    return str(caught.value)


async def test_an_engine_that_is_not_there_is_told_with_what_to_try(tmp_path: Path) -> None:
    text = await fails(Cluster.docker(1, image="any", engine=f"unix://{tmp_path}/docker.sock"))
    assert f"cannot reach a Docker engine at unix://{tmp_path}/docker.sock" in text
    assert "start one, or set DOCKER_HOST" in text


async def test_an_image_that_is_not_there_is_told_with_what_to_try(docker: Engine) -> None:
    text = await fails(Cluster.docker(2, image="nobody/nothing:1"))
    assert "no such image" in text
    assert "`docker pull nobody/nothing:1`" in text


async def test_outside_of_a_container_an_image_is_needed(docker: Engine) -> None:
    assert "image= is needed" in await fails(Cluster.docker(1))


async def test_a_network_that_is_not_there_is_told_with_what_to_try(docker: Engine) -> None:
    text = await fails(Cluster.docker(1, image=docker.image, network="nowhere"))
    assert "`docker network create nowhere`" in text


async def test_a_command_that_the_image_does_not_have_is_told(docker: Engine) -> None:
    text = await fails(Cluster.docker(2, image=docker.image, command=["no-such-program"], timeout=3600))
    assert "could not be started" in text
    assert "no-such-program" in text


async def test_a_container_that_ends_at_once_is_told_with_its_last_lines(docker: Engine) -> None:
    command = ["sh", "-c", "echo first; echo second >&2; printf third; exit 3"]
    text = await fails(Cluster.docker(2, image=docker.image, command=command, timeout=3600))
    assert "its container exited with code 3" in text
    for line in ("first", "second", "third"):
        assert f"| {line}\n" in f"{text}\n"


async def test_an_address_that_containers_cannot_reach_is_told_with_their_last_lines(docker: Engine, network: str) -> None:
    opening = Cluster.docker(1, image=docker.image, network=network, advertise="127.0.0.1", timeout=12)
    text = await fails(opening)
    assert "only 0 of at least 1 workers joined within 12 s" in text
    assert "no manager has answered at tcp://127.0.0.1:" in text
