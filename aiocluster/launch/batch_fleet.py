"""The jobs of one `Batch` launcher: recorded before they are asked for, until they have ended or will for certain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.launch import batch_jobs
from aiocluster.launch.aws import Api
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.batch_jobs import JobState, Unsure
from aiocluster.launch.poller import Poller

__all__ = ["Fleet", "Node", "Submission", "attempted"]

logger = logging.getLogger("aiocluster")

LISTED_AFTER_S = (1.0, 2.0)
"""When to look again for jobs that may have been submitted: they are listed a second or two after that."""
AT_ONCE = 8
"""Requests to terminate jobs that are under way at the same time."""


class Submission:
    """One job, from before it is asked for."""

    def __init__(self, arguments: Mapping[str, Any], request: LaunchRequest) -> None:
        self.arguments = arguments
        self.request = request
        self.unsure = Unsure()
        self.id: str | None = None
        self.size = 0
        self.kept: set[Node] = set()
        """Nodes that run, or will, and that nobody has told to end."""
        self.task: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()
        self.settled = False

    @property
    def name(self) -> str:
        return str(self.arguments["jobName"])

    @property
    def queue(self) -> str:
        return str(self.arguments["jobQueue"])


class Node:
    """One node: a child of an array job, or a plain job, with the attempt that runs now."""

    def __init__(self, name: str, index: int, submission: Submission) -> None:
        self.names = [name]
        """One for each attempt that is known, the latest last."""
        self.index = index
        self.submission = submission
        self.attempt = 1
        self.state: JobState | None = None
        self.changed = asyncio.Event()
        """Set at each change of attempt and at the end."""

    @property
    def job_id(self) -> str:
        submission = self.submission
        assert submission.id is not None
        return submission.id if submission.size == 1 else f"{submission.id}:{self.index}"

    @property
    def stopping(self) -> bool:
        """It was told to end."""
        return not self.ended and self not in self.submission.kept

    @property
    def name(self) -> str:
        return self.names[-1]

    @property
    def ended(self) -> bool:
        return self.state is not None and self.state.ended

    @property
    def begun(self) -> bool:
        return self.state is not None and self.state.status in ("STARTING", "RUNNING")


class Fleet:
    """All submissions of a launcher, and their nodes.

    Args:
        poller: watches the jobs from when their ids are known until they are forgotten.
        pause, random: between attempts to submit.
    """

    def __init__(
        self,
        api: Api,
        poller: Poller[JobState],
        *,
        pause: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
    ) -> None:
        self.submissions: dict[Submission, dict[Node, None]] = {}
        """With their nodes, until all of these have been forgotten."""
        self.nodes: dict[str, Node] = {}
        """By each name that they have had."""
        self.by_job: dict[str, Node] = {}
        self._api = api
        self._poller = poller
        self._pause = pause
        self._random = random
        self._terminating: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def record(self, submission: Submission, names: Sequence[str]) -> None:
        """These nodes are about to be asked for, by one job."""
        made = [Node(name, index, submission) for index, name in enumerate(names)]
        submission.size = len(made)
        submission.kept.update(made)
        self.submissions[submission] = dict.fromkeys(made)
        self.nodes.update((node.name, node) for node in made)

    async def submit(self, submission: Submission) -> None:
        """Returns when the job has been submitted.

        Raises:
            AwsError: it was not, or that is not known.

        Cancelling leaves the request to be heard to its end: `settle` waits for that.
        """
        submission.task = asyncio.create_task(self._submit(submission), name=f"submit {submission.name}")
        await asyncio.shield(submission.task)

    async def _submit(self, submission: Submission) -> None:
        id = await batch_jobs.submit(self._api, submission.arguments, submission.unsure, pause=self._pause, random=self._random)
        self._submitted(submission, id)

    def _submitted(self, submission: Submission, id: str) -> None:
        submission.id = id
        nodes = self.submissions[submission]
        logger.info("spawned %s %s (n=%d)", "array job ID" if submission.size > 1 else "job ID", id, submission.size)
        self.by_job.update((node.job_id, node) for node in nodes)
        self._poller.watch(node.job_id for node in nodes)

    def forget(self, node: Node) -> None:
        """It has ended, or will for certain: it counts no more, and is not asked for."""
        submission = node.submission
        submission.kept.discard(node)
        for name in node.names:
            self.nodes.pop(name, None)
        nodes = self.submissions.get(submission, {})
        nodes.pop(node, None)
        if submission.id is not None:
            self.by_job.pop(node.job_id, None)
            self._poller.forget([node.job_id])
            self._terminating.pop(node.job_id, None)
        if not nodes and not submission.unsure.maybe_done:
            self.submissions.pop(submission, None)
            self._terminating.pop(submission.id or "", None)

    async def settle(self, submissions: Iterable[Submission], failed: list[LaunchError]) -> list[Submission]:
        """Those that have come to be: what was asked of AWS has been answered, or the jobs have been looked for."""
        settling = list(submissions)
        await asyncio.gather(*[attempted(self._settle_one(submission), failed) for submission in settling])
        return [submission for submission in settling if submission.id is not None]

    async def _settle_one(self, submission: Submission) -> None:
        submission.unsure.abandoned = True
        async with submission.lock:
            if submission.settled or submission.task is None:
                return
            await asyncio.wait([submission.task])
            if not submission.task.cancelled():
                submission.task.exception()  # whoever started it has been told
            if submission.id is None and submission.unsure.maybe_done:
                found = await self._find(submission)
                if found:
                    self._submitted(submission, found[0])
            submission.settled = True

    async def end_doubles(self, failed: list[LaunchError]) -> None:
        """Jobs of requests whose answer was lost, which came to be all the same; what cannot be ended keeps no other from it."""
        unsure = [submission for submission in self.submissions if submission.unsure.maybe_done]
        await asyncio.gather(*[attempted(self._end_doubles_of(submission, failed), failed) for submission in unsure])

    async def _end_doubles_of(self, submission: Submission, failed: list[LaunchError]) -> None:
        found = await self._find(submission)
        await asyncio.gather(*[attempted(self._terminate(id), failed) for id in found])

    async def _find(self, submission: Submission) -> list[str]:
        """The jobs of a submission whose answer was lost; where none is known yet, they may not be listed yet either."""
        for wait_s in (0.0, *LISTED_AFTER_S):
            if wait_s:
                await self._pause(wait_s)
            found = await batch_jobs.find_jobs(self._api, submission.queue, submission.name)
            if found or submission.id is not None:
                return found
        return []

    async def end(self, nodes: Sequence[Node], wait_s: float) -> None:
        """Terminate the jobs of these nodes, and wait so long to see it. Nobody may want them any more.

        Raises:
            LaunchError: AWS was not reached, or does not allow it.
        """
        failed: list[LaunchError] = []
        begun = await self.settle(dict.fromkeys(node.submission for node in nodes), failed)
        if failed:
            raise failed[0]
        targets: dict[str, list[Node]] = {}
        for node in nodes:
            if node.submission in begun and not node.ended:
                # An array that nobody wants ends at one request, with all its children.
                whole = node.submission.id if not node.submission.kept else None
                targets.setdefault(whole or node.job_id, []).append(node)
        outcomes = await asyncio.gather(*[self._terminate(id) for id in targets], return_exceptions=True)
        refused = {id: outcome for id, outcome in zip(targets, outcomes) if isinstance(outcome, BaseException)}
        ending = [node for id, some in targets.items() if id not in refused for node in some]
        if wait_s and ending:
            self._poller.hurry()
            await self.wait_for(ending, wait_s)
        never_was = [node for node in nodes if node.submission not in begun]
        for node in (*ending, *never_was):
            self.forget(node)
        if refused:
            told = "; ".join(dict.fromkeys(str(error) for error in refused.values()))
            raise LaunchError(f"jobs that could not be terminated: {', '.join(refused)}: {told}") from next(
                iter(refused.values())
            )

    async def _terminate(self, id: str) -> None:
        """One request for each job, however many ask for it."""
        task = self._terminating.get(id)
        if task is None:
            task = self._terminating[id] = asyncio.create_task(self._terminate_once(id), name=f"terminate {id}")
        await asyncio.shield(task)

    async def _terminate_once(self, id: str) -> None:
        try:
            async with self._slots:
                await batch_jobs.terminate(self._api, id, "aiocluster: its manager does not need it any more")
        except BaseException:
            self._terminating.pop(id, None)  # the next one may try again
            raise

    async def wait_for(self, nodes: Sequence[Node], wait_s: float) -> None:
        """Return when each of them has ended or has another attempt, or after so long."""
        changes = [node.changed for node in nodes]  # those of now: with its next attempt, a node gets another one
        try:
            async with asyncio.timeout(wait_s):
                for change in changes:
                    await change.wait()
        except TimeoutError:
            pass


async def attempted(step: Awaitable[None], failed: list[LaunchError]) -> None:
    """One step that fails must not keep the others from being taken: its error goes to the list."""
    try:
        await step
    except LaunchError as error:
        failed.append(error)
