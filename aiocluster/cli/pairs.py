"""NAME=VALUE on the command line."""

from __future__ import annotations

from collections.abc import Sequence

import typer

__all__ = ["pairs"]


def pairs(given: Sequence[str] | None, hint: str, kind: str = "NAME=VALUE") -> dict[str, str]:
    """What was given, by name; the last one of a name counts. What is no pair is a wrong option, which `hint` names."""
    found = {}
    for one in given or ():
        name, sign, value = one.partition("=")
        if not name or not sign:
            raise typer.BadParameter(f"{one!r} is not {kind}", param_hint=hint)
        found[name] = value
    return found
