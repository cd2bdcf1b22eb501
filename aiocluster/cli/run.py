"""`aiocluster run`: a script of the user in this process, on uvloop, with the cluster that `Cluster.from_env()` opens in it."""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from aiocluster.cli.forms import counted
from aiocluster.cli.running import INTERRUPTED
from aiocluster.errors import AioclusterError

if TYPE_CHECKING:
    from aiocluster.cloud.stack import Stack

__all__ = ["CONTEXT", "execute", "run_script"]

CONTEXT = {"allow_interspersed_args": False}
"""Of the command: what follows the script's name is for the script."""
TERMINATED = 128 + signal.SIGTERM
ON_AWS = ("batch", "ecs")


class LauncherName(StrEnum):
    """What `Cluster.from_env` knows."""

    local = "local"
    docker = "docker"
    batch = "batch"
    batch_nodes = "batch-nodes"
    ecs = "ecs"


class Output(StrEnum):
    forward = "forward"
    log = "log"
    quiet = "quiet"


def run_script(
    script: Annotated[
        Path, typer.Argument(metavar="SCRIPT", exists=True, readable=True, help="A Python file, which uses Cluster.from_env().")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="What the script finds in sys.argv.", show_default=False)
    ] = None,
    launcher: Annotated[LauncherName | None, typer.Option("--launcher", "-l", help="What starts the workers.")] = None,
    workers: Annotated[
        str | None,
        typer.Option("--workers", "-w", metavar="N|MIN,MAX", callback=counted, help="How many workers.", show_default=False),
    ] = None,
    output: Annotated[Output | None, typer.Option("--output", help="What becomes of the workers' output.")] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="IMAGE", help="docker: what containers run.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", metavar="QUEUE", help="batch: where the jobs go.")] = None,
    definition: Annotated[
        str | None, typer.Option("--definition", metavar="NAME", help="batch, ecs: the job or task definition.")
    ] = None,
    ecs_cluster: Annotated[str | None, typer.Option("--ecs-cluster", metavar="NAME", help="ecs: where the tasks run.")] = None,
    launch_type: Annotated[
        str | None, typer.Option("--launch-type", metavar="TYPE", help="ecs: EC2, FARGATE or a capacity provider.")
    ] = None,
    subnet: Annotated[
        list[str] | None, typer.Option("--subnet", metavar="ID", help="ecs: of the tasks; may be repeated.")
    ] = None,
    security_group: Annotated[
        list[str] | None, typer.Option("--security-group", metavar="ID", help="ecs: of the tasks; may be repeated.")
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option("--stack", "-s", metavar="NAME", help="batch, ecs: take from this stack what is not given."),
    ] = None,
    advertise: Annotated[
        str | None, typer.Option("--advertise", metavar="HOST[:PORT]", help="How workers elsewhere reach this machine.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", metavar="REGION", help="batch, ecs: of AWS.")] = None,
    results: Annotated[
        str | None,
        typer.Option("--results", metavar="DIR|S3", help="Where aiocluster.results saves: a folder or s3://bucket/prefix."),
    ] = None,
) -> None:
    """Run a script here, on uvloop, with the workers that you ask for.

    In the script, `Cluster.from_env()` opens the cluster that these options
    describe; what is not given stays as the environment says. Options of
    the command stand before SCRIPT, all that follows is for the script.

    The exit code is that of the script. Ctrl-C and SIGTERM cancel what
    runs in it, so that its clusters close, and give 130 and 143.
    """
    given = {
        "AIOCLUSTER_LAUNCHER": launcher and launcher.value,
        "AIOCLUSTER_WORKERS": workers,
        "AIOCLUSTER_OUTPUT": output and output.value,
        "AIOCLUSTER_DOCKER_IMAGE": image,
        "AIOCLUSTER_QUEUE": queue,
        "AIOCLUSTER_DEFINITION": definition,
        "AIOCLUSTER_ECS_CLUSTER": ecs_cluster,
        "AIOCLUSTER_LAUNCH_TYPE": launch_type,
        "AIOCLUSTER_SUBNETS": ",".join(subnet or ()),
        "AIOCLUSTER_SECURITY_GROUPS": ",".join(security_group or ()),
        "AIOCLUSTER_ADVERTISE": advertise,
        "AIOCLUSTER_RESULTS": results,
        "AWS_REGION": region,
    }
    os.environ.update((name, value) for name, value in given.items() if value)
    if stack is not None:
        os.environ.update(_of_stack(stack))
    raise typer.Exit(execute(script, arguments or []))


def _of_stack(name: str) -> dict[str, str]:
    """The variables that a stack gives values for, but those that have one."""
    launcher = os.environ.get("AIOCLUSTER_LAUNCHER")
    if launcher not in ON_AWS:
        raise typer.BadParameter(f"a stack is of use with --launcher {' or '.join(ON_AWS)} only", param_hint="--stack")
    from aiocluster.cloud.stack import find_stack

    try:
        told = stack_variables(asyncio.run(find_stack(name)), launcher)
    except AioclusterError as error:
        typer.echo(f"aiocluster run: {error}", err=True)
        raise typer.Exit(1) from None
    return {variable: value for variable, value in told.items() if not os.environ.get(variable)}


def stack_variables(stack: Stack, launcher: str) -> Mapping[str, str]:
    """What `Cluster.from_env` has to be told to use a stack."""
    if launcher == "batch":
        return {"AIOCLUSTER_QUEUE": stack.worker_queue, "AIOCLUSTER_DEFINITION": stack.job_definition}
    return {
        "AIOCLUSTER_ECS_CLUSTER": stack.cluster,
        "AIOCLUSTER_DEFINITION": stack.task_definition,
        "AIOCLUSTER_SUBNETS": ",".join(stack.subnets),
        "AIOCLUSTER_SECURITY_GROUPS": stack.security_group,
    }


def execute(script: Path, arguments: list[str]) -> int:
    """The exit code of the script, which has run as `python SCRIPT ARGS…` would have run it, but on uvloop."""
    _use_uvloop()
    terminated = _let_sigterm_cancel()
    sys.argv = [str(script), *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent if script.is_file() else script)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as leaving:
        return _code(leaving)
    except KeyboardInterrupt:
        if terminated:
            return TERMINATED
        typer.echo("Interrupted; the script's clusters have been closed.", err=True)
        return INTERRUPTED
    except BaseException as error:
        error.__traceback__ = _of_script(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _use_uvloop() -> None:
    """`asyncio.run` in the script gets its loops from uvloop."""
    try:
        import uvloop
    except ImportError:  # where uvloop does not exist
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.14 on; there is no other way into `asyncio.run`
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def _let_sigterm_cancel() -> list[int]:
    """SIGTERM does what Ctrl-C does, and a second one ends the process at once.

    A script that handles it by itself, as `aiocluster.run` does, goes first.

    Returns: what is not empty after SIGTERM.
    """
    terminated: list[int] = []

    def terminate(signum: int, _frame: FrameType | None) -> None:
        terminated.append(signum)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one is meant
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell does for what runs in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    return terminated


def _code(leaving: SystemExit) -> int:
    """As the interpreter has it: text goes to stderr, and means 1."""
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    typer.echo(leaving.code, err=True)
    return 1


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames that have led to the script."""
    mine = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in mine:
        trace = trace.tb_next
    return trace
