"""`aiocluster image` and `aiocluster job register` as a person runs them: an engine builds, a registry takes, Batch is told."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import aiocluster
from tests.online.emulators import Emulator
from tests.online.engine import Engine
from tests.online.ground import Batch, Ecs

SOON_S = 120.0


class Ran(NamedTuple):
    code: int
    out: str
    err: str


async def command(*arguments: str, folder: Path) -> Ran:
    line = [sys.executable, "-m", "aiocluster.cli.main", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *line, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd=folder, env=dict(os.environ)
    )
    out, err = await asyncio.wait_for(process.communicate(), SOON_S)
    return Ran(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
def name(docker: Engine) -> Iterator[str]:
    """For an image, and for a repository; no image with it in its name is left."""
    unique = f"image-{uuid.uuid4().hex[:8]}"
    yield unique
    listed = docker.docker("images", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}").splitlines()
    for repository, tag, digest in (line.split() for line in listed if unique in line):
        docker.docker("rmi", f"{repository}:{tag}" if tag != "<none>" else f"{repository}@{digest}", check=False)


@pytest.fixture
def registry(ecs: Ecs, ministack: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """Host and port: what the emulator says of its repositories is a name that the engine does not find."""
    if not ecs.emulated:
        pytest.skip("a repository of its own would be made in the account")
    host = ministack.url.rpartition("/")[2]
    monkeypatch.setenv("AIOCLUSTER_REGISTRY", host)
    return host


@pytest.mark.online("ecs")
async def test_a_script_is_built_pushed_and_runs_from_the_registry(
    docker: Engine, registry: str, ecs: Ecs, name: str, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "hello.py").write_text(
        "import os, pathlib, aiocluster\n"
        "pathlib.Path('written').touch()\n"
        "print(os.getcwd(), os.getuid() != 0, bool(aiocluster.__version__))\n"
    )
    built = await command(
        "image", "build", "tools/hello.py", "--base", docker.image, "--tag", f"{name}:1", "--json", folder=tmp_path
    )
    assert built.code == 0, built.err
    assert json.loads(built.out)["tag"] == f"{name}:1"
    assert "Step 1/" in built.err, "each line of the build is told"

    missing = await command("image", "push", f"{name}:1", "--repository", name, folder=tmp_path)
    assert (missing.code, missing.out) == (1, "")
    pushed = await command("image", "push", f"{name}:1", "--repository", name, "--create", "--json", folder=tmp_path)
    assert pushed.code == 0, pushed.err
    assert ": Pushed" in pushed.err or ": Layer already exists" in pushed.err, "each layer is told"
    told = json.loads(pushed.out)
    assert told["reference"] == f"{registry}/{name}@{told['digest']}"
    with ecs.client("ecr") as ecr:
        (image,) = ecr.describe_images(repositoryName=name)["imageDetails"]
    assert (image["imageDigest"], image["imageTags"]) == (told["digest"], ["latest"])

    docker.docker("rmi", f"{name}:1", f"{registry}/{name}:latest")
    docker.docker("pull", told["reference"])
    ran = docker.docker("run", "--rm", told["reference"], "python", "tools/hello.py")
    assert ran == "/work True True\n"


@pytest.mark.online("ecs")
async def test_what_the_engine_does_not_have_cannot_be_pushed(registry: str, name: str, tmp_path: Path) -> None:
    ran = await command("image", "push", f"{name}:1", "--repository", name, "--create", folder=tmp_path)
    assert ran.code == 1
    assert f"has no image {name}:1" in ran.err
    assert registry not in ran.out


@pytest.mark.online("docker")
async def test_jobs_may_write_to_their_folder_on_a_base_that_has_none(docker: Engine, name: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {docker.image}\nUSER root\nWORKDIR /\nRUN rm -r /work\n")
    (tmp_path / "write.py").write_text("open('written', 'w').write('x')\nprint('done')\n")
    base = await command("image", "build", "--tag", f"{name}:base", folder=tmp_path)
    assert base.code == 0, base.err
    built = await command("image", "build", "write.py", "--base", f"{name}:base", "--tag", f"{name}:1", folder=tmp_path)
    assert built.code == 0, built.err
    assert docker.docker("run", "--rm", f"{name}:1", "python", "write.py") == "done\n"


def make_a_stranger(folder: Path) -> None:
    """A wheel of another project with the same name."""
    source = folder / "source"
    (source / "aiocluster").mkdir(parents=True)
    (source / "aiocluster" / "__init__.py").write_text("raise SystemExit('a stranger')\n")
    (source / "pyproject.toml").write_text("[project]\nname = 'aiocluster'\nversion = '1.1.0'\n")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), str(source)]
    subprocess.run(pip, check=True, timeout=SOON_S)


@pytest.mark.parametrize("instead", ["nothing", "another's"])
@pytest.mark.online("docker")
async def test_an_image_has_the_aiocluster_that_makes_it_whatever_its_base_has(
    docker: Engine, name: str, tmp_path: Path, instead: str
) -> None:
    lines = [f"FROM {docker.image}", "USER root", "RUN python -m pip uninstall --yes aiocluster"]
    if instead == "another's":
        await asyncio.to_thread(make_a_stranger, tmp_path)
        lines += ["COPY aiocluster-1.1.0-py3-none-any.whl /tmp/", "RUN python -m pip install --no-index /tmp/*.whl"]
    (tmp_path / "Dockerfile").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "script.py").write_text("import aiocluster\nprint(aiocluster.__version__)\n")
    base = await command("image", "build", "--tag", f"{name}:base", folder=tmp_path)
    assert base.code == 0, base.err
    built = await command("image", "build", "script.py", "--base", f"{name}:base", "--tag", f"{name}:1", folder=tmp_path)
    assert built.code == 0, built.err
    ran = docker.docker("run", "--rm", f"{name}:1", "python", "script.py")
    assert ran == f"{aiocluster.__version__}\n"
    assert "stack deploy" in docker.docker("run", "--rm", f"{name}:1", "aiocluster", "stack", "deploy", "--help")


@pytest.mark.online("docker")
async def test_a_dockerfile_that_fails_is_told_with_the_step_and_the_reason(docker: Engine, name: str, tmp_path: Path) -> None:
    (tmp_path / "Broken").write_text(f"FROM {docker.image}\nRUN echo before\nRUN echo the reason && exit 7\n")
    ran = await command("image", "build", "--file", "Broken", "--tag", f"{name}:1", folder=tmp_path)
    assert (ran.code, ran.out) == (1, "")
    failure = ran.err[ran.err.index("Broken could not be built") :]
    assert "at `RUN echo the reason && exit 7`" in failure
    assert "    the reason" in failure
    assert "7" in failure.splitlines()[0].rpartition("`")[2], "the exit code"
    assert "    before" not in failure, "of other steps nothing"
    assert name not in docker.docker("images", "--format", "{{.Repository}}")


@pytest.mark.online("docker")
async def test_what_is_ignored_is_not_in_the_image(docker: Engine, name: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {docker.image}\nCOPY . /tmp/project\n")
    (tmp_path / ".dockerignore").write_text("*.secret\n")
    (tmp_path / "key.secret").touch()
    (tmp_path / "code.py").touch()
    built = await command("image", "build", "--tag", f"{name}:1", folder=tmp_path)
    assert built.code == 0, built.err
    assert docker.docker("run", "--rm", f"{name}:1", "ls", "/tmp/project").split() == ["Dockerfile", "code.py"]


@pytest.mark.online("docker")
async def test_without_an_engine_the_command_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hello.py").touch()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    ran = await command("image", "build", "hello.py", folder=tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert f"cannot reach a Docker engine at unix://{tmp_path}/none.sock" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.online("batch")
async def test_a_definition_is_registered_once_and_used_again(batch: Batch, name: str, tmp_path: Path) -> None:
    if not batch.emulated:
        pytest.skip("definitions would be left in the account")
    for more, kind in (((), "container"), (("--nodes", "3"), "multinode")):
        asked = ("job", "register", batch.image, "--name", f"{name}-{kind}", "--like", batch.definition, "--memory", "256", *more)
        first = await command(*asked, "--json", folder=tmp_path)
        assert first.code == 0, first.err
        again = await command(*asked, "--json", folder=tmp_path)
        assert json.loads(first.out) == json.loads(again.out) == {"definition": f"{name}-{kind}:1"}
        other = await command(*asked, "--vcpus", "2", "--json", folder=tmp_path)
        assert json.loads(other.out) == {"definition": f"{name}-{kind}:2"}
        with batch.client("batch") as client:
            found = client.describe_job_definitions(jobDefinitionName=f"{name}-{kind}")["jobDefinitions"]
        assert {one["revision"] for one in found} == {1, 2}
        assert {one["type"] for one in found} == {kind}
