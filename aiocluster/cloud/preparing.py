"""From a script to a job definition that runs it: built, pushed and registered, as far as that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiocluster.cloud import definition, image, registry
from aiocluster.cloud.context import Script
from aiocluster.cloud.image import local_tag, opened_engine
from aiocluster.cloud.submission import name_of
from aiocluster.launch.aws import Api

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was made of a script."""

    image: str
    """That the definition runs, or would."""
    definition: str
    """With its revision; "" where none was asked for."""


async def prepare(
    api: Api,
    script: Script,
    *,
    like: str,
    repository: str,
    build: bool,
    push: bool,
    register: bool,
    registry_host: str | None = None,
    tell: Callable[[str], None] = lambda _line: None,
    progress: registry.Progress = lambda _layer, _status, _done, _size: None,
) -> Prepared:
    """Do what is wanted of these three, one after the other; what is not wanted has been done before.

    Args:
        like: the definition that gives all but the image.
        repository: for images.
        registry_host: see `registry.push`.
        tell: called with lines of the build, and with what was done.

    Raises:
        LaunchError: a step failed.
        AwsError: AWS refuses one.

    Cancelling leaves what was done so far: each step may be repeated.
    """
    name = name_of(script.path)
    local = local_tag(script.path)
    reference = local
    if build or push:
        async with opened_engine() as engine:
            if build:
                id = (await image.build(engine, script, local, tell)).id
                tell(f"built {local} ({_short(id)})")
            else:
                id = await image.id_of(engine, local)
            if push:
                # By its id, since others may build under that name meanwhile; and under a tag that no other image ever takes
                # away, since the repository lets go of those without one.
                pushed = await registry.push(
                    api,
                    engine,
                    id,
                    repository,
                    tag=f"{local.partition(':')[0]}-{_short(id)}",
                    registry=registry_host,
                    tell=progress,
                )
                reference = pushed.reference
                tell(f"pushed {reference}")
    made_definition = ""
    if register:
        wanted = definition.Definition(name=f"{definition.stem_of(like)}-{name}"[:128], image=reference, like=like)
        made_definition = await definition.register(api, wanted)
        tell(f"registered {made_definition}")
    return Prepared(image=reference, definition=made_definition)


def _short(id: str) -> str:
    return id.removeprefix("sha256:")[:12]
