"""How a command runs, and how what happens becomes an exit code."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NoReturn

import typer

import aiocluster

__all__ = ["INTERRUPTED", "run"]

INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


def run(
    command: str, work: Coroutine[Any, Any, int], *, interrupted: str = "what had been started has been stopped."
) -> NoReturn:
    """Run it to its end, whatever that is, and leave with an exit code.

    Args:
        command: its name, which errors begin with.
        work: gives the exit code.
        interrupted: what to say after Ctrl-C: what is left, and how to go on.
    """
    try:
        code = aiocluster.run(work)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; {interrupted}", err=True)
        code = INTERRUPTED
    except aiocluster.AioclusterError as error:
        typer.echo(f"aiocluster {command}: {error}", err=True)
        code = 1
    raise typer.Exit(code)
