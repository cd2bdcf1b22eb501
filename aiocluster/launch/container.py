"""One node of `Docker`: its container, from before it is asked for until it is no more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.engine import ContainerEvent, ContainerState, Engine, EngineError
from aiocluster.launch.lines import LastLines

__all__ = ["Container", "cancelled"]

logger = logging.getLogger("aiocluster")

LAST_LINES_S = 2.0
"""For what a container wrote last to arrive, after the engine has said that it ended."""
OOM_RECENT_S = 3.0
"""For how long a process that was killed for want of memory explains why the container ended."""
STATES = {"create": "created", "start": "running", "pause": "paused", "unpause": "running", "die": "exited"}
"""What the engine calls the state of a container after an event."""


class Container:
    """A container that is made, started and followed by a task of its own, so that whoever asked for it may be cancelled.

    Args:
        node: which node it is.
        name: of the container.
        config: what it is made by.
        request: whom to tell.
    """

    def __init__(self, node: str, name: str, config: Mapping[str, Any], request: LaunchRequest) -> None:
        self.node = node
        self.name = name
        self.lines = LastLines(self._said, request.token.reveal().hex())
        self.stopping = False
        self.begun = asyncio.Event()
        """The engine has answered whether it was started, or was never asked."""
        self._out_of_memory_at = 0.0
        self._config = config
        self._request = request
        self._exit: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._life: asyncio.Task[None] | None = None

    def begin(self, engine: Engine, slots: asyncio.Semaphore, ended: Callable[[Container], None]) -> None:
        self._life = asyncio.get_running_loop().create_task(self._live(engine, slots), name=f"aiocluster docker: {self.name}")
        self._life.add_done_callback(lambda _: ended(self))

    async def _live(self, engine: Engine, slots: asyncio.Semaphore) -> None:
        try:
            reason = await self._run(engine, slots)
        except Exception as error:  # of the engine, or of a kind that nobody thought of: a node must not vanish without a word
            reason = (
                f"its container could not be {'followed' if self.begun.is_set() else 'started'}: {error or type(error).__name__}"
            )
            if not isinstance(error, EngineError):
                logger.exception("node %s: %s", self.node, reason)
            with contextlib.suppress(EngineError):  # what is not done now is done when the cluster closes
                await engine.remove(self.name)
        finally:
            self.begun.set()
        if not self.stopping:
            self._request.exited(self.node, reason)

    async def _run(self, engine: Engine, slots: asyncio.Semaphore) -> str:
        """From its making to its end; the reason for that. Where it is being stopped, whoever stops it removes it."""
        async with contextlib.AsyncExitStack() as stack:
            async with slots:
                if self.stopping:
                    return ""
                await engine.create(self.name, self._config)
                if self.stopping:
                    return ""
                output = await stack.enter_async_context(engine.output(self.name))
                reading = asyncio.get_running_loop().create_task(self._read(output), name=f"aiocluster docker: read {self.name}")
                stack.push_async_callback(cancelled, reading)
                await engine.start(self.name)
            self.begun.set()
            reason = await self._exit
            await asyncio.wait([reading], timeout=LAST_LINES_S)
            return reason

    async def _read(self, output: AsyncIterator[tuple[int, bytes]]) -> None:
        try:
            async for stream, data in output:
                self.lines.feed(data, stream)
        finally:
            self.lines.end()

    def _said(self, line: str) -> None:
        if not self.stopping:
            logger.warning("node %s: %s", self.node, line)

    # --- what the engine says ------------------------------------------------------------------------------------------------

    def happened(self, event: ContainerEvent) -> None:
        if event.action == "oom":  # also when a worker was killed and its agent goes on
            self._out_of_memory_at = event.at
        reason = ""
        if event.action == "die":
            reason = _how(event.exit_code or 0, out_of_memory=event.at - self._out_of_memory_at < OOM_RECENT_S)
        if event.action in STATES:
            self._request.observed(self.node, STATES[event.action], reason)
        if event.action == "die":
            self.exited(reason)
        elif event.action == "destroy":
            self.exited("its container was removed")

    def found(self, state: ContainerState | None) -> None:
        """How it was found after a time without events."""
        if state is None:
            self.exited("its container is gone")
        elif state.status in ("exited", "dead", "removing"):
            self._request.observed(self.node, "exited", "")
            self.exited(_how(state.exit_code, out_of_memory=state.out_of_memory))

    def exited(self, reason: str) -> None:
        if not self._exit.done():
            self._exit.set_result(reason)

    # --- its end -------------------------------------------------------------------------------------------------------------

    async def stop(self, engine: Engine, grace_s: float) -> None:
        """Tell it to end; there is no container any more when this returns. Cancelling ends it by force at once."""
        self.stopping = True
        await self.begun.wait()
        try:
            await engine.stop(self.name, grace_s)
        finally:
            await self._remove(engine)

    async def close(self, engine: Engine, grace_s: float) -> None:
        """As `stop`, where its agent has been told by the manager."""
        self.stopping = True
        await self.begun.wait()
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self._exit)
        except TimeoutError:
            pass
        finally:
            await self._remove(engine)

    async def _remove(self, engine: Engine) -> None:
        await engine.remove(self.name)
        self.exited("its container was removed")  # the events may come later, or never
        assert self._life is not None
        await asyncio.wait([self._life])

    async def abandon(self) -> None:
        """Follow it no more."""
        if self._life is not None:
            await cancelled(self._life)


async def cancelled(task: asyncio.Task[None]) -> None:
    """The task has ended, however."""
    task.cancel()
    await asyncio.wait([task])


def _how(code: int, *, out_of_memory: bool) -> str:
    """Why a container ended, by its exit code: the shell's convention, 128 and the signal."""
    try:
        how = f"was killed by signal {code - 128} ({signal.Signals(code - 128).name})"
    except ValueError:
        return f"its container exited with code {code}"
    return f"its container {how}" + (" (out of memory)" if out_of_memory and code == 128 + signal.SIGKILL else "")
