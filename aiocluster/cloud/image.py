"""Images with a program in them: built on a Docker engine, from the program's own Dockerfile or from a script alone."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import pathspec

from aiocluster._version import __version__
from aiocluster.errors import LaunchError
from aiocluster.launch.docker_leftovers import unreachable
from aiocluster.launch.engine import Engine, EngineError

__all__ = ["Built", "Folder", "Script", "build", "opened_engine", "path_in_image"]

WORK = PurePosixPath("/work")
USER = "aiocluster"
LAST_LINES = 20
_STEP = re.compile(r"Step \d+/\d+ : (?P<step>.*)")
ALWAYS_IGNORED = ("**/.git", "**/__pycache__", "**/.venv", "**/.nox", "**/.tox")


@dataclass(frozen=True, kw_only=True)
class Script:
    """An image that is made for one script.

    Args:
        path: of the script, as it will be named to `aiocluster job submit` too.
        base: what the image is made on. It has Python, and where it has aiocluster, that is used; else this version is installed.
        requirements: a file for pip; default: `requirements.txt` beside the script, where there is one.
        wheel: of aiocluster, in place of the released one of this version.
    """

    path: str
    base: str = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    requirements: str | None = None
    wheel: str | None = None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An image that is made by a Dockerfile of the program's own.

    Args:
        path: the folder; what its `.dockerignore` names stays out.
        dockerfile: relative to the folder.
        arguments: its ARGs.
    """

    path: str = "."
    dockerfile: str = "Dockerfile"
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Built:
    """An image that the engine has."""

    id: str
    tag: str


def path_in_image(script: str) -> PurePosixPath:
    """Where a script is in its image, relative to the folder that jobs start in: as it is named, if that is below this folder."""
    path = PurePosixPath(os.path.normpath(script))
    return PurePosixPath(path.name) if path.is_absolute() or ".." in path.parts else path


@asynccontextmanager
async def opened_engine(host: str | None = None) -> AsyncIterator[Engine]:
    """The engine of this machine, of `DOCKER_HOST`, or of that address.

    Raises:
        LaunchError: none answers.
    """
    engine = Engine(host)
    try:
        await engine.open()
    except EngineError as error:
        raise unreachable(engine, error) from error
    try:
        yield engine
    finally:
        await engine.close()


async def build(engine: Engine, what: Script | Folder, tag: str, tell: Callable[[str], None] = lambda _line: None) -> Built:
    """The engine has the image, under this name.

    Args:
        tag: such as "simulate:latest".
        tell: called with every line that the build writes.

    Raises:
        LaunchError: something is not there, or a step failed; says which, with its last lines.

    Cancelling ends the build; what it had made stays in the engine's cache.
    """
    lines: list[str] = []
    step = ""
    id = ""
    with tempfile.TemporaryFile() as context:
        arguments = await asyncio.to_thread(_write_context, what, context)
        context.seek(0)
        try:
            async for told in engine.build(context, tag, arguments):
                id = str(told.get("aux", {}).get("ID", id))
                for line in str(told.get("stream", "")).splitlines():
                    if match := _STEP.fullmatch(line):
                        step, lines = match["step"], []
                    lines = [*lines, line][-LAST_LINES:] if line.strip() else lines
                    tell(line)
        except EngineError as error:
            raise LaunchError(_failure(what, step, lines, error)) from error
    try:
        return Built(id=id or await engine.image_id(tag), tag=tag)
    except EngineError as error:
        raise LaunchError(f"the image {tag} was built, and the engine does not have it: {error}") from error


def _failure(what: Script | Folder, step: str, lines: list[str], error: EngineError) -> str:
    source = what.dockerfile if isinstance(what, Folder) else f"the image of {what.path}"
    where = f"at `{step}`: " if step else ""
    last = "".join(f"\n    {line}" for line in lines)
    hint = ""
    if isinstance(what, Script) and "aiocluster==" in str(error):
        hint = "\nAn unreleased aiocluster comes from a base that has it (--base) or from a wheel (--wheel)"
    return f"{source} could not be built {where}{error}{last}{hint}"


