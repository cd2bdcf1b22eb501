"""`aiocluster job register`: a job definition for an image."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from aiocluster.cli.running import opened_aws, run

__all__ = ["register"]


def register(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="What jobs run, as AWS can pull it; best with its digest.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the definition. Default: the stack's.", show_default=False)
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="NAME",
            help="The definition that gives the rest: roles, logs. Default: the stack's.",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", metavar="N", min=0, help="For multi-node jobs of so many; 0: for plain jobs.")
    ] = 0,
    vcpus: Annotated[
        float | None, typer.Option("--vcpus", metavar="N", min=0.25, help="Of each container.", show_default=False)
    ] = None,
    memory: Annotated[
        int | None, typer.Option("--memory", metavar="MIB", min=4, help="Of each container.", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=60, help="Of an attempt.", show_default=False)
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option("--stack", metavar="NAME", help="Default: $AIOCLUSTER_STACK, else aiocluster.", show_default=False),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option("--region", metavar="REGION", help="Default: what AWS's own settings say.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")] = False,
) -> None:
    """Register a job definition that runs an image.

    All but the image is like the stack's definition, so that jobs may do
    what the stack's roles allow, and write to its logs. One that is the
    same already is used.
    """
    run("job register", _register(image, name, like, nodes, vcpus, memory, timeout, stack, region, as_json=as_json))


async def _register(
    image: str,
    name: str | None,
    like: str | None,
    nodes: int,
    vcpus: float | None,
    memory: int | None,
    timeout: float | None,
    stack: str | None,
    region: str | None,
    *,
    as_json: bool,
) -> int:
    from aiocluster.cloud.definition import Definition, stem_of
    from aiocluster.cloud.definition import register as made
    from aiocluster.cloud.stack import find_stack

    async with opened_aws(region) as api:
        like = like or (await find_stack(stack, api=api)).job_definition
        stem = name or stem_of(like)
        wanted = Definition(name=stem, image=image, like=like, nodes=nodes, vcpus=vcpus, memory=memory, timeout_s=timeout)
        definition = await made(api, wanted)
    typer.echo(json.dumps({"definition": definition}) if as_json else f"registered {definition}")
    return 0
