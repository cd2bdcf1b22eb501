"""What tests of links share: both loops, a handler that records, a manager with peers, a proxy that breaks connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop

from aiocluster.errors import ProtocolError
from aiocluster.ids import ClusterId, Token
from aiocluster.net.address import Address, UnixAddress, parse_address
from aiocluster.net.dial import dial
from aiocluster.net.link import Link
from aiocluster.net.listener import Accepted, Listener
from aiocluster.wire.frames import Frame
from aiocluster.wire.handshake import hello
from aiocluster.wire.messages import Beat, Hello, Refused, Results

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
CLUSTER = ClusterId("c-test")
TOKEN = Token(bytes(range(32)))
SAFETY_S = 60.0
"""For a test that hangs; none depends on it otherwise."""


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test on uvloop and on plain asyncio; fails it for a task left over, or an error that only the loop has seen."""

    @functools.wraps(test)
    def run(loop_kind: str, **fixtures: Any) -> None:
        seen: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
            async with asyncio.timeout(SAFETY_S):
                await test(**fixtures)
            for _ in range(3):  # what was closed just now ends in the next ticks
                await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left over: {left}"

        with asyncio.Runner(loop_factory=LOOPS[loop_kind]) as runner:
            runner.run(main())
        assert not seen, f"the loop's exception handler was called: {seen}"

    signature = inspect.signature(test)
    kind = inspect.Parameter("loop_kind", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), kind])  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("loop_kind", list(LOOPS))(run)
    return marked


