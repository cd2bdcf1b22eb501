"""`aiocluster top`: a running cluster of this machine, seen from another terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aiocluster.cli.shown import console
from aiocluster.runtime.window import find_windows, look

__all__ = ["render", "watch"]

EVENTS_SHOWN = 8
BUSY = "its manager is busy with something else and does not answer"


async def watch(cluster: str | None, *, interval_s: float, once: bool, as_json: bool) -> int:
    """Show the cluster until it closes; the exit code."""
    chosen = await _choose(cluster)
    if chosen is None:
        return 1
    path, seen = chosen
    if as_json:
        typer.echo(json.dumps(seen, indent=2))
        return 0
    if once or not sys.stdout.isatty():
        console().print(render(seen))
        return 0
    with Live(render(seen), screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval_s)
            try:
                seen = await look(path)
                live.update(render(seen), refresh=True)
            except TimeoutError:
                live.update(Group(render(seen), Text(BUSY, style="yellow")), refresh=True)
            except OSError:
                break
    typer.echo(f"cluster {seen['cluster']} has closed")
    return 0


async def _choose(wanted: str | None) -> tuple[str, dict[str, Any]] | None:
    """The window of the cluster that is meant, and what is seen in it; None, and why, where that is not clear."""
    paths = find_windows()
    answers = await asyncio.gather(*(look(path) for path in paths), return_exceptions=True)
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path, answer in zip(paths, answers):
        if isinstance(answer, TimeoutError):
            typer.echo(f"one cluster is not shown: {BUSY} ({path})", err=True)
        elif isinstance(answer, dict):
            found[str(answer["cluster"])] = (path, answer)
        elif not isinstance(answer, OSError):  # one that has closed, or was killed, is no matter
            raise answer
    matching = [one for id, one in found.items() if wanted is None or id.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    known = "\n".join(f"  {id}  {seen['program']} (pid {seen['pid']})" for id, (_, seen) in sorted(found.items()))
    if not found:
        typer.echo("no cluster of yours has its manager on this machine", err=True)
    elif not matching:
        typer.echo(f"no cluster {wanted} has its manager on this machine; there are:\n{known}", err=True)
    else:
        typer.echo(f"say which one: `aiocluster top CLUSTER`; there are:\n{known}", err=True)
    return None


def render(seen: dict[str, Any]) -> RenderableType:
    """What is seen in a window, for people."""
    status = seen["status"]
    head = Text.assemble(
        (f"{seen['cluster']}", "bold"),
        f"  {seen['program']} (pid {seen['pid']} on {seen['host']})\n",
        f"{status['workers']} of {status['wanted']} workers; calls: {status['waiting']} wait, {status['running']} run, "
        f"{status['ended']} have ended; {_mebibytes(status['pending_bytes'])} of arguments",
    )
    workers = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("WORKER", "NODE", "HOST", "PID", "STATE", "CALLS", "CPU", "MEMORY"):
        workers.add_column(title, justify="right" if title in ("WORKER", "PID", "CALLS", "CPU", "MEMORY") else "left")
    for one in seen["workers"]:
        state = one["process_state"] if one["state"] == "ready" and one["process_state"] else one["state"]
        workers.add_row(
            str(one["id"]), Text(one["node"]), Text(one["host"]), str(one["pid"]), state, str(one["in_flight"]),
            f"{one['cpu_percent']:.0f} %", _mebibytes(one["rss_bytes"]),
        )  # fmt: skip
    events = Table(box=None, pad_edge=False, show_header=False)
    for one in seen["events"][-EVENTS_SHOWN:]:
        who = f"worker {one['worker_id']}" if one["worker_id"] else f"node {one['node']}" if one["node"] else ""
        events.add_row(f"{one['s_ago']:.0f} s ago", who, one["kind"].replace("_", " "), Text(one["text"]))
    return Group(head, "", workers, "", events)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
