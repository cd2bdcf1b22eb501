"""Marks of what was started: who started it, and whether that one still runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aiocluster.launch import marks
from aiocluster.launch.marks import CLUSTER, CREATED, MANAGER, Leftover, alive, leftover, manager_tag, tags
from tests.unit.launch.metadata_server import Metadata, metadata_served

ALLOWED = re.compile(r"[A-Za-z0-9+\-=._:/@]{1,256}")
"""What the value of a tag of AWS Batch and ECS may be, less the space."""
ARN = "arn:aws:ecs:eu-west-1:123456789012:task/default/cd189a933e5849daa93386466019ab50"


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "own_container_id", lambda: None)
    for name in ("AWS_BATCH_JOB_ID", "ECS_CONTAINER_METADATA_URI_V4"):
        monkeypatch.delenv(name, raising=False)


async def test_what_is_started_is_marked_with_cluster_manager_and_time() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    made = await tags("c-123")
    assert set(made) == {CLUSTER, MANAGER, CREATED} == {"aiocluster:cluster", "aiocluster:manager", "aiocluster:created"}
    assert made[CLUSTER] == "c-123"
    assert made[MANAGER] == await manager_tag()
    assert before <= datetime.fromisoformat(made[CREATED]) <= datetime.now(UTC)
    assert made[CREATED].endswith("Z")
    assert all(ALLOWED.fullmatch(value) for value in made.values())


async def test_a_host_name_of_any_kind_fits_into_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Jürgen's Mac:1 " * 30)
    assert ALLOWED.fullmatch(await manager_tag())
    assert alive(await manager_tag()) is True


# --- who -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("job", "tag"), [("8f3a:2", "batch:8f3a:2"), ("8f3a#0", "batch:8f3a@0"), ("8f3a-55", "batch:8f3a-55")])
async def test_a_job_is_told_by_its_id(job: str, tag: str) -> None:
    assert await manager_tag({"AWS_BATCH_JOB_ID": job, "ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:1/v4/x"}) == tag


async def test_a_container_is_told_by_its_id_and_the_process_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _kind, _host, process = (await manager_tag({})).split(":", 2)
    monkeypatch.setattr(marks, "own_container_id", lambda: "b45e59edf7c9")
    assert await manager_tag({}) == f"container:b45e59edf7c9:{process}"
    assert alive(await manager_tag({})) is True
    assert ALLOWED.fullmatch(f"container:{'f' * 64}:{process}")


async def test_a_manager_that_has_ended_is_known_while_its_container_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "own_container_id", lambda: "b45e59edf7c9")
    tag = await manager_tag({})
    another = f"{tag.rpartition(':')[0]}:1"  # one with the same number that began before
    assert alive(another) is False
    for state, known in ((True, False), (False, False), (None, False)):
        assert left_by(another, state) is known
    for state, known in ((True, True), (False, False), (None, True)):
        assert left_by(tag, state) is known


def left_by(manager: str, state: bool | None) -> bool | None:
    """Whether it runs, where the state of its container, job or task is known."""
    return leftover({MANAGER: manager}, kind="k", id="i", name="n", state="s", manager_alive=state).alive


def test_a_process_that_cannot_be_judged_is_not_alive_because_its_container_is() -> None:
    assert left_by("container:b45e59edf7c9:00000000-effffffc:1:100", True) is None
    assert left_by("container:b45e59edf7c9:00000000-effffffc:1:100", False) is False


def test_containers_of_the_older_form_are_judged_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "own_container_id", lambda: "b45e59edf7c9")
    assert alive("container:b45e59edf7c9") is True
    assert alive("container:b45e59ed") is None
    assert left_by("container:0f1122334455", True) is True


@pytest.mark.parametrize(("numbers", "runs"), [("NSpid:\t{pid}\t7\n", True), ("NSpid:\t{pid}\t8\n", None), ("NSpid:\t7\n", None)])
async def test_a_process_of_a_namespace_below_is_seen_from_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, numbers: str, runs: bool | None
) -> None:
    _kind, _host, machine, pid, started = (await manager_tag({})).split(":")
    (tmp_path / "status").write_text(f"Name:\tx\n{numbers.format(pid=pid)}")

    def opened(path: str, *arguments: Any, **more: Any) -> Any:
        return open(tmp_path / "status" if path == f"/proc/{pid}/status" else path, *arguments, **more)

    monkeypatch.setattr(marks, "open", opened, raising=False)
    assert alive(f"container:b45e59edf7c9:{machine}1:7:{started}") is runs
    assert alive(f"container:b45e59edf7c9:{machine}1:7:1") is None


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with metadata_served() as served:
        yield served
    marks._arns.clear()


async def test_a_task_is_told_by_its_arn_which_is_asked_for_once(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata.task = [500, {"Cluster": "default", "TaskARN": ARN}]
    monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", metadata.url)
    assert (await manager_tag()).startswith("process:")
    assert alive(f"ecs:{ARN}") is None
    assert await manager_tag() == await manager_tag() == f"ecs:{ARN}"
    assert alive(f"ecs:{ARN}") is True
    assert len(metadata.asked) == 2


async def test_the_loop_goes_on_while_the_metadata_are_asked_for() -> None:
    """The endpoint is served by this loop: a request that blocked it would never be answered."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps({"TaskARN": ARN}).encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await manager_tag({"ECS_CONTAINER_METADATA_URI_V4": f"http://{host}:{port}/v4/x"}) == f"ecs:{ARN}"
    marks._arns.clear()


