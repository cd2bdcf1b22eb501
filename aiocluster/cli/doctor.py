"""`aiocluster doctor`: what a launch needs, looked at before anything is started."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from aiocluster.cli.running import run

if TYPE_CHECKING:
    from aiocluster.cloud.doctor import Finding, Plan

__all__ = ["doctor"]

COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}


class Launcher(StrEnum):
    local = "local"
    docker = "docker"
    batch = "batch"
    ecs = "ecs"


def doctor(
    launcher: Annotated[
        Launcher, typer.Option("--launcher", "-l", envvar="AIOCLUSTER_LAUNCHER", help="What is to start the workers.")
    ] = Launcher.local,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, metavar="N", help="How many workers are wanted.")] = 1,
    stack: Annotated[
        str,
        typer.Option(
            "--stack",
            "-s",
            metavar="NAME",
            help="batch, ecs: take from this stack what is not given. Default: if needed, $AIOCLUSTER_STACK, else aiocluster.",
        ),
    ] = "",
    queue: Annotated[str, typer.Option("--queue", envvar="AIOCLUSTER_QUEUE", metavar="QUEUE", help="batch: where jobs go.")] = "",
    definition: Annotated[
        str,
        typer.Option("--definition", envvar="AIOCLUSTER_DEFINITION", metavar="NAME", help="batch, ecs: job or task definition."),
    ] = "",
    ecs_cluster: Annotated[
        str, typer.Option("--ecs-cluster", envvar="AIOCLUSTER_ECS_CLUSTER", metavar="NAME", help="ecs: where tasks run.")
    ] = "",
    subnet: Annotated[
        list[str] | None, typer.Option("--subnet", metavar="ID", help="ecs: of the tasks; may be repeated.")
    ] = None,
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="What containers run. Default: for batch and ecs, the definition's.")
    ] = "",
    advertise: Annotated[
        str | None,
        typer.Option("--advertise", envvar="AIOCLUSTER_ADVERTISE", metavar="HOST[:PORT]", help="How workers reach this machine."),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="CIDR", help="The network of that address; docker: or a network's name.")
    ] = None,
    results: Annotated[
        str, typer.Option("--results", envvar="AIOCLUSTER_RESULTS", metavar="DIR|S3", help="Where aiocluster.results saves.")
    ] = "",
    region: Annotated[str | None, typer.Option("--region", metavar="REGION", help="Of AWS.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")] = False,
) -> None:
    """Check what a launch needs, one by one, before anything is started.

    Each check is ok, has failed (with the reason, and what to try), or was
    skipped (with why). In AWS nothing is changed and no job is started; a
    Docker engine runs a container or two, which are removed.

    The exit code is 1 if anything has failed.
    """
    from aiocluster.cloud.doctor import Plan

    subnets = tuple(subnet or [part.strip() for part in os.environ.get("AIOCLUSTER_SUBNETS", "").split(",") if part.strip()])
    plan = Plan(
        launcher=launcher.value,
        stack=stack,
        queue=queue,
        definition=definition,
        ecs_cluster=ecs_cluster,
        subnets=subnets,
        image=image,
        workers=workers,
        advertise=advertise,
        network=network,
        results=results,
    )
    run("doctor", _examine(plan, region, as_json=as_json), interrupted="nothing is left of what was checked.")


async def _examine(plan: Plan, region: str | None, *, as_json: bool) -> int:
    from aiocluster.cloud.doctor import Outcome, examine

    findings = await examine(plan, region=region, tell=(lambda _: None) if as_json else _say)
    failed = sum(one.outcome is Outcome.FAILED for one in findings)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        typer.echo("nothing speaks against it" if not failed else f"{failed} of {len(findings)} checks failed")
    return 1 if failed else 0


def _say(finding: Finding) -> None:
    word = f"{finding.outcome.value:<8}"
    typer.echo(
        f"{typer.style(word, fg=COLOURS[finding.outcome]) if sys.stdout.isatty() else word}{finding.check}: {finding.detail}"
    )
    if finding.hint:
        typer.echo(f"{'':<8}try: {finding.hint}")
