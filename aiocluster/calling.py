"""Ways to call: `submit`, `map` and `options`, the same on a cluster, on one worker, on a view with options, and inside calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NoReturn, ParamSpec, Protocol, TypeVar, overload

from aiocluster.core.calls import DEFAULT_OPTIONS, CallOptions, check_resources
from aiocluster.maps import MapRun
from aiocluster.runtime.backend import Backend
from aiocluster.runtime.futures import Future

__all__ = ["Calling", "CurrentCluster", "Source", "WorkerRow", "options_from", "worker_ids"]

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")

Source = Iterable[A] | AsyncIterable[A]


class Calling:
    """Sends calls under a set of options."""

    def __init__(self, backend: Backend, options: CallOptions = DEFAULT_OPTIONS) -> None:
        self._backend = backend
        self._options = options

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cluster cannot travel to a worker: a call gets a handle of its own from aiocluster.get_cluster()")

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...  # an `async def` function gives what it returns when awaited

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule one call on the best worker; its arguments are captured when this returns.

        Args:
            fn: any function that can be pickled: sync or `async def`, a lambda, a closure, a bound method. It travels once
                to each worker that runs it.
            args, kwargs: what it is called with. Large arrays travel out of band; they are copied once, here.

        Returns: the call's future. Whatever goes wrong with the call is the future's exception: an argument that cannot be
            pickled, `Overloaded`, `Unschedulable`, `ClusterClosed`, `WorkerLost`, `CallTimeout`, or what `fn` raised, with
            the worker's traceback as its `__cause__`. Cancelling it cancels the call.

        Raises:
            TypeError: `fn` is not callable.
            RuntimeError: this is not the thread of the cluster's loop. (In a call on a worker any thread may submit.)
        """
        if not callable(fn):
            raise TypeError(f"submit() needs a function, not {type(fn).__name__}")
        return self._backend.submit(fn, args, kwargs, self._options)

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Source[Any],
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        limit: int | None = None,
        chunk_size: int | Literal["auto"] = "auto",
        progress: bool = False,
    ) -> MapRun[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Source[Any],
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        limit: int | None = None,
        chunk_size: int | Literal["auto"] = "auto",
        progress: bool = False,
    ) -> MapRun[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Source[Any],
        ordered: bool = True,
        return_exceptions: bool,
        limit: int | None = None,
        chunk_size: int | Literal["auto"] = "auto",
        progress: bool = False,
    ) -> MapRun[T | BaseException]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Source[Any],
        ordered: bool = True,
        return_exceptions: bool,
        limit: int | None = None,
        chunk_size: int | Literal["auto"] = "auto",
        progress: bool = False,
    ) -> MapRun[T | BaseException]: ...

    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Source[Any],
        ordered: bool = True,
        return_exceptions: bool = False,
        limit: int | None = None,
        chunk_size: int | Literal["auto"] = "auto",
        progress: bool = False,
    ) -> MapRun[Any]:
        """Call `fn` with each item (with one of each iterable, like `zip`), on all workers.

        Args:
            fn: as for `submit`; it is captured once.
            iterables: sync or async, of any length, endless too where the results are streamed.
            ordered: results in the order of the items; else as they come.
            return_exceptions: give an item's exception in place of its result; else the first exception ends the map.
            limit: how many items may be pulled ahead of the results that were taken. Default: as many as keep the workers
                busy, at most 100,000.
            chunk_size: items a call; "auto" follows their measured duration, so that tiny items share calls of about a
                millisecond and long ones travel alone.
            progress: show a bar with rate, remaining time and workers on stderr; plain lines where that is no terminal.

        Returns: what can be awaited, for a list of all results, or iterated with `async for`. Nothing is pulled before
            that. Under `options(timeout=)` the deadline holds for the map as a whole. Leaving the loop, or cancelling,
            withdraws what has not ended.
        """
        if not callable(fn):
            raise TypeError(f"map() needs a function, not {type(fn).__name__}")
        if not iterables:
            raise TypeError("map() needs at least one iterable")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"limit must be a whole number, 1 or more, not {limit!r}")
        if chunk_size != "auto" and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(f'chunk_size must be "auto", or a whole number, 1 or more, not {chunk_size!r}')
        return MapRun(
            self._backend,
            fn,
            iterables,
            self._options,
            ordered=ordered,
            return_exceptions=return_exceptions,
            limit=limit,
            chunk_size=None if chunk_size == "auto" else chunk_size,
            progress=progress,
        )

    @overload
    async def everywhere(
        self, fn: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, on_join: bool = False, **kwargs: Any
    ) -> dict[int, T]: ...

    @overload
    async def everywhere(self, fn: Callable[..., T], /, *args: Any, on_join: bool = False, **kwargs: Any) -> dict[int, T]: ...

    async def everywhere(self, fn: Callable[..., Any], /, *args: Any, on_join: bool = False, **kwargs: Any) -> dict[int, Any]:
        """Call `fn` once on every worker that takes calls, and give the results by worker id.

        Args:
            fn, args, kwargs: as for `submit`; captured once, when this is called.
            on_join: also call it on each worker that joins from now on, before that worker takes other calls, if it fails on
                none of those that take calls now: else it is not kept, and the error's note says so. A worker on which it
                fails later is not used. In the manager's program only.

        Raises:
            ExceptionGroup: some calls failed; it holds their exceptions, with a note that names the worker.

        Cancelling it cancels the calls; with `on_join` it is not kept.
        """
        results: dict[int, Any] = await self._backend.everywhere(fn, args, kwargs, self._options, on_join)
        return results

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        idempotent: bool | None = None,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        priority: int | None = None,
        name: str | None = None,
    ) -> Calling:
        """The same methods under other options; what is not given stays as it is.

        Args:
            timeout: seconds from the call to its result, nested calls included: one deadline for all. It ends in `CallTimeout`.
                `math.inf` takes a timeout away that the view had.
            retries: how often a call that may have run on a lost worker is tried again. Default 0: at most once.
            idempotent: it does no harm to run it again: as often as workers are lost, unless it kills three of them.
            workers: a worker or several, by id or as `Worker`, that may run it.
            resources: amounts that it holds while it runs, such as `{"gpu": 1}`; workers have what they were launched with.
            priority: calls of a higher one go first; default 0.
            name: what errors, logs and the status call it; cut after 200 characters.

        Raises:
            TypeError, ValueError: an option makes no sense; the text names it.
        """
        return Calling(
            self._backend,
            options_from(
                self._options,
                timeout=timeout,
                retries=retries,
                idempotent=idempotent,
                workers=workers,
                resources=resources,
                priority=priority,
                name=name,
            ),
        )


