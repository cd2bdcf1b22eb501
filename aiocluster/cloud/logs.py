"""What jobs have written, from CloudWatch Logs: every line once, in the order of time, from as many streams as there are.

Each stream is read from its beginning by the token that AWS gives with every page, never by windows of time: lines of the same
millisecond, or lines that arrive late, are neither left out nor told twice. Of each stream no more than a page is held.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heapreplace
from typing import Any, NamedTuple

from aiocluster.cloud.jobs import Job, Stream
from aiocluster.launch.aws import Api, AwsError

__all__ = ["Line", "Readers", "Source", "of_jobs"]

AT_ONCE = 8
"""Requests under way at the same time."""
RATE = 15.0
"""Requests a second: AWS answers 25 in all, and others ask too. Source: the quota of GetLogEvents."""
LARGEST_PAGE, SMALLEST_PAGE = 10_000, 50
"""Lines of an answer. All streams together hold as many as one may, as long as there are few enough of them."""
POLL_S = 2.0
"""Between looks at streams that go on."""
SETTLE_S = 6.0
"""For the last lines of a job that has ended to arrive: containers send theirs every five seconds at the latest."""


Look = Callable[[], Awaitable[tuple[Iterable["Source"], bool]]]
Pause = Callable[[float], Awaitable[None]]
Again = Callable[[AwsError], Awaitable[None]]


class Source(NamedTuple):
    """A stream to read."""

    stream: Stream
    label: str
    """What its lines are marked with."""
    ended: bool = False
    """Nobody writes to it any more."""


class Line(NamedTuple):
    """One line of one stream."""

    time: int
    """Milliseconds since 1970, as the container wrote it."""
    label: str
    """Of the stream."""
    text: str


class Turns:
    """Who may ask AWS now: a few at the same time, and no more in a second than leave some for others."""

    def __init__(self, clock: Callable[[], float], pause: Pause) -> None:
        self._clock = clock
        self._pause = pause
        self._room = asyncio.Semaphore(AT_ONCE)
        self._next = clock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """It is one's turn in the body."""
        async with self._room:
            now = self._clock()
            mine = max(now, self._next)
            self._next = mine + 1 / RATE
            if mine > now:
                await self._pause(mine - now)
            yield


class Reader:
    """One stream, from its beginning on.

    Args:
        label: what its lines are marked with.
        since: milliseconds since 1970; lines before that are left out.
        turns: which of all readers may ask.
        again: awaited where AWS does not answer for the moment, before it is asked again; None: that is an error.
    """

    def __init__(self, api: Api, stream: Stream, label: str, since: int | None, turns: Turns, again: Again | None = None) -> None:
        self.label = label
        self.stream = stream
        self.ended = False
        """Nobody writes to it any more."""
        self.gave = False
        """Whether it has given a line; whoever looks at this sets it back."""
        self.quiet_s = 0.0
        """For so long it has given none since it ended."""
        self.page = LARGEST_PAGE
        """Lines that are held at once at most."""
        self._api = api
        self._turns = turns
        self._again = again
        self._since = since
        self._token: str | None = None

    async def lines(self) -> AsyncIterator[Line]:
        """All lines that are there and have not been given before. None if the stream is not there yet.

        Raises:
            AwsError: AWS does not tell.
        """
        while True:
            page = await self._page()
            for event in page.get("events", ()):
                self.gave = True
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
        while True:
            try:
                async with self._turns.one():
                    return await self._api.call("logs", "get_log_events", **place, startFromHead=True, limit=self.page, **asked)
            except AwsError as error:
                if error.code == "ResourceNotFoundException":  # nothing has been written yet
                    return {}
                if self._again is None or not error.passing:
                    raise
                await self._again(error)


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
        again: see `Reader`.
        clock, pause: in s.
    """

    def __init__(
        self,
        api: Api,
        since: int | None = None,
        *,
        again: Again | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._api = api
        self._since = since
        self._again = again
        self._pause = pause
        self._readers: dict[Stream, Reader] = {}
        self._turns = Turns(clock, pause)

    def add(self, sources: Iterable[Source]) -> None:
        """These are read too from now on; those of them that are read already may have ended meanwhile."""
        for source in sources:
            reader = self._readers.get(source.stream)
            if reader is None:
                reader = Reader(self._api, source.stream, source.label, self._since, self._turns, self._again)
                self._readers[source.stream] = reader
            reader.ended = source.ended

    def all(self) -> list[Reader]:
        """One for each stream."""
        return list(self._readers.values())

    async def lines(self) -> AsyncIterator[Line]:
        """What they have to give now."""
        async for line in self._lines(self.all()):
            yield line

    async def _lines(self, readers: Sequence[Reader]) -> AsyncIterator[Line]:
        for reader in readers:
            reader.page = max(SMALLEST_PAGE, LARGEST_PAGE // len(readers))
        async for line in merged(readers):
            yield line

    async def follow(self, look: Look, *, settle_s: float = SETTLE_S) -> AsyncIterator[Line]:
        """All lines as they come, until the end. A stream that has ended is not asked any more once its last lines are there.

        Args:
            look: which streams there are by now, and whether all has ended. It is asked before every round, so that what is
                written before the end is seen.
        """
        quiet_s = 0.0
        while True:
            sources, over = await look()
            self.add(sources)
            going = [reader for reader in self._readers.values() if reader.quiet_s < settle_s]
            any_line = False
            async for line in self._lines(going):
                any_line = True
                yield line
            for reader in going:
                reader.quiet_s = reader.quiet_s + POLL_S if reader.ended and not reader.gave else 0.0
                reader.gave = False
            quiet_s = quiet_s + POLL_S if over and not any_line else 0.0
            if quiet_s >= settle_s:
                return
            await self._pause(POLL_S)


def of_jobs(job: Job, *, workers: bool) -> list[Source]:
    """The streams of a manager, and of its workers where they are wanted, each with the label that its lines have.

    Alone, the manager's own lines have none. Those of a worker have its job's name and the number of the child; those of a later
    attempt say which it is.
    """
    found = _labelled(job, "" if not workers else "manager")
    if workers:
        for child in job.children:
            for leaf in child.children or (child,):
                found += _labelled(leaf, _short(leaf))
    kept: dict[Stream, Source] = {}
    for source in found:
        kept.setdefault(source.stream, source)  # the main node of a multi-node job is its manager, and a child of it
    return list(kept.values())


def _labelled(job: Job, label: str) -> list[Source]:
    sources = []
    for attempt, stream in enumerate(job.streams, start=1):
        text = f"{label or 'manager'} attempt {attempt}" if attempt > 1 else label
        sources.append(Source(stream, text, job.ended or attempt < len(job.streams)))
    return sources


def _short(job: Job) -> str:
    """A worker's label: what tells it from the others."""
    number = job.id.replace("#", ":").partition(":")[2]
    return f"{job.name}:{number}" if number else job.name
