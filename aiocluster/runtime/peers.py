"""The manager's end of each link: what agents and workers say, handed to the coordinator in the order in which they said it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiocluster.errors import ProtocolError
from aiocluster.net.link import Link
from aiocluster.runtime.forward import NestedCalls
from aiocluster.wire.frames import Frame
from aiocluster.wire.messages import (
    Ask,
    CancelCalls,
    DropFunctions,
    Functions,
    Output,
    OutputFlushed,
    Results,
    Resumed,
    Returned,
    Submit,
    Yielded,
)

if TYPE_CHECKING:
    from aiocluster.runtime.manager import Manager

__all__ = ["NodePeer", "WorkerPeer"]

logger = logging.getLogger("aiocluster")


class NodePeer:
    """One agent. From the moment its node is lost nothing that it says is heard."""

    def __init__(self, manager: Manager, name: str) -> None:
        self._manager = manager
        self.name = name
        self.dropped = False

    def link_opened(self, link: Link) -> None:
        manager, hello = self._manager, link.hello
        manager.nodes[self.name] = self
        manager.node_links[self.name] = link
        manager.core.node_joined(self.name, hello.host, hello.pid, manager.loop.time())
        manager.perform()

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        manager = self._manager
        now = manager.loop.time()
        for message, _buffers in frames:
            if self.dropped:
                return
            try:
                if isinstance(message, Output):
                    manager.output.received(message)
                elif isinstance(message, OutputFlushed):
                    manager.output.flushed(message.request)
                else:
                    manager.core.node_message(self.name, message, now)
            except ProtocolError as error:
                logger.error("node %s broke the protocol and is dropped: %s", self.name, error)
                manager.core.lose_node(self.name, f"it broke the protocol: {error}", now)
            manager.perform()
        manager.after_input()

    def link_writable(self, link: Link, writable: bool) -> None:
        pass  # an agent is sent little, and nothing that could wait

    def link_broken(self, link: Link) -> None:
        if not self.dropped:
            self._manager.core.node_link_broken(self.name, self._manager.loop.time())
            self._manager.perform()

    def link_resumed(self, link: Link) -> None:
        if not self.dropped:
            self._manager.core.node_link_resumed(self.name, self._manager.loop.time())
            self._manager.perform()

    def link_closed(self, link: Link, error: Exception | None) -> None:
        if not self.dropped:
            reason = "its agent closed the link" if error is None else str(error)
            self._manager.core.lose_node(self.name, reason, self._manager.loop.time())
            self._manager.perform()


class WorkerPeer:
    """One worker. From the moment it is lost nothing that it says is heard."""

    def __init__(self, manager: Manager, worker_id: int) -> None:
        self._manager = manager
        self.worker_id = worker_id
        self.dropped = False
        self.nested = NestedCalls(manager, worker_id)

    def link_opened(self, link: Link) -> None:
        manager = self._manager
        manager.workers[self.worker_id] = self
        manager.worker_links[self.worker_id] = link
        manager.core.worker_joined(self.worker_id, link.hello.pid, manager.loop.time())
        manager.perform()
        manager.flush()

    def frames_received(self, link: Link, frames: list[Frame]) -> None:
        manager, core, worker_id = self._manager, self._manager.core, self.worker_id
        now = manager.loop.time()
        for message, buffers in frames:
            if self.dropped:
                return
            try:
                match message:
                    case Results():
                        core.results(worker_id, message, buffers, now)
                    case Returned():
                        core.returned(worker_id, message, now)
                    case Yielded():
                        core.yielded(worker_id, message.call_id, True, now)
                    case Resumed():
                        core.yielded(worker_id, message.call_id, False, now)
                    case Functions():
                        self.nested.learn(message)
                    case DropFunctions():
                        self.nested.forget(message)
                    case Submit():
                        self.nested.submit(message, buffers, now)
                    case CancelCalls():
                        self.nested.cancel(message, now)
                    case Ask():
                        manager.answer(worker_id, message)
                    case _:
                        raise ProtocolError(f"a worker must not send {type(message).__name__}")
            except ProtocolError as error:
                core.worker_misbehaved(worker_id, str(error), now)
            if core.effects:
                manager.perform()
        manager.after_input()

    def link_writable(self, link: Link, writable: bool) -> None:
        if not self.dropped:
            self._manager.core.set_writable(self.worker_id, writable)
            self._manager.schedule_flush()

    def link_broken(self, link: Link) -> None:
        if not self.dropped:
            self._manager.core.worker_link_broken(self.worker_id, self._manager.loop.time())
            self._manager.perform()
            self._manager.flush()

    def link_resumed(self, link: Link) -> None:
        if not self.dropped:
            self._manager.core.worker_link_resumed(self.worker_id, self._manager.loop.time())
            self._manager.perform()
            self._manager.flush()

    def link_closed(self, link: Link, error: Exception | None) -> None:
        # The worker's agent says what became of it; a link that ended for good is a broken one that will not resume.
        if not self.dropped:
            if isinstance(error, ProtocolError):
                self._manager.core.worker_misbehaved(self.worker_id, str(error), self._manager.loop.time())
            else:
                self._manager.core.worker_link_broken(self.worker_id, self._manager.loop.time())
            self._manager.perform()
            self._manager.flush()
