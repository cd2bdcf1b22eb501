"""What cannot be imported where it arrives, pickled by value.

This is the only module that imports cloudpickle, and it is imported only when it is needed. It adds to cloudpickle
what that sends as a name nobody knows: functions of the script itself behind `functools.lru_cache`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, update_wrapper
from io import BytesIO
from pickle import dumps
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

__all__ = ["dumps_by_value"]

_Cached = type(lru_cache(len))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is _Cached and not _is_importable(obj):
            parameters = obj.cache_parameters()
            # In two steps, as the function may call itself by the name of the cache.
            return _empty_cache, (parameters["maxsize"], parameters["typed"]), obj.__wrapped__, None, None, _fill
        return super().reducer_override(obj)


def dumps_by_value(value: Any, buffer_callback: Any = None) -> bytes:
    """The value as a pickle of protocol 5, with what cannot be imported elsewhere in it.

    Raises:
        Exception: what pickling it raised.
    """
    with BytesIO() as file:
        _Pickler(file, protocol=5, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()


def _is_importable(cached: Any) -> bool:
    try:
        return b"__main__" not in dumps(cached, 5)
    except Exception:  # whatever it is, it does not travel as a name
        return False


def _empty_cache(maxsize: int | None, typed: bool) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return filled[0](*args, **kwargs)

    filled: list[Callable[..., Any]] = []
    call.__dict__["filled"] = filled
    return lru_cache(maxsize, typed)(call)


def _fill(cached: Any, function: Callable[..., Any]) -> None:
    cached.__wrapped__.__dict__["filled"].append(function)
    update_wrapper(cached, function)
