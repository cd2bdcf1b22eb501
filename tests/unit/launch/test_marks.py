"""Marks of what was started: who started it, and whether that one still runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from aiocluster.launch import marks
from aiocluster.launch.marks import CLUSTER, CREATED, MANAGER, Leftover, alive, leftover, manager_tag, tags

ALLOWED = re.compile(r"[A-Za-z0-9+\-=._:/@]{1,256}")
"""What the value of a tag of AWS Batch and ECS may be, less the space."""
ARN = "arn:aws:ecs:eu-west-1:123456789012:task/default/cd189a933e5849daa93386466019ab50"


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "own_container_id", lambda: None)
    for name in ("AWS_BATCH_JOB_ID", "ECS_CONTAINER_METADATA_URI_V4"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_started_is_marked_with_cluster_manager_and_time() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    made = tags("c-123")
    assert set(made) == {CLUSTER, MANAGER, CREATED} == {"aiocluster:cluster", "aiocluster:manager", "aiocluster:created"}
    assert made[CLUSTER] == "c-123"
    assert made[MANAGER] == manager_tag()
    assert before <= datetime.fromisoformat(made[CREATED]) <= datetime.now(UTC)
    assert made[CREATED].endswith("Z")
    assert all(ALLOWED.fullmatch(value) for value in made.values())


def test_a_host_name_of_any_kind_fits_into_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Jürgen's Mac:1 " * 30)
    assert ALLOWED.fullmatch(manager_tag())
    assert alive(manager_tag()) is True


# --- who -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("job", "tag"), [("8f3a:2", "batch:8f3a:2"), ("8f3a#0", "batch:8f3a@0"), ("8f3a-55", "batch:8f3a-55")])
def test_a_job_is_told_by_its_id(job: str, tag: str) -> None:
    assert manager_tag({"AWS_BATCH_JOB_ID": job, "ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:1/v4/x"}) == tag


def test_a_container_is_told_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "own_container_id", lambda: "b45e59edf7c9")
    assert manager_tag({}) == "container:b45e59edf7c9"
    assert alive("container:b45e59edf7c9") is True
    assert alive("container:0f1122334455") is None


@pytest.fixture
def metadata() -> Iterator[Callable[[bytes], str]]:
    """Serves an answer as the metadata of a task; gives its address."""
    answer = b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v4/task-1/task" else 404)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def serve(content: bytes) -> str:
        nonlocal answer
        answer = content
        marks._task_arn.cache_clear()
        return f"http://127.0.0.1:{server.server_port}/v4/task-1"

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()
    marks._task_arn.cache_clear()


def test_a_task_is_told_by_its_arn(metadata: Callable[[bytes], str]) -> None:
    address = metadata(json.dumps({"Cluster": "default", "TaskARN": ARN}).encode())
    assert manager_tag({"ECS_CONTAINER_METADATA_URI_V4": address}) == f"ecs:{ARN}"


@pytest.mark.parametrize("answer", [b"", b"[]", b"not json", b'{"TaskARN": 7}', b'{"TaskARN": ""}', b"\xff"])
def test_metadata_that_make_no_sense_are_passed_over(metadata: Callable[[bytes], str], answer: bytes) -> None:
    assert manager_tag({"ECS_CONTAINER_METADATA_URI_V4": metadata(answer)}).startswith("process:")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/v4/nobody-there", "nonsense"])
def test_metadata_that_do_not_answer_are_passed_over(address: str) -> None:
    assert manager_tag({"ECS_CONTAINER_METADATA_URI_V4": address}).startswith("process:")


# --- alive ---------------------------------------------------------------------------------------------------------------


def test_this_process_runs() -> None:
    assert alive(manager_tag()) is True


def test_another_process_of_this_machine_is_known_to_run_and_to_have_ended() -> None:
    program = "from aiocluster.launch.marks import manager_tag; print(manager_tag(), flush=True); input()"
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


def test_a_process_with_the_same_number_that_began_later_is_another() -> None:
    kind, host, machine, pid, started = manager_tag().split(":")
    assert alive(f"{kind}:{host}:{machine}:{pid}:{int(started) - 1}") is False


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "batch:8f3a",
        f"ecs:{ARN}",
        "container:b45e59edf7c9",
        "process:elsewhere:00000000-effffffc:1:100",
        "process:short",
        "process:a:b:c:d:e",
    ],
)
def test_what_cannot_be_judged_from_here_is_not_judged(tag: str) -> None:
    assert alive(tag) is None


def test_a_process_of_this_machine_with_no_number_is_not_judged() -> None:
    _kind, host, machine, _pid, started = manager_tag().split(":")
    assert alive(f"process:{host}:{machine}:one:{started}") is None


# --- what is left --------------------------------------------------------------------------------------------------------


def test_marks_are_read_back() -> None:
    found = leftover(tags("c-123"), kind="batch job", id="j-1", name="workers", state="RUNNABLE", where="eu-west-1")
    assert found == Leftover(
        kind="batch job",
        id="j-1",
        name="workers",
        state="RUNNABLE",
        cluster="c-123",
        manager=manager_tag(),
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
