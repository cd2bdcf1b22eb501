"""A Docker engine in memory: what `Docker` asks of one, and levers for a test to make it refuse, wait, break and forget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiocluster.launch.engine import CONFLICT, GONE, UNREACHABLE, ContainerEvent, ContainerState, Engine, EngineError, Listed

IMAGE = "sha256:0123"


@dataclass
class FakeContainer:
    name: str
    config: Mapping[str, Any]
    status: str = "created"
    code: int = 0
    out_of_memory: bool = False
    output: asyncio.Queue[tuple[int, bytes] | None] = field(default_factory=asyncio.Queue)
    signals: list[str] = field(default_factory=list)


class FakeEngine(Engine):
    """It answers at once, unless a request is held; each request is noted."""

    def __init__(self) -> None:
        super().__init__("unix:///fake.sock")
        self.asked: list[str] = []
        self.containers: dict[str, FakeContainer] = {}
        self.images = {"image": IMAGE}
        self.networks: dict[str, dict[str, Any]] = {}
        self.inspected: dict[str, dict[str, Any]] = {}
        self.refuses: dict[str, Exception] = {}
        """What a request ends with, by its name or by its name and the container's."""
        self.loses_replies: set[str] = set()
        """Requests that are carried out, and whose replies do not arrive."""
        self.held: dict[str, asyncio.Event] = {}
        """Requests that wait for this."""
        self.obeys = True
        """Its containers end when they are told to."""
        self.closed = 0
        self.listening = 0
        self._streams: list[asyncio.Queue[ContainerEvent | Exception | None]] = []
        self._history: list[ContainerEvent] = []
        self._clock = 1000.0
        self._changed = asyncio.Event()

    # --- levers --------------------------------------------------------------------------------------------------------------

    def hold(self, request: str) -> asyncio.Event:
        self.held[request] = asyncio.Event()
        return self.held[request]

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(30.0):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    def emit(self, name: str, action: str, code: int | None = None) -> None:
        self._clock += 1.0
        event = ContainerEvent(name, action, code, self._clock)
        self._history.append(event)
        for stream in self._streams:
            stream.put_nowait(event)
        self._changed.set()

    def later(self, seconds: float) -> None:
        self._clock += seconds

    def break_streams(self, error: Exception | None = None) -> None:
        for stream in self._streams:
            stream.put_nowait(error)

    def write(self, name: str, data: bytes, descriptor: int = 2) -> None:
        self.containers[name].output.put_nowait((descriptor, data))

    def exit(self, name: str, code: int, *, silently: bool = False) -> None:
        """A container ends, and is removed as it was made to be."""
        container = self.containers.pop(name)
        container.output.put_nowait(None)
        if not silently:
            self.emit(name, "die", code)
            self.emit(name, "destroy")

    # --- what is asked -------------------------------------------------------------------------------------------------------

    async def _asked(self, request: str, name: str = "") -> None:
        self.asked.append(f"{request} {name}".strip())
        self._changed.set()
        held = self.held.get(request)
        if held is not None:
            await held.wait()
        await asyncio.sleep(0)
        error = self.refuses.get(f"{request} {name}") or self.refuses.get(request)
        if error is not None:
            raise error

    def _answer(self, request: str) -> None:
        if request in self.loses_replies:
            raise EngineError(UNREACHABLE, "the connection broke")

    def _container(self, name: str) -> FakeContainer:
        if name not in self.containers:
            raise EngineError(GONE, f"No such container: {name}")
        return self.containers[name]

    async def open(self) -> None:
        await self._asked("open")
        self.started_at = self._clock

    async def close(self) -> None:
        self.closed += 1

    async def image_id(self, name: str) -> str:
        await self._asked("image", name)
        if name not in self.images:
            raise EngineError(GONE, f"No such image: {name}")
        return self.images[name]

    async def network(self, name: str) -> dict[str, Any]:
        await self._asked("network", name)
        if name not in self.networks:
            raise EngineError(GONE, f"network {name} not found")
        return self.networks[name]

    async def inspect(self, name: str) -> dict[str, Any] | None:
        await self._asked("inspect", name)
        return self.inspected.get(name)

    async def state(self, name: str) -> ContainerState | None:
        await self._asked("state", name)
        container = self.containers.get(name)
        return None if container is None else ContainerState(container.status, container.code, container.out_of_memory)

    async def labelled(self, label: str) -> list[Listed]:
        await self._asked("list", label)
        key, _, value = label.partition("=")
        return [
            Listed(id=one.name, name=one.name, state=one.status, labels=one.config["Labels"])
            for one in self.containers.values()
            if one.config["Labels"].get(key) == value
        ]

    async def events(self, label: str, since: float) -> AsyncGenerator[ContainerEvent, None]:
        await self._asked("events")
        stream: asyncio.Queue[ContainerEvent | Exception | None] = asyncio.Queue()
        for event in self._history:
            if event.at > since:
                stream.put_nowait(event)
        self._streams.append(stream)
        self.listening += 1
        self._changed.set()
        try:
            while (event_or_error := await stream.get()) is not None:
                if isinstance(event_or_error, Exception):
                    raise event_or_error
                yield event_or_error
        finally:
            self._streams.remove(stream)

    async def create(self, name: str, config: Mapping[str, Any]) -> None:
        await self._asked("create", name)
        self.containers[name] = FakeContainer(name, config)
        self.emit(name, "create")
        self._answer("create")

    async def start(self, name: str) -> None:
        await self._asked("start", name)
        self._container(name).status = "running"
        self.emit(name, "start")
        self._answer("start")

    @contextlib.asynccontextmanager
    async def output(self, name: str) -> AsyncIterator[AsyncIterator[tuple[int, bytes]]]:
        await self._asked("output", name)
        queue = self._container(name).output

        async def read() -> AsyncIterator[tuple[int, bytes]]:
            while (item := await queue.get()) is not None:
                yield item

        yield read()

    async def stop(self, name: str, grace_s: float) -> None:
        await self._asked("stop", name)
        container = self.containers.get(name)
        if container is not None and container.status == "running":
            container.signals.append("SIGTERM")
            self.exit(name, 0 if self.obeys else 137)

    async def remove(self, name: str) -> None:
        await self._asked("remove", name)
        container = self.containers.get(name)
        if container is not None:
            container.signals.append("SIGKILL")
            self.exit(name, 137)


def refusal(text: str, status: int = CONFLICT) -> EngineError:
    return EngineError(status, text)
