"""`aiocluster ls` and `aiocluster reap`: what clusters have left somewhere, shown and ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer

from aiocluster.cli.shown import console, plain, table
from aiocluster.leftovers import Found, Leftover, Reaped, find, reap

__all__ = ["choose", "end", "show"]

NOTHING_FAILED, SOMETHING_FAILED = 0, 1


async def show(kinds: Sequence[str], cluster: str | None, *, as_json: bool) -> int:
    """Print what is there; the exit code."""
    found = await find(kinds, cluster=cluster)
    _complain(found)
    if as_json:
        _print_json([_row(one) for one in found.leftovers])
    elif found.leftovers:
        _print_table(found.leftovers)
    elif reached := _reached(kinds, found):
        whose = "any cluster" if cluster is None else f"cluster {cluster}"
        typer.echo(f"nothing is left of {whose}{_where(reached, found)}")
    return NOTHING_FAILED if _reached(kinds, found) else SOMETHING_FAILED


async def end(kinds: Sequence[str], cluster: str | None, *, alive: bool, unknown: bool, dry_run: bool, as_json: bool) -> int:
    """End what is left over, and say what was done with each; the exit code."""
    found = await find(kinds, cluster=cluster)
    _complain(found)
    chosen = choose(found.leftovers, alive=alive, unknown=unknown)
    reaped = [Reaped(one, "") for one in chosen] if dry_run else await reap(chosen)
    if as_json:
        done = [] if dry_run else [one.leftover.id for one in reaped if not one.error]
        _print_json([{**_row(one.leftover), "ended": one.leftover.id in done, "error": one.error} for one in reaped])
    else:
        for one in reaped:
            what = f"{one.leftover.kind} {one.leftover.name} ({one.leftover.id[:48]})"
            if dry_run:
                typer.echo(f"would end {what}")
            else:
                typer.echo(f"could not end {what}: {one.error}" if one.error else f"ended {what}")
        spared = len(found.leftovers) - len(chosen)
        if spared:
            typer.echo(f"{spared} left alone: the manager runs (--all ends them too) or cannot be judged from here (--unknown)")
        elif not chosen and (reached := _reached(kinds, found)):
            typer.echo(f"there is nothing to end{_where(reached, found)}")
    failed = any(one.error for one in reaped) or not _reached(kinds, found)
    return SOMETHING_FAILED if failed else NOTHING_FAILED


def choose(leftovers: Sequence[Leftover], *, alive: bool, unknown: bool) -> list[Leftover]:
    """Those whose manager is known to be gone; with `alive` all of them, with `unknown` those that nobody can judge as well."""
    return [one for one in leftovers if alive or one.alive is False or (unknown and one.alive is None)]


def _reached(kinds: Sequence[str], found: Found) -> list[str]:
    return [kind for kind in dict.fromkeys(kinds) if kind not in found.unreachable]


def _where(reached: Sequence[str], found: Found) -> str:
    """Of places that have nothing: which they are, unless they are all."""
    return f" in {', '.join(reached)}" if found.unreachable else ""


def _complain(found: Found) -> None:
    for kind, reason in found.unreachable.items():
        typer.echo(f"{kind}: {reason}", err=True)


def _row(one: Leftover) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "id": one.id,
        "name": one.name,
        "state": one.state,
        "cluster": one.cluster,
        "manager": one.manager,
        "created": None if one.created is None else one.created.isoformat(),
        "manager_alive": one.alive,
        "where": one.where,
    }


def _print_json(rows: list[dict[str, Any]]) -> None:
    typer.echo(json.dumps(rows, indent=2))


def _print_table(leftovers: Sequence[Leftover]) -> None:
    shown = table("CLUSTER", "KIND", "NAME", "STATE", "AGE", "MANAGER", "ID", whole=("CLUSTER", "AGE"))
    for one in leftovers:
        manager = {True: "runs", False: "gone", None: "unknown"}[one.alive]
        shown.add_row(*map(plain, (one.cluster, one.kind, one.name, one.state, _age(one.created), manager, one.id)))
    console().print(shown)


def _age(created: datetime | None) -> str:
    if created is None:
        return "?"
    seconds = int((datetime.now(UTC) - created).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
