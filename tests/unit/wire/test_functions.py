"""Functions: by name where the other end can import them, else by value, and never as they no longer are."""

from __future__ import annotations

import functools
import gc
import math
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from aiocluster.wire import functions as module
from aiocluster.wire.functions import FunctionCapture, content_hash, is_async, load_function, name_of
from aiocluster.wire.payloads import by_value


def plain(x: int) -> int:
    return x + 1


@functools.lru_cache
def remembered(x: int) -> int:
    return x + 1


async def later(x: int) -> int:
    return x


class Tool:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return x * self.factor

    def method(self, x: int) -> int:
        return x + self.factor

    async def slow(self, x: int) -> int:
        return x


class AsyncTool:
    async def __call__(self, x: int) -> int:
        return x


class SlowTool(AsyncTool):
    pass


def script(source: str) -> dict[str, Any]:
    """The globals of a script, whose functions cannot be imported."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)  # what a script is, here
    return space


@pytest.fixture
def capture() -> FunctionCapture:
    return FunctionCapture()


def reuses(capture: FunctionCapture, function: Callable[..., Any]) -> bool:
    """True if a capture that has been looked at twice gives the same bytes object again."""
    capture.capture(function)
    second = capture.capture(function)
    return capture.capture(function).payload is second.payload


# --- by reference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [plain, later, len, math.sin, str.upper, int.__add__, dict.fromkeys, Tool, list])
def test_importable_function_travels_as_its_name(capture: FunctionCapture, function: Callable[..., Any]) -> None:
    captured = capture.capture(function)
    assert len(captured.payload) < 150
    assert load_function(captured.payload) == function
    assert captured.hash == content_hash(captured.payload)
    assert len(captured.hash) == 16


@pytest.mark.parametrize("function", [plain, len, str.upper, Tool])
def test_reference_is_captured_once(capture: FunctionCapture, function: Callable[..., Any]) -> None:
    assert capture.capture(function) is capture.capture(function)


def test_two_captures_of_one_function_have_one_name() -> None:
    assert FunctionCapture().capture(plain) == FunctionCapture().capture(plain)


def test_function_whose_name_means_another_travels_by_value(capture: FunctionCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    original = plain
    monkeypatch.setattr(sys.modules[__name__], "plain", lambda x: 0)
    assert load_function(capture.capture(original).payload)(1) == 2


def test_module_registered_by_value_travels_by_value(capture: FunctionCapture) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        payload = capture.capture(plain).payload
        assert load_function(payload) is not plain
        assert load_function(payload)(1) == 2
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


# --- by value ------------------------------------------------------------------------------------------------------------

SAFE = {
    "nothing": "def f(x): return x + 1",
    "a constant": "K = 4\ndef f(x): return x + K",
    "a module": "import math\ndef f(x): return math.floor(x) + 1",
    "a builtin": "from math import floor\ndef f(x): return floor(x) + 1",
    "a class": "from collections import OrderedDict\ndef f(x): return len(OrderedDict(a=1)) + x",
    "a function by name": "from os.path import join\ndef f(x): return len(join('a')) + x",
    "a function by value": "K = 1\ndef g(x): return x + K\ndef f(x): return g(x)",
    "itself": "def f(x): return f(x - 1) if x > 5 else x + 1",
    "each other": "def g(x): return f(x)\ndef f(x): return g(x - 1) if x > 5 else x + 1",
    "a tuple of such": "K = (1, ('a', frozenset((2,))), None, 1.5, ...)\ndef f(x): return x + K[0]",
    "defaults": "def f(x, y=1, *, z=0): return x + y + z",
    "a closure": "def make(y):\n    def f(x): return x + y\n    return f\nf = make(1)",
    "an inner function": "K = 1\ndef f(x): return (lambda: x + K)()",
    "an attribute": "def f(x): return x + 1\nf.about = 'text'",
    "a name that is missing": "def f(x):\n    try:\n        return missing\n    except NameError:\n        return x + 1",
}


@pytest.mark.parametrize("name", SAFE)
def test_function_that_reaches_only_what_cannot_change_is_captured_once(capture: FunctionCapture, name: str) -> None:
    function = script(SAFE[name])["f"]
    assert reuses(capture, function)
    assert load_function(capture.capture(function).payload)(1) == function(1)


UNSAFE = {
    "a list": "K = [1]\ndef f(): return K[0]",
    "a dict in a tuple": "K = ({'a': 1},)\ndef f(): return K[0]['a']",
    "an object": "class C:\n    x = 1\nK = C()\ndef f(): return K.x",
    "a class of the script": "class C:\n    x = 1\ndef f(): return C.x",
    "a default that can change": "def f(x=[1]): return x[0]",
    "a keyword default that can change": "def f(*, x=[1]): return x[0]",
    "a closure that can change": "def make():\n    y = [1]\n    def f(): return y[0]\n    return f\nf = make()",
    "a function that reaches a list": "K = [1]\ndef g(): return K[0]\ndef f(): return g()",
    "an inner function that reaches a list": "K = [1]\ndef f(): return (lambda: K[0])()",
    "an inner class that reaches a list": "K = [1]\ndef f():\n    class C:\n        def m(self): return K\n    return C().m()[0]",
    "an attribute that can change": "def f(): return 1\nf.about = []",
    "a module made here": "import types\nm = types.ModuleType('made_here')\nm.x = 1\ndef f(): return m.x",
    "a bound method of a list": "f_ = [1].copy\ndef f(): return f_()[0]",
}


@pytest.mark.parametrize("name", UNSAFE)
def test_function_that_reaches_what_can_change_is_captured_every_time(capture: FunctionCapture, name: str) -> None:
    function = script(UNSAFE[name])["f"]
    assert not reuses(capture, function)
    assert load_function(capture.capture(function).payload)() == 1


CHANGES = {
    "a constant": (SAFE["a constant"], "K = 5"),
    "a constant of another function": (SAFE["a function by value"], "K = 5"),
    "a constant of an inner function": (SAFE["an inner function"], "K = 5"),
    "another function": (SAFE["a function by value"], "def g(x): return 50"),
    "a missing name that appears": (SAFE["a name that is missing"], "missing = 50"),
    "a name that disappears": (
        "K = 1\ndef f(x):\n    try:\n        return K\n    except NameError:\n        return 7",
        "del K",
    ),
    "a default": (SAFE["defaults"], "f.__defaults__ = (5,)"),
    "a keyword default": (SAFE["defaults"], "f.__kwdefaults__ = {'z': 5}"),
    "a keyword default in place": (SAFE["defaults"], "f.__kwdefaults__['z'] = 5"),
    "a keyword default that is new": ("def f(x, *, z=0): return x + z", "f.__kwdefaults__ = {'y': 1, 'z': 2}"),
    "the code": (SAFE["nothing"], "f.__code__ = (lambda x: x + 5).__code__"),
    "the code of another": (SAFE["a function by value"], "g.__code__ = (lambda x: x + 5).__code__"),
    "a closure": (SAFE["a closure"], "f.__closure__[0].cell_contents = 5"),
    "a builtin that is shadowed": ("def f(x): return len('abc')", "def len(x): return 9"),
    "a list": ("K = [1]\ndef f(x): return K[0]", "K[0] = 5"),
    "a list within": (UNSAFE["a dict in a tuple"].replace("f()", "f(x)"), "K[0]['a'] = 5"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_between_two_calls_shows_in_the_second(capture: FunctionCapture, name: str) -> None:
    source, change = CHANGES[name]
    for captures_before in range(1, 4):
        space = script(source)
        function = space["f"]
        for _ in range(captures_before):
            before = capture.capture(function)
        assert load_function(before.payload)(1) == function(1)
        exec(change, space)
        after = [capture.capture(function) for _ in range(3)]
        assert {load_function(captured.payload)(1) for captured in after} == {function(1)}
        assert before.payload not in {captured.payload for captured in after}


def test_attribute_set_later_is_captured(capture: FunctionCapture) -> None:
    function = script("def f(x): return f.y")["f"]
    function.y = 1
    for _ in range(3):
        capture.capture(function)
    function.y = 2
    assert load_function(capture.capture(function).payload)(0) == 2


def test_closure_that_is_empty_still_and_filled_later(capture: FunctionCapture) -> None:
    space = script(
        "def make():\n    def f():\n        return y\n    def fill():\n        nonlocal y\n        y = 3\n    if 0: y = 0\n"
        "    return f, fill"
    )
    function, fill = space["make"]()
    assert reuses(capture, function)
    with pytest.raises(NameError):
        load_function(capture.capture(function).payload)()
    fill()
    assert load_function(capture.capture(function).payload)() == 3


def test_change_by_another_thread_in_mid_capture_is_not_kept(capture: FunctionCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    space = script(SAFE["a constant"])
    function = space["f"]
    capture.capture(function)

    def changed_meanwhile(value: Any) -> bytes:
        payload = by_value(value)
        space["K"] += 1
        return payload

    with monkeypatch.context() as patch:
        patch.setattr(module, "by_value", changed_meanwhile)
        capture.capture(function)
    assert load_function(capture.capture(function).payload)(1) == function(1)


# --- other callables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(plain, 4),
        Tool(3).method,
        Tool(3),
        [5, 6].__getitem__,
        remembered,
        functools.lru_cache(math.sqrt),
    ],
)
def test_objects_that_can_be_called_travel_with_their_state(capture: FunctionCapture, function: Callable[..., Any]) -> None:
    arguments = () if isinstance(function, functools.partial) else (1,)
    assert load_function(capture.capture(function).payload)(*arguments) == function(*arguments)
    assert len(capture) == 0


def test_object_that_changes_is_captured_as_it_is_now(capture: FunctionCapture) -> None:
    tool = Tool(2)
    first = capture.capture(tool.method)
    assert capture.capture(tool.method) == first
    tool.factor = 10
    assert load_function(capture.capture(tool.method).payload)(1) == 11
    assert load_function(first.payload)(1) == 3


def test_partial_of_a_function_by_value_travels(capture: FunctionCapture) -> None:
    function = functools.partial(script(SAFE["a constant"])["f"], 1)
    assert load_function(capture.capture(function).payload)() == 5


@pytest.mark.parametrize("value", [None, 5, "print"])
def test_what_cannot_be_called_is_refused(capture: FunctionCapture, value: Any) -> None:
    with pytest.raises(TypeError, match="needs a function"):
        capture.capture(value)
    with pytest.raises(TypeError, match="cannot be called"):
        load_function(pickle.dumps(value))


def test_function_that_cannot_travel_raises_with_its_name(capture: FunctionCapture) -> None:
    def numbers() -> Iterator[int]:
        yield 1

    held = numbers()
    for _ in range(2):
        with pytest.raises(TypeError) as caught:
            capture.capture(lambda: held)
        assert "<lambda>" in caught.value.__notes__[-1]


# --- the cache -----------------------------------------------------------------------------------------------------------


def test_function_that_is_gone_is_forgotten(capture: FunctionCapture) -> None:
    function = script(SAFE["nothing"])["f"]
    reuses(capture, function)
    assert len(capture) == 1
    del function
    gc.collect()
    assert len(capture) == 0
    assert capture._bytes == 0


def test_no_more_functions_than_the_limit_are_remembered() -> None:
    capture = FunctionCapture(limit=3)
    functions = [script(SAFE["a constant"])["f"] for _ in range(10)]
    for function in functions:
        reuses(capture, function)
        assert len(capture) <= 3
    named = [eval(f"lambda: {index}") for index in range(10)]
    for function in named:
        reuses(capture, function)
    assert len(capture._global_names) <= 3
    assert load_function(capture.capture(functions[0]).payload)(1) == 5


def test_no_more_bytes_than_the_limit_are_remembered() -> None:
    capture = FunctionCapture(limit_bytes=1000)
    function = script(f"K = {'x' * 2000!r}\ndef f(x): return K")["f"]
    assert not reuses(capture, function)
    assert len(capture) == 0
    assert capture._bytes == 0


def test_id_that_is_used_again_is_no_other_functions_capture(capture: FunctionCapture) -> None:
    function = script(SAFE["nothing"])["f"]
    capture.capture(function)
    other = script(SAFE["a constant"])["f"]
    capture._known[id(other)] = capture._known.pop(id(function))
    assert load_function(capture.capture(other).payload)(1) == 5


def test_function_without_weak_references_is_kept_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise TypeError

    monkeypatch.setattr(module, "ref", refuses)
    capture = FunctionCapture()
    assert capture.capture(plain) is capture.capture(plain)


# --- names and kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (later, True),
        (functools.partial(later, 1), True),
        (functools.partial(functools.partial(Tool(1).slow)), True),
        (Tool(1).slow, True),
        (AsyncTool(), True),
        (SlowTool(), True),
        (AsyncTool, False),
        (plain, False),
        (Tool(1), False),
        (Tool(1).method, False),
        (len, False),
        (functools.partial(plain), False),
    ],
)
def test_async_functions_are_told_from_others(capture: FunctionCapture, function: Callable[..., Any], expected: bool) -> None:
    assert is_async(function) is expected
    assert capture.capture(function).is_async is expected


def test_function_marked_as_async_is_one() -> None:
    def wrapper() -> Any:
        return later(1)

    wrapper._is_coroutine_mark = object()  # type: ignore[attr-defined]  # as inspect.markcoroutinefunction of 3.12 does
    assert is_async(wrapper)


def test_names_are_for_people_and_short() -> None:
    assert name_of(plain) == f"{__name__}.plain"
    assert name_of(functools.partial(Tool(1).method, 1)) == f"{__name__}.Tool.method"
    assert name_of(Tool(1)) == f"{__name__}.Tool"
    assert name_of(len) == "len"
    assert name_of(script(SAFE["nothing"])["f"]) == "f"
    odd = types.FunctionType(plain.__code__, {})
    odd.__qualname__ = "\udcff" * 300
    assert len(name_of(odd)) == 256
    name_of(odd).encode()


def test_importing_does_not_import_what_costs() -> None:
    program = (
        "import sys\nfrom aiocluster.wire import functions\n"
        "functions.FunctionCapture().capture(len)\n"
        "print({'cloudpickle', 'inspect', 'dis', 'asyncio', 'numpy', 'ctypes'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- caches of the script ------------------------------------------------------------------------------------------------

FIB = """
from functools import lru_cache
@lru_cache(maxsize=50, typed=True)
def fib(n):
    'about'
    return n if n < 2 else fib(n - 1) + fib(n - 2)
