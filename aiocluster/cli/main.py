"""The command `aiocluster`: what it offers, and how what happens becomes an exit code.

Commands are thin: what they do lives in modules that they import when they run, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import aiocluster

__all__ = ["app"]

app = typer.Typer(
    name="aiocluster",
    help="Run Python functions on many processes and machines, from one asyncio program.",
    epilog="New here? `aiocluster demo` puts all processors of this machine to work and shows what came of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # the interpreter's own traceback is complete, and the same on every terminal
)

INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aiocluster {aiocluster.__version__}, Python {sys.version.split()[0]}")
        raise typer.Exit


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

    try:
        code = aiocluster.run(run_demo(workers, kill=kill))
    except KeyboardInterrupt:
        typer.echo("Interrupted; the workers have been stopped.", err=True)
        code = INTERRUPTED
    except aiocluster.AioclusterError as error:
        typer.echo(f"aiocluster demo: {error}", err=True)
        code = 1
    raise typer.Exit(code)


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
