"""What the commands of `aiocluster job` do and print."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO

import typer
from rich.text import Text
from rich.tree import Tree

from aiocluster.cli.image import push_progress, script_of
from aiocluster.cli.patience import Patience
from aiocluster.cli.running import opened_aws
from aiocluster.cli.shown import console, plain, table
from aiocluster.cli.times import lasted
from aiocluster.cloud import jobs, submission
from aiocluster.cloud.context import path_in_image
from aiocluster.cloud.jobs import Job
from aiocluster.cloud.logs import Line, Readers, Source, of_jobs
from aiocluster.cloud.preparing import prepare
from aiocluster.cloud.stack import find_stack
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api
from aiocluster.terminal import write_text

__all__ = ["Asked", "Left", "cancel", "goes_on", "list_jobs", "logs", "status", "submit"]

POLL_S = 3.0
LOOK_FOR_WORKERS_S = 15.0
"""For that, all jobs of all queues are listed."""
LISTED = timedelta(days=7)
"""AWS Batch forgets jobs a week after their end. Source: its user guide."""
SHOWN_CHILDREN = 20
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


class Left:
    """What a command leaves behind if it is interrupted now, and how to go on: for those who press Ctrl-C."""

    def __init__(self, text: str) -> None:
        self.text = text


# --- submit ------------------------------------------------------------------------------------------------------------------


async def submit(asked: Asked, *, wait: bool, follow: bool, results: str | None, as_json: bool, left: Left) -> int:
    """Submit it, and do what is to be done after that; the exit code."""
    async with opened_aws(asked.region) as api:
        left.text = "no job was submitted. What was made for it stays, and the same command goes on from there."
        manager = await _manager(api, asked)
        left.text = "a job that AWS had taken by then has been told to end; `aiocluster job list` shows whether there is one."
        submitted = await submission.submit(api, manager)
        left.text = goes_on(submitted.id)
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
        left.text = f"the job has ended. `aiocluster job results {submitted.id}` has its results."
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
    patience = Patience(_tell)
    while True:
        job = await patience.ask(lambda: jobs.find_job(api, id))
        text = f"{job.status}: {job.reason}" if job.reason else job.status
        if text != told:
            told = text
            typer.echo(f"{datetime.now().astimezone():%H:%M:%S} {plain(text)}", err=True)
        if job.ended:
            return job
        await asyncio.sleep(POLL_S)


def goes_on(id: str) -> str:
    return f"the job goes on. `aiocluster job logs -f {id}` follows it, `aiocluster job cancel {id}` ends it."


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _say_end(job: Job) -> None:
    duration = lasted(job.lasted(datetime.now(UTC)))
    why = plain(f": {job.reason}") if job.reason else ""
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    typer.echo(f"job {job.name} {job.status} after {duration}{code}{why}", err=True)


# --- status, list, cancel ----------------------------------------------------------------------------------------------------


async def status(id: str, region: str | None, *, as_json: bool) -> int:
    """Print the job and what it has started; the exit code."""
    async with opened_aws(region) as api:
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
    console().print(shown)
    return 0


def _sentence(job: Job, now: datetime) -> Text:
    size = f" ({job.size} {'nodes' if job.nodes else 'children'})" if job.size else ""
    text = Text(f"{job.name}{size} ")
    text.append(job.status, COLOURS.get(job.status, "yellow"))
    duration = lasted(job.lasted(now))
    text.append(f" {'for' if not job.ended else 'after'} {duration}" if duration else "")
    text.append("" if job.exit_code is None else f", exit code {job.exit_code}")
    text.append(plain(f": {job.reason}" if job.reason else ""))
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
    async with opened_aws(region) as api:
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
    shown = table("NAME", "STATUS", "AGE", "LASTED", "CODE", "SCRIPT", *(["SUBMITTER"] if everybody else []), "ID")
    for job in found:
        age = lasted(None if job.created is None else now - job.created)
        code = "" if job.exit_code is None else str(job.exit_code)
        who = [plain(job.tags.get(jobs.SUBMITTER, ""))] if everybody else []
        state = Text(job.status, COLOURS.get(job.status, "yellow"))
        script = plain(job.tags.get(jobs.SCRIPT, ""))
        shown.add_row(job.name, state, age, lasted(job.lasted(now)), code, script, *who, job.id)
    console().print(shown)


async def cancel(id: str, region: str | None, *, force: bool, left: Left) -> int:
    """End it; the exit code."""

    def tell(text: str) -> None:
        left.text = "what is named above has been told to end. The same command again sees to the rest."
        typer.echo(text)

    async with opened_aws(region) as api:
        ended = await submission.cancel(api, id, force=force, tell=tell)
    if not ended:
        typer.echo("there was nothing left to end")
    return 0


# --- logs --------------------------------------------------------------------------------------------------------------------


async def logs(id: str, region: str | None, since: datetime | None, *, follow: bool, workers: bool, folder: str | None) -> int:
    """Print what a job has written, or write it to files; the exit code."""
    milliseconds = None if since is None else int(since.timestamp() * 1000)
    async with opened_aws(region) as api:
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
        async for line in readers.lines():
            _show(line)
    if not streams:
        typer.echo(f"job {job.name} has written nothing yet: it is {job.status}", err=True)
    return 0


async def _follow(api: Api, id: str, *, workers: bool, since: int | None) -> Job:
    """Print what it writes until it has ended; the job then."""
    patience = Patience(_tell)
    job = await patience.ask(lambda: jobs.find_job(api, id))
    whole, looked = job, float("-inf")

    async def look() -> tuple[list[Source], bool]:
        nonlocal job, whole, looked
        job = await patience.ask(lambda: jobs.find_job(api, id))
        now = asyncio.get_running_loop().time()
        if workers and (job.ended or now - looked >= LOOK_FOR_WORKERS_S):
            whole, looked = await patience.ask(lambda: jobs.tree(api, job)), now
        return of_jobs(whole if workers else job, workers=workers), job.ended

    async for line in Readers(api, since, again=patience.again).follow(look):
        _show(line)
    return job


def _show(line: Line) -> None:
    """Write it to stdout, at once: somebody may wait for it at the other end of a pipe."""
    if not write_text(sys.stdout, f"[{line.label}] {line.text}\n" if line.label else f"{line.text}\n"):
        raise BrokenPipeError(errno.EPIPE, "nobody reads any more")


async def _download(readers: Readers, folder: str) -> int:
    """One file a stream, one after the other; how many lines there were."""
    count = 0
    for reader in readers.all():
        name = re.sub(r"[^\w.-]+", "-", reader.label) or "manager"
        with _log_file(folder, name) as file:
            async for line in reader.lines():
                file.write(f"{line.text}\n")
                count += 1
    return count


@contextlib.contextmanager
def _log_file(folder: str, name: str) -> Iterator[TextIO]:
    path = os.path.join(folder, f"{name}.log")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
    except OSError as error:
        raise LaunchError(f"{path} cannot be written: {error}") from error
