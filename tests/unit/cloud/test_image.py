"""Images: what the engine is given, what it tells, and where they are pushed to."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any, cast

import pytest

from aiocluster._version import __version__
from aiocluster.cloud.context import Folder, Script, path_in_image
from aiocluster.cloud.image import build, local_tag, opened_engine
from aiocluster.cloud.own_wheel import PACKAGE, own_wheel
from aiocluster.cloud.registry import push
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import AwsError, Fault
from aiocluster.launch.engine import GONE, Engine, EngineError

DIGEST = "sha256:" + "ab" * 32
SECRET = "not for anybody's eyes"


class Builder:
    """An engine that takes what it is given and tells what a test says."""

    host = "unix:///fake.sock"

    def __init__(self, *told: Mapping[str, Any] | Exception) -> None:
        self.told = told
        self.files: dict[str, bytes] = {}
        self.owners: set[tuple[int, str, float]] = set()
        self.arguments: Mapping[str, str] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.sent = b""

    async def build(self, context: IO[bytes], tag: str, arguments: Mapping[str, str]) -> AsyncIterator[Mapping[str, Any]]:
        self.sent = context.read()
        with tarfile.open(fileobj=io.BytesIO(self.sent), mode="r:gz") as tar:
            for member in tar:
                taken = tar.extractfile(member)
                self.files[member.name] = taken.read() if taken else b""
                self.owners.add((member.uid, member.uname, member.mtime))
        self.arguments = arguments
        for one in self.told:
            if isinstance(one, Exception):
                raise one
            yield one

    async def image_id(self, name: str) -> str:
        return f"sha256:of-{name}"

    async def tag(self, image: str, repository: str, tag: str) -> None:
        self.asked.append(("tag", image, repository, tag))
        if image == "gone":
            raise EngineError(GONE, "No such image: gone")

    async def push(self, repository: str, tag: str, credentials: Mapping[str, str] | None) -> AsyncIterator[Mapping[str, Any]]:
        self.asked.append(("push", repository, tag, credentials))
        for one in self.told:
            if isinstance(one, Exception):
                raise one
            yield one


def as_engine(builder: Builder) -> Engine:
    return cast(Engine, builder)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- from a script -----------------------------------------------------------------------------------------------------------


async def test_a_scripts_image_has_the_script_its_requirements_and_a_user_without_rights(project: Path) -> None:
    (project / "tools").mkdir()
    (project / "tools" / "run.py").write_text("print(1)")
    (project / "tools" / "requirements.txt").write_text("numpy\n")
    builder = Builder({"stream": "Step 1/2 : ARG BASE\n"}, {"aux": {"ID": DIGEST}})
    lines: list[str] = []
    built = await build(as_engine(builder), Script(path="tools/run.py", base="mine:1"), "run:latest", lines.append)
    assert (built.id, built.tag) == (DIGEST, "run:latest")
    assert builder.arguments == {"BASE": "mine:1"}
    assert builder.files["constraints.txt"].decode() == f"aiocluster @ file:///tmp/aiocluster-{__version__}-py3-none-any.whl\n"
    assert (builder.files["script"], builder.files["requirements.txt"]) == (b"print(1)", b"numpy\n")
    dockerfile = builder.files["Dockerfile"].decode()
    assert 'COPY ["script", "/work/tools/run.py"]' in dockerfile
    assert f"RUN python -m pip install --no-cache-dir /tmp/aiocluster-{__version__}-py3-none-any.whl" in dockerfile
    assert "RUN mkdir -p /work && chown aiocluster /work\n" in dockerfile
    assert dockerfile.rstrip().splitlines()[-2:] == ["USER aiocluster", 'CMD ["aiocluster", "agent"]']
    assert lines == ["Step 1/2 : ARG BASE"]


@pytest.mark.parametrize("name", ['q"uote.py', "a b.py", "ä.py", "[x].py", "-dash.py"])
async def test_odd_names_of_scripts_are_names_in_the_image(project: Path, name: str) -> None:
    (project / name).touch()
    builder = Builder()
    await build(as_engine(builder), Script(path=name), "a:1")
    (line,) = [line for line in builder.files["Dockerfile"].decode().splitlines() if line.startswith('COPY ["script"')]
    assert json.loads(line.removeprefix("COPY ")) == ["script", f"/work/{name}"]


@pytest.mark.parametrize("name", ["a$b.py", "a\nRUN x.py", "a\\b.py", "\x1b.py"])
async def test_names_that_mean_something_in_a_dockerfile_are_refused(project: Path, name: str) -> None:
    (project / name).touch()
    with pytest.raises(LaunchError, match="cannot be the name of a script in an image"):
        await build(as_engine(Builder()), Script(path=name), "a:1")


@pytest.mark.parametrize(
    ("script", "tag"),
    [
        ("tools/Run.py", "aiocluster-run:latest"),
        ("a___b.py", "aiocluster-a-b:latest"),
        ("lr0.01.py", "aiocluster-lr0-01:latest"),
        ("___.py", "aiocluster-job:latest"),
    ],
)
def test_images_of_scripts_have_names_that_engines_take(script: str, tag: str) -> None:
    assert local_tag(script) == tag


async def test_the_same_script_gives_the_same_bytes(project: Path) -> None:
    script = project / "run.py"
    script.write_text("print(1)")
    one, other = Builder(), Builder()
    await build(as_engine(one), Script(path="run.py"), "a:1")
    os.utime(script, (1, 1))
    await build(as_engine(other), Script(path="run.py"), "a:1")
    assert one.sent == other.sent
    assert one.owners == {(0, "", 0)}


async def test_aiocluster_comes_from_here_and_by_its_name_from_nowhere(project: Path) -> None:
    (project / "run.py").touch()
    builder = Builder()
    await build(as_engine(builder), Script(path="run.py"), "a:1")
    wheel = own_wheel()
    assert builder.files[wheel.name] == wheel.content
    installing = [line for line in builder.files["Dockerfile"].decode().splitlines() if "install" in line]
    pip = "python -m pip install --no-cache-dir"
    assert installing == [f"RUN {pip} /tmp/{wheel.name} && {pip} --no-deps --force-reinstall /tmp/{wheel.name}"]


def test_the_own_wheel_installs_the_code_that_runs_here(tmp_path: Path) -> None:
    wheel = own_wheel()
    (tmp_path / wheel.name).write_bytes(wheel.content)
    installed = tmp_path / "in"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--target", str(installed)]
    subprocess.run([*pip, str(tmp_path / wheel.name)], check=True, capture_output=True, timeout=60)
    assert (installed / "aiocluster" / "cloud" / "templates" / "batch.yml").is_file()
    for path in PACKAGE.rglob("*.py"):
        assert (installed / "aiocluster" / path.relative_to(PACKAGE)).read_bytes() == path.read_bytes()
    (there,) = metadata.distributions(path=[str(installed)])
    here = metadata.distribution("aiocluster")
    assert (there.version, there.requires) == (here.version, here.requires)
    assert there.read_text("METADATA") == here.read_text("METADATA")
    assert [point.name for point in there.entry_points] == ["aiocluster"]
    with zipfile.ZipFile(tmp_path / wheel.name) as packed:
        names = packed.namelist()
    assert not [name for name in names if "__pycache__" in name or name.endswith("direct_url.json")]


def test_what_is_not_installed_goes_into_no_image() -> None:
    with pytest.raises(LaunchError, match="is not installed"):
        own_wheel("a-distribution-that-nobody-has")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Script(path="none.py"), "there is no script none.py"),
        (Script(path="run.py", requirements="none.txt"), "there is no file none.txt"),
        (Folder(dockerfile="None"), "there is no None"),
    ],
)
async def test_what_is_not_there_is_named(project: Path, script: Script | Folder, why: str) -> None:
    (project / "run.py").touch()
    with pytest.raises(LaunchError, match=why):
        await build(as_engine(Builder()), script, "a:1")


@pytest.mark.parametrize(
    ("given", "inside"),
    [("run.py", "run.py"), ("./a/b.py", "a/b.py"), ("/abs/run.py", "run.py"), ("../up.py", "up.py"), ("a/../b.py", "b.py")],
)
def test_a_script_is_in_its_image_as_it_is_named(given: str, inside: str) -> None:
    assert str(path_in_image(given)) == inside


async def test_a_step_that_fails_is_told_with_its_last_lines(project: Path) -> None:
    (project / "run.py").touch()
    told: list[Mapping[str, Any] | Exception] = [
        {"stream": "Step 1/9 : FROM x\n"},
        {"stream": "fine\n"},
        {"stream": "Step 2/9 : RUN python -m pip install numpi\n"},
        {"stream": "ERROR: no numpi\n"},
        EngineError(500, "returned a non-zero code: 1"),
    ]
    with pytest.raises(LaunchError) as caught:
        await build(as_engine(Builder(*told)), Script(path="run.py"), "a:1")
    assert "the image of run.py could not be built at `RUN python -m pip install numpi`: returned a non-zero code: 1" in str(
        caught.value
    )
    assert "ERROR: no numpi" in str(caught.value)
    assert "fine" not in str(caught.value)


async def test_no_engine_is_told_with_what_to_try() -> None:
    with pytest.raises(LaunchError, match="cannot reach a Docker engine at unix:///nowhere"):
        async with opened_engine("unix:///nowhere.sock"):
            raise AssertionError("it is not there")


# --- from a folder -----------------------------------------------------------------------------------------------------------


async def test_a_folder_goes_without_what_is_ignored(project: Path) -> None:
    for name in ("keep.py", "data/big.bin", "data/small.txt", "deep/data/x", ".git/config", "a/__pycache__/m.pyc", "notes.md"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / ".dockerignore").write_text("# large\ndata\n!data/small.txt\n*.md\n")
    (project / "Dockerfile").write_text("FROM x\n")
    builder = Builder()
    built = await build(as_engine(builder), Folder(path=".", arguments={"A": "1"}), "a:1")
    assert set(builder.files) == {"Dockerfile", ".dockerignore", "keep.py", "deep/data/x", "data/small.txt"}
    assert builder.arguments == {"A": "1"}
    assert built.id == "sha256:of-a:1"


@pytest.mark.parametrize(
    ("ignore", "stays"),
    [
        ("./secrets", "notes"),
        ("secrets/", "notes"),
        ("/secrets", "notes"),
        ("a/../secrets", "notes"),
        ("  secrets  ", "notes"),
        ("\ufeffsecrets", "notes"),
        ("secrets/*", "notes"),
        ("**/key", "notes"),
        ("!secrets/key\nsecrets", "notes"),
        ("s*\n! secrets/other", "notes"),
        ("key", "both"),
        ("# secrets", "both"),
        (".", "both"),
        ("", "both"),
        ("*", "none"),
    ],
)
async def test_lists_of_what_is_ignored_mean_what_docker_says(project: Path, ignore: str, stays: str) -> None:
    (project / "secrets").mkdir()
    (project / "secrets" / "key").touch()
    (project / "notes").touch()
    (project / "Dockerfile").touch()
    (project / ".dockerignore").write_text(f"{ignore}\n")
    builder = Builder()
    await build(as_engine(builder), Folder(), "a:1")
    expected = {"both": {"secrets/key", "notes"}, "notes": {"notes"}, "none": set[str]()}[stays]
    assert set(builder.files) - {"Dockerfile", ".dockerignore"} == expected


async def test_what_cannot_be_read_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "Dockerfile").touch()
    (project / ".dockerignore").write_bytes(b"\xff\n")
    with pytest.raises(LaunchError, match=r"\. cannot be made into an image: 'utf-8' codec"):
        await build(as_engine(Builder()), Folder(), "a:1")
    for pattern in ("foo\\", "[z-a]"):
        (project / ".dockerignore").write_text(f"{pattern}\n")
        with pytest.raises(LaunchError, match="cannot be made into an image"):
            await build(as_engine(Builder()), Folder(), "a:1")
    (project / ".dockerignore").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "secret")

    monkeypatch.setattr(tarfile.TarFile, "addfile", refuse)
    (project / "run.py").touch()
    with pytest.raises(LaunchError, match=r"run\.py cannot be made into an image: .*Permission denied: 'secret'"):
        await build(as_engine(Builder()), Script(path="run.py"), "a:1")


async def test_another_dockerfile_with_its_own_list(project: Path) -> None:
    (project / "Dockerfile").write_text("FROM other\n")
    (project / "deploy").mkdir()
    (project / "deploy" / "Dockerfile").write_text("FROM x\n")
    (project / "deploy" / "Dockerfile.dockerignore").write_text("*\n!keep\n")
    (project / "keep").touch()
    (project / "drop").touch()
    builder = Builder()
    await build(as_engine(builder), Folder(dockerfile="deploy/Dockerfile"), "a:1")
    assert builder.files == {"Dockerfile": b"FROM x\n", "keep": b""}


# --- pushing -----------------------------------------------------------------------------------------------------------------


class Ecr:
    def __init__(self, *repositories: str) -> None:
        self.repositories = set(repositories)

    async def call(self, service: str, operation: str, *, patient: bool = True, **asked: Any) -> dict[str, Any]:
        assert service == "ecr"
        if operation == "get_authorization_token":
            token = base64.b64encode(f"AWS:{SECRET}".encode()).decode()
            return {"authorizationData": [{"authorizationToken": token, "proxyEndpoint": "https://1.ecr"}]}
        if operation == "create_repository":
            self.repositories.add(asked["repositoryName"])
            return {"repository": {"repositoryUri": f"1.ecr/{asked['repositoryName']}"}}
        (name,) = asked["repositoryNames"]
        if name not in self.repositories:
            raise AwsError("there is none", Fault.REJECTED, "RepositoryNotFoundException")
        return {"repositories": [{"repositoryUri": f"1.ecr/{name}"}]}

    async def close(self) -> None: ...


PUSHING: tuple[Mapping[str, Any], ...] = (
    {"status": "The push refers to repository"},
    {"id": "a1", "status": "Pushing", "progressDetail": {"current": 5, "total": 10}},
    {"id": "a1", "status": "Pushed", "progressDetail": {}},
    {"aux": {"Tag": "latest", "Digest": DIGEST, "Size": 1}},
)


async def test_a_push_goes_where_ecr_says_and_names_what_it_has() -> None:
    builder = Builder(*PUSHING)
    told: list[tuple[str, str, int, int]] = []
    pushed = await push(Ecr("mine"), as_engine(builder), "run:latest", "mine", tell=lambda *one: told.append(one))
    assert pushed.reference == f"1.ecr/mine@{DIGEST}"
    assert builder.asked == [
        ("tag", "run:latest", "1.ecr/mine", "latest"),
        ("push", "1.ecr/mine", "latest", {"username": "AWS", "password": SECRET}),
    ]
    assert told == [("a1", "Pushing", 5, 10), ("a1", "Pushed", 0, 0)]
    assert SECRET not in repr(pushed)


async def test_a_repository_is_made_where_that_is_wanted() -> None:
    account = Ecr()
    with pytest.raises(LaunchError, match="no repository mine in ECR"):
        await push(account, as_engine(Builder(*PUSHING)), "run", "mine")
    await push(account, as_engine(Builder(*PUSHING)), "run", "mine", create=True)
    assert account.repositories == {"mine"}


@pytest.mark.parametrize(("host", "trusted"), [("1.ecr", True), ("127.0.0.1:5000", False), ("1.ecr.example.com", False)])
async def test_another_registry_may_be_meant_and_is_not_given_the_accounts_credentials(host: str, trusted: bool) -> None:
    builder, account = Builder(*PUSHING), Ecr()
    pushed = await push(account, as_engine(builder), "run", "mine", registry=host)
    assert pushed.reference == f"{host}/mine@{DIGEST}"
    assert account.repositories == set()
    assert builder.asked[-1] == (
        *("push", f"{host}/mine", "latest"),
        {"username": "AWS", "password": SECRET} if trusted else None,
    )
    await push(account, as_engine(builder), "run", "mine", registry=host, create=True)
    assert account.repositories == {"mine"}


@pytest.mark.parametrize(
    ("image", "told", "why"),
    [
        ("gone", PUSHING, "has no image gone: `aiocluster image build`"),
        ("run", (EngineError(500, "denied"),), "could not be pushed to 1.ecr/mine:latest: denied"),
        ("run", PUSHING[:-1], "did not say that it has taken"),
    ],
)
async def test_a_push_that_fails_says_why(image: str, told: Any, why: str) -> None:
    with pytest.raises(LaunchError, match=why) as caught:
        await push(Ecr("mine"), as_engine(Builder(*told)), image, "mine")
    assert SECRET not in str(caught.value)
