"""`aiocluster job …` in processes of its own: managers that are submitted, looked at, read and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.online.batch_jobs import described, jobs_of, nodes_left
from tests.online.engine import Engine
from tests.online.ground import Batch
from tests.online.scripts import definition_with
from tests.online.waiting import until

pytestmark = pytest.mark.online("batch")

SOON_S = 90.0
LINES = 20_000
SCRIPTS = {
    "workers.py": """
import asyncio, os, sys
import aiocluster

def hello():
    print("a worker speaks", flush=True)
    return os.getpid()

async def main():
    async with aiocluster.Cluster.batch(int(sys.argv[1])) as cluster:
        print("cluster", cluster.id, flush=True)
        await cluster.everywhere(hello)
        await aiocluster.results.save("numbers", [1, 2, 3])
        if "--stay" in sys.argv:
            await asyncio.Event().wait()
        if "--fail" in sys.argv:
            raise SystemExit("on purpose")

aiocluster.run(main())
""",
    "talks.py": """
import sys
for number in range(int(sys.argv[1])):
    print(f"line {number}")
""",
}


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def definition(batch_ground: Batch, docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not batch_ground.emulated:
        pytest.skip("an image with scripts would have to be pushed first")
    with definition_with(batch_ground, docker_engine, tmp_path_factory.mktemp("scripts"), SCRIPTS) as name:
        yield name


@pytest.fixture(scope="module")
def bucket(batch_ground: Batch) -> str:
    name = f"results-{uuid.uuid4().hex[:8]}"
    with batch_ground.client("s3") as s3:
        s3.create_bucket(Bucket=name)
    return name


async def command(*arguments: str, group: str = "job", **variables: str) -> Ran:
    process = await started(*arguments, group=group, **variables)
    out, err = await asyncio.wait_for(process.communicate(), SOON_S)
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def started(*arguments: str, group: str = "job", **variables: str) -> asyncio.subprocess.Process:
    line = [sys.executable, "-m", "aiocluster.cli.main", *([group] if group else []), *arguments]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *line, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={**os.environ, **variables}
    )


def given(batch: Batch, definition: str, bucket: str) -> list[str]:
    results = f"s3://{bucket}/run-{uuid.uuid4().hex[:8]}"
    env = ["--env", f"AIOCLUSTER_RESULTS={results}", "--env", f"WORKER_JOB_QUEUE={batch.queue}"]
    return ["--queue", batch.manager_queue, "--definition", definition, *env]


async def test_a_manager_is_submitted_and_all_of_it_is_seen_by_others(
    batch: Batch, definition: str, bucket: str, tmp_path: Path
) -> None:
    ran = await command("submit", "workers.py", "2", *given(batch, definition, bucket), "--json")
    assert ran.code == 0, ran.err
    id, results = ran.data["id"], ran.data["results"]
    assert results.startswith(f"s3://{bucket}/")
    followed = await command("logs", "--follow", id)
    assert followed.code == 0, followed.err
    assert followed.out.splitlines()[0].startswith("cluster c-")
    assert "SUCCEEDED" in followed.err

    seen = (await command("status", id, "--json")).data
    assert (seen["status"], seen["results"]) == ("SUCCEEDED", results)
    (array,) = seen["children"]
    assert len(array["children"]) == 2
    assert {child["status"] for child in array["children"]} <= {"SUCCEEDED", "FAILED"}
    plain = await command("status", id)
    assert id in plain.out
    assert "(2 children)" in plain.out

    listed = (await command("list", "--json")).data
    assert id in [job["id"] for job in listed]
    assert (await command("list", "--since", "0s", "--json")).data == []

    folder = tmp_path / "results"
    assert (await command("results", id, "--download", str(folder))).code == 0
    assert [path.name for path in folder.iterdir()] == ["numbers"]
    logs = tmp_path / "logs"
    assert (await command("logs", id, "--workers", "--download", str(logs))).code == 0
    assert any("cluster c-" in path.read_text() for path in logs.glob("*.log"))


async def test_a_manager_that_fails_says_so_by_its_log_its_code_and_has_no_workers_left(
    batch: Batch, definition: str, bucket: str
) -> None:
    ran = await command("submit", "workers.py", "1", "--fail", "--wait", "--json", *given(batch, definition, bucket))
    assert ran.code == 1
    assert "FAILED" in ran.err
    assert "exit code 1" in ran.err
    id = ran.data["id"]
    log = await command("logs", id)
    assert (log.code, "on purpose" in log.out) == (0, True)
    assert (await command("logs", "--follow", id)).code == 1, "who follows it to its end has its code"
    seen = (await command("status", id, "--json")).data
    assert [job["status"] in ("SUCCEEDED", "FAILED") for job in seen["children"]] == [True]


async def test_no_line_of_many_is_lost_or_told_twice(batch: Batch, definition: str, bucket: str) -> None:
    ran = await command("submit", "talks.py", str(LINES), "--follow", *given(batch, definition, bucket))
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [f"line {number}" for number in range(LINES)]


async def test_a_manager_that_is_cancelled_ends_with_its_workers_and_nobody_elses(
    batch: Batch, definition: str, bucket: str
) -> None:
    place = given(batch, definition, bucket)
    ids, clusters = [], []
    for _ in range(2):
        ran = await command("submit", "workers.py", "1", "--stay", *place, "--json")
        ids.append(ran.data["id"])
    for id in ids:
        lines = await until(lambda: log_of(batch, id), timeout=SOON_S)  # noqa: B023  # it is called before the next
        clusters.append(lines[0].split()[1])
    with batch.client("batch") as client:  # the second one is somebody else's
        arn = described(batch, ids[1])["jobArn"]
        client.tag_resource(resourceArn=arn, tags={"aiocluster:submitter": "arn:aws:iam::1:user/other"})

    refused = await command("cancel", ids[1])
    assert refused.code == 1
    assert "was submitted by arn:aws:iam::1:user/other" in refused.err
    ended = await command("cancel", ids[0])
    assert ended.code == 0, ended.err
    await until(lambda: nodes_left(batch, clusters[0]), lambda left: left == [], timeout=SOON_S)
    reaped = await command("reap", "--kind", "batch", group="")
    assert reaped.code == 0, reaped.err
    assert described(batch, ids[1])["status"] == "RUNNING"
    assert len(nodes_left(batch, clusters[1])) == 1
    again = await command("cancel", ids[0])
    assert again.code == 0
    assert "nothing left" in again.out
    assert (await command("cancel", "--force", ids[1])).code == 0
    await until(lambda: nodes_left(batch, clusters[1]), lambda left: left == [], timeout=SOON_S)
    assert jobs_of(batch, clusters[1]) == []


def log_of(batch: Batch, id: str) -> list[str]:
    job = described(batch, id)
    stream = job["container"].get("logStreamName")
    return batch.log_lines("/aws/batch/job", stream) if stream else []


async def test_whoever_stops_following_is_told_how_to_go_on(batch: Batch, definition: str, bucket: str) -> None:
    process = await started("submit", "workers.py", "0", "--stay", "--wait", *given(batch, definition, bucket))
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), SOON_S)).decode()
    id = line.split()[-1]
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), SOON_S)
    assert process.returncode == 130
    assert "the job goes on" in err.decode()
    assert described(batch, id)["status"] not in ("SUCCEEDED", "FAILED")
    assert (await command("cancel", id)).code == 0


async def test_what_is_not_there_is_named(batch: Batch, definition: str) -> None:
    ran = await command("status", str(uuid.uuid4()))
    assert ran.code == 1
    assert "AWS Batch has no job" in ran.err
    ran = await command("submit", "x.py", "--queue", batch.manager_queue, "--definition", "nothing-like-it")
    assert ran.code == 1
    assert "there is no job definition nothing-like-it" in ran.err
    ran = await command("submit", "x.py", AIOCLUSTER_STACK="nothing-like-it")
    assert ran.code == 1
    assert "no stack nothing-like-it" in ran.err
