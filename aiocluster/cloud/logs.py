"""What jobs have written, from CloudWatch Logs: every line once, in the order of time, from as many streams as there are.

Each stream is read from its beginning by the token that AWS gives with every page, never by windows of time: lines of the same
millisecond, or lines that arrive late, are neither left out nor told twice. Of each stream no more than a page is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any, NamedTuple

from aiocluster.cloud.jobs import Job, Stream
from aiocluster.launch.aws import Api, AwsError

__all__ = ["Line", "Readers", "of_jobs"]

AT_ONCE = 8
"""Requests under way at the same time: AWS answers 25 a second in all. Source: the quota of GetLogEvents."""
LARGEST_PAGE, SMALLEST_PAGE = 10_000, 50
"""Lines of an answer. All streams together hold as many as one may, as long as there are few enough of them."""
POLL_S = 2.0
"""Between looks at streams that go on."""
SETTLE_S = 6.0
"""For the last lines of a job that has ended to arrive: containers send theirs every five seconds at the latest."""


class Line(NamedTuple):
    """One line of one stream."""

    time: int
    """Milliseconds since 1970, as the container wrote it."""
    label: str
    """Of the stream."""
    text: str


class Reader:
    """One stream, from its beginning on.

    Args:
        label: what its lines are marked with.
        since: milliseconds since 1970; lines before that are left out.
        turns: who of all readers may ask at the same moment.
    """

    def __init__(self, api: Api, stream: Stream, label: str, since: int | None, turns: asyncio.Semaphore) -> None:
        self.label = label
        self._turns = turns
        self.stream = stream
        self._api = api
        self._since = since
        self._token: str | None = None
        self.page = LARGEST_PAGE
        """Lines that are held at once at most."""

    async def lines(self) -> AsyncIterator[Line]:
        """All lines that are there and have not been given before. None if the stream is not there yet.

        Raises:
            AwsError: AWS does not tell.
        """
        while True:
            page = await self._page()
            for event in page.get("events", ()):
                yield Line(int(event.get("timestamp", 0)), self.label, str(event.get("message", "")).rstrip("\n"))
            token = page.get("nextForwardToken")
            # AWS gives the same token again at the end, and may give empty pages before it.
            if token is None or token == self._token:
                return
            self._token = token

    async def _page(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"nextToken": self._token} if self._token else {}
        if self._since is not None:
            asked["startTime"] = self._since
        place: dict[str, Any] = {"logGroupName": self.stream.group, "logStreamName": self.stream.name}
        try:
            async with self._turns:
                return await self._api.call("logs", "get_log_events", **place, startFromHead=True, limit=self.page, **asked)
        except AwsError as error:
            if error.code == "ResourceNotFoundException":  # nothing has been written yet
                return {}
            raise


async def merged(readers: Sequence[Reader]) -> AsyncIterator[Line]:
    """What all of them have to give now, in the order of time; the lines of each in their own order."""
    sources = [reader.lines() for reader in readers]
    firsts = await asyncio.gather(*[anext(source, None) for source in sources])
    heads = [(line.time, index, line) for index, line in enumerate(firsts) if line is not None]
    heapify(heads)
    while heads:
        _, index, line = heads[0]
        yield line
        following = await anext(sources[index], None)
        if following is None:
            heappop(heads)
        else:
            heapreplace(heads, (following.time, index, following))


class Readers:
    """The streams of jobs, more of which may come.

    Args:
        since: milliseconds since 1970; lines before that are left out.
    """

    def __init__(self, api: Api, since: int | None = None) -> None:
        self._api = api
        self._since = since
        self._readers: dict[Stream, Reader] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    def add(self, streams: Iterable[tuple[Stream, str]]) -> None:
        """These streams, each with its label, are read too from now on."""
        for stream, label in streams:
            if stream not in self._readers:
                self._readers[stream] = Reader(self._api, stream, label, self._since, self._turns)

    def all(self) -> list[Reader]:
        """One for each stream."""
        return list(self._readers.values())

    async def lines(self) -> AsyncIterator[Line]:
        """What they have to give now."""
        for reader in self._readers.values():
            reader.page = max(SMALLEST_PAGE, LARGEST_PAGE // len(self._readers))
        async for line in merged(self.all()):
            yield line

    async def follow(
        self,
        look: Callable[[], Awaitable[tuple[Iterable[tuple[Stream, str]], bool]]],
        *,
        settle_s: float = SETTLE_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> AsyncIterator[Line]:
        """All lines as they come, until the end.

        Args:
            look: which streams there are by now, and whether all has ended. It is asked before every round, so that what is
                written before the end is seen.
        """
        quiet_s = 0.0
        while True:
            streams, over = await look()
            self.add(streams)
            any_line = False
            async for line in self.lines():
                any_line = True
                yield line
            quiet_s = 0.0 if any_line or not over else quiet_s + POLL_S
            if over and quiet_s >= settle_s:
                return
            await pause(POLL_S)


def of_jobs(job: Job, *, workers: bool) -> list[tuple[Stream, str]]:
    """The streams of a manager, and of its workers where they are wanted, each with the label that its lines have.

    Alone, the manager's own lines have none. Those of a worker have its job's name and the number of the child; those of a later
    attempt say which it is.
    """
    found = _labelled(job, "" if not workers else "manager")
    if workers:
        for child in job.children:
            for leaf in child.children or (child,):
                found += _labelled(leaf, _short(leaf))
    return found


def _labelled(job: Job, label: str) -> list[tuple[Stream, str]]:
    streams = []
    for attempt, stream in enumerate(job.streams, start=1):
        streams.append((stream, f"{label or 'manager'} attempt {attempt}" if attempt > 1 else label))
    return streams


def _short(job: Job) -> str:
    """A worker's label: what tells it from the others."""
    number = job.id.replace("#", ":").partition(":")[2]
    return f"{job.name}:{number}" if number else job.name
