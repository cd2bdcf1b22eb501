"""What the commands of `aiocluster job` do and print."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from aiocluster.cli.image import push_progress, script_of
from aiocluster.cli.times import lasted
from aiocluster.cloud import jobs, submission
from aiocluster.cloud.context import path_in_image
from aiocluster.cloud.jobs import Job
from aiocluster.cloud.logs import Line, Readers, of_jobs
from aiocluster.cloud.preparing import prepare
from aiocluster.cloud.stack import find_stack
from aiocluster.launch.aws import Api, Aws

__all__ = ["Asked", "cancel", "list_jobs", "logs", "status", "submit"]

POLL_S = 3.0
LISTED = timedelta(days=7)
"""AWS Batch forgets jobs a week after their end. Source: its user guide."""
SHOWN_CHILDREN = 20
WIDE = 250
"""Columns where nobody looks: what is read by programs is not folded."""
COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "cyan"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `aiocluster job submit` was told."""

    script: str
    arguments: Sequence[str]
    workers: str | None
    queue: str | None
    definition: str | None
    name: str | None
    env: Mapping[str, str]
    timeout_s: float | None
    stack: str | None
    region: str | None
    build: bool
    push: bool
    register: bool
    base: str | None
    requirements: str | None
    registry: str | None


@contextlib.asynccontextmanager
async def _aws(region: str | None) -> AsyncIterator[Api]:
    api = Aws(region)
    try:
        yield api
    finally:
        await api.close()


# --- submit ------------------------------------------------------------------------------------------------------------------


async def submit(asked: Asked, *, wait: bool, follow: bool, results: str | None, as_json: bool) -> int:
    """Submit it, and do what is to be done after that; the exit code."""
    async with _aws(asked.region) as api:
        submitted = await submission.submit(api, await _manager(api, asked))
        if as_json:
            typer.echo(json.dumps({"id": submitted.id, "name": submitted.name, "results": submitted.results}))
        else:
            command = " ".join(["python", asked.script, *asked.arguments])
            typer.echo(f"submitted job {submitted.name}, which runs `{command}`: {submitted.id}", err=follow)
            if submitted.results:
                typer.echo(f"its results go to {submitted.results}", err=follow)
        if not (wait or follow or results):
            if not as_json:
                typer.echo(
                    f"`aiocluster job status {submitted.id}` and `aiocluster job logs -f {submitted.id}` show how it goes on"
                )
            return 0
        job = await (_follow(api, submitted.id, workers=False, since=None) if follow else _wait(api, submitted.id))
        _say_end(job)
        if results is not None and submitted.results:
            from aiocluster.cli.results import download_results

            count = await download_results(submitted.results, results, api)
            typer.echo(f"{count} results are in {results}", err=True)
        elif results is not None:
            typer.echo(
                "nobody knows where its results are: no stack says which bucket, and no AIOCLUSTER_RESULTS was given", err=True
            )
        return job.code


async def _manager(api: Api, asked: Asked) -> submission.Manager:
    """What is not given comes from the stack; where all is given, none is needed."""
    given = asked.env.get("AIOCLUSTER_RESULTS", "")
    worker_queue, bucket = asked.env.get(submission.WORKER_QUEUE, ""), ""
    queue, definition = asked.queue, asked.definition
    script = asked.script
    if asked.build or asked.push or asked.register:
        definition = await _prepared(api, asked) or definition
        script = str(path_in_image(script))
    if not (queue and definition) or asked.stack is not None or os.environ.get("AIOCLUSTER_STACK"):
        stack = await find_stack(asked.stack, api=api)
        queue = queue or stack.manager_queue
        definition = definition or stack.job_definition
        worker_queue = worker_queue or stack.worker_queue
        bucket = "" if given else stack.results_bucket
    return submission.Manager(
        script=script,
        arguments=asked.arguments,
        workers=asked.workers or "",
        queue=queue,
        definition=definition,
        name=asked.name,
        worker_queue=worker_queue,
        bucket=bucket,
        results=given,
        env=asked.env,
        timeout_s=asked.timeout_s,
    )


