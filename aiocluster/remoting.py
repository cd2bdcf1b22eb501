"""`@remote`: a function that can be called here, or on a cluster, by the same name.

This module must not be called `remote`: importing it would put it in the place of `aiocluster.remote`, the decorator.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from aiocluster.wire.functions import is_async

if TYPE_CHECKING:
    from aiocluster.calling import Calling
    from aiocluster.maps import MapRun
    from aiocluster.runtime.futures import Future

__all__ = ["RemoteFunction", "remote"]

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
"""What calling the function gives: for an `async def` one a coroutine."""


class RemoteFunction(Generic[P, R_co]):
    """A function with a second way to call it: `f(x)` runs here, `f.remote(x)` on the current cluster.

    The current cluster is the one that `aiocluster.get_cluster()` gives.
    """

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[P, R_co], options: Mapping[str, Any]) -> None:
        functools.update_wrapper(self, function)
        if is_async(function):  # calling this object gives a coroutine, which nothing about its class tells
            if sys.version_info >= (3, 12):
                inspect.markcoroutinefunction(self)
            else:
                self._is_coroutine_mark = True
        self._function = function
        self._options = dict(options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it here."""
        return self._function(*args, **kwargs)

    @overload
    def remote(self: RemoteFunction[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...

    @overload
    def remote(self: RemoteFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...

    def remote(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it on a worker; like `Cluster.submit`."""
        return self._calling().submit(self, *args, **kwargs)

    @overload
    def map(
        self: RemoteFunction[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        return_exceptions: Literal[False] = False,
        **how: Any,
    ) -> MapRun[T]: ...

    @overload
    def map(
        self: RemoteFunction[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        return_exceptions: Literal[False] = False,
        **how: Any,
    ) -> MapRun[T]: ...

    @overload
    def map(
        self: RemoteFunction[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        return_exceptions: bool,
        **how: Any,
    ) -> MapRun[T | BaseException]: ...

    @overload
    def map(
        self: RemoteFunction[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        return_exceptions: bool,
        **how: Any,
    ) -> MapRun[T | BaseException]: ...

    def map(self, *iterables: Iterable[Any] | AsyncIterable[Any], **how: Any) -> MapRun[Any]:
        """Run it with each item; like `Cluster.map`."""
        return self._calling().map(self, *iterables, **how)

    def options(self, **options: Any) -> RemoteFunction[P, R_co]:
        """The same function under other options, which are those of `Cluster.options`."""
        return RemoteFunction(self._function, {**self._options, **options})

    def _calling(self) -> Calling:
        from aiocluster.context import get_cluster

        cluster = get_cluster()
        return cluster.options(**self._options) if self._options else cluster

    def __repr__(self) -> str:
        return f"<remote function {self._function.__module__}.{self._function.__qualname__}>"

    def __reduce__(self) -> Any:
        """By name where that leads here, as functions do; else by what it is made of."""
        function = self._function
        found: Any = sys.modules.get(function.__module__)
        if function.__module__ != "__main__":
            for name in function.__qualname__.split("."):
                found = getattr(found, name, None)
            if found is self:
                return function.__qualname__
        return RemoteFunction, (function, self._options)


class Decorator(Protocol):
    """What `remote(...)` with options gives."""

    def __call__(self, function: Callable[P, T], /) -> RemoteFunction[P, T]: ...


@overload
def remote(function: Callable[P, T], /) -> RemoteFunction[P, T]: ...
@overload
def remote(**options: Any) -> Decorator: ...
def remote(function: Any = None, /, **options: Any) -> Any:
    """Make a function callable on the current cluster: `@remote`, or `@remote(timeout=5, retries=2)`.

    Args:
        options: those of `Cluster.options`, for every remote call of the function.

    Returns: the function as a `RemoteFunction`: calling it runs it here, `.remote(...)` gives the future of a call on a
        worker, `.map(...)` maps it, `.options(...)` changes its options.
    """
    from aiocluster.calling import options_from
    from aiocluster.core.calls import DEFAULT_OPTIONS

    names = ("timeout", "retries", "idempotent", "workers", "resources", "priority", "name")
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"remote() has no option {unknown[0]!r}; it has {', '.join(names)}")
    options_from(DEFAULT_OPTIONS, **{name: options.get(name) for name in names})  # says what makes no sense, here and now
    if function is None:
        return lambda fn: RemoteFunction(fn, options)
    return RemoteFunction(function, options)
