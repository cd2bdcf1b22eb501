"""Images with a program in them, built on a Docker engine."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiocluster.cloud.context import Folder, Script, write_context
from aiocluster.cloud.submission import name_of
from aiocluster.errors import LaunchError
from aiocluster.launch.docker_leftovers import unreachable
from aiocluster.launch.engine import GONE, Engine, EngineError

__all__ = ["Built", "build", "id_of", "local_tag", "opened_engine"]

LAST_LINES = 20
_NOT_IN_TAGS = re.compile(r"[^a-z0-9]+")
_STEP = re.compile(r"Step \d+/\d+ : (?P<step>.*)")


@dataclass(frozen=True, kw_only=True)
class Built:
    """An image that the engine has."""

    id: str
    tag: str


def local_tag(script: str) -> str:
    """The name that the engine has for the image of a script, unless somebody chooses another."""
    return f"aiocluster-{_NOT_IN_TAGS.sub('-', name_of(script).lower()).strip('-') or 'job'}:latest"


async def id_of(engine: Engine, tag: str) -> str:
    """The id of the image of this name. Raises `LaunchError` if the engine has none."""
    try:
        return await engine.image_id(tag)
    except EngineError as error:
        if error.status == GONE:
            raise LaunchError(f"the engine at {engine.host} has no image {tag}: `aiocluster image build` makes one") from error
        raise LaunchError(f"the engine at {engine.host} does not tell of the image {tag}: {error}") from error


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
        arguments = await asyncio.to_thread(write_context, what, context)
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
    return f"{source} could not be built {where}{error}{last}"
