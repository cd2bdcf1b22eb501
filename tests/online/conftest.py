"""Tests on infrastructure. ONLINE, a list such as `docker,batch,batch-node,ecs`, says which of them run; others are skipped.

With STACK_NAME set, the parts of AWS are those of that CloudFormation stack, with the credentials of the caller, and cost
money. Otherwise they are emulators that these tests start and end, whose jobs and tasks are containers of this machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from tests.online import emulators, engine, ground
from tests.online.waiting import PATIENCE_S

HERE = Path(__file__).parent
PARTS = ("docker", "batch", "batch-node", "ecs")
A = TypeVar("A", bound=ground.Aws)
TIMEOUT_S = 2 * PATIENCE_S
"""Of a test alone: what it stands on may have to be installed first, and has deadlines of its own."""


def asked_for() -> set[str]:
    parts = {part.strip() for part in os.environ.get("ONLINE", "").split(",")} - {""}
    unknown = parts.difference(PARTS)
    if unknown:
        raise pytest.UsageError(f"ONLINE knows {', '.join(PARTS)}, and not {', '.join(sorted(unknown))}")
    return parts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    parts = asked_for()
    for item in items:
        if HERE not in item.path.parents:
            continue
        marker = item.get_closest_marker("online")
        if marker is None or len(marker.args) != 1 or marker.args[0] not in PARTS:
            raise pytest.UsageError(f"{item.nodeid} does not say what it needs: @pytest.mark.online({' | '.join(PARTS)})")
        if marker.args[0] not in parts:
            item.add_marker(pytest.mark.skip(reason=f"needs {marker.args[0]}: set ONLINE={marker.args[0]}"))
        elif not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def logs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emulators write their output."""
    return tmp_path_factory.mktemp("emulators")


@pytest.fixture(scope="session")
def docker_engine() -> engine.Engine:
    """An engine with the image of this checkout; it goes on after the tests (`deploy/engine.py stop` ends it)."""
    return engine.prepared()


@pytest.fixture
def docker(docker_engine: engine.Engine, monkeypatch: pytest.MonkeyPatch) -> engine.Engine:
    """The engine, which is the one of DOCKER_HOST during the test."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    return docker_engine


@pytest.fixture(scope="session")
def stack() -> Mapping[str, str] | None:
    """The outputs of the stack to use, if there is one."""
    name = os.environ.get("STACK_NAME")
    return ground.stack_outputs(name) if name else None


@pytest.fixture(scope="session")
def moto(docker_engine: engine.Engine, logs_folder: Path) -> Iterator[emulators.Emulator]:
    with emulators.moto(docker_engine, logs_folder) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def ministack(docker_engine: engine.Engine, logs_folder: Path) -> Iterator[emulators.Emulator]:
    with emulators.ministack(docker_engine, logs_folder) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def batch_ground(request: pytest.FixtureRequest, stack: Mapping[str, str] | None) -> ground.Batch:
    if stack is not None:
        return ground.stack_batch(stack)
    emulator: emulators.Emulator = request.getfixturevalue("moto")
    return ground.emulated_batch(emulator.url, request.getfixturevalue("docker_engine"))


@pytest.fixture(scope="session")
def ecs_ground(request: pytest.FixtureRequest, stack: Mapping[str, str] | None) -> ground.Ecs:
    if stack is not None:
        return ground.stack_ecs(stack)
    emulator: emulators.Emulator = request.getfixturevalue("ministack")
    return ground.emulated_ecs(emulator.url, request.getfixturevalue("docker_engine"))


@pytest.fixture
def batch(batch_ground: ground.Batch, monkeypatch: pytest.MonkeyPatch) -> ground.Batch:
    """AWS Batch; this process reaches it, and no other account, during the test."""
    return visited(batch_ground, monkeypatch)


@pytest.fixture
def ecs(ecs_ground: ground.Ecs, monkeypatch: pytest.MonkeyPatch) -> ground.Ecs:
    """ECS; this process reaches it, and no other account, during the test."""
    return visited(ecs_ground, monkeypatch)


@pytest.fixture
def vpc_ecs(
    request: pytest.FixtureRequest,
    stack: Mapping[str, str] | None,
    docker_engine: engine.Engine,
    logs_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ground.Ecs]:
    """ECS whose tasks have networks of their own, as on Fargate; as `ecs` in all else."""
    if stack is not None:
        made: ground.Ecs = request.getfixturevalue("ecs_ground")
        if not made.subnets:
            pytest.skip("tasks of this stack are on the network of their instance")
        yield visited(made, monkeypatch)
        return
    if docker_engine.address == "127.0.0.1":
        pytest.skip("containers of this engine do not reach this machine")
    with emulators.ministack(docker_engine, logs_folder, docker_engine.address) as emulator:
        yield visited(ground.emulated_ecs(emulator.url, docker_engine, own_network=True), monkeypatch)


def visited(aws: A, monkeypatch: pytest.MonkeyPatch) -> A:
    if aws.emulated:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    return aws


@pytest.fixture(scope="session")
def batch_proxy(
    request: pytest.FixtureRequest, stack: Mapping[str, str] | None, logs_folder: Path
) -> Iterator[emulators.Emulator]:
    with proxy_of("moto", request, stack, logs_folder) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def ecs_proxy(request: pytest.FixtureRequest, stack: Mapping[str, str] | None, logs_folder: Path) -> Iterator[emulators.Emulator]:
    with proxy_of("ministack", request, stack, logs_folder) as emulator:
        yield emulator


@contextlib.contextmanager
def proxy_of(
    name: str, request: pytest.FixtureRequest, stack: Mapping[str, str] | None, logs_folder: Path
) -> Iterator[emulators.Emulator]:
    if stack is not None:
        pytest.skip("faults come between these tests and an emulator")
    emulator: emulators.Emulator = request.getfixturevalue(name)
    docker_engine: engine.Engine = request.getfixturevalue("docker_engine")
    with emulators.microburst(emulator.url, docker_engine.address, logs_folder) as proxy:
        yield proxy


@pytest.fixture
def batch_faults(
    batch: ground.Batch, batch_proxy: emulators.Emulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[emulators.Emulator]:
    """A proxy between this process and the emulator of AWS Batch, with no rules yet.

    `batch_faults.request("POST", "/_microburst/rules", [...])` sets them, `("GET", "/_microburst/fired")` tells what came of it.
    """
    with visited_by(batch_proxy, monkeypatch):
        yield batch_proxy


@pytest.fixture
def ecs_faults(ecs: ground.Ecs, ecs_proxy: emulators.Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[emulators.Emulator]:
    """As `batch_faults`, before the emulator of ECS."""
    with visited_by(ecs_proxy, monkeypatch):
        yield ecs_proxy


@contextlib.contextmanager
def visited_by(proxy: emulators.Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.request("POST", "/_microburst/rules", [])
    proxy.request("DELETE", "/_microburst/fired")
    yield
    proxy.request("POST", "/_microburst/rules", [])
