"""`aiocluster stack`: the CloudFormation stack that jobs run on is made or changed, shown, and deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from aiocluster.cli.forms import pairs
from aiocluster.cli.running import opened_aws, run

if TYPE_CHECKING:
    from aiocluster.cloud.stack import Stack, StackEvent

__all__ = ["app"]

app = typer.Typer(
    name="stack",
    help="Make, show and delete what jobs run on in AWS: a CloudFormation stack.",
    no_args_is_help=True,
)

GOES_ON = "AWS goes on with what it was told to do; the same command waits for it again."

Name = Annotated[
    str | None,
    typer.Option(
        "--stack", "-s", metavar="NAME", help="Its name. Default: $AIOCLUSTER_STACK, else aiocluster.", show_default=False
    ),
]
Region = Annotated[
    str | None,
    typer.Option("--region", metavar="REGION", help="Where it is. Default: what AWS's own settings say.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")]


@app.command()
def deploy(
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="PARAMETER=VALUE", help="Of the template, such as MaxVCPUs=256.", show_default=False),
    ] = None,
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="batch|ecs|FILE", help="What the stack is made from.")
    ] = "batch",
    stack: Name = None,
    region: Region = None,
    as_json: AsJson = False,
) -> None:
    """Make the stack, or change it to what the template and parameters say.

    It waits, and shows each step. Parameters that are not given stay as
    they are, and in a new stack are as the template says. A stack that
    cannot be made is taken away again, one that cannot be changed is put
    back as it was; then the exit code is 1.

    What it makes in your account may cost money: see deploy/README.md.
    """
    chosen = pairs(parameters, "PARAMETER=VALUE", "PARAMETER=VALUE")
    run("stack deploy", _deploy(stack, template, chosen, region, as_json=as_json), interrupted=GOES_ON)


@app.command()
def outputs(stack: Name = None, region: Region = None, as_json: AsJson = False) -> None:
    """Show what the stack tells of itself: queues, roles, repository, bucket."""
    run("stack outputs", _outputs(stack, region, as_json=as_json))


@app.command()
def delete(
    stack: Name = None,
    region: Region = None,
    empty: Annotated[
        bool, typer.Option("--empty", help="Also delete the results in its bucket and the images in its repository.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete the stack: jobs in its queues end, and their logs are gone.

    It waits, and shows each step. While there are results in its bucket or
    images in its repository, nothing is deleted, unless --empty says that
    they are to go, too.
    """
    from aiocluster.cloud.stack import stack_name

    name = stack_name(stack)
    if not yes:
        what = ", with its results, images and logs" if empty else ", with its logs"
        typer.confirm(f"Delete the stack {name}{what}?", abort=True, err=True)
    run("stack delete", _delete(name, region, empty=empty), interrupted=GOES_ON)


async def _deploy(name: str | None, template: str, parameters: dict[str, str], region: str | None, *, as_json: bool) -> int:
    from aiocluster.cloud.stack import deploy_stack, stack_name
    from aiocluster.cloud.template import TEMPLATES, read_template

    name = stack_name(name)
    text = read_template(template)
    kind = template if template in TEMPLATES else ""
    async with opened_aws(region) as api:
        typer.echo(f"stack {name} in {await api.region()}, from the template {template}", err=True)
        stack, change = await deploy_stack(name, text, parameters, kind=kind, api=api, tell=_Steps())
    typer.echo(f"the stack {name} is {'as it was' if change == 'unchanged' else change}", err=True)
    _print(stack, as_json=as_json)
    return 0


async def _outputs(name: str | None, region: str | None, *, as_json: bool) -> int:
    from aiocluster.cloud.stack import find_stack

    _print(await find_stack(name, region), as_json=as_json)
    return 0


async def _delete(name: str, region: str | None, *, empty: bool) -> int:
    from aiocluster.cloud.stack import delete_stack

    async with opened_aws(region) as api:
        there = await delete_stack(name, empty=empty, api=api, tell=_Steps())
        where = await api.region()
    typer.echo(f"the stack {name} in {where} is deleted" if there else f"there is no stack {name} in {where}", err=True)
    return 0


class _Steps:
    """Shows the steps of AWS on stderr, a line each."""

    def __init__(self) -> None:
        from aiocluster.cli.shown import console

        self._console = console(stderr=True)

    def __call__(self, event: StackEvent) -> None:
        from rich.text import Text

        style = "red" if event.failed else "green" if event.status.endswith("_COMPLETE") else "dim"
        if "ROLLBACK" in event.status:
            style = "red"
        told = f"{event.kind} {event.resource}"
        line = Text.assemble(f"{event.time.astimezone():%H:%M:%S} ", (f"{event.status:<20}", style), f" {told}")
        if event.reason:
            line.append(f": {event.reason}", style="red" if event.failed else "dim")
        self._console.print(line, soft_wrap=True)


def _print(stack: Stack, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dict(stack.outputs), indent=2))
        return
    from aiocluster.cli.shown import console, plain, table

    shown = table("OUTPUT", "VALUE", whole=("OUTPUT",))
    for name, value in stack.outputs.items():
        shown.add_row(name, plain(value))
    console().print(shown)
