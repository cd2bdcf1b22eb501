"""`aiocluster job results`: what a program has saved, shown and downloaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aiocluster.cli.running import opened_aws, run
from aiocluster.terminal import is_terminal

if TYPE_CHECKING:
    from aiocluster.launch.aws import Api
    from aiocluster.results import Entry, Progress

__all__ = ["download_results", "results"]


def results(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job; or a folder, or s3://bucket/prefix.")],
    download: Annotated[
        str | None,
        typer.Option("--download", "-d", metavar="DIR", help="Write each result to a file in this folder.", show_default=False),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", metavar="REGION", help="Where the job is. Default: what AWS's own settings say.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs to read.")] = False,
) -> None:
    """Show what a program has saved with aiocluster.results, or download it.

    Downloads are checked against the manifest, and appear as files when
    they are whole. Those that are there already and are the same are not
    fetched again. Pickles are not loaded.
    """
    run(
        "job results",
        _results(job, download, region, as_json=as_json),
        interrupted="files that are whole stay, and the same command goes on from there.",
    )


async def _results(job: str, folder: str | None, region: str | None, *, as_json: bool) -> int:
    import aiocluster
    from aiocluster.cloud.results import where_results_are

    async with opened_aws(region) as api:
        try:
            place = await where_results_are(job, api=api)
            if folder is None:
                found = await aiocluster.results.entries(place=place, api=api)
            else:
                with download_progress() as progress:
                    found = await aiocluster.results.download(folder, place=place, progress=progress, api=api)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="JOB") from error
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
    elif not found:
        typer.echo(f"nothing was saved to {place}")
    elif folder is None:
        _print_table(found)
    else:
        typer.echo(f"{len(found)} results of {place} are in {folder}")
    return 0


async def download_results(place: str, folder: str, api: Api) -> int:
    """The results are files in the folder, with progress on stderr; how many."""
    import aiocluster

    with download_progress() as progress:
        return len(await aiocluster.results.download(folder, place=place, progress=progress, api=api))


@contextmanager
def download_progress() -> Iterator[Progress]:
    """What shows how a download goes on: a bar for each file on a terminal, else a line for each that has arrived."""
    if not is_terminal(sys.stderr):
        yield lambda name, done, size: typer.echo(f"{name}: {size} bytes", err=True) if done == size else None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[str, bars.TaskID] = {}

        def advance(name: str, done: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=size)
            shown.update(tasks[name], completed=done)

        yield advance


def _print_table(found: list[Entry]) -> None:
    from rich.filesize import decimal

    from aiocluster.cli.shown import console, plain, table

    shown = table("NAME", "SIZE", "FORMAT", "CREATED", "SHA256", right=("SIZE",))
    for entry in found:
        shown.add_row(plain(entry.name), decimal(entry.size), entry.format, entry.created, entry.sha256[:12])
    console().print(shown)
