"""The tasks of one `ECS` launcher: recorded before they are asked for, until they have ended or will for certain.

All tasks of one RunTask have the same environment, so none of them can be told its node's name. Whichever is heard of first, by
the answer of AWS or because its agent dials, gets the next name that is free, and keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.launch import ecs_tasks
from aiocluster.launch.aws import Api, AwsError
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.ecs_tasks import REQUEST, TaskState, explained
from aiocluster.launch.own_task import task_id
from aiocluster.launch.poller import Poller

__all__ = ["Call", "Fleet", "Node", "attempted"]

logger = logging.getLogger("aiocluster")

AT_ONCE = 8
"""Requests that are under way at the same time: AWS throttles those who ask for more."""
SETTLE_S = 10.0
"""For AWS to answer a RunTask that nobody wants any more; what it started after that is looked for."""


class Node:
    """One node, with its task as soon as that is known."""

    def __init__(self, name: str, call: Call) -> None:
        self.name = name
        self.call = call
        self.task: str | None = None
        """The id of its task."""
        self.state: TaskState | None = None
        self.stopping = False
        self.over = asyncio.Event()
        """Its task has ended."""

    @property
    def begun(self) -> bool:
        return self.state is not None and self.state.status == "RUNNING"


class Call:
    """One RunTask, from before it is made.

    Args:
        names: of its nodes, one for each task.
        request: whom to tell.
    """

    def __init__(self, names: Sequence[str], request: LaunchRequest) -> None:
        self.key = secrets.token_hex(4)
        self.token = secrets.token_hex(16)
        self.request = request
        self.nodes = [Node(name, self) for name in names]
        self.arguments: Mapping[str, Any] = {}
        self.names: dict[str, str] = {}
        """The names of nodes by their tasks, also of those that have ended."""
        self.task: asyncio.Task[None] | None = None
        self.answered = False
        """AWS has said which tasks there are: no others are taken for nodes."""
        self.unsure = False
        """It may have been carried out although no answer was heard."""

    def free(self) -> Node | None:
        """The next node that has no task and is wanted."""
        return next((node for node in self.nodes if node.task is None and not node.stopping), None)


class Fleet:
    """All calls of a launcher, and their nodes.

    Args:
        poller: watches tasks from when they are known until they are forgotten.
    """

    def __init__(self, api: Api, poller: Poller[TaskState]) -> None:
        self.cluster = ""
        """The ECS cluster that all of them are in; "" before the first call."""
        self.started_by = ""
        """Whom they are started by: the id of our cluster."""
        self.calls: dict[str, Call] = {}
        """By key, until all of their nodes have been forgotten."""
        self.nodes: dict[str, Node] = {}
        self.by_task: dict[str, Node] = {}
        self._requests: set[asyncio.Task[None]] = set()
        """RunTasks that are under way."""
        self._keys: set[str] = set()
        """Of all calls that there were."""
        self._api = api
        self._poller = poller
        self._starting = asyncio.Semaphore(AT_ONCE)
        self._stopping = asyncio.Semaphore(AT_ONCE)

    # --- starting ------------------------------------------------------------------------------------------------------------

    def record(self, call: Call) -> None:
        """These nodes are about to be asked for."""
        self.calls[call.key] = call
        self._keys.add(call.key)
        self.nodes.update((node.name, node) for node in call.nodes)

    async def run(self, call: Call) -> None:
        """Returns when AWS has said which of the tasks it starts; of the others, whoever launches is told why.

        Raises:
            AwsError: it starts none, or that is not known.

        Cancelling leaves the request to be heard to its end: `stop` waits for that.
        """
        call.task = asyncio.create_task(self._run(call), name=f"aiocluster ecs: start {call.nodes[0].name} …")
        self._requests.add(call.task)
        call.task.add_done_callback(self._requests.discard)
        await asyncio.shield(call.task)

    async def _run(self, call: Call) -> None:
        async with self._starting:
            if call.free() is None:  # nobody wants them any more
                return
            call.unsure = True  # until the answer is heard, or cannot come any more
            try:
                answer = await self._api.call("ecs", "run_task", **call.arguments)
            except AwsError as error:
                call.unsure = error.maybe_done
                raise
        call.answered = True
        arns = [str(task["taskArn"]) for task in answer.get("tasks", ())]
        if arns:
            logger.info("spawned tasks %s (n=%d)", ", ".join(map(task_id, arns)), len(arns))
        surplus = [id for id in map(task_id, arns) if not self._bind(call, id)]
        failures = [_failure(failure) for failure in answer.get("failures", ())]
        for node in [node for node in call.nodes if node.task is None and not node.stopping]:
            reason = failures.pop(0) if failures else "AWS gives no reason"
            self.forget(node)
            call.request.exited(node.name, f"its task was not started: {reason}")
        try:
            await self._stop_tasks(surplus)
        except LaunchError as error:  # they are looked for when the call is not needed any more, or the cluster closes
            logger.warning("%s", error.reason)
        else:
            call.unsure = False

    def _bind(self, call: Call, id: str) -> bool:
        """The task has a node from now on; False if no node of its call lacks one."""
        if id in call.names:
            return True
        node = call.free()
        if node is None:
            return False
        node.task, call.names[id] = id, node.name
        self.by_task[id] = node
        self._poller.watch([id])
        return True

    def adopt(self, key: str, id: str) -> str | None:
        """The name of the node that the agent of this task is; None if it is none."""
        call = self.calls.get(key)
        if call is None or (id not in call.names and (call.answered or not self._bind(call, id))):
            return None
        return call.names[id]

    # --- ending --------------------------------------------------------------------------------------------------------------

    def forget(self, node: Node) -> None:
        """It has ended, or will for certain: it is not asked for any more."""
        call = node.call
        self.nodes.pop(node.name, None)
        if node in call.nodes:
            call.nodes.remove(node)
        if node.task is not None:
            self.by_task.pop(node.task, None)
            self._poller.forget([node.task])
        if not call.nodes:
            self.calls.pop(call.key, None)

    async def settle(self, calls: Iterable[Call]) -> None:
        """AWS has answered, or is not listened to any more, where nobody wants any node of a call."""
        await self._heard([call.task for call in calls if call.task is not None and call.free() is None])

    async def settle_all(self) -> None:
        """As `settle`, where nobody wants any node: also of calls whose nodes have joined and gone before AWS has answered."""
        await self._heard(list(self._requests))

    async def _heard(self, pending: list[asyncio.Task[None]]) -> None:
        if not pending:
            return
        _, late = await asyncio.wait(pending, timeout=SETTLE_S)
        for task in late:
            task.cancel()
        await asyncio.wait(pending)
        for task in pending:
            if not task.cancelled():
                task.exception()  # whoever started it has been told

    async def end(self, nodes: Sequence[Node], wait_s: float) -> None:
        """Stop the tasks of these nodes, and wait so long to see it. Nobody may want them any more.

        Raises:
            LaunchError: AWS was not reached, or does not allow it.
        """
        calls = dict.fromkeys(node.call for node in nodes if node.task is None)
        await self.settle(calls)
        failed: list[LaunchError] = []
        unsure = [call for call in calls if call.unsure and call.free() is None]
        if unsure:
            await attempted(self.sweep(unsure), failed)
        running = [node for node in nodes if node.task is not None and not node.over.is_set()]
        await attempted(self._stop_tasks([node.task for node in running if node.task is not None]), failed)
        if failed:
            raise failed[0] if len(failed) == 1 else LaunchError("; ".join(dict.fromkeys(error.reason for error in failed)))
        if running and wait_s:
            self._poller.hurry()
            await self.wait_for(running, wait_s)
        for node in nodes:
            self.forget(node)

    async def _stop_tasks(self, ids: Sequence[str]) -> None:
        outcomes = await asyncio.gather(*[self._stop_task(id) for id in ids], return_exceptions=True)
        refused = {id: outcome for id, outcome in zip(ids, outcomes) if isinstance(outcome, BaseException)}
        if refused:
            told = "; ".join(dict.fromkeys(str(error) for error in refused.values()))
            first = next(iter(refused.values()))
            raise LaunchError(f"tasks that could not be stopped: {', '.join(refused)}: {told}") from first

    async def _stop_task(self, id: str) -> None:
        async with self._stopping:
            await ecs_tasks.stop_task(self._api, self.cluster, id, "aiocluster: its manager does not need it any more")

    async def sweep(self, calls: Iterable[Call] | None = None) -> None:
        """Stop the tasks of these calls, or of all that there were, which are no nodes: those of answers that were not heard.

        Raises:
            LaunchError: AWS was not reached, or does not allow it.
        """
        keys = self._keys if calls is None else {call.key for call in calls}
        if not keys or not self.cluster:
            return
        found = await ecs_tasks.find_tasks(self._api, self.cluster, self.started_by)
        ids = [task_id(str(task["taskArn"])) for task in found if task["tags"].get(REQUEST) in keys]
        await self._stop_tasks([id for id in ids if id not in self.by_task])
        for call in [call for key, call in self.calls.items() if key in keys]:
            call.unsure = False

    async def wait_for(self, nodes: Sequence[Node], wait_s: float) -> None:
        """Return when the tasks of all these have ended, or after so long."""
        try:
            async with asyncio.timeout(wait_s):
                for node in nodes:
                    await node.over.wait()
        except TimeoutError:
            pass


def _failure(failure: Mapping[str, Any]) -> str:
    reason, detail = str(failure.get("reason") or ""), str(failure.get("detail") or "")
    return explained("; ".join(part for part in (reason, detail) if part) or "no reason given")


async def attempted(step: Awaitable[None], failed: list[LaunchError]) -> None:
    """One step that fails must not keep the others from being taken: its error goes to the list."""
    try:
        await step
    except LaunchError as error:
        failed.append(error)