class WorkerRow(Protocol):
    """A worker as every part of the cluster knows it."""

    @property
    def id(self) -> int: ...
    @property
    def node(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def pid(self) -> int: ...


class CurrentCluster(Calling, ABC):
    """What `get_cluster()` gives, in the manager's program and inside a call alike."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The cluster's id."""

    @property
    @abstractmethod
    def workers(self) -> Callable[[], Awaitable[Mapping[int, WorkerRow]]]:
        """`await cluster.workers()` gives the workers by id, as they are now."""


def options_from(
    base: CallOptions,
    *,
    timeout: float | None,
    retries: int | None,
    idempotent: bool | None,
    workers: Any,
    resources: Mapping[str, float] | None,
    priority: int | None,
    name: str | None,
) -> CallOptions:
    """The base with what was given changed. Raises `ValueError` or `TypeError` for what makes no sense."""
    changes: dict[str, Any] = {
        "timeout_s": timeout,
        "retries": retries,
        "idempotent": idempotent,
        "workers": None if workers is None else worker_ids(workers),
        "resources": None if resources is None else _copy(resources),
        "priority": priority,
        "name": name,
    }
    return replace(base, **{key: value for key, value in changes.items() if value is not None})


def _copy(resources: Mapping[str, float]) -> Mapping[str, float]:
    check_resources(resources)
    return dict(resources)


def worker_ids(workers: Any) -> frozenset[int]:
    """The ids of one worker or several, given as ids or as `Worker` objects."""
    if isinstance(workers, int) or hasattr(workers, "id"):
        workers = (workers,)
    try:
        ids = frozenset(one if isinstance(one, int) else one.id for one in workers)
    except (TypeError, AttributeError):
        raise TypeError(f"workers are named by their ids (whole numbers) or as Worker objects, not by {workers!r}") from None
    for id in ids:
        if not isinstance(id, int) or isinstance(id, bool) or not 1 <= id < 2**63:
            raise ValueError(f"a worker is named by its id, an int from 1, not {id!r}")
    return ids
