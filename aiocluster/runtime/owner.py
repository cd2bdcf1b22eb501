"""Owns what a cluster consists of, from opening to closing: the listener, the manager, and what launches nodes for it."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiocluster.config import Settings
from aiocluster.core.effects import Event
from aiocluster.errors import ClusterClosed, LaunchError
from aiocluster.launch.base import Agreed, Launcher
from aiocluster.launch.reach import Reach
from aiocluster.net.address import TcpAddress, parse_address
from aiocluster.net.listener import Accepted, Listener
from aiocluster.net.sockets import FOLDER_PREFIX, SOCKET_NAME, WINDOW_NAME, remove_all_left_sockets
from aiocluster.runtime.elasticity import Elasticity
from aiocluster.runtime.launching import Launching
from aiocluster.runtime.manager import Manager
from aiocluster.runtime.peers import NodePeer, WorkerPeer
from aiocluster.runtime.window import Window
from aiocluster.wire.handshake import versions
from aiocluster.wire.messages import Hello, Refused

__all__ = ["Owner"]

logger = logging.getLogger("aiocluster")


class Owner:
    """One cluster's outer life. The manager turns inside it."""

    def __init__(
        self, settings: Settings, write_output: Callable[[int, int, list[str]], None], agreed: Agreed | None = None
    ) -> None:
        self.settings = settings
        self.manager = Manager(settings, write_output, agreed)
        self.manager.listeners[self._on_event] = None
        self.ending: dict[asyncio.Queue[Event | None], None] = {}
        """Queues of those who follow the events; each gets None at the end."""
        self._listener: Listener | None = None
        """At a Unix socket, for nodes on this machine."""
        self._listeners: dict[Reach, tuple[Listener, str]] = {}
        """For nodes elsewhere, and the address that they are told."""
        self._listening = asyncio.Lock()
        self._folder: str | None = None
        self.snapshot: Callable[[], Mapping[str, Any]] = dict
        """What those see who look at the cluster; whoever wraps this says."""
        self._window: Window | None = None
        self._waiters: dict[asyncio.Future[None], None] = {}
        self.launching = Launching(self.manager, self._address_for, self._changed)
        self.elasticity = Elasticity(self.manager, self.launching, self._changed)
        self._closing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._closing is not None

    # --- opening -------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen for nodes."""
        remove_all_left_sockets(tempfile.gettempdir(), time.time())
        self._folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        path = f"{self._folder}/{SOCKET_NAME}"
        if len(path) > 100:  # a Unix socket's path has at most 107 bytes
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp")
            path = f"{self._folder}/{SOCKET_NAME}"
        self._listener = self._new_listener(f"unix:{path}")
        await self._listener.start()
        self._window = Window(f"{self._folder}/{WINDOW_NAME}", lambda: self.snapshot())
        await self._window.open()
        self.manager.start()

    def _new_listener(self, address: str) -> Listener:
        manager = self.manager
        resume_within_s = 2 * self.settings.heartbeat_timeout_s
        return Listener([address], manager.token, manager.id, self._accept, resume_within_s=resume_within_s)

    def _accept(self, hello: Hello) -> Accepted | Refused:
        core = self.manager.core
        settings: dict[str, Any] = {
            "heartbeat_interval_s": self.settings.heartbeat_interval_s,
            "heartbeat_timeout_s": self.settings.heartbeat_timeout_s,
            "orphan_timeout_s": self.settings.orphan_timeout_s,
            "close_grace_s": self.settings.close_grace_s,
        }
        if hello.role == "agent":
            name = settings["node"] = self.launching.adopt(hello.node)
            settings["env"] = json.dumps(self.launching.env_at_join(name))
            refusal = core.refuse_node(name)
            if refusal is None:
                return Accepted(NodePeer(self.manager, name), settings)
        else:
            refusal = core.refuse_worker(hello.worker_id, hello.node)
            if refusal is None:
                return Accepted(WorkerPeer(self.manager, hello.worker_id), settings)
        ours = versions()
        return Refused("closing" if core.closing else "stale", refusal, str(ours), hello.version)

    async def _address_for(self, launcher: Launcher) -> str:
        """Where its agents reach the manager; it listens there from now on.

        Raises:
            LaunchError: there is no such address, or it is in use.
        """
        reach = await launcher.find_reach()
        if reach is None:
            assert self._listener is not None
            return self._listener.addresses[0]
        async with self._listening:  # launches side by side share a listener
            if reach not in self._listeners:
                self._listeners[reach] = await self._listen(reach)
            return self._listeners[reach][1]

    async def _listen(self, reach: Reach) -> tuple[Listener, str]:
        told, host = reach.choose()
        wanted = TcpAddress(host, reach.port)
        listener = self._new_listener(str(wanted))
        try:
            await listener.start()
        except OSError as error:
            raise LaunchError(
                f"the manager cannot listen at {wanted}: {error.strerror or error}; host= and port= name another address"
            ) from error
        listening = parse_address(listener.addresses[0])
        assert isinstance(listening, TcpAddress)
        address = str(TcpAddress(told, reach.told_port(listening.port)))
        logger.info("listening at %s; nodes are told %s", listening, address)
        return listener, address

    # --- waiting -------------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _changed(self) -> None:
        """Return when anything has happened to the cluster."""
        waiter = self.manager.loop.create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    async def wait_for_workers(self, n: int, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                while len(self.manager.core.roster.ready()) < n:
                    if self.closed:
                        raise ClusterClosed
                    await self._changed()
        except TimeoutError:
            have = len(self.manager.core.roster.ready())
            raise TimeoutError(f"{have} of {n} workers take calls after {timeout:g} s") from None

    # --- closing -------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Release everything; whoever calls it later waits for the same end."""
        if self._closing is None:
            self._closing = self.manager.loop.create_task(self._close(), name=f"{self.manager.id} closing")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        manager = self.manager
        manager.begin_close(ClusterClosed(), self.settings.close_grace_s)
        self._on_event(Event(manager.loop.time(), "closing", "", 0, ""))
        try:
            failed = await self.launching.close()
            await manager.stop()
        finally:  # also when the loop is torn down meanwhile
            for listener, _address in self._listeners.values():
                listener.close()
            if self._listener is not None:
                self._listener.close()
            if self._window is not None:
                self._window.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            for queue in list(self.ending):
                queue.put_nowait(None)
        if failed:
            raise BaseExceptionGroup("some nodes could not be released", failed)
