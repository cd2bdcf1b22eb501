"""`ECS`: nodes are tasks of Amazon ECS, on EC2 or Fargate.

What was asked of AWS is recorded before it is asked, and AWS notes the cluster's id with each task: whatever became of a request,
`close` finds its tasks and stops them. RunTask carries a token, so that AWS starts tasks once, however often it is asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from random import random as _random
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.launch import cloudwatch
from aiocluster.launch.aws import Api, Aws, AwsError
from aiocluster.launch.base import Launcher, LaunchRequest, agent_environment, checked_env
from aiocluster.launch.ecs_fleet import Call, Fleet, Node, attempted
from aiocluster.launch.ecs_leftovers import end, leftovers
from aiocluster.launch.ecs_shape import LARGEST_CALL, Place, TaskShape
from aiocluster.launch.ecs_tasks import TaskState, definition_of, explained
from aiocluster.launch.marks import tags
from aiocluster.launch.naming import ECS as PREFIX
from aiocluster.launch.naming import PATTERN
from aiocluster.launch.own_task import OwnTaskDetail, describe_own_task, own_task, task_id
from aiocluster.launch.poller import Figures, Poller
from aiocluster.launch.reach import Reach
from aiocluster.launch.secret_store import SecretStore, StoreKind

__all__ = ["ECS", "end", "leftovers"]

logger = logging.getLogger("aiocluster")

TIMEOUT_S = 10 * 60.0
"""Fargate starts a task in a minute or two. A capacity provider that has to start an instance first takes several."""
END_GRACE_S = 10.0
"""For AWS to tell that nodes have ended which were told to: it lags some seconds behind."""
END_WAIT_S = 5.0
"""For AWS to tell of the end of a task that it has been asked to stop: it will end, whether that is seen or not."""
KEPT_LINES = 1000
"""Nodes whose last lines are kept after their end."""
WAITING = ("PROVISIONING", "PENDING")
NO_ROOM = "it waits: the capacity provider may be at its limit, AWS may have no capacity, or the image is being pulled"


class ECS(Launcher):
    """Nodes that are tasks of Amazon ECS.

    Args:
        cluster: name or ARN of the ECS cluster. Default: that of the task that the manager runs in.
        task_definition: family, family:revision or ARN; its image must have this package. Default: the manager's own.
        container: the name of its container that runs the agent; default: the only one, or the manager's own.
        launch_type: "EC2", "FARGATE", "EXTERNAL", or the name of a capacity provider such as "FARGATE_SPOT". Default: as the
            manager's own task was started, where its cluster is used; else what the cluster has for a default.
        subnets: for tasks with a network interface of their own (awsvpc). Default: that of the manager's own task.
        security_groups: for the same. Default: those of the manager's own task, where its subnet is used; else that of the VPC.
        assign_public_ip: for the same; on Fargate, a subnet without NAT needs it to reach ECR.
        cpu: CPU units of each node, 1024 for a vCPU; default: what the definition says.
        memory: MiB of each node; default: what the definition says.
        tags: on the tasks, beside those by which they are found.
        region: default: what the standard variables and files of AWS say, or where the manager's own task runs.
        command: what the container runs.
        env: variables for the nodes.
        secret_store: "ssm" or "secretsmanager": the cluster's token is put there, and tasks are told only its name.
        workers_per_node: how many workers share a node.
        advertise, host, port, network: how nodes reach the manager, see `Reach`.
        api: where requests go; default: AWS.
        figures: how often AWS is asked for the states of tasks.
    """

    name = "ecs"
    timeout_s: float | None = TIMEOUT_S

    def __init__(
        self,
        *,
        cluster: str | None = None,
        task_definition: str | None = None,
        container: str | None = None,
        launch_type: str | None = None,
        subnets: Sequence[str] = (),
        security_groups: Sequence[str] = (),
        assign_public_ip: bool = False,
        cpu: int | None = None,
        memory: int | None = None,
        tags: Mapping[str, str] | None = None,
        region: str | None = None,
        command: Sequence[str] = ("aiocluster", "agent"),
        env: Mapping[str, str] | None = None,
        secret_store: StoreKind | None = None,
        workers_per_node: int = 1,
        advertise: str | None = None,
        host: str | None = None,
        port: int = 0,
        network: str | None = None,
        api: Api | None = None,
        figures: Figures | None = None,
        environ: Mapping[str, str] | None = None,
        random: Callable[[], float] = _random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if workers_per_node < 1:
            raise ValueError(f"workers_per_node must be at least 1, not {workers_per_node}")
        for what, value in (("subnets", subnets), ("security_groups", security_groups)):
            if isinstance(value, str):
                raise TypeError(f"{what} must be a list of strings, not {value!r}")
        self._shape = TaskShape(
            cpu=cpu, memory=memory, tags=tags or {}, command=command, env=checked_env(env), assign_public_ip=assign_public_ip
        )
        self.workers_per_node: int | None = workers_per_node
        self.reach = Reach(advertise=advertise, host=host, port=port, network=network)
        self._environ = os.environ if environ is None else environ
        self._cluster = cluster
        self._definition = task_definition
        self._container = container
        self._launch_type = launch_type
        self._subnets = tuple(subnets)
        self._security_groups = tuple(security_groups)
        self._pause = pause
        self._api: Api = Aws(region, environ=self._environ) if api is None else api
        self._store = None if secret_store is None else SecretStore(secret_store, self._api)
        self._place: Place | None = None
        self._lines: dict[str, tuple[str, ...]] = {}
        self._over: deque[str] = deque()
        """Nodes that have ended, the oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: Poller[TaskState] = Poller(
            self._ask, self._changed, name="aiocluster ecs: watch tasks", figures=figures, random=random
        )
        self._fleet = Fleet(self._api, self._poller)

    # --- starting ------------------------------------------------------------------------------------------------------------

    async def start(self, request: LaunchRequest) -> None:
        if not request.nodes:
            return
        if self._place is None:
            self._place = await self._find_place()
        self._fleet.cluster, self._fleet.started_by = self._place.cluster, request.cluster_id
        stored = {} if self._store is None else await self._store.put(request.cluster_id, request.token)
        calls = [Call(request.nodes[i : i + LARGEST_CALL], request) for i in range(0, len(request.nodes), LARGEST_CALL)]
        marks = await tags(request.cluster_id)
        for call in calls:
            environment = {**agent_environment(request, f"{PREFIX}{call.key}/{PATTERN}"), **stored}
            if stored:
                del environment["AIOCLUSTER_TOKEN"]
            call.arguments = self._shape.run_task(
                self._place, request.cluster_id, environment, marks=marks, key=call.key, token=call.token, count=len(call.nodes)
            )
        for call in calls:  # recorded before anything is asked of AWS
            self._fleet.record(call)
        outcomes = await asyncio.gather(*[self._fleet.run(call) for call in calls], return_exceptions=True)
        failed = {call: outcome for call, outcome in zip(calls, outcomes) if isinstance(outcome, BaseException)}
        for error in failed.values():
            if not isinstance(error, AwsError) or len(failed) == len(calls):
                raise error
        for call, error in failed.items():  # the rest may be enough
            for node in call.nodes:
                request.exited(node.name, str(error))

    async def _find_place(self) -> Place:
        """Where tasks run, and what they are made of: what was said, and for the rest what the manager's own task has."""
        # A job of AWS Batch is a task too, of a cluster where nobody else may run any.
        own = None if self._environ.get("AWS_BATCH_JOB_ID") else await own_task(self._environ)
        cluster = self._cluster or (own.cluster if own else "")
        name = self._definition or (own.definition if own else "")
        lacking = [what for what, value in (("cluster=", cluster), ("task_definition=", name)) if not value]
        if lacking:
            raise LaunchError(
                f"{' and '.join(lacking)} must be given: this process does not run in an ECS task whose own could be taken"
            )
        container = self._container
        if container is None and own is not None and self._definition is None:
            container = own.container
        definition = await definition_of(self._api, name, container)
        as_own = self._launch_type is None and self._cluster is None
        detail: OwnTaskDetail | None = None
        if own is not None and (as_own or (definition.own_network and not self._subnets)):
            detail = await describe_own_task(self._api, own)
        launch_type, subnets, groups = self._launch_type, self._subnets, self._security_groups
        if detail is not None and as_own:
            launch_type = detail.capacity_provider or detail.launch_type
        if definition.own_network and not subnets:
            subnets = detail.subnets if detail else ()
            groups = groups or (detail.security_groups if detail else ())
            if not subnets:
                raise LaunchError(f"subnets= must be given: tasks of {name} have network interfaces of their own (awsvpc)")
        elif not definition.own_network and (subnets or groups):
            raise LaunchError(
                f"the networkMode of {name} is {definition.network_mode}, not awsvpc: its tasks have no network interfaces of "
                "their own, for which subnets= and security_groups= could be"
            )
        return Place(cluster=cluster, definition=definition, launch_type=launch_type, subnets=subnets, security_groups=groups)

    # --- what AWS says -------------------------------------------------------------------------------------------------------

    async def _ask(self, ids: Sequence[str]) -> dict[str, TaskState]:
        assert self._place is not None
        container = self._place.definition.container
        answer = await self._api.call("ecs", "describe_tasks", patient=False, cluster=self._place.cluster, tasks=list(ids))
        return {task_id(str(task["taskArn"])): TaskState.of(task, container) for task in answer.get("tasks", ())}

    def _changed(self, id: str, state: TaskState) -> None:
        node = self._fleet.by_task.get(id)
        if node is None:
            return
        node.state = state
        if state.over:
            node.over.set()
            self._fleet.forget(node)
            if node.stopping:
                return
            self._spawn(self._tell_end(node, id, state), f"tell the end of {node.name}")
        node.call.request.observed(node.name, state.status, explained(state.reason) if state.reason else "")

    async def _tell_end(self, node: Node, id: str, state: TaskState) -> None:
        assert self._place is not None
        definition = self._place.definition
        self._lines[node.name] = await cloudwatch.lines_of_ended(
            self._api, definition.log_group, definition.log_stream(id, state), pause=self._pause
        )
        self._over.append(node.name)
        while len(self._over) > KEPT_LINES:
            self._lines.pop(self._over.popleft(), None)
        node.call.request.exited(node.name, state.end())

    async def look(self, nodes: Sequence[str]) -> None:
        known = [node for name in nodes if (node := self._fleet.nodes.get(name)) is not None and node.task is not None]
        await self._poller.look([node.task for node in known if node.task is not None])
        for node in known:
            if node.state is not None and node.state.status in WAITING:
                node.call.request.observed(node.name, node.state.status, node.state.reason or NO_ROOM)

    def last_lines(self, node: str) -> Sequence[str]:
        return self._lines.get(node, ())

    def adopt(self, name: str) -> str | None:
        """Agents call themselves by their call and their task, and may dial before AWS has told of the task."""
        key, _, id = name.removeprefix(PREFIX).partition("/")
        return self._fleet.adopt(key, id) if name.startswith(PREFIX) and id else None

    # --- ending --------------------------------------------------------------------------------------------------------------

    async def stop(self, node: str, *, lost: bool = False) -> None:
        """ECS starts no other task in the place of one, so that it is the same for a lost one."""
        found = self._fleet.nodes.get(node)
        if found is None:
            return
        found.stopping = True
        await asyncio.sleep(0)  # others of the same call may be told to end in the same breath
        await self._fleet.end([found], END_WAIT_S)

    async def close(self, grace_s: float) -> None:
        fleet = self._fleet
        for node in fleet.nodes.values():
            node.stopping = True
        failed: list[LaunchError] = []
        try:
            await fleet.settle_all()
            # They have no link by which they could have been told. What fails here is tried once more below.
            await attempted(fleet.end([node for node in fleet.nodes.values() if not node.begun], 0.0), [])
            running = [node for node in fleet.nodes.values() if node.begun]
            if running:
                self._poller.hurry()
                await fleet.wait_for(running, max(grace_s, END_GRACE_S))
            await attempted(fleet.end(list(fleet.nodes.values()), END_WAIT_S), failed)
            await attempted(fleet.sweep(), failed)
            if self._store is not None:
                await attempted(self._store.close(), failed)
        finally:
            await asyncio.shield(self._close())
        if failed:
            raise failed[0] if len(failed) == 1 else LaunchError("; ".join(dict.fromkeys(error.reason for error in failed)))

    async def _close(self) -> None:
        await self._poller.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._api.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(coroutine, name=f"aiocluster ecs: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
