"""What an engine is given to build an image: a project's folder as it is, or a Dockerfile that is made for a script."""

from __future__ import annotations

import gzip
import io
import json
import os
import posixpath
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import pathspec

from aiocluster.cloud.own_wheel import own_wheel
from aiocluster.errors import LaunchError

__all__ = ["Folder", "Script", "path_in_image", "write_context"]

WORK = PurePosixPath("/work")
USER = "aiocluster"
ASIDE = PurePosixPath("/tmp")  # noqa: S108 - in an image
ALWAYS_IGNORED = ("**/.git", "**/__pycache__", "**/.venv", "**/.nox", "**/.tox")


@dataclass(frozen=True, kw_only=True)
class Script:
    """An image that is made for one script, with the aiocluster that makes it.

    Args:
        path: of the script, as it will be named to `aiocluster job submit` too.
        base: what the image is made on. It has Python and pip.
        requirements: a file for pip; default: `requirements.txt` beside the script, where there is one.
    """

    path: str
    base: str = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    requirements: str | None = None


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


def path_in_image(script: str) -> PurePosixPath:
    """Where a script is in its image, relative to the folder that jobs start in: as it is named, if that is below this folder."""
    path = PurePosixPath(os.path.normpath(script))
    return PurePosixPath(path.name) if path.is_absolute() or ".." in path.parts else path


def write_context(what: Script | Folder, file: IO[bytes]) -> Mapping[str, str]:
    """Write all that the engine needs; returns the arguments of the Dockerfile. The same content gives the same bytes.

    Raises:
        LaunchError: something is not there, or cannot be read.
    """
    try:
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
            if isinstance(what, Folder):
                return _add_folder(what, tar)
            return _add_script(what, tar)
    except (OSError, ValueError, re.error) as error:  # the last two of a .dockerignore
        raise LaunchError(f"{what.path} cannot be made into an image: {error}") from error


def _add_script(what: Script, tar: tarfile.TarFile) -> Mapping[str, str]:
    script = Path(what.path)
    if not script.is_file():
        raise LaunchError(f"there is no script {what.path}")
    requirements = Path(what.requirements) if what.requirements else script.parent / "requirements.txt"
    if what.requirements and not requirements.is_file():
        raise LaunchError(f"there is no file {what.requirements} with requirements")
    inside = path_in_image(what.path)
    if not str(inside).isprintable() or set(str(inside)) & set("$\\"):
        raise LaunchError(
            f"{what.path!r} cannot be the name of a script in an image: give it one without $, \\ and control characters"
        )
    # Never by its name from an index, where that name may be somebody else's; and whatever the base has: the job's aiocluster
    # is the one that submits it.
    wheel = own_wheel()
    _add(tar, wheel.name, wheel.content)
    pip = "python -m pip install --no-cache-dir"
    own = ASIDE / wheel.name
    lines = ["ARG BASE", "FROM ${BASE}", "USER root", f"COPY {wheel.name} {ASIDE}/"]
    lines += [f"RUN {pip} {own} && {pip} --no-deps --force-reinstall {own}"]
    if requirements.is_file():
        _add(tar, "requirements.txt", requirements.read_bytes())
        _add(tar, "constraints.txt", f"aiocluster @ file://{own}\n".encode())  # for requirements that have its name
        lines += [f"COPY requirements.txt constraints.txt {ASIDE}/"]
        lines += [f"RUN {pip} -r {ASIDE}/requirements.txt -c {ASIDE}/constraints.txt"]
    _add(tar, "script", script.read_bytes())
    lines += [
        f"RUN id {USER} || useradd --create-home {USER} || adduser -D {USER}",  # the last one where there is no more than busybox
        f"RUN mkdir -p {WORK} && chown {USER} {WORK}",
        "ENV PYTHONUNBUFFERED=1",
        f"WORKDIR {WORK}",
        f"COPY {json.dumps(['script', str(WORK / inside)], ensure_ascii=False)}",
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
    lines = ignore.read_text(encoding="utf-8-sig").splitlines() if ignore.is_file() else []
    ignored = pathspec.PathSpec.from_lines("gitignore", _patterns([*ALWAYS_IGNORED, *lines]))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_file() or path.is_symlink()) and not ignored.match_file(name):
            yield path


def _patterns(lines: Iterable[str]) -> Iterator[str]:
    """Those of a .dockerignore as those of a .gitignore.

    They count from the folder, `./a/` and `b/../a` are `a`, and a folder is meant with all that is in it.
    In both the last one that fits decides.
    """
    for line in lines:
        stripped = line.strip()
        sign = "!" if stripped.startswith("!") else ""
        pattern = posixpath.normpath("/" + stripped.removeprefix("!").strip())
        if not line.startswith("#") and pattern.strip("/"):
            yield from (f"{sign}/{pattern.lstrip('/')}", f"{sign}/{pattern.lstrip('/')}/**")


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