async def _prepared(api: Api, asked: Asked) -> str:
    """The script has an image, and a definition that runs it, as far as was asked for; the definition, if that was."""
    stack = await find_stack(asked.stack, api=api)
    with push_progress() as progress:
        made = await prepare(
            api,
            script_of(asked.script, asked.base, asked.requirements),
            like=stack.job_definition,
            repository=stack.repository,
            build=asked.build,
            push=asked.push,
            register=asked.register,
            registry_host=asked.registry,
            tell=lambda line: typer.echo(line, err=True),
            progress=progress,
        )
    return made.definition


async def _wait(api: Api, id: str) -> Job:
    """The job when it has ended; its states are told meanwhile."""
    told = ""
    while True:
        job = await jobs.find_job(api, id)
        text = f"{job.status}: {job.reason}" if job.reason else job.status
        if text != told:
            told = text
            typer.echo(f"{datetime.now().astimezone():%H:%M:%S} {text}", err=True)
        if job.ended:
            return job
        await asyncio.sleep(POLL_S)


def _say_end(job: Job) -> None:
    duration = lasted(job.lasted(datetime.now(UTC)))
    why = f": {job.reason}" if job.reason else ""
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    typer.echo(f"job {job.name} {job.status} after {duration}{code}{why}", err=True)


# --- status, list, cancel ----------------------------------------------------------------------------------------------------


async def status(id: str, region: str | None, *, as_json: bool) -> int:
    """Print the job and what it has started; the exit code."""
    async with _aws(region) as api:
        job = await jobs.tree(api, await jobs.find_job(api, id))
    now = datetime.now(UTC)
    if as_json:
        typer.echo(json.dumps(_as_data(job, now), indent=2))
        return 0
    shown = Tree(_sentence(job, now))
    for child in job.children:
        branch = shown.add(_sentence(child, now))
        for leaf in child.children[:SHOWN_CHILDREN]:
            branch.add(_sentence(leaf, now))
        if len(child.children) > SHOWN_CHILDREN:
            branch.add(Text(f"… and {len(child.children) - SHOWN_CHILDREN} more: --json shows all of them"))
    Console(width=None if sys.stdout.isatty() else WIDE).print(shown)
    return 0


def _sentence(job: Job, now: datetime) -> Text:
    size = f" ({job.size} {'nodes' if job.nodes else 'children'})" if job.size else ""
    text = Text(f"{job.name}{size} ")
    text.append(job.status, COLOURS.get(job.status, "yellow"))
    duration = lasted(job.lasted(now))
    text.append(f" {'for' if not job.ended else 'after'} {duration}" if duration else "")
    text.append("" if job.exit_code is None else f", exit code {job.exit_code}")
    text.append(f": {job.reason}" if job.reason else "")
    text.append(f"  {job.id}", "dim")
    return text


def _as_data(job: Job, now: datetime) -> dict[str, Any]:
    duration = job.lasted(now)
    return {
        "id": job.id,
        "name": job.name,
        "queue": job.queue,
        "status": job.status,
        "reason": job.reason,
        "exit_code": job.exit_code,
        "created": None if job.created is None else job.created.isoformat(),
        "started": None if job.started is None else job.started.isoformat(),
        "stopped": None if job.stopped is None else job.stopped.isoformat(),
        "seconds": None if duration is None else duration.total_seconds(),
        "results": job.tags.get("aiocluster:results"),
        "submitter": job.tags.get(jobs.SUBMITTER),
        "children": [_as_data(child, now) for child in job.children],
    }


