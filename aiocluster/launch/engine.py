"""A Docker engine, by what the launcher asks of it: a thin layer over aiodocker, whose errors are one kind.

It knows nothing of clusters. Containers are named, so that a request whose reply was lost can be undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, NamedTuple, TypeVar

import aiodocker
import aiohttp

__all__ = ["ContainerEvent", "ContainerState", "Engine", "EngineError", "Listed"]

logger = logging.getLogger("aiocluster")

T = TypeVar("T")

REQUEST_TIMEOUT_S = 60.0
"""For one request that the engine carries out at once; to start a container takes a second on a busy machine."""
GONE = 404
CONFLICT = 409
UNREACHABLE = 900
"""What aiodocker gives as the status where there was no answer."""


class EngineError(Exception):
    """The engine refused, or did not answer.

    Attributes:
        status: of the HTTP reply; 900 if there was none.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ContainerEvent(NamedTuple):
    """Something that happened to a container: `action` is "create", "start", "oom", "die", "pause", "unpause", "destroy", …"""

    name: str
    action: str
    exit_code: int | None
    at: float
    """By the engine's clock, in seconds since 1970."""


class ContainerState(NamedTuple):
    """What the engine says of a container: `status` is "created", "running", "paused", "exited", …"""

    status: str
    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One container of a list."""

    id: str
    name: str
    state: str
    labels: Mapping[str, str]


class Engine:
    """A connection to the engine of `DOCKER_HOST`, of Docker's current context, or of this machine.

    Args:
        host: the address of another one, such as `unix:///run/docker.sock`.
    """

    def __init__(self, host: str | None = None) -> None:
        self._host = host
        self.host = host or os.environ.get("DOCKER_HOST") or "its usual address on this machine"
        self._client: aiodocker.Docker | None = None
        self.started_at = 0.0
        """The engine's time when it was reached."""

    async def open(self) -> None:
        """It answers.

        Raises:
            EngineError: there is none, or it is of no use; says what was tried.
        """
        self._client = self._new_client()
        try:
            about = await self._ask(lambda client: client.system.info())
            self.started_at = datetime.fromisoformat(about["SystemTime"]).timestamp()
        except (KeyError, TypeError, ValueError) as error:
            await self.close()
            raise EngineError(UNREACHABLE, f"what answers there is no Docker engine ({error!r})") from error
        except BaseException:
            await self.close()
            raise

    def _new_client(self) -> aiodocker.Docker:
        try:
            if self._client is None:
                return aiodocker.Docker(self._host)
            return aiodocker.Docker(self._host, api_version=self._client.api_version)
        except (AssertionError, ValueError, OSError, aiodocker.DockerError) as error:  # it asserts that it has found a socket
            raise EngineError(UNREACHABLE, str(error) or "no socket of an engine was found") from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def _open_client(self) -> aiodocker.Docker:
        if self._client is None:
            raise EngineError(UNREACHABLE, "the connection to the engine is closed")
        return self._client

    async def _ask(self, request: Callable[[aiodocker.Docker], Awaitable[T]], *, more_s: float = 0.0) -> T:
        client = self._open_client
        with _translated():
            async with asyncio.timeout(REQUEST_TIMEOUT_S + more_s):
                return await request(client)

    # --- what there is -------------------------------------------------------------------------------------------------------

    async def image_id(self, name: str) -> str:
        """The id of an image. Raises `EngineError` with status 404 if the engine does not have it."""
        return str((await self._ask(lambda client: client.images.inspect(name)))["Id"])

    async def network(self, name: str) -> dict[str, Any]:
        """What the engine says of a network. Raises `EngineError` with status 404 if there is none of this name."""

        async def show(client: aiodocker.Docker) -> dict[str, Any]:
            return await (await client.networks.get(name)).show()

        return await self._ask(show)

    async def inspect(self, name: str) -> dict[str, Any] | None:
        """What the engine says of a container, by its name or id; None if there is none."""
        try:
            return await self._ask(lambda client: client.containers.container(name).show())
        except EngineError as error:
            if error.status == GONE:
                return None
            raise

    async def state(self, name: str) -> ContainerState | None:
        """How a container does; None if there is none."""
        about = await self.inspect(name)
        if about is None:
            return None
        state = about["State"]
        return ContainerState(str(state["Status"]), int(state["ExitCode"]), bool(state["OOMKilled"]))

    async def ended(self, name: str) -> int:
        """The exit code of a container that has been started, as soon as it has ended."""
        told = await self._ask(lambda client: client.containers.container(name).wait())
        return int(told["StatusCode"])

    async def labelled(self, label: str) -> list[Listed]:
        """The containers that have this label (`name` or `name=value`), those that do not run among them."""
        filters = json.dumps({"label": [label]})
        found = await self._ask(lambda client: client.containers.list(all=True, filters=filters))
        listed = []
        for one in found:
            names = one["Names"] or [one.id]
            listed.append(
                Listed(id=one.id, name=names[0].removeprefix("/"), state=str(one["State"]), labels=dict(one["Labels"] or {}))
            )
        return listed

    async def events(self, label: str, since: float) -> AsyncGenerator[ContainerEvent, None]:
        """What happens to the containers with this label, from a moment on by the engine's clock, until the connection breaks."""
        client = self._open_client
        subscriber = client.events.subscribe(create_task=False)  # type: ignore[no-untyped-call]
        filters = json.dumps({"type": ["container"], "label": [label]})
        running = asyncio.get_running_loop().create_task(
            client.events.run(filters=filters, since=f"{since:.9f}"), name="aiocluster docker: events"
        )
        try:
            while (event := await subscriber.get()) is not None:
                try:
                    happened = _event(event)
                except (KeyError, TypeError, ValueError):  # another one may be what somebody waits for
                    logger.exception("an event of the Docker engine at %s cannot be understood", self.host)
                else:
                    yield happened
            with _translated():
                await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    # --- images ----------------------------------------------------------------------------------------------------------------

    async def build(self, context: IO[bytes], tag: str, arguments: Mapping[str, str]) -> AsyncIterator[Mapping[str, Any]]:
        """What the engine tells while it builds an image from a compressed tar with a `Dockerfile`. Raises `EngineError`."""
        with _translated():
            async for told in self._open_client.images.build(
                fileobj=context, encoding="gzip", tag=tag, buildargs=dict(arguments), stream=True, forcerm=True
            ):
                yield told

    async def tag(self, image: str, repository: str, tag: str) -> None:
        """The image has this name too. Raises `EngineError`."""
        await self._ask(lambda client: client.images.tag(image, repository, tag=tag))

    async def push(self, repository: str, tag: str, credentials: Mapping[str, str] | None) -> AsyncIterator[Mapping[str, Any]]:
        """What the engine tells while it sends an image to its registry, layer by layer. Raises `EngineError`."""
        auth = None if credentials is None else dict(credentials)
        with _translated():
            async for told in self._open_client.images.push(repository, tag=tag, auth=auth, stream=True):
                yield told

    # --- what is done --------------------------------------------------------------------------------------------------------

    async def create(self, name: str, config: Mapping[str, Any]) -> None:
        """A container of this name is there, and not started. Raises `EngineError`."""
        await self._ask(lambda client: client.containers.create(config, name=name))

    async def start(self, name: str) -> None:
        await self._ask(lambda client: client.containers.container(name).start())

    @contextlib.asynccontextmanager
    async def output(self, name: str) -> AsyncIterator[AsyncIterator[tuple[int, bytes]]]:
        """What a container writes from now on, as pairs of descriptor (1 or 2) and bytes, until it ends.

        Attached before its start, it gives every byte, also of a container that ends at once and is removed.
        """
        client = self._new_client()  # for each its own: the connections of one client are limited
        stream = client.containers.container(name).attach(stdout=True, stderr=True)
        try:
            with _translated():
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await stream.__aenter__()
            yield _messages(stream)
        finally:
            with contextlib.suppress(AssertionError, AttributeError):  # the engine has closed the connection already
                await stream.close()
            await client.close()

    async def stop(self, name: str, grace_s: float) -> None:
        """A container has been told to end, and is killed after the grace. One that has ended, or is unknown, is no matter."""
        try:
            await self._ask(lambda client: client.containers.container(name).stop(t=round(grace_s)), more_s=grace_s)
        except EngineError as error:
            if error.status not in (GONE, CONFLICT):
                raise

    async def remove(self, name: str) -> None:
        """There is no container of this name any more, nor a volume that was made for it; one that runs is killed."""
        try:
            await self._ask(lambda client: client.containers.container(name).delete(force=True, v=True))
        except EngineError as error:
            if error.status == CONFLICT:  # it is being removed already
                await self._removed(name)
            elif error.status != GONE:
                raise

    async def _removed(self, name: str) -> None:
        try:
            await self._ask(lambda client: client.containers.container(name).wait(condition="removed"))
        except EngineError as error:
            if error.status != GONE:
                raise


async def _messages(stream: Any) -> AsyncIterator[tuple[int, bytes]]:
    with contextlib.suppress(aiohttp.ClientError):  # the connection broke: whether the container has ended is told by events
        while (message := await stream.read_out()) is not None:
            yield message.stream, message.data


def _event(told: Mapping[str, Any]) -> ContainerEvent:
    attributes = told["Actor"]["Attributes"]
    code = attributes.get("exitCode")
    return ContainerEvent(attributes["name"], told["Action"], None if code is None else int(code), told["timeNano"] / 1e9)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the client as one kind."""
    try:
        yield
    except aiodocker.DockerError as error:
        raise EngineError(error.status, error.message) from error
    except TimeoutError as error:
        raise EngineError(UNREACHABLE, f"the engine did not answer within {REQUEST_TIMEOUT_S:g} s") from error
    except (OSError, aiohttp.ClientError) as error:
        raise EngineError(UNREACHABLE, str(error)) from error
