"""What is written on the command line in a form of its own: NAME=VALUE, numbers of workers."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from aiocluster.config import worker_count

__all__ = ["counted", "pairs"]


def pairs(given: Sequence[str] | None, hint: str, kind: str = "NAME=VALUE") -> dict[str, str]:
    """What was given, by name; the last one of a name counts. What is no pair is a wrong option, which `hint` names."""
    found = {}
    for one in given or ():
        name, sign, value = one.partition("=")
        if not name or not sign:
            raise typer.BadParameter(f"{one!r} is not {kind}", param_hint=hint)
        found[name] = value
    return found


def counted(text: str | None) -> str | None:
    """The number of workers, or "minimum,maximum", as it was given; anything else is a wrong option."""
    if text:
        try:
            worker_count(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return text
