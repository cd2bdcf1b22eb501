"""From a script on a laptop to its results on disk, by the command alone: a stack, an image, a definition, a job, its workers."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.online.emulators import Emulator
from tests.online.ground import Batch

pytestmark = [pytest.mark.online("batch"), pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SOON_S = 240.0


class Ran(NamedTuple):
    code: int
    out: str
    err: str


async def command(*arguments: str, folder: Path = EXAMPLES) -> Ran:
    line = [sys.executable, "-m", "aiocluster.cli.main", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *line, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=folder, env=dict(os.environ)
    )
    out, err = await asyncio.wait_for(process.communicate(), SOON_S)
    return Ran(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
async def made(batch: Batch, ministack: Emulator, docker: object, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """An account with nothing in it but a stack; images go to a registry that the engine can reach."""
    if not batch.emulated:
        pytest.skip("a stack of its own would be made in the account")
    monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", ministack.url)
    monkeypatch.setenv("AIOCLUSTER_REGISTRY", ministack.url.rpartition("/")[2])
    name = f"whole-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("AIOCLUSTER_STACK", name)
    deployed = await command("stack", "deploy")
    assert deployed.code == 0, deployed.err
    repository = json.loads((await command("stack", "outputs", "--json")).out)["Ecr"]
    images = replace(batch, environ={**batch.environ, "AWS_ENDPOINT_URL_ECR": ministack.url})
    with images.client("ecr") as ecr:  # the stack's own is in the other emulator
        ecr.create_repository(repositoryName=repository)
    yield name
    deleted = await command("stack", "delete", "--yes", "--empty")
    assert deleted.code == 0, deleted.err


async def test_one_line_leads_from_a_script_to_its_results(batch: Batch, made: str, tmp_path: Path) -> None:
    env = [item for key, value in batch.job_environ.items() for item in ("--env", f"{key}={value}")]
    everything = ["--build", "--push", "--register", "--wait", "--follow", "--results", str(tmp_path / "results")]
    ran = await command(
        "job", "submit", "monte_carlo.py", *everything, "--base", batch.image, "--workers", "2", *env, "--samples", "20"
    )
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[-1].startswith("pi is about 3.1")
    assert "pushed " in ran.err
    assert f"registered {made}-monte_carlo:1" in ran.err

    figures = pickle.loads((tmp_path / "results" / "pi.pickle").read_bytes())
    assert figures["samples"] == 20

    listed = json.loads((await command("job", "list", "--json")).out)
    (job,) = (job for job in listed if job["id"] in ran.err)
    assert job["status"] == "SUCCEEDED"
    seen = json.loads((await command("job", "status", job["id"], "--json")).out)
    (array,) = seen["children"]
    assert len(array["children"]) == 2
    assert array["queue"] != seen["queue"], "workers wait in a queue of their own"
    logs = await command("job", "logs", job["id"])
    assert logs.out.splitlines() == lines
    results = await command("job", "results", job["id"])
    assert "pi.pickle" in results.out

    again = await command("job", "submit", "monte_carlo.py", *everything[:4], "--base", batch.image, "--workers", "1", *env)
    assert again.code == 0, again.err
    assert f"registered {made}-monte_carlo:1" in again.err, "the same image needs no new definition"


async def test_the_demo_says_how_many_workers_there_are_and_what_each_says(batch: Batch, made: str) -> None:
    env = [item for key, value in batch.job_environ.items() for item in ("--env", f"{key}={value}")]
    ran = await command(
        *("job", "submit", "demo.py", "--build", "--push", "--register", "--follow"),
        "--base",
        batch.image,
        "--workers",
        "3",
        *env,
    )
    assert ran.code == 0, ran.err
    first, *others = ran.out.splitlines()
    assert first == "NumWorkers = 3"
    assert [line.split()[:2] for line in others] == [["worker", "1"], ["worker", "2"], ["worker", "3"]]
    assert len({line.rpartition(" ")[2] for line in others}) == 3, "each is a job of its own"
    assert made


async def test_a_build_that_fails_says_at_which_step(made: str, batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("print('never')")
    (tmp_path / "requirements.txt").write_text("no such thing\n")
    ran = await command(
        *("job", "submit", "broken.py", "--build", "--push", "--register", "--base", batch.image), folder=tmp_path
    )
    assert ran.code == 1
    assert "the image of broken.py could not be built at `RUN python -m pip install" in ran.err
    listed = json.loads((await command("job", "list", "--json")).out)
    assert [job["name"] for job in listed if job["name"].startswith("broken")] == []
    ran = await command("job", "submit", "nothing.py", "--build", "--push", "--register", folder=tmp_path)
    assert ran.code == 1
    assert "there is no script nothing.py" in ran.err
    assert made