@pytest.mark.parametrize("answer", [b"", b"[]", b"not json", b'{"TaskARN": 7}', b'{"TaskARN": ""}', b"\xff", 500])
async def test_metadata_that_make_no_sense_are_passed_over(metadata: Metadata, answer: bytes | int) -> None:
    metadata.task = [answer]
    assert (await manager_tag(metadata.environ)).startswith("process:")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/v4/nobody-there", "nonsense"])
async def test_metadata_that_do_not_answer_are_passed_over(address: str) -> None:
    assert (await manager_tag({"ECS_CONTAINER_METADATA_URI_V4": address})).startswith("process:")


# --- alive ---------------------------------------------------------------------------------------------------------------


async def test_this_process_runs() -> None:
    assert alive(await manager_tag()) is True


def test_another_process_of_this_machine_is_known_to_run_and_to_have_ended() -> None:
    program = (
        "import asyncio; from aiocluster.launch.marks import manager_tag; print(asyncio.run(manager_tag()), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        tag = process.stdout.readline().strip()
        if tag.startswith("process:"):
            assert alive(tag) is True
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken its status
        assert alive(tag) is False
        process.wait()
        assert alive(tag) is False


async def test_a_process_with_the_same_number_that_began_later_is_another() -> None:
    kind, host, machine, pid, started = (await manager_tag()).split(":")
    assert alive(f"{kind}:{host}:{machine}:{pid}:{int(started) - 1}") is False


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "batch:8f3a",
        f"ecs:{ARN}",
        "container:b45e59edf7c9",
        "process:elsewhere:00000000-effffffc:1:100",
        "container:b45e59edf7c9:00000000-effffffc:1:100",
        "container:b45e59edf7c9:00000000:one:100",
        "process:short",
        "process:a:b:c:d:e",
    ],
)
def test_what_cannot_be_judged_from_here_is_not_judged(tag: str) -> None:
    assert alive(tag) is None


async def test_a_process_of_this_machine_with_no_number_is_not_judged() -> None:
    _kind, host, machine, _pid, started = (await manager_tag()).split(":")
    assert alive(f"process:{host}:{machine}:one:{started}") is None


# --- what is left --------------------------------------------------------------------------------------------------------


async def test_marks_are_read_back() -> None:
    found = leftover(await tags("c-123"), kind="batch job", id="j-1", name="workers", state="RUNNABLE", where="eu-west-1")
    assert found == Leftover(
        kind="batch job",
        id="j-1",
        name="workers",
        state="RUNNABLE",
        cluster="c-123",
        manager=await manager_tag(),
        created=found.created,
        alive=True,
        where="eu-west-1",
    )
    assert found.created is not None
    assert found.created.tzinfo is UTC


@pytest.mark.parametrize("created", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_marks_that_make_no_sense_are_no_error(created: str) -> None:
    found = leftover({CREATED: created}, kind="k", id="i", name="n", state="s")
    assert (found.cluster, found.manager, found.created, found.alive) == ("", "", None, None)


@pytest.mark.parametrize("known", [True, False])
def test_what_the_infrastructure_knows_of_the_manager_counts(known: bool) -> None:
    assert leftover({MANAGER: "container:x"}, kind="k", id="i", name="n", state="s", manager_alive=known).alive is known
