"""The manager's shell: performs what the coordinator asks, on the loop of the user's program.

It has no opinion: who runs what, who is lost and what becomes of calls is the coordinator's to say. All of it happens in the
loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pickle import loads
from threading import get_ident
from typing import Any, assert_never

from aiocluster.config import Settings
from aiocluster.core.calls import Call, CallOptions
from aiocluster.core.coordinator import Coordinator
from aiocluster.core.effects import (
    DropNode,
    DropWorker,
    Effect,
    EndCall,
    Event,
    PublishEvent,
    ReleaseNode,
    ResolveCalls,
    RunJoinCalls,
    SendToNode,
    SendToWorker,
)
from aiocluster.core.functions import FunctionEntry
from aiocluster.errors import ClusterClosed
from aiocluster.ids import Token, new_cluster_id
from aiocluster.launch.base import Agreed
from aiocluster.net.link import Link
from aiocluster.runtime.asking import answer
from aiocluster.runtime.collector import CollectorRelief
from aiocluster.runtime.futures import Future, gather_by_worker
from aiocluster.runtime.joining import JoinCall, JoinCalls
from aiocluster.runtime.logbook import Logbook
from aiocluster.runtime.peers import NodePeer, WorkerPeer
from aiocluster.wire.functions import CapturedFunction, FunctionCapture
from aiocluster.wire.messages import Ask, Message
from aiocluster.wire.payloads import pack, pack_small

__all__ = ["Manager"]

logger = logging.getLogger("aiocluster")

EVENTS_KEPT = 10_000
RELIEF_MASK = 511
"""Every so many calls within one tick it is looked whether the collector needs relief."""


class Manager:
    """One cluster, seen from the process that owns it. It implements `Backend` for the public API.

    Args:
        settings: the cluster's figures.
        write_output: called with a worker's id, 1 for stdout or 2 for stderr, and whole lines.
        agreed: the cluster's id and token, where nodes know them from elsewhere; default: new ones.
    """

    def __init__(
        self, settings: Settings, write_output: Callable[[int, int, list[str]], None], agreed: Agreed | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self.settings = settings
        self.id, self.token = (new_cluster_id(), Token.generate()) if agreed is None else agreed
        self.core = Coordinator(settings, self._loop.time())
        self.output = Logbook(self, write_output)
        self.join_calls = JoinCalls(self)
        self.nodes: dict[str, NodePeer] = {}
        self.workers: dict[int, WorkerPeer] = {}
        self.node_links: dict[str, Link] = {}
        self.worker_links: dict[int, Link] = {}
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.listeners: dict[Callable[[Event], None], None] = {}
        """Called with every event, at once."""
        self.release_node: Callable[[str, str], None] = lambda name, reason: None
        """Set by who launches nodes."""
        self._capture = FunctionCapture()
        self._last_captured: CapturedFunction | None = None
        self._last_entry: FunctionEntry
        self._relief = CollectorRelief()
        self._next_call = 1
        self._flush_due = False
        self._unwritten: dict[Link, None] = {}
        """Links that have been sent something in this turn: it is written at its end."""
        self._performing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopped = False
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- Backend: what the public API needs --------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
    ) -> Future[Any]:
        if get_ident() != self._thread:
            raise RuntimeError(
                "a cluster belongs to the thread of its loop: from another one, have the loop run a coroutine that submits, "
                "by asyncio.run_coroutine_threadsafe()"
            )
        future: Future[Any] = Future(loop=self._loop)
        future._backend = self
        future._call = None
        buffers: Sequence[Any] = ()
        try:
            entry = self.capture(fn)
            arguments = [args, kwargs] if kwargs else args
            payload = pack_small(arguments)
            if payload is None:
                payload, buffers = pack(arguments)
        except Exception as error:
            future.set_exception(error)
            return future
        id = self._next_call
        self._next_call = id + 1
        if not id & RELIEF_MASK:
            self._relief.update(self.core.dispatch.pending_calls)
        future._call = call = Call(id, entry, payload, buffers, options, 0, 1, 0, future)
        if options.timeout_s is not None:
            call.deadline = self._loop.time() + options.timeout_s
        refusal = self.core.dispatch.submit(call)  # what `core.submit` adds is for nested calls
        if refusal is not None:
            call.handle = None
            future.set_exception(refusal)
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)
        return future

    def capture(self, fn: Callable[..., Any]) -> FunctionEntry:
        captured = self._capture.capture(fn)
        if captured is self._last_captured:
            return self._last_entry
        entry = self.core.functions.intern(captured.hash, captured.payload, captured.name, captured.is_async)
        self._last_captured, self._last_entry = captured, entry
        return entry

    def send(
        self,
        function: FunctionEntry,
        payload: bytes,
        buffers: Sequence[Any],
        options: CallOptions,
        handle: Any,
        *,
        mode: int = 0,
        items: int = 1,
        deadline: float | None = None,
        kills: int = 0,
    ) -> Call:
        call = Call(self.next_call_id(), function, payload, buffers, options, mode, items, 0, handle)
        call.deadline = deadline
        call.kills = kills
        refusal = self.core.submit(call)
        if refusal is not None:
            call.handle = None
            self._loop.call_soon(handle.fail, refusal)
        self.schedule_flush()
        return call

    def withdraw(self, call: Call, *, force: bool = False) -> None:
        call.handle = None
        self.core.cancel(call, self._loop.time(), force=force)
        self.perform()
        self.schedule_flush()

    def estimate_s(self, function: FunctionEntry) -> float | None:
        return function.estimate_s

    async def prepare_map(self) -> None:
        pass  # what there is to know is known here

    def worker_count(self) -> int:
        return len(self.core.dispatch.places)

    def worker_of(self, call: Call) -> int | None:
        return None if call.lane is None else call.lane.place.id

    def run_blocking(self, work: Coroutine[Any, Any, Any]) -> Any:
        work.close()
        raise TypeError("a map is awaited, or iterated with `async for`")

    async def everywhere(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        on_join: bool,
    ) -> dict[int, Any]:
        if self.core.closing is not None:
            raise ClusterClosed
        payload, buffers = pack([args, kwargs] if kwargs else args)
        call = JoinCall(self.capture(fn), payload, buffers, options)
        ids = [record.id for record in self.core.roster.ready()]
        if options.workers is not None:
            ids = [id for id in ids if id in options.workers]
        if on_join:
            return await self.join_calls.everywhere(call, ids)
        return await gather_by_worker({id: self.join_calls.call_on(id, call) for id in ids})

    async def logs(self, call: Call) -> list[str]:
        return await self.output.lines_of(call)

    # --- for other parts of the manager --------------------------------------------------------------------------------------

    def next_call_id(self) -> int:
        id = self._next_call
        self._next_call = id + 1
        return id

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this manager: `stop` cancels it, and an error of it is logged."""
        task = self._loop.create_task(work, name=f"{self.id} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not (isinstance(error, ClusterClosed) and self.core.closing is not None):  # that is how waiting ends then
            logger.error("%s failed", task.get_name(), exc_info=error)

    def answer(self, worker_id: int, message: Ask) -> None:
        """Answer a worker's question, now or when the answer is known."""
        self.spawn(answer(self, worker_id, message), f"answer to worker {worker_id}")

    def send_to_worker(self, worker_id: int, message: Message, buffers: Sequence[Any] = ()) -> None:
        """Nothing happens if the worker is gone: what it waits for is nobody's loss any more."""
        link = self.worker_links.get(worker_id)
        if link is not None:
            link.send(message, buffers)

    # --- turning ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._arm()

    def schedule_flush(self) -> None:
        """Place calls at the end of this loop tick, with everything else that happens in it."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        if not self._stopped:
            self._relief.update(self.core.dispatch.pending_calls)
        self.flush()

    def after_input(self) -> None:
        """Place what the last input has made room for."""
        if self.core.has_work:
            self.flush()

    def flush(self) -> None:
        """Place what can be placed now."""
        self.core.assign(self._loop.time())
        if self.core.effects:
            self.perform()
        if self._unwritten:
            for link in self._unwritten:
                link.flush()
            self._unwritten.clear()
        self._arm()

    def perform(self) -> None:
        """Do what the core asks, in order. Whatever that causes is done in the same go."""
        if self._performing:
            return
        self._performing = True
        effects: Iterator[Effect] = iter(())
        try:
            while self.core.effects:
                effects = iter(self.core.take_effects())
                for effect in effects:
                    match effect:
                        case SendToWorker():
                            link = self.worker_links.get(effect.worker_id)
                            if link is not None:
                                link.send(effect.message, effect.buffers)
                                self._unwritten[link] = None
                        case ResolveCalls():
                            self._resolve(effect)
                        case EndCall():
                            call, error = effect.ended
                            handle, call.handle = call.handle, None
                            if handle is not None:
                                handle.fail(error)
                        case SendToNode():
                            if effect.node in self.node_links:
                                self.node_links[effect.node].send(effect.message)
                        case DropWorker():
                            self._drop_worker(effect.worker_id)
                        case DropNode():
                            self._drop_node(effect.node)
                        case ReleaseNode():
                            self.release_node(effect.node, effect.reason)
                        case RunJoinCalls():
                            self.join_calls.run(effect.worker_id)
                        case PublishEvent():
                            self.publish(effect.event)
                        case _:
                            assert_never(effect)
        finally:
            self._performing = False
            rest = list(effects)
            if rest:  # one of them raised, which is a bug: it must not take with it what others wait for
                self.core.effects[:0] = rest
                self.schedule_flush()

    def _resolve(self, effect: ResolveCalls) -> None:
        shares = effect.buffers
        worker_id = effect.worker_id
        for index, call in enumerate(effect.calls):
            if call is None:
                continue
            handle, call.handle = call.handle, None
            if handle is None:
                continue
            status, payload = effect.statuses[index], effect.payloads[index]
            if status == 0 and shares is None and handle.__class__ is Future:
                try:
                    value = loads(payload)
                except BaseException:  # loading runs code of the user's, which may raise anything
                    handle.resolve(status, payload, (), worker_id)  # the slow way knows what to say of it
                else:
                    if not handle.done():
                        handle.set_result(value)
            else:
                handle.resolve(status, payload, () if shares is None else shares[index], worker_id)

    def _drop_worker(self, worker_id: int) -> None:
        peer = self.workers.pop(worker_id, None)
        if peer is not None:
            peer.dropped = True
        link = self.worker_links.pop(worker_id, None)
        if link is not None:
            link.abort()

    def _drop_node(self, name: str) -> None:
        self.output.node_gone(name)
        peer = self.nodes.pop(name, None)
        if peer is not None:
            peer.dropped = True
        link = self.node_links.pop(name, None)
        if link is not None:
            link.abort()

    def publish(self, event: Event) -> None:
        """Tell everybody who follows what happens, and the log."""
        self.events.append(event)
        lost = event.kind in ("node_lost", "node_failed", "start_failed", "worker_lost")
        if self.core.closing is None:
            who = f"worker {event.worker_id}" if event.worker_id else f"node {event.node}"
            logger.log(logging.WARNING if lost else logging.INFO, "%s: %s: %s", who, event.kind.replace("_", " "), event.text)
        for listener in list(self.listeners):
            listener(event)

    def _arm(self) -> None:
        """Have `tick` called when the core wants it; a timer that is early does no harm and re-arms itself."""
        if self._stopped:
            return
        due = self.core.deadline
        if self._timer is not None:
            if self._timer_at <= due + 0.0005:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.core.tick(self._loop.time())
        self.perform()
        self.flush()

    # --- the end ---------------------------------------------------------------------------------------------------------

    def begin_close(self, reason: ClusterClosed, grace_s: float) -> None:
        """End every call, tell everybody to end."""
        self.core.close(reason, grace_s, self._loop.time())
        self.perform()

    async def stop(self) -> None:
        """Stop turning: no timer, no task and no link is left, and none comes back when the cluster is used after its end."""
        self._stopped = True
        self._relief.restore()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for worker_id in list(self.workers):
            self._drop_worker(worker_id)
        for name in list(self.nodes):
            self._drop_node(name)
        for link in [*self.worker_links.values(), *self.node_links.values()]:
            link.abort()
        self.worker_links.clear()
        self.node_links.clear()
