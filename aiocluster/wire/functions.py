"""Functions to bytes, named by the hash of their content, so that each travels once to each worker.

A function that the other end can import travels as its name, and is looked up once. Any other travels by value, and what it
closes over may change between two calls: its bytes are used again only while everything that it reaches is provably the same and
cannot change inside; else it is captured anew, every time. A stale capture must never be possible.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from operator import is_
from pickle import dumps, loads
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple, cast
from weakref import ref

from aiocluster.wire.payloads import by_value

__all__ = ["CapturedFunction", "FunctionCapture", "content_hash", "is_async", "load_function", "name_of"]

MAX_NAME = 256
HASH_BYTES = 16
"""128 bits: no two functions of a cluster meet by chance."""
_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing inspect costs more than all of this module
_SCALARS = frozenset((type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented)))
_REFERENCES = (FunctionType, MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType)
_MISSING: Any = object()


class CapturedFunction(NamedTuple):
    """A function as it was when it was captured."""

    hash: bytes
    payload: bytes
    name: str
    is_async: bool


class Reached(NamedTuple):
    """One function that travels by value, and all that it reached when it was looked at."""

    function: FunctionType | None
    """None for the captured function itself, which must not be kept alive by what is remembered of it."""
    code: CodeType
    defaults: tuple[Any, ...] | None
    keyword_defaults: tuple[Any, ...]
    attributes: tuple[Any, ...]
    cells: tuple[tuple[CellType, Any], ...]
    names: tuple[tuple[str, Any], ...]

    def values(self) -> list[Any]:
        found = [self.defaults, *self.keyword_defaults, *self.attributes]
        found += [value for _, value in self.cells]
        found += [value for _, value in self.names]
        return found


Plan = tuple[Reached, ...]


class _Known(NamedTuple):
    """What is remembered of one function object."""

    alive: Callable[[], Any]
    captured: CapturedFunction
    plan: Plan | None
    """What must be as it was for the capture to be used again: nothing for a reference. None: it is captured anew each time."""
    looked: bool
    """False if what it reaches has not been looked at yet."""


class FunctionCapture:
    """Captures functions, and remembers those whose bytes can safely be used again.

    Args:
        limit: how many functions are remembered; with one more, the oldest is forgotten (and captured anew if it is used again).
        limit_bytes: how many bytes of captures are remembered in all.
    """

    def __init__(self, limit: int = 4096, limit_bytes: int = 64 * 2**20) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._known: dict[int, _Known] = {}
        self._global_names: dict[CodeType, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def capture(self, function: Callable[..., Any]) -> CapturedFunction:
        """The function as it is now, with all that it closes over.

        Raises:
            TypeError: it cannot be called.
            Exception: what pickling it raised, with a note that names it.
        """
        known = self._known.get(id(function))
        if known is not None and known.alive() is function:
            if known.plan is not None and (not known.plan or _holds(known.plan, function)):
                return known.captured
            if not known.looked:
                return self._look(function)
            if known.plan is None:
                return _captured(function, _payload(function))
        return self._capture(function)

    def _capture(self, function: Any) -> CapturedFunction:
        if not callable(function):
            raise TypeError(f"a call needs a function, not an object of type {type(function).__name__}")
        if _may_be_referenced(function):
            payload = _reference(function)
            if payload is not None:
                return self._remember(function, payload, (), True)
        if type(function) is not FunctionType:
            return _captured(function, _payload(function))
        # Many functions are made for one call only: what they reach is worth a look from the second call on.
        return self._remember(function, _payload(function), None, False)

    def _look(self, function: Any) -> CapturedFunction:
        plan = self._plan(function)
        payload = _payload(function)
        if plan is not None and not _holds(plan, function):  # another thread changed something in between
            plan = None
        return self._remember(function, payload, plan, True)

    def _remember(self, function: Any, payload: bytes, plan: Plan | None, looked: bool) -> CapturedFunction:
        captured = _captured(function, payload)
        key = id(function)
        self._forget(key)
        try:
            alive: Callable[[], Any] = ref(function, lambda _: self._forget(key))
        except TypeError:  # it cannot be referred to weakly, so that it is kept, within the limit
            alive = partial(_itself, function)
        self._known[key] = _Known(alive, captured, plan, looked)
        self._bytes += len(payload)
        while len(self._known) > self._limit or self._bytes > self._limit_bytes:
            self._forget(next(iter(self._known)))
        return captured

    def _forget(self, key: int) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._bytes -= len(known.captured.payload)

    # --- what a function reaches ---

    def _plan(self, function: FunctionType) -> Plan | None:
        """Everything by value that the function reaches; None if any of it can change inside."""
        steps: list[Reached] = []
        values: list[Any] = [function]
        seen: set[int] = set()
        while values:
            value = values.pop()
            kind = type(value)
            if kind in _SCALARS or value is _MISSING or id(value) in seen:
                continue
            seen.add(id(value))
            if kind is FunctionType and (value is function or _reference(value) is None):
                step = self._reached(value)
                steps.append(step._replace(function=None) if value is function else step)
                values += step.values()
            elif kind is tuple or kind is frozenset:
                values += value
            elif not _is_fixed(value):
                return None
        return tuple(steps)

    def _reached(self, function: FunctionType) -> Reached:
        find = function.__globals__.get
        return Reached(
            function,
            function.__code__,
            function.__defaults__,
            _items(function.__kwdefaults__),
            _items(function.__dict__),
            tuple((cell, _content(cell)) for cell in function.__closure__ or ()),
            tuple((name, find(name, _MISSING)) for name in self._names(function.__code__)),
        )

    def _names(self, code: CodeType) -> tuple[str, ...]:
        """The global names that the code uses, its inner functions and classes included."""
        names = self._global_names.get(code)
        if names is None:
            if len(self._global_names) >= self._limit:
                self._global_names.clear()
            names = self._global_names[code] = tuple(sorted(_global_names(code)))
        return names


def _holds(plan: Plan, captured: Any) -> bool:
    """True if everything is the very same object as it was; it is called once for each submitted call."""
    for reached, code, defaults, keyword_defaults, attributes, cells, names in plan:
        function = captured if reached is None else reached
        if function.__code__ is not code or function.__defaults__ is not defaults:
            return False
        now = function.__kwdefaults__
        if (now or keyword_defaults) and not _same(_items(now), keyword_defaults):
            return False
        now = function.__dict__
        if (now or attributes) and not _same(_items(now), attributes):
            return False
        for cell, value in cells:
            if _content(cell) is not value:
                return False
        find = function.__globals__.get
        for name, value in names:
            if find(name, _MISSING) is not value:
                return False
    return True


def _same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _items(mapping: dict[str, Any] | None) -> tuple[Any, ...]:
    return (*mapping, *mapping.values()) if mapping else ()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty still
        return _MISSING


def _itself(function: Any) -> Any:
    return function


def _global_names(code: CodeType) -> set[str]:
    import dis

    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname.endswith(("_GLOBAL", "_NAME"))}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names |= _global_names(inner)
    return names


def _is_fixed(value: Any) -> bool:
    """True for what travels as a name."""
    if type(value) is ModuleType:
        name = value.__name__
        return name != "__main__" and sys.modules.get(name) is value and not _registered_by_value(name)
    return _may_be_referenced(value) and _reference(value) is not None


def _may_be_referenced(value: Any) -> bool:
    if type(value) is BuiltinFunctionType:
        return value.__self__ is None or type(value.__self__) is ModuleType
    return type(value) in _REFERENCES or isinstance(value, type)


def _reference(value: Any) -> bytes | None:
    """The pickle of a function or class that the other end can import; None for any other."""
    try:
        payload = dumps(value, 5)
    except Exception:  # whatever it is, it does not travel as a name
        return None
    return None if b"__main__" in payload or _registered_by_value(getattr(value, "__module__", None)) else payload


def _registered_by_value(module: object) -> bool:
    """True if the user told cloudpickle to send this module's functions by value."""
    cloudpickle = sys.modules.get("cloudpickle")
    registered = cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else ()
    return bool(registered) and any(f"{module}.".startswith(f"{name}.") for name in registered)


