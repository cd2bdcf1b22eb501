"""A manager that only listens: real agents join it, and a test says what they are told and waits for what they say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from aiocluster.config import Settings
from aiocluster.ids import ClusterId, Token
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.local import Local
from aiocluster.net.link import Link
from aiocluster.net.listener import Accepted, Listener
from aiocluster.wire.frames import Frame
from aiocluster.wire.messages import Beat, Hello, Message, NodeBeat, Refused

CLUSTER = ClusterId("c-launch")
SAFETY_S = 60.0
"""A safety net: no test counts on it."""

M = TypeVar("M")


class Peer:
    """What one agent or worker has said so far."""

    def __init__(self, hello: Hello, changed: asyncio.Event) -> None:
        self.hello = hello
        self.messages: list[Message] = []
        self.link: Link | None = None
        self.closed = False
        self._changed = changed

    def send(self, message: Message) -> None:
        assert self.link is not None
        self.link.send(message)

    def link_opened(self, link: Link) -> None:
        self.link = link
        self._changed.set()

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        for message, _buffers in frames:
            self.messages.append(message)
            if isinstance(message, NodeBeat):
                link.send(Beat(message.number))
        self._changed.set()

    def link_writable(self, link: Link, writable: bool) -> None:
        pass

    def link_broken(self, link: Link) -> None:
        pass

    def link_resumed(self, link: Link) -> None:
        pass

    def link_closed(self, link: Link, error: Exception | None) -> None:
        self.closed = True
        self._changed.set()


class FakeManager:
    """Takes in whoever dials, and tells agents to beat fast."""

    def __init__(self, folder: Path) -> None:
        self.token = Token.generate()
        self.agents: dict[str, Peer] = {}
        self.workers: dict[int, Peer] = {}
        self.exits: list[tuple[str, str]] = []
        self.refuse: Refused | None = None
        self.refused_workers: Refused | None = None
        self.settings: dict[str, Any] = {"heartbeat_interval_s": 0.05, "orphan_timeout_s": 60.0}
        self._changed = asyncio.Event()
        self.listener = Listener([f"unix:{folder}/manager"], self.token, CLUSTER, self._accept)

    def _accept(self, hello: Hello) -> Accepted | Refused:
        refusal = self.refuse or (self.refused_workers if hello.role == "worker" else None)
        if refusal is not None:
            return refusal
        peer = Peer(hello, self._changed)
        if hello.role == "agent":
            self.agents[hello.node] = peer
        else:
            self.workers[hello.worker_id] = peer
        return Accepted(peer, dict(self.settings))

    def request(self, *nodes: str) -> LaunchRequest:
        return LaunchRequest(
            cluster_id=CLUSTER,
            token=self.token,
            address=self.listener.addresses[0],
            nodes=nodes,
            workers=dict.fromkeys(nodes, 1),
            minimum=len(nodes),
            observed=lambda node, state, reason: None,
            exited=self._exited,
            expect=lambda node, predecessor: None,
            settings=Settings(),
        )

    def _exited(self, node: str, reason: str) -> None:
        self.exits.append((node, reason))
        self._changed.set()

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(SAFETY_S):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    async def agent(self, node: str = "local-1") -> Peer:
        """The node's agent, when it has joined."""
        await self.until(lambda: node in self.agents and self.agents[node].link is not None)
        return self.agents[node]

    async def worker(self, worker_id: int) -> Peer:
        await self.until(lambda: worker_id in self.workers and self.workers[worker_id].link is not None)
        return self.workers[worker_id]

    async def said(self, peer: Peer, kind: type[M], wanted: Callable[[M], bool] = lambda message: True) -> M:
        """The first message of that kind that is wanted, said already or to come."""
        found: list[M] = []

        def look() -> bool:
            found.extend(one for one in peer.messages if isinstance(one, kind) and wanted(one))
            return bool(found)

        await self.until(look)
        return found[0]

    def refuse_workers(self, reason: str) -> None:
        self.refused_workers = Refused("stale", reason, "ours", "theirs")

    def stop_listening(self) -> None:
        """The manager is gone as if it had been killed: no word, and its address refuses."""
        self.listener.close()
        for peer in [*self.agents.values(), *self.workers.values()]:
            if peer.link is not None:
                peer.link.abort()


@contextlib.asynccontextmanager
async def manager_and_launcher(folder: Path, **settings: Any) -> AsyncIterator[tuple[FakeManager, Local]]:
    """Both, ready; in the end no node and no link is left."""
    manager, launcher = FakeManager(folder), Local()
    manager.settings.update(settings)
    await manager.listener.start()
    try:
        yield manager, launcher
    finally:
        manager.stop_listening()
        await launcher.close(5.0)
        await manager.listener.wait_closed()
        await manager.until(
            lambda: all(peer.closed for peer in [*manager.agents.values(), *manager.workers.values()] if peer.link)
        )
