"""`BatchNodes`: nodes are those of the multi-node parallel job of AWS Batch whose main node the manager runs on.

Nothing is submitted and nothing is terminated here: AWS starts all nodes of the job together, and ends them with the main node.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import random as _random

from aiocluster.errors import LaunchError
from aiocluster.launch import batch_jobs, cloudwatch
from aiocluster.launch.aws import Api, Aws
from aiocluster.launch.base import Agreed, Launcher, LaunchRequest, checked_env
from aiocluster.launch.batch_jobs import JobState
from aiocluster.launch.multinode import NODE, agreed_in, indexes, manager_port
from aiocluster.launch.own_job import OwnJob, own_job
from aiocluster.launch.poller import Figures, Poller
from aiocluster.launch.reach import Reach

__all__ = ["BatchNodes"]

logger = logging.getLogger("aiocluster")

LARGEST_ENV = 64 * 1024
TIMEOUT_S = 5 * 60.0
"""Nodes of one job start together, but pull their images one by one."""


class BatchNodes(Launcher):
    """The other nodes of this multi-node parallel job, which run `aiocluster agent`. It is the first launcher of its cluster.

    They join once: those that were not asked for then have ended.

    Args:
        workers_per_node: how many workers share a node.
        env: variables for the workers, 64 KiB at most. Python has started without them on their nodes, which run already: those
            for itself (`PYTHONPATH`) belong into the job definition.
        region: for asking AWS what became of nodes; default: as for the AWS SDKs.
        advertise: what nodes dial is told to them by AWS; this only says which address of this machine is checked.
        host: where the manager listens; default: at all addresses, as AWS decides which of them the others are told.
        port: default: `AIOCLUSTER_PORT`, which the nodes read as well, else 49152.
        network: a CIDR that the checked address must be in.
        api: where requests go; default: AWS.
        figures: how often AWS is asked for the states of nodes.
    """

    name = NODE
    timeout_s: float | None = TIMEOUT_S

    def __init__(
        self,
        *,
        workers_per_node: int = 1,
        env: Mapping[str, str] | None = None,
        region: str | None = None,
        advertise: str | None = None,
        host: str | None = None,
        port: int | None = None,
        network: str | None = None,
        api: Api | None = None,
        figures: Figures | None = None,
        environ: Mapping[str, str] | None = None,
        random: Callable[[], float] = _random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if workers_per_node < 1:
            raise ValueError(f"workers_per_node must be at least 1, not {workers_per_node}")
        self.env_at_join: Mapping[str, str] = checked_env(env)
        size = sum(len(f"{name}={value}".encode()) for name, value in self.env_at_join.items())
        if size > LARGEST_ENV:
            raise ValueError(f"env takes {size:,} bytes, and {LARGEST_ENV:,} are the most")
        environ = os.environ if environ is None else environ
        self.workers_per_node: int | None = workers_per_node
        listen = "0.0.0.0" if host is None else host  # noqa: S104  # see above; the token is asked for at the gate
        port = manager_port(environ) if port is None else port
        self.reach = Reach(advertise=advertise, host=listen, port=port, network=network)
        self._job = own_job(environ)
        inside = self._job is not None and self._job.node_index is not None
        self.agreed: Agreed | None = agreed_in(self._job, environ) if inside and self._job is not None else None
        self._pause = pause
        self._api: Api = Aws(region, environ=environ) if api is None else api
        self._request: LaunchRequest | None = None
        self._nodes: dict[str, str] = {}
        """Their names, by the ids of their jobs."""
        self._lines: dict[str, tuple[str, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: Poller[JobState] = Poller(
            self._ask, self._changed, name="aiocluster batch nodes: watch the job", figures=figures, random=random
        )

    @property
    def most_workers(self) -> int:
        """How many workers all other nodes of the job have; 1 where this is no such job, for which a launch gives the reason."""
        return len(indexes(self._job)) * (self.workers_per_node or 1) if self.agreed is not None and self._job is not None else 1

    def _main(self) -> OwnJob:
        job = self._job
        if job is None or job.node_index is None:
            raise LaunchError(
                "this process does not run in a multi-node parallel job of AWS Batch, whose other nodes could be workers; "
                "Cluster.batch() submits jobs of its own"
            )
        if job.node_index != job.main_node_index:
            raise LaunchError(
                f"this is node {job.node_index} of the multi-node job, and the manager runs on the main node, "
                f"{job.main_node_index}; the other nodes run `aiocluster agent`"
            )
        return job

    async def find_reach(self) -> Reach:
        self._main()
        assert self.reach is not None
        return self.reach

    async def start(self, request: LaunchRequest) -> None:
        job = self._main()
        others = indexes(job)
        possible = sum(request.workers[node] for node in request.nodes[: len(others)])
        if self._request is not None:
            raise LaunchError(
                "the nodes of a multi-node job join once, all together, and have been asked for already: it has no more of them"
            )
        if possible < request.minimum:
            raise LaunchError(f"{request.minimum} workers are needed, and the job has only {len(others)} other nodes: {possible}")
        self._request = request
        for node in request.nodes[len(others) :]:
            request.exited(node, f"the job has only {len(others)} other nodes")
        self._nodes = {f"{job.parent_id}#{index}": node for index, node in zip(others, request.nodes, strict=False)}
        logger.info("waiting for %d other nodes of job ID %s", len(self._nodes), job.parent_id)
        self._poller.watch(self._nodes)

    # --- what AWS says -------------------------------------------------------------------------------------------------------

    async def _ask(self, ids: Sequence[str]) -> dict[str, JobState]:
        answer = await self._api.call("batch", "describe_jobs", patient=False, jobs=list(ids))
        return {str(job["jobId"]): JobState.of(job) for job in answer.get("jobs", ())}

    def _changed(self, id: str, state: JobState) -> None:
        node, request = self._nodes[id], self._request
        assert request is not None
        request.observed(node, state.status, batch_jobs.observed_reason(state))
        if state.ended:
            self._poller.forget([id])
            task = asyncio.create_task(self._tell_end(request, node, state), name=f"aiocluster batch nodes: the end of {node}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell_end(self, request: LaunchRequest, node: str, state: JobState) -> None:
        self._lines[node] = await cloudwatch.lines_of_ended(self._api, state.log_group, state.log_stream, pause=self._pause)
        request.exited(node, state.end())

    async def look(self, nodes: Sequence[str]) -> None:
        await self._poller.look(id for id, node in self._nodes.items() if node in nodes)

    def last_lines(self, node: str) -> Sequence[str]:
        return self._lines.get(node, ())

    # --- ending --------------------------------------------------------------------------------------------------------------

    async def stop(self, node: str, *, lost: bool = False) -> None:
        """Its agent has been told; one that does not hear ends with the job, when the main node has ended."""

    async def close(self, grace_s: float) -> None:
        await self._poller.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._api.close()
