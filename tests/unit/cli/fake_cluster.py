"""A cluster shaped like the real one, in this process: calls run at once, each as another worker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

import aiocluster
from aiocluster.cli import parse

FIRST_PID = 4_000_000
"""Above what any real process has."""


@dataclass
class FakeWorker:
    id: int
    pid: int
    node: str = "local-1"


@dataclass
class FakeCluster:
    """`spoil` changes what a map gives: it gets the reports of one file and returns those that arrive."""

    workers: dict[int, FakeWorker]
    monkeypatch: pytest.MonkeyPatch
    spoil: Callable[[parse.FileReport], list[parse.FileReport]] = lambda report: [report]
    killed: list[int] = field(default_factory=list)
    options_seen: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.closed = True

    async def everywhere(self, fn: Callable[..., Any], *args: Any, on_join: bool = False) -> dict[int, Any]:
        assert on_join
        fn(*args)
        return dict.fromkeys(self.workers)

    def options(self, **options: Any) -> FakeView:
        self.options_seen.append(options)
        return FakeView(self, options)

    def kill(self, pid: int, signal: int) -> None:
        [dead] = [worker for worker in self.workers.values() if worker.pid == pid]
        del self.workers[dead.id]
        self.killed.append(dead.id)
        new = max([dead.id, *self.workers]) + 1
        self.workers[new] = FakeWorker(new, FIRST_PID + new)
        self.run_as(dead, parse.parse_file, self.interrupted)  # what it had begun when it died

    interrupted: str = os.devnull

    def run_as(self, worker: FakeWorker, fn: Callable[..., Any], *args: Any) -> Any:
        with self.monkeypatch.context() as patch:
            patch.setitem(aiocluster.__dict__, "get_worker", lambda: worker)
            return fn(*args)


@dataclass
class FakeView:
    cluster: FakeCluster
    given: dict[str, Any]

    async def map(self, fn: Callable[[str], Any], items: Iterable[str], *, ordered: bool, progress: bool) -> AsyncIterator[Any]:
        assert not ordered
        assert progress
        for number, item in enumerate(items):
            ids = self.given["workers"] or sorted(self.cluster.workers)
            worker = self.cluster.workers[ids[number % len(ids)]]
            for report in self.cluster.spoil(self.cluster.run_as(worker, fn, item)):
                yield report