def use(n): return fib(n)
"""


@pytest.mark.parametrize("name", ["fib", "use"])
def test_cached_function_of_the_script_travels_though_it_calls_itself(capture: FunctionCapture, name: str) -> None:
    function = load_function(capture.capture(script(FIB)[name]).payload)
    assert function(40) == 102334155
    again = load_function(capture.capture(function).payload)
    assert again(41) == 165580141


def test_cached_function_keeps_its_parameters_and_its_name(capture: FunctionCapture) -> None:
    cached: Any = load_function(capture.capture(script(FIB)["fib"]).payload)
    assert cached.cache_parameters() == {"maxsize": 50, "typed": True}
    assert (cached.__name__, cached.__doc__) == ("fib", "about")
    cached(10)
    assert cached.cache_info().currsize == 11


def test_cached_function_that_can_be_imported_stays_a_name(capture: FunctionCapture) -> None:
    function = load_function(capture.capture(lambda: remembered).payload)
    assert function() is remembered


def test_an_object_that_says_it_is_async_is_believed() -> None:
    class Marked:
        _is_coroutine_mark: object  # set by inspect.markcoroutinefunction, from Python 3.12 on

        def __call__(self) -> None: ...

    plain, marked = Marked(), Marked()
    marked._is_coroutine_mark = object()
    assert not is_async(plain)
    assert is_async(marked)
