"""`aiocluster job`: manager jobs of AWS Batch, from their submission to their results."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from aiocluster.cli.definition import register
from aiocluster.cli.forms import counted, pairs
from aiocluster.cli.image import Base, Registry, Requirements
from aiocluster.cli.results import results
from aiocluster.cli.running import run

__all__ = ["app"]

app = typer.Typer(
    name="job",
    help="Submit a program to AWS Batch, and see what becomes of it.",
    no_args_is_help=True,
)
app.command("register")(register)
app.command("results")(results)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of the manager job, as `aiocluster job submit` says it.")]
StackName = Annotated[
    str | None,
    typer.Option(
        "--stack",
        metavar="NAME",
        help="The CloudFormation stack that gives what is not given. Default: $AIOCLUSTER_STACK, else aiocluster.",
        show_default=False,
    ),
]
Region = Annotated[
    str | None,
    typer.Option("--region", metavar="REGION", help="Default: what AWS's own settings say.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only what is later: 90s, 15m, 3h, 7d ago, or a time such as 2030-01-31T08:00.",
        show_default=False,
    ),
]


@app.command("submit", context_settings={"ignore_unknown_options": True})
def submit(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="The program, by its path in the image.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="What the script is called with.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="N|MIN,MAX",
            callback=counted,
            help="How many workers Cluster.from_env() opens. Default: the script says so.",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="QUEUE", help="For the manager. Default: the stack's.", show_default=False)
    ] = None,
    definition: Annotated[
        str | None,
        typer.Option("--definition", metavar="NAME", help="Of the job. Default: the stack's.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Default: after the script.", show_default=False)
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for the manager; may be given several times."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=60, help="AWS ends the manager after so long.", show_default=False),
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="First build an image for the script.")] = False,
    push: Annotated[bool, typer.Option("--push", help="First push that image to the stack's repository.")] = False,
    register_it: Annotated[
        bool, typer.Option("--register", help="First register a job definition for that image, which the job runs.")
    ] = False,
    base: Base = None,
    requirements: Requirements = None,
    registry: Registry = None,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Wait for its end, and exit with its code; or do not, the default.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output as it comes, until its end.")] = False,
    results_folder: Annotated[
        str | None,
        typer.Option("--results", metavar="DIR", help="Wait, then download its results there.", show_default=False),
    ] = None,
    stack: StackName = None,
    region: Region = None,
    as_json: AsJson = False,
) -> None:
    """Submit a script as a manager job of AWS Batch.

    The script runs in the image of the job definition and opens its own
    cluster there, with Cluster.batch(...). What it saves with
    aiocluster.results goes to the stack's bucket. Options that are none of
    these are the script's; those behind -- are, whatever they are called.

    With --build, --push and --register all that is missing is made first:
    an image for the script, in the stack's repository, and a job definition
    that runs it.

    Without --wait, --follow or --results the command ends when AWS has
    taken the job.
    """
    from aiocluster.cli import job_commands as commands

    asked = commands.Asked(
        script=script,
        arguments=tuple(arguments or ()),
        workers=workers,
        queue=queue,
        definition=definition,
        name=name,
        env=pairs(env, "--env"),
        timeout_s=timeout,
        stack=stack,
        region=region,
        build=build,
        push=push,
        register=register_it,
        base=base,
        requirements=requirements,
        registry=registry,
    )
    if asked.push != asked.register:
        raise typer.BadParameter("--push and --register go together: a definition is made for the image that was pushed")
    if asked.build and not asked.push:
        raise typer.BadParameter(
            "--build makes an image for the job to run: --push and --register go with it", param_hint="--build"
        )
    if asked.definition and asked.register:
        raise typer.BadParameter("--definition names one, --register makes one", param_hint="--register")
    left = commands.Left("no job was submitted.")
    work = commands.submit(asked, wait=wait, follow=follow, results=results_folder, as_json=as_json, left=left)
    run("job submit", work, interrupted=lambda: left.text)


@app.command("status")
def status(job: JobId, region: Region = None, as_json: AsJson = False) -> None:
    """Show a manager job and all jobs that it has started, as a tree.

    Of each: its state, why, for how long, and its exit code.
    """
    from aiocluster.cli import job_commands as commands

    run("job status", commands.status(job, region, as_json=as_json), interrupted="nothing was changed.")


@app.command("list")
def list_jobs(
    everybody: Annotated[bool, typer.Option("--all", help="Also what others have submitted.")] = False,
    since: Since = None,
    region: Region = None,
    as_json: AsJson = False,
) -> None:
    """List manager jobs: your own of the last seven days."""
    from aiocluster.cli import job_commands as commands

    work = commands.list_jobs(region, _since(since), everybody=everybody, as_json=as_json)
    run("job list", work, interrupted="nothing was changed.")


@app.command("cancel")
def cancel(
    job: JobId,
    force: Annotated[bool, typer.Option("--force", help="Also a job that somebody else has submitted.")] = False,
    region: Region = None,
) -> None:
    """End a manager job and the jobs that it has started.

    The manager is told to end, and ends its workers itself; what is left
    of them a minute later is ended too. Jobs of others are left alone.
    """
    from aiocluster.cli import job_commands as commands

    left = commands.Left("nothing was ended.")
    run("job cancel", commands.cancel(job, region, force=force, left=left), interrupted=lambda: left.text)


@app.command("logs")
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    workers: Annotated[bool, typer.Option("--workers", "-w", help="Also of the jobs that it has started.")] = False,
    since: Since = None,
    download: Annotated[
        str | None,
        typer.Option("--download", "-d", metavar="DIR", help="Write each stream to a file in this folder.", show_default=False),
    ] = None,
    region: Region = None,
) -> None:
    """Show what a manager job has written, in the order of time.

    Every line once. With --workers, lines say which job has written them.
    """
    from aiocluster.cli import job_commands as commands

    if follow and download is not None:
        raise typer.BadParameter("--download writes what is there: without --follow", param_hint="--download")
    work = commands.logs(job, region, _since(since), follow=follow, workers=workers, folder=download)
    run("job logs", work, interrupted=commands.goes_on(job) if follow else "what was written stays.")


def _since(given: str | None) -> datetime | None:
    from aiocluster.cli.times import moment

    try:
        return None if given is None else moment(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error