# --- one capture ---------------------------------------------------------------------------------------------------------


def content_hash(payload: bytes) -> bytes:
    """The name of a function on the wire: 128 bits of BLAKE2b of its payload."""
    return blake2b(payload, digest_size=HASH_BYTES).digest()


def _captured(function: Any, payload: bytes) -> CapturedFunction:
    return CapturedFunction(content_hash(payload), payload, name_of(function), is_async(function))


def _payload(function: Any) -> bytes:
    """The function by value; an object that can be called (a partial, a bound method) by pickle, where that takes all of it."""
    try:
        if type(function) is not FunctionType:
            payload = _reference(function)
            if payload is not None:
                return payload
        return by_value(function)
    except Exception as error:
        error.add_note(f"aiocluster could not pickle the function {name_of(function)}, so that it cannot travel")
        raise


def name_of(function: Any) -> str:
    """What to call the function before people; at most 256 characters."""
    inner = _innermost(function)
    name = getattr(inner, "__qualname__", None)
    if type(name) is not str:
        inner = type(function)
        name = inner.__qualname__
    module = getattr(inner, "__module__", None)
    if type(module) is str and module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    return name[:MAX_NAME].encode("utf-8", "backslashreplace").decode("utf-8")[:MAX_NAME]


def is_async(function: Any) -> bool:
    """True if calling it gives a coroutine: an `async def`, also inside a partial, a bound method or an object's `__call__`."""
    inner = _innermost(function)
    if not isinstance(inner, FunctionType) and not isinstance(inner, type):
        if _is_marked(inner):
            return True
        inner = _innermost(type(inner).__call__)
    flags = getattr(getattr(inner, "__code__", None), "co_flags", 0)
    marked = getattr(inner, "_is_coroutine_mark", None) is not None  # by inspect.markcoroutinefunction
    return marked or bool(flags & _COROUTINE)


def _is_marked(instance: Any) -> bool:
    """By inspect.markcoroutinefunction. Its `__getattr__` is not asked: a proxy would say yes to any name."""
    try:
        return "_is_coroutine_mark" in object.__getattribute__(instance, "__dict__")
    except AttributeError:
        return False


def _innermost(function: Any) -> Any:
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def load_function(payload: bytes) -> Callable[..., Any]:
    """The function that was captured.

    Raises:
        TypeError: it is nothing that can be called.
        Exception: whatever loading it raised, such as ImportError for a module that is missing here.
    """
    function = loads(payload)
    if not callable(function):
        raise TypeError("the payload of a function holds an object that cannot be called")
    return cast("Callable[..., Any]", function)
