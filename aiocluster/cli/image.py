"""`aiocluster image`: images with a program in them, built on a Docker engine and pushed to Amazon ECR."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from aiocluster.cli.forms import pairs
from aiocluster.cli.running import opened_aws, run
from aiocluster.terminal import is_terminal

if TYPE_CHECKING:
    from aiocluster.cloud.context import Folder, Script
    from aiocluster.cloud.registry import Progress

__all__ = ["app", "push_progress"]

app = typer.Typer(name="image", help="Build images for jobs, and push them to Amazon ECR.", no_args_is_help=True)

REGISTRY_VARIABLE = "AIOCLUSTER_REGISTRY"
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="IMAGE",
        help="What a script's image is made on; it has pip. Default: python:3.x-slim of this Python.",
        show_default=False,
    ),
]
Requirements = Annotated[
    str | None,
    typer.Option(
        "--requirements", metavar="FILE", help="For pip. Default: requirements.txt beside the script, if any.", show_default=False
    ),
]
Registry = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="HOST[:PORT]",
        envvar=REGISTRY_VARIABLE,
        help="In place of what ECR says; AWS's credentials go to the account's own alone.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")]
EARLIER = "layers that are done stay; the same command goes on from there."


@app.command("build")
def build(
    script: Annotated[str | None, typer.Argument(metavar="[SCRIPT]", help="Make an image for this script.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", "-t", metavar="NAME", help="The image's name.", show_default=False)] = None,
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="Without SCRIPT: the project's Dockerfile, in --context.")
    ] = "Dockerfile",
    context: Annotated[str, typer.Option("--context", metavar="DIR", help="The project's folder.")] = ".",
    arguments: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="For the Dockerfile; may be given several times."),
    ] = None,
    base: Base = None,
    requirements: Requirements = None,
    as_json: AsJson = False,
) -> None:
    """Build an image on the Docker engine.

    With SCRIPT, a Dockerfile is made for it: the base, this aiocluster, the
    requirements, the script, and a user without rights. Without, the
    project's own Dockerfile is built; its .dockerignore counts.
    """
    from aiocluster.cloud.context import Folder
    from aiocluster.cloud.image import local_tag

    what: Script | Folder
    if script is not None:
        what = script_of(script, base, requirements)
        name = tag or local_tag(script)
    else:
        what = Folder(path=context, dockerfile=file, arguments=pairs(arguments, "--build-arg"))
        name = tag or "aiocluster-job:latest"
    run("image build", _build(what, name, as_json=as_json), interrupted=EARLIER)


def script_of(script: str, base: str | None, requirements: str | None) -> Script:
    from aiocluster.cloud.context import Script

    more = {} if base is None else {"base": base}
    return Script(path=script, requirements=requirements, **more)


async def _build(what: Script | Folder, tag: str, *, as_json: bool) -> int:
    from aiocluster.cloud.image import build, opened_engine

    async with opened_engine() as engine:
        built = await build(engine, what, tag, lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps({"id": built.id, "tag": built.tag}) if as_json else f"built {built.tag}: {built.id}")
    return 0


@app.command("push")
def push(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="That the engine has.")],
    repository: Annotated[
        str | None,
        typer.Option("--repository", metavar="NAME", help="In ECR. Default: the stack's.", show_default=False),
    ] = None,
    tag: Annotated[str, typer.Option("--tag", "-t", metavar="TAG", help="Its name there.")] = "latest",
    create: Annotated[bool, typer.Option("--create", help="Make the repository if there is none.")] = False,
    registry: Registry = None,
    stack: Annotated[
        str | None,
        typer.Option("--stack", metavar="NAME", help="Default: $AIOCLUSTER_STACK, else aiocluster.", show_default=False),
    ] = None,
    region: Annotated[
        str | None, typer.Option("--region", metavar="REGION", help="Default: what AWS says.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Push an image to Amazon ECR, layer by layer.

    The credentials for it are asked for at AWS, and kept nowhere.
    """
    run("image push", _push(image, repository, tag, create, registry, stack, region, as_json=as_json), interrupted=EARLIER)


async def _push(
    image: str,
    repository: str | None,
    tag: str,
    create: bool,
    registry: str | None,
    stack: str | None,
    region: str | None,
    *,
    as_json: bool,
) -> int:
    from aiocluster.cloud import registry as ecr
    from aiocluster.cloud.image import opened_engine
    from aiocluster.cloud.stack import find_stack

    async with opened_aws(region) as api:
        name = repository or (await find_stack(stack, api=api)).repository
        async with opened_engine() as engine:
            with push_progress() as progress:
                pushed = await ecr.push(api, engine, image, name, tag=tag, create=create, registry=registry, tell=progress)
    told = {"reference": pushed.reference, "digest": pushed.digest}
    typer.echo(json.dumps(told) if as_json else f"pushed {pushed.reference}")
    return 0


@contextmanager
def push_progress() -> Iterator[Progress]:
    """What shows how a push goes on: a bar for each layer on a terminal, else a line for each change."""
    if not is_terminal(sys.stderr):
        last: dict[str, str] = {}

        def say(layer: str, status: str, _done: int, _size: int) -> None:
            if last.get(layer) != status:
                last[layer] = status
                typer.echo(f"{layer}: {status}", err=True)

        yield say
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), bars.DownloadColumn())
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[str, bars.TaskID] = {}

        def advance(layer: str, status: str, done: int, size: int) -> None:
            if layer not in tasks:
                tasks[layer] = shown.add_task(layer, total=size or None)
            shown.update(tasks[layer], description=f"{layer} {status}", completed=done, total=size or None)

        yield advance
