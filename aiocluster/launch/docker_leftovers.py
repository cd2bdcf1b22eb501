"""Containers whose manager may be gone: found by their labels, on one engine; and how an engine that refuses is told of."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

from aiocluster.errors import LaunchError
from aiocluster.launch import marks
from aiocluster.launch.engine import Engine, EngineError

__all__ = ["as_launch_errors", "end", "leftovers", "unreachable"]

KIND = "docker container"


async def leftovers(engine: str | None = None) -> list[marks.Leftover]:
    """The containers of an engine that some cluster has started.

    Raises:
        LaunchError: there is no such engine.
    """
    async with _opened(engine) as open_engine:
        found = []
        for one in await open_engine.labelled(marks.CLUSTER):
            kind, _, manager = one.labels.get(marks.MANAGER, "").partition(":")
            own = await open_engine.state(manager.partition(":")[0]) if kind == "container" else None
            found.append(
                marks.leftover(
                    one.labels,
                    kind=KIND,
                    id=one.id,
                    name=one.name,
                    state=one.state,
                    where=engine or "",
                    # One that this engine does not know may have been removed, or be another engine's.
                    manager_alive=None if own is None else own.status in ("running", "paused", "restarting"),
                )
            )
        return found


async def end(leftover: marks.Leftover) -> None:
    """Remove it, by force; one that is gone already is no matter.

    Raises:
        LaunchError: its engine does not answer, or refuses.
    """
    async with _opened(leftover.where or None) as engine:
        await engine.remove(leftover.id)


@contextlib.asynccontextmanager
async def _opened(host: str | None) -> AsyncIterator[Engine]:
    engine = Engine(host)
    try:
        await engine.open()
    except EngineError as error:
        raise unreachable(engine, error) from error
    try:
        with as_launch_errors():
            yield engine
    finally:
        await engine.close()


def unreachable(engine: Engine, error: EngineError) -> LaunchError:
    return LaunchError(f"cannot reach a Docker engine at {engine.host}: {error}; start one, or set DOCKER_HOST")


@contextlib.contextmanager
def as_launch_errors(what: str = "the Docker engine") -> Iterator[None]:
    """What the engine refuses is a `LaunchError` that says so."""
    try:
        yield
    except EngineError as error:
        raise LaunchError(f"{what}: {error}") from error