class Recorder:
    """A handler that writes down everything it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.numbers: list[int] = []
        self.batches: list[int] = []
        self.frames: list[Frame] = []
        self.link: Link | None = None
        self.error: Exception | None = None
        self.keep_frames = True
        self.raises: Exception | None = None
        self.on_frames: Callable[[Link, list[Frame]], None] | None = None
        self._changed = asyncio.Event()

    def link_opened(self, link: Link) -> None:
        assert not self.story
        self.link = link
        self._say("opened")

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        assert link is self.link
        assert frames
        assert "closed" not in self.story
        self.batches.append(len(frames))
        self.numbers += [number_of(frame) for frame in frames]
        if self.keep_frames:
            self.frames += frames
        if self.raises is not None:
            raise self.raises
        if self.on_frames is not None:
            self.on_frames(link, frames)
        self._changed.set()

    def link_writable(self, link: Link, writable: bool) -> None:
        assert link.writable is writable
        self._say("writable" if writable else "unwritable")

    def link_broken(self, link: Link) -> None:
        self._say("broken")

    def link_resumed(self, link: Link) -> None:
        self._say("resumed")

    def link_closed(self, link: Link, error: Exception | None) -> None:
        assert "closed" not in self.story
        self.error = error
        self._say("closed")

    def _say(self, word: str) -> None:
        self.story.append(word)
        self._changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()

    async def until_numbers(self, count: int) -> None:
        await self.until(lambda: len(self.numbers) >= count)

    async def until_said(self, word: str, times: int = 1) -> None:
        await self.until(lambda: self.story.count(word) >= times)


def number_of(frame: Frame) -> int:
    message = frame.message
    if isinstance(message, Results):
        return message.ids[0]
    assert isinstance(message, Beat)
    return message.number


def bulk(number: int) -> Results:
    """A message with one buffer."""
    return Results([number], b"\0", [b""], [[0, 1]], [])


def worker_hello(worker_id: int = 1, **changes: Any) -> Hello:
    made = hello(
        role="worker",
        cluster_id=CLUSTER,
        node="node",
        worker_id=worker_id,
        host="host",
        pid=os.getpid(),
        link_id=secrets.token_bytes(16),
    )
    return made._replace(**changes)


class Manager:
    """A listener whose links record; `recorders` has one for each worker."""

    def __init__(self, addresses: list[str], **settings: Any) -> None:
        self.recorders: dict[int, Recorder] = {}
        self.refuse: Refused | None = None
        self.prepare: Callable[[Recorder], None] = lambda recorder: None
        self.listener = Listener(addresses, TOKEN, CLUSTER, self._accept, **settings)

    def _accept(self, hello: Hello) -> Accepted | Refused:
        if self.refuse is not None:
            return self.refuse
        recorder = self.recorders[hello.worker_id] = Recorder()
        self.prepare(recorder)
        return Accepted(recorder, {"worker": hello.worker_id})

    @property
    def address(self) -> str:
        return self.listener.addresses[0]


@contextlib.asynccontextmanager
async def managing(*addresses: str, **settings: Any) -> AsyncIterator[Manager]:
    """A manager that listens; it and all its links are closed at the end."""
    manager = Manager(list(addresses), **settings)
    await manager.listener.start()
    try:
        yield manager
    finally:
        manager.listener.close()
        await manager.listener.wait_closed()
        for recorder in manager.recorders.values():
            if recorder.link is not None:
                recorder.link.abort()
                await recorder.until_said("closed")


async def until(reached: Callable[[], bool]) -> None:
    """For what nobody announces: turns the loop until it is so."""
    while not reached():  # noqa: ASYNC110  # nobody sets an event for what is only visible
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def joined(
    address: str, *, recorder: Recorder | None = None, hello: Hello | None = None, **settings: Any
) -> AsyncIterator[Recorder]:
    """A link to the manager; it is aborted at the end."""
    recorder = Recorder() if recorder is None else recorder
    settings = {"retry_for_s": 10.0, "resume_within_s": 30.0, **settings}
    link, _ = await dial(address, worker_hello() if hello is None else hello, settings.pop("token", TOKEN), recorder, **settings)
    try:
        yield recorder
    finally:
        link.abort()
        await recorder.until_said("closed")


def linked(recorder: Recorder) -> Link:
    assert recorder.link is not None
    return recorder.link


def cut(link: Link) -> None:
    """The connection breaks, as if the network had done it: neither end has asked for it."""
    connection = link._connection  # there is no public way to break a link, and should be none
    assert connection is not None
    connection._transport.abort()


async def open_streams(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, UnixAddress):
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port)


class Proxy:
    """Forwards connections to the manager, and breaks each after as many bytes as `budget` says.

    It listens on the same kind of address as the manager, at `address`.
    """

    def __init__(self, path: Path, upstream: str, budget: Callable[[], int]) -> None:
        self.address = ""
        self.connections = 0
        self._closed = False
        self._path = path
        self._upstream = parse_address(upstream)
        self._budget = budget
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if isinstance(self._upstream, UnixAddress):
            self._server = await asyncio.start_unix_server(self._serve, self._path)
            self.address = f"unix:{self._path}"
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.address = str(replace(self._upstream, port=self._server.sockets[0].getsockname()[1]))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._closed = True
        self.cut()
        await asyncio.gather(*self._tasks)

    def cut(self) -> None:
        """Break all connections now."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = {writer}
        try:
            up_reader, up_writer = await open_streams(self._upstream)
            ends.add(up_writer)
            self._writers |= ends
            if self._closed:
                return
            budget = [self._budget()]
            pumps = [asyncio.ensure_future(self._pump(*pair, budget)) for pair in ((reader, up_writer), (up_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the manager does not listen: so the peer sees its connection closed
        finally:
            for end in ends:
                end.transport.abort()
            self._writers -= ends
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: list[int]) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(min(65536, max(1, budget[0]))):
                budget[0] -= len(data)
                writer.write(data)
                if budget[0] <= 0:
                    # Half of the time what was read last gets through, and half of the time only a part of it is.
                    await asyncio.sleep(0)
                    return
                await writer.drain()


def seeded(seed: int) -> random.Random:
    print(f"seed {seed}")  # shown if the test fails
    return random.Random(seed)


def is_protocol_error(error: Exception | None, words: str) -> bool:
    return isinstance(error, ProtocolError) and words in str(error)
