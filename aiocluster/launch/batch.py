"""`Batch`: nodes are jobs of AWS Batch, the children of one array job, or a plain job for one node.

What was asked of AWS is recorded before it is asked, under a job name that nobody else has: whatever became of a request, `close`
finds its jobs and terminates them.
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
from aiocluster.launch import batch_jobs, cloudwatch
from aiocluster.launch.aws import Api, Aws, AwsError, Fault
from aiocluster.launch.base import Launcher, LaunchRequest, agent_environment, checked_env
from aiocluster.launch.batch_fleet import Fleet, Node, Submission, attempted
from aiocluster.launch.batch_jobs import JobState, Room
from aiocluster.launch.batch_leftovers import end, leftovers
from aiocluster.launch.batch_shape import JobShape
from aiocluster.launch.marks import tags
from aiocluster.launch.naming import PATTERN
from aiocluster.launch.own_job import OwnJobDetail, describe_own_job, own_job
from aiocluster.launch.poller import Figures, Poller
from aiocluster.launch.reach import Reach
from aiocluster.launch.secret_store import SecretStore, StoreKind

__all__ = ["Batch", "end", "leftovers"]

logger = logging.getLogger("aiocluster")

TIMEOUT_S = 25 * 60.0
"""Compute environments start instances, which takes minutes, and more when many are wanted."""
END_GRACE_S = 10.0
"""For AWS to tell that nodes have ended which were told to: it lags some seconds behind."""
END_WAIT_S = 5.0
"""For AWS to tell of the end of a job that it has been asked to terminate: it will end, whether that is seen or not."""
LOST_WAIT_S = 600.0
"""For AWS to see that the instance of a lost node is gone, and to try its job again: that takes minutes. To terminate the job
sooner would be to forbid that; an agent that still runs ends itself meanwhile, and only a frozen one does not."""
KEPT_LINES = 1000
"""Nodes whose last lines are kept after their end."""
NAME = "aiocluster"


class Batch(Launcher):
    """Nodes that are jobs of AWS Batch.

    Args:
        queue: name or ARN of the job queue. Default: `$WORKER_JOB_QUEUE`, else the queue of the job that the manager runs in.
        definition: name, name:revision or ARN of the job definition; its image must have this package. Default: the definition
            of the job that the manager runs in.
        name: how the names of the jobs begin.
        region: default: what the standard variables and files of AWS say, or where the manager's own job runs.
        memory: MiB of each node; default: what the definition says.
        vcpus: of each node.
        gpus: of each node; default: what the definition says.
        tags: on the jobs, beside those by which they are found.
        share_identifier: for queues with a scheduling policy.
        retry: how often a node that loses its instance, as spot instances do, is started again by AWS Batch; 9 at most.
        job_timeout: seconds after which AWS ends a node, at least 60; default: what the definition says.
        command: what the container runs.
        env: variables for the nodes.
        secret_store: "ssm" or "secretsmanager": the cluster's token is put there, and jobs are told only its name.
        workers_per_node: how many workers share a node.
        advertise, host, port, network: how nodes reach the manager, see `Reach`.
        api: where requests go; default: AWS.
        figures: how often AWS is asked for the states of jobs.
    """

    name = "batch"
    timeout_s: float | None = TIMEOUT_S

    def __init__(
        self,
        *,
        queue: str | None = None,
        definition: str | None = None,
        name: str = NAME,
        region: str | None = None,
        memory: int | None = None,
        vcpus: float = 1,
        gpus: int | None = None,
        tags: Mapping[str, str] | None = None,
        share_identifier: str | None = None,
        retry: int = 0,
        job_timeout: float | None = None,
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
        self._shape = JobShape(
            name=name,
            memory=memory,
            vcpus=vcpus,
            gpus=gpus,
            tags=tags or {},
            share_identifier=share_identifier,
            retry=retry,
            job_timeout=job_timeout,
            command=command,
            env=checked_env(env),
        )
        self.workers_per_node: int | None = workers_per_node
        self.reach = Reach(advertise=advertise, host=host, port=port, network=network)
        self._environ = os.environ if environ is None else environ
        self._queue = queue
        self._definition = definition
        self._pause = pause
        self._api: Api = Aws(region, environ=self._environ) if api is None else api
        self._store = None if secret_store is None else SecretStore(secret_store, self._api)
        self._own: OwnJobDetail | None = None
        self._lines: dict[str, tuple[str, ...]] = {}
        self._over: deque[str] = deque()
        """Nodes that have ended, the oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: Poller[JobState] = Poller(
            self._ask, self._changed, name="aiocluster batch: watch jobs", figures=figures, random=random
        )
        self._fleet = Fleet(self._api, self._poller, pause=pause, random=random)

    # --- starting ------------------------------------------------------------------------------------------------------------

    async def start(self, request: LaunchRequest) -> None:
        if not request.nodes:
            return
        queue, definition = await self._where()
        await self._check_room(request, queue)
        marks = await tags(request.cluster_id)
        submissions = []
        for nodes in batch_jobs.parts(request.nodes):
            environment = await self._environment(request, nodes[0])
            arguments = self._shape.submission(
                request.cluster_id, environment, marks=marks, queue=queue, definition=definition, size=len(nodes)
            )
            submissions.append((Submission(arguments, request), nodes))
        for submission, nodes in submissions:  # recorded before anything is asked of AWS
            self._fleet.record(submission, nodes)
        try:
            await self._submit(request, submissions)
        finally:
            for submission, _nodes in submissions:
                submission.unsure.abandoned = True

    async def _submit(self, request: LaunchRequest, submissions: Sequence[tuple[Submission, Sequence[str]]]) -> None:
        """Submit one after the other. What fails when there are as many workers as are needed is told, and the rest goes on."""
        submitted = 0
        for submission, nodes in submissions:
            try:
                await self._fleet.submit(submission)
            except AwsError as error:
                if submitted < request.minimum:
                    raise
                for node in nodes:
                    request.exited(node, f"its job could not be submitted: {error.reason}")
            else:
                submitted += sum(request.workers[node] for node in nodes)

    async def _where(self) -> tuple[str, str]:
        """The queue and the definition of the jobs."""
        own = own_job(self._environ)
        queue = self._queue or self._environ.get("WORKER_JOB_QUEUE") or (own.queue if own else "")
        definition = self._definition or ""
        if (not queue or not definition) and own is not None:
            if self._own is None:
                self._own = await describe_own_job(self._api, own)
            queue, definition = queue or self._own.queue, definition or self._own.definition
        lacking = [name for name, value in (("queue=", queue), ("definition=", definition)) if not value]
        if lacking:
            raise LaunchError(
                f"{' and '.join(lacking)} must be given: this process is not a job of AWS Batch whose own could be taken"
                + ("; WORKER_JOB_QUEUE names a queue, too" if not queue else "")
            )
        return queue, definition

    async def _check_room(self, request: LaunchRequest, queue: str) -> None:
        """Refuse what the queue can never run."""
        try:
            room = await batch_jobs.room_of(self._api, queue)
        except AwsError as error:
            if error.fault is not Fault.DENIED:
                raise
            logger.warning("whether queue %s has room for the nodes is not checked: %s", queue, error.reason)
            return
        if room.trouble:
            logger.warning("%s", room.trouble)
        if room.vcpus is None:
            return
        taken = self._shape.vcpus * sum(len(submission.kept) for submission in self._fleet.submissions)
        taken += await self._taken_by_manager(queue, room)
        fit = max(0, int((room.vcpus - taken) // self._shape.vcpus))
        possible = sum(request.workers[node] for node in request.nodes[:fit])
        beside = f" beside {taken:g} that this cluster takes already" if taken else ""
        limit = f"queue {queue} has {room.vcpus:g} vCPUs at most{beside}, and a node takes {self._shape.vcpus:g}"
        if possible < request.minimum:
            raise LaunchError(
                f"{request.minimum} workers are needed, and only {possible} can ever run: {limit}; "
                + (room.trouble or "raise maxvCpus of its compute environments, or ask for fewer")
            )
        if fit < len(request.nodes):
            logger.warning("only %d of %d workers can run at once: %s", possible, sum(request.workers.values()), limit)

    async def _taken_by_manager(self, queue: str, room: Room) -> float:
        """What the manager's own job takes of the queue's vCPUs; 0 unless it is certain that it runs on what is the queue's."""
        job = own_job(self._environ)
        if job is None:
            return 0.0
        try:
            if self._own is None:
                self._own = await describe_own_job(self._api, job)
            own = self._own
            if queue in (own.queue, own.queue.rpartition("/")[2]):
                return own.vcpus
            theirs = await batch_jobs.room_of(self._api, own.queue)
        except AwsError as error:  # it may run in another region, too
            logger.info("what the manager's own job takes of queue %s is not known: %s", queue, error.reason)
            return 0.0
        return own.vcpus if theirs.environments and theirs.environments <= room.environments else 0.0

    async def _environment(self, request: LaunchRequest, first_node: str) -> dict[str, str]:
        """What agents are told; the same for all of one job."""
        prefix, _, first = first_node.rpartition("-")
        environment = {**agent_environment(request, f"{prefix}-{PATTERN}"), "AIOCLUSTER_NODE_FIRST": first}
        if self._store is not None:
            del environment["AIOCLUSTER_TOKEN"]
            environment.update(await self._store.put(request.cluster_id, request.token))
        return environment

    # --- what AWS says -------------------------------------------------------------------------------------------------------

    async def _ask(self, ids: Sequence[str]) -> dict[str, JobState]:
        answer = await self._api.call("batch", "describe_jobs", patient=False, jobs=list(ids))
        return {str(job["jobId"]): JobState.of(job) for job in answer.get("jobs", ())}

    def _changed(self, id: str, state: JobState) -> None:
        node = self._fleet.by_job.get(id)
        if node is None:
            return
        told_to_end = node.stopping
        if state.attempt > node.attempt and not state.ended and not told_to_end:
            self._next_attempt(node, state.attempt, state)
        node.state = state
        if state.ended:
            node.changed.set()
            self._fleet.forget(node)
            if not told_to_end:
                self._spawn(self._tell_end(node, state), f"tell the end of {node.name}")
        else:
            node.submission.request.observed(node.name, state.status, batch_jobs.observed_reason(state))

    def _next_attempt(self, node: Node, attempt: int, state: JobState | None) -> None:
        """AWS Batch has given the node another go: that is another node in its place."""
        before, node.attempt = node.name, attempt
        node.names.append(f"{node.names[0]}.{attempt}")
        self._fleet.nodes[node.name] = node
        request = node.submission.request
        request.expect(node.name, before)
        why = (state.previous if state else "") or "its attempt has ended"
        self._spawn(self._tell_attempt(node, before, f"{why}; AWS Batch starts it again", state), f"tell the end of {before}")
        node.changed.set()
        node.changed = asyncio.Event()

    async def _tell_attempt(self, node: Node, name: str, reason: str, state: JobState | None) -> None:
        if state is not None:
            self._keep_lines(name, await cloudwatch.last_lines(self._api, state.log_group, state.log_stream))
        node.submission.request.exited(name, reason)

    async def _tell_end(self, node: Node, state: JobState) -> None:
        self._keep_lines(
            node.name, await cloudwatch.lines_of_ended(self._api, state.log_group, state.log_stream, pause=self._pause)
        )
        request = node.submission.request
        try:
            request.observed(node.name, state.status, state.reason)
        finally:
            request.exited(node.name, state.end())

    def _keep_lines(self, name: str, lines: tuple[str, ...]) -> None:
        self._lines[name] = lines
        self._over.append(name)
        while len(self._over) > KEPT_LINES:
            self._lines.pop(self._over.popleft(), None)

    async def look(self, nodes: Sequence[str]) -> None:
        watched = [node for name in nodes if (node := self._fleet.nodes.get(name)) is not None and node.submission.id is not None]
        await self._poller.look(node.job_id for node in watched if not node.ended)
        waiting = [node for node in watched if node.state is not None and node.state.status == "RUNNABLE"]
        if waiting:
            room = await batch_jobs.room_of(self._api, waiting[0].submission.queue)
            why = room.trouble or (
                "no instance has taken it: AWS may have no capacity, the subnet's instances may not reach ECS, the queue's vCPUs "
                "may be taken by other jobs, or no instance type has the memory and vCPUs"
            )
            for node in waiting:
                assert node.state is not None
                reason = batch_jobs.observed_reason(node.state) or why
                node.submission.request.observed(node.name, "RUNNABLE", reason)

    def last_lines(self, node: str) -> Sequence[str]:
        return self._lines.get(node, ())

    def adopt(self, name: str) -> str | None:
        """A later attempt of a job may dial before AWS has told of it."""
        if name in self._fleet.nodes:
            return name
        first, _, attempt = name.rpartition(".")
        node = self._fleet.nodes.get(first)
        if node is None or not attempt.isdecimal() or not node.attempt < int(attempt) <= 1 + self._shape.retry or node.stopping:
            return None
        self._next_attempt(node, int(attempt), None)
        return name

    # --- ending --------------------------------------------------------------------------------------------------------------

    async def stop(self, node: str, *, lost: bool = False) -> None:
        found = self._fleet.nodes.get(node)
        if found is None or found.name != node or found.ended:
            return  # that attempt is over; a later one is another node
        if lost and found.attempt <= self._shape.retry:
            self._poller.hurry()
            await self._fleet.wait_for([found], LOST_WAIT_S)
            if found.name != node or found.ended:
                return
        found.submission.kept.discard(found)
        await asyncio.sleep(0)  # others of the same array may be told to end in the same breath: then one request ends all
        await self._fleet.end([found], END_WAIT_S)

    async def close(self, grace_s: float) -> None:
        for submission in self._fleet.submissions:
            submission.kept.clear()
        failed: list[LaunchError] = []
        try:
            settled = await self._fleet.settle(self._fleet.submissions, failed)
            live = [node for submission in settled for node in self._fleet.submissions.get(submission, ())]
            running = [node for node in live if node.begun]
            busy = {node.submission for node in running}
            # They have no link by which they could have been told. What fails here is tried once more below.
            await attempted(self._fleet.end([node for node in live if node.submission not in busy], 0.0), [])
            if running:
                self._poller.hurry()
                await self._fleet.wait_for(running, max(grace_s, END_GRACE_S))
            left = [node for node in live if node in self._fleet.submissions.get(node.submission, ())]
            await attempted(self._fleet.end(left, END_WAIT_S), failed)
            await self._fleet.end_doubles(failed)
            if self._store is not None:
                await attempted(self._store.close(), failed)
        finally:
            await asyncio.shield(self._close())
        if failed:
            raise failed[0] if len(failed) == 1 else LaunchError("; ".join(error.reason for error in failed))

    async def _close(self) -> None:
        await self._poller.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._api.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(coroutine, name=f"aiocluster batch: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
