"""How a command runs, and how what happens becomes an exit code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

import aiocluster

if TYPE_CHECKING:
    from aiocluster.launch.aws import Aws

__all__ = ["INTERRUPTED", "opened_aws", "run"]

INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


@asynccontextmanager
async def opened_aws(region: str | None) -> AsyncIterator[Aws]:
    """AWS, as the user's own settings say, closed at the end."""
    from aiocluster.launch.aws import Aws

    api = Aws(region)
    try:
        yield api
    finally:
        await api.close()


def run(
    command: str,
    work: Coroutine[Any, Any, int],
    *,
    interrupted: str | Callable[[], str] = "what had been started has been stopped.",
) -> NoReturn:
    """Run it to its end, whatever that is, and leave with an exit code.

    Args:
        command: its name, which errors begin with.
        work: gives the exit code.
        interrupted: what to say after Ctrl-C: what is left, and how to go on. A function where that depends on how far it came.
    """
    try:
        code = aiocluster.run(work)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; {interrupted if isinstance(interrupted, str) else interrupted()}", err=True)
        code = INTERRUPTED
    except aiocluster.AioclusterError as error:
        typer.echo(f"aiocluster {command}: {error}", err=True)
        code = 1
    raise typer.Exit(code)