# --- contexts ----------------------------------------------------------------------------------------------------------------


def _write_context(what: Script | Folder, file: IO[bytes]) -> Mapping[str, str]:
    """Write all that the engine needs; the arguments of the Dockerfile. The same content gives the same bytes."""
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        if isinstance(what, Folder):
            return _add_folder(what, tar)
        return _add_script(what, tar)


def _add_script(what: Script, tar: tarfile.TarFile) -> Mapping[str, str]:
    script = Path(what.path)
    if not script.is_file():
        raise LaunchError(f"there is no script {what.path}")
    requirements = Path(what.requirements) if what.requirements else script.parent / "requirements.txt"
    if what.requirements and not requirements.is_file():
        raise LaunchError(f"there is no file {what.requirements} with requirements")
    lines = ["ARG BASE", "FROM ${BASE}", "USER root"]
    if what.wheel:
        wheel = Path(what.wheel)
        if not wheel.is_file():
            raise LaunchError(f"there is no wheel {what.wheel}")
        _add(tar, wheel.name, wheel.read_bytes())
        lines += [f"COPY {wheel.name} /tmp/", f"RUN python -m pip install --no-cache-dir /tmp/{wheel.name}"]
    else:
        lines.append(f"RUN python -c 'import aiocluster' || python -m pip install --no-cache-dir aiocluster=={__version__}")
    if requirements.is_file():
        _add(tar, "requirements.txt", requirements.read_bytes())
        lines += ["COPY requirements.txt /tmp/", "RUN python -m pip install --no-cache-dir -r /tmp/requirements.txt"]
    inside = path_in_image(what.path)
    _add(tar, "script", script.read_bytes())
    lines += [
        f"RUN id {USER} || useradd --create-home --uid 1000 {USER}",
        f"RUN mkdir --parents {WORK} && chown {USER} {WORK}",
        "ENV PYTHONUNBUFFERED=1",
        f"WORKDIR {WORK}",
        f'COPY ["script", "{WORK / inside}"]',
        f"USER {USER}",
        'CMD ["aiocluster", "agent"]',
    ]
    _add(tar, "Dockerfile", "".join(f"{line}\n" for line in lines).encode())
    return {"BASE": what.base}


def _add_folder(what: Folder, tar: tarfile.TarFile) -> Mapping[str, str]:
    folder = Path(what.path)
    dockerfile = folder / what.dockerfile
    if not dockerfile.is_file():
        raise LaunchError(f"there is no {dockerfile}: name it with --file, or build from a script")
    for path in _wanted(folder, what.dockerfile):
        name = path.relative_to(folder).as_posix()
        if name != "Dockerfile":
            tar.add(path, name, recursive=False, filter=_plain)
    _add(tar, "Dockerfile", dockerfile.read_bytes())
    return what.arguments


def _wanted(folder: Path, dockerfile: str) -> Iterator[Path]:
    """The files of the context, in an order of their own."""
    ignore = folder / f"{dockerfile}.dockerignore"
    ignore = ignore if ignore.is_file() else folder / ".dockerignore"
    patterns = [*ALWAYS_IGNORED, *(ignore.read_text().splitlines() if ignore.is_file() else ())]
    ignored = pathspec.GitIgnoreSpec.from_lines(_anchored(line) for line in patterns)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_file() or path.is_symlink()) and not ignored.match_file(name):
            yield path


def _anchored(line: str) -> str:
    """A pattern of a .dockerignore, which counts from the folder, as one of a .gitignore."""
    line = line.strip()
    if not line or line.startswith("#"):
        return ""
    sign, rest = ("!", line[1:]) if line.startswith("!") else ("", line)
    return f"{sign}/{rest.lstrip('/')}"


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what is of this machine alone."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(_plain(member), io.BytesIO(content))
