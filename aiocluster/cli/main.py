"""The command `aiocluster`: what it offers.

Commands are thin: what they do lives in modules that they import when they run, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import aiocluster
from aiocluster.cli import doctor, image, job, stack
from aiocluster.cli import run as script
from aiocluster.cli.running import run

__all__ = ["app"]

app = typer.Typer(
    name="aiocluster",
    help="Run Python functions on many processes and machines, from one asyncio program.",
    epilog="New here? `aiocluster demo` puts all processors of this machine to work and shows what came of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # the interpreter's own traceback is complete, and the same on every terminal
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aiocluster {aiocluster.__version__}, Python {sys.version.split()[0]}")
        raise typer.Exit


app.add_typer(stack.app)
app.add_typer(image.app)
app.add_typer(job.app)
app.command("doctor")(doctor.doctor)
app.command("run", context_settings=script.CONTEXT)(script.run_script)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options of the command itself; typer takes its help from the app."""


@app.command()
def demo(
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            metavar="N",
            help="How many worker processes to start. Default: one for each CPU that this process may use.",
        ),
    ] = None,
    kill: Annotated[
        bool,
        typer.Option(
            "--kill",
            help="Kill one worker when half of the files are done, and show that none is lost or counted twice.",
        ),
    ] = False,
) -> None:
    """Try it on this machine: parse Python's own standard library.

    It shows what each worker process did, what was found, and how much
    faster that was than with one worker. The exit code is 0 only if every
    file was counted exactly once.
    """
    from aiocluster.cli.demo import run_demo

    run("demo", run_demo(workers, kill=kill))


Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind", "-k", metavar="docker|batch|ecs", help="Where to look; may be given several times. Default: everywhere."
    ),
]
OneCluster = Annotated[str | None, typer.Option("--cluster", "-c", metavar="ID", help="Only what belongs to this cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")]


@app.command()
def ls(kind: Kinds = None, cluster: OneCluster = None, as_json: AsJson = False) -> None:
    """Show what clusters have running, or have left behind.

    It finds containers, jobs and tasks by the marks that every launcher
    puts on them: the cluster's id, who started it, and when. The column
    MANAGER tells whether the program that started them still runs.
    """
    from aiocluster.cli.leftovers import show

    run("ls", show(_kinds(kind), cluster, as_json=as_json))


@app.command()
def reap(
    kind: Kinds = None,
    cluster: OneCluster = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what belongs to managers that still run.")] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Also what belongs to managers that cannot be judged from here.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """End what clusters have left behind.

    Only containers, jobs and tasks whose manager is known to be gone are
    ended, unless told otherwise.
    """
    from aiocluster.cli.leftovers import end

    run("reap", end(_kinds(kind), cluster, alive=everything, unknown=unknown, dry_run=dry_run, as_json=as_json))


def _kinds(given: list[str] | None) -> list[str]:
    from aiocluster.leftovers import KINDS

    for kind in given or ():
        if kind not in KINDS:
            raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="--kind")
    return list(given or KINDS)


@app.command()
def top(
    cluster: Annotated[
        str | None,
        typer.Argument(metavar="[CLUSTER]", help="Its id, or how that begins. Default: the only one.", show_default=False),
    ] = None,
    interval: Annotated[float, typer.Option("--interval", "-n", min=0.1, metavar="S", help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a cluster whose manager runs on this machine, as you."""
    from aiocluster.cli.top import watch

    if as_json and not once:
        raise typer.BadParameter("JSON is printed once: give --once, too", param_hint="--json")
    run("top", watch(cluster, interval_s=interval, once=once, as_json=as_json), interrupted="the cluster goes on.")


@app.command()
def agent() -> None:
    """Make this machine or container a node of a cluster.

    It starts workers here, watches over them, and ends when the cluster
    closes. Launchers run it for you, with the address and the token of the
    cluster in the environment: AIOCLUSTER_MANAGER, AIOCLUSTER_TOKEN,
    AIOCLUSTER_CLUSTER and AIOCLUSTER_NODE.
    """
    # A new program in the same process: workers are forked from the agent, and need nothing of what this has imported.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "aiocluster.runtime.agent"])


if __name__ == "__main__":
    app(prog_name="aiocluster")