async def list_jobs(region: str | None, since: datetime | None, *, everybody: bool, as_json: bool) -> int:
    """Print the managers that were submitted since then; the exit code."""
    now = datetime.now(UTC)
    async with _aws(region) as api:
        mine = None if everybody else await submission.identity_tag(api)
        found = [job async for job in jobs.managers(api, since or now - LISTED) if mine in (None, job.tags.get(jobs.SUBMITTER))]
    if as_json:
        typer.echo(json.dumps([_as_data(job, now) for job in found], indent=2))
    elif not found:
        typer.echo("no manager jobs" if everybody else "no manager jobs of yours; --all shows those of others")
    else:
        _print_table(found, now, everybody=everybody)
    return 0


def _print_table(found: Sequence[Job], now: datetime, *, everybody: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "STATUS", "AGE", "LASTED", "CODE", "SCRIPT", *(["SUBMITTER"] if everybody else []), "ID"):
        table.add_column(title, overflow="fold")
    for job in found:
        age = lasted(None if job.created is None else now - job.created)
        code = "" if job.exit_code is None else str(job.exit_code)
        who = [job.tags.get(jobs.SUBMITTER, "")] if everybody else []
        state = Text(job.status, COLOURS.get(job.status, "yellow"))
        script = job.tags.get(jobs.SCRIPT, "")
        table.add_row(job.name, state, age, lasted(job.lasted(now)), code, script, *who, job.id)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


async def cancel(id: str, region: str | None, *, force: bool) -> int:
    """End it; the exit code."""
    async with _aws(region) as api:
        ended = await submission.cancel(api, id, force=force, tell=typer.echo)
    if not ended:
        typer.echo("there was nothing left to end")
    return 0


# --- logs --------------------------------------------------------------------------------------------------------------------


async def logs(id: str, region: str | None, since: datetime | None, *, follow: bool, workers: bool, folder: str | None) -> int:
    """Print what a job has written, or write it to files; the exit code."""
    milliseconds = None if since is None else int(since.timestamp() * 1000)
    async with _aws(region) as api:
        if follow:
            job = await _follow(api, id, workers=workers, since=milliseconds)
            _say_end(job)
            return job.code
        job = await jobs.find_job(api, id)
        if workers:
            job = await jobs.tree(api, job)
        readers = Readers(api, milliseconds)
        streams = of_jobs(job, workers=workers)
        readers.add(streams)
        if folder is not None:
            count = await _download(readers, folder)
            typer.echo(f"{count} lines of {len(streams)} streams are in {folder}", err=True)
            return 0
        with _printer() as show:
            async for line in readers.lines():
                show(line)
    if not streams:
        typer.echo(f"job {job.name} has written nothing yet: it is {job.status}", err=True)
    return 0


async def _follow(api: Api, id: str, *, workers: bool, since: int | None) -> Job:
    """Print what it writes until it has ended; the job then."""
    job: Job | None = None

    async def look() -> tuple[list[Any], bool]:
        nonlocal job
        job = await jobs.find_job(api, id)
        whole = await jobs.tree(api, job) if workers else job
        return of_jobs(whole, workers=workers), job.ended

    with _printer() as show:
        async for line in Readers(api, since).follow(look):
            show(line)
    assert job is not None
    return job


@contextlib.contextmanager
def _printer() -> Iterator[Any]:
    """Writes lines to stdout, and at once where somebody waits for them."""
    out = sys.stdout

    def show(line: Line) -> None:
        out.write(f"[{line.label}] {line.text}\n" if line.label else f"{line.text}\n")

    try:
        yield show
    finally:
        out.flush()


async def _download(readers: Readers, folder: str) -> int:
    """One file a stream, one after the other; how many lines there were."""
    count = 0
    os.makedirs(folder, exist_ok=True)
    for reader in readers.all():
        name = re.sub(r"[^\w.-]+", "-", reader.label) or "manager"
        with open(os.path.join(folder, f"{name}.log"), "w", encoding="utf-8") as file:  # noqa: ASYNC230  # nobody else waits
            async for line in reader.lines():
                file.write(f"{line.text}\n")
                count += 1
    return count
