"""Values and errors: captured at once, whole on arrival, and nothing that an exception does keeps it from being told."""

from __future__ import annotations

import asyncio
import datetime
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.errors import ProtocolError, RemoteError, RemoteTraceback, WorkerLost
from aiocluster.wire.buffers import POOL
from aiocluster.wire.payloads import (
    BUFFERS_PER_VALUE,
    LARGE_DATA_BYTES,
    MAX_TEXT,
    OUT_OF_BAND_BYTES,
    Payload,
    pack,
    pack_error,
    pack_small,
    steers,
    unpack,
    unpack_error,
)


def travelled(value: Any) -> Any:
    data, buffers = pack(value)
    return unpack(data, [memoryview(bytearray(buffer)) for buffer in buffers])


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner), st.frozensets(scalars)),
    max_leaves=10,
)


@given(values)
def test_value_arrives_as_it_was(value: Any) -> None:
    assert travelled(value) == value
    small = pack_small(value)
    if small is not None:
        assert unpack(small) == value


def test_small_value_is_one_piece_that_pack_would_give_too() -> None:
    value = ((1, "a"), {"b": 2.5})
    assert Payload(pack_small(value) or b"", []) == pack(value)


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("count", [10, OUT_OF_BAND_BYTES, 200_000])
def test_array_arrives_equal_and_its_receivers_own(count: int, writable: bool) -> None:
    array = np.arange(count, dtype="i4")
    array.flags.writeable = writable
    data, buffers = pack([array, 1])
    assert len(buffers) == (array.nbytes >= OUT_OF_BAND_BYTES)
    arrived, one = unpack(data, buffers)
    assert one == 1
    assert (arrived == array).all()
    assert not np.shares_memory(arrived, array)
    if writable:
        arrived[:] = 7


def test_small_array_beside_a_large_one_stays_inside() -> None:
    value = [np.arange(5), np.arange(50_000)]
    data, buffers = pack(value)
    assert len(buffers) == 1
    small, large = unpack(data, buffers)
    assert small.tolist() == [0, 1, 2, 3, 4]
    assert (large == value[1]).all()


def test_array_in_column_order_and_its_parts_arrive() -> None:
    array = np.asfortranarray(np.arange(20_000, dtype="f8").reshape(100, 200))
    assert (travelled(array) == array).all()
    assert (travelled(array[::2, ::3]) == array[::2, ::3]).all()


def test_what_the_caller_changes_later_does_not_show() -> None:
    array, words = np.zeros(100_000), ["a"]
    data, buffers = pack((array, words))
    array[:] = 1
    words.append("b")
    arrived, listed = unpack(data, buffers)
    assert not arrived.any()
    assert listed == ["a"]


def test_captured_buffers_are_memory_of_the_pool() -> None:
    before = POOL.leased_blocks
    payload = pack(np.zeros(100_000))
    assert POOL.leased_blocks == before + 1
    del payload
    assert POOL.leased_blocks == before


@pytest.mark.parametrize("value", ["x" * LARGE_DATA_BYTES, b"x" * 1_000_000, list(range(50_000))])
def test_long_pickle_travels_as_the_first_buffer(value: Any) -> None:
    data, buffers = pack((value, np.zeros(10_000)))
    assert data == b""
    assert len(buffers) == 2
    arrived, array = travelled((value, np.zeros(10_000)))
    assert arrived == value
    assert not array.any()
    assert travelled(value) == value


@pytest.mark.parametrize("value", [np.zeros(10_000), "x" * LARGE_DATA_BYTES, "__main__", lambda: 1, threading.Lock()])
def test_hot_path_leaves_the_rest_to_pack(value: Any) -> None:
    assert pack_small(value) is None


def test_small_buffer_stays_inside() -> None:
    small = pack_small(np.arange(10))
    assert small is not None
    arrived = unpack(small)
    arrived[0] = 5
    assert arrived.tolist() == [5, *range(1, 10)]


def test_what_pickle_cannot_take_goes_by_cloudpickle() -> None:
    offset = 5
    array = np.arange(50_000)
    function, arrived = travelled((lambda x: x + offset, array))
    assert function(1) == 6
    assert (arrived == array).all()


def test_text_that_names_main_arrives_too() -> None:
    big = np.arange(50_000)
    assert travelled("__main__") == "__main__"
    text, arrived = travelled(("__main__", big))
    assert text == "__main__"
    assert (arrived == big).all()


def test_class_of_the_script_goes_by_value() -> None:
    program = (
        "import sys\nfrom aiocluster.wire.payloads import pack\n"
        "class Point:\n    x = 3\n"
        "sys.stdout.buffer.write(pack(Point()).data)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert unpack(done.stdout).x == 3


class Unwilling:
    def __reduce__(self) -> Any:
        raise ValueError("I stay")


@pytest.mark.parametrize(
    ("value", "error"), [(threading.Lock(), TypeError), (Unwilling(), ValueError), ((n for n in "a"), TypeError)]
)
def test_value_that_cannot_travel_raises_what_pickling_raised_with_a_note(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        pack(value)
    assert type(value).__name__ in caught.value.__notes__[0]


def test_value_too_deep_for_pickle_is_an_error_and_no_crash() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(RecursionError) as caught:
        pack(value)
    assert "could not pickle this list" in caught.value.__notes__[0]
    while value:
        value = value[0]


def test_tiny_values_do_not_import_cloudpickle() -> None:
    program = (
        "import sys\nfrom aiocluster.wire.payloads import pack, pack_small, unpack, pack_error\n"
        "pack(1); unpack(pack_small((1, 'a'))); pack_error(ValueError(1))\nprint('cloudpickle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- errors --------------------------------------------------------------------------------------------------------------


def raised(exc: BaseException) -> BaseException:
    """The exception after it was raised, caught, packed and unpacked."""
    try:
        raise exc
    except BaseException as caught:  # any of them
        return unpack_error(pack_error(caught))


class Custom(Exception):
    def __init__(self, code: int, *, detail: str = "") -> None:
        super().__init__(code)
        self.detail = detail


@pytest.mark.parametrize(
    "exc", [ValueError("x"), KeyError(3), OSError(2, "gone", "file"), WorkerLost(3, "exit", maybe_executed=True)]
)
def test_exception_arrives_as_itself_with_the_remote_traceback(exc: Exception) -> None:
    arrived = raised(exc)
    assert type(arrived) is type(exc)
    assert str(arrived) == str(exc)
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "in raised" in str(arrived.__cause__)
    assert str(exc) in "".join(traceback.format_exception(arrived))


def test_attributes_and_notes_arrive() -> None:
    exc = Custom(3, detail="d")
    exc.add_note("first")
    exc.add_note("second")
    arrived = raised(exc)
    assert isinstance(arrived, Custom)
    assert arrived.detail == "d"
    assert arrived.__notes__ == ["first", "second"]


class Forgetful(Exception):
    def __reduce__(self) -> Any:
        return Forgetful, ()


def test_notes_that_the_exception_forgets_arrive_all_the_same() -> None:
    exc = Forgetful()
    exc.add_note("kept")
    arrived = raised(exc)
    assert type(arrived) is Forgetful
    assert arrived.__notes__ == ["kept"]


def test_own_traceback_can_be_given() -> None:
    arrived = unpack_error(pack_error(ValueError(1), traceback="line 7 of nowhere"))
    assert str(arrived.__cause__) == "\nline 7 of nowhere"


def test_frames_of_the_runtime_come_first_and_are_left_out() -> None:
    try:
        unpack(pickle.dumps(FailsToLoad()))
    except ZeroDivisionError as error:
        text = str(unpack_error(pack_error(error)).__cause__)
    assert "in fail" in text
    caller = compile("def call(function):\n    return function()", pack_error.__code__.co_filename, "exec")
    space: dict[str, Any] = {}
    exec(caller, space)  # a frame that looks like the runtime's own
    try:
        space["call"](fail)
    except ZeroDivisionError as error:
        # Without this test's own frame, which a worker does not have.
        own = error.__traceback__
        error = error.with_traceback(own and own.tb_next)
        text = str(unpack_error(pack_error(error)).__cause__)
    assert "in fail" in text
    assert "in call" not in text


def fail() -> None:
    raise ZeroDivisionError


class FailsToLoad:
    def __reduce__(self) -> Any:
        return fail, ()


@pytest.mark.parametrize(
    "exc",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(5),
        StopAsyncIteration(),
        asyncio.CancelledError("who asked"),
        BaseExceptionGroup("g", [ValueError(), BaseExceptionGroup("h", [SystemExit(1)])]),
    ],
)
def test_exception_that_would_steer_the_caller_arrives_as_remote_error(exc: BaseException) -> None:
    arrived = raised(exc)
    assert type(arrived) is RemoteError
    assert type(exc).__name__ in arrived.type_name
    assert arrived.text == str(exc)
    assert "in raised" in arrived.traceback
    assert isinstance(arrived.__cause__, RemoteTraceback)


def test_where_asyncio_was_never_imported_nothing_of_it_steers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "asyncio.exceptions")
    assert not steers(asyncio.CancelledError())
    assert steers(SystemExit())


def test_group_arrives_whole() -> None:
    arrived = raised(ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])]))
    assert isinstance(arrived, ExceptionGroup)
    assert arrived.message == "several"
    assert repr(arrived.exceptions) == repr((ValueError(1), ExceptionGroup("inner", [KeyError("k")])))


def test_exception_that_only_cloudpickle_can_take_arrives_as_itself() -> None:
    class Local(Exception):
        pass

    arrived = raised(Local("here"))
    assert type(arrived) is Local
    assert arrived.args == ("here",)
    assert raised(ValueError("__main__")).args == ("__main__",)


class NeedsTwo(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


class RaisesInReduce(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("no")


class RaisesInText(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __reduce__(self) -> Any:
        raise ValueError


class RaisesInRepr(Exception):
    def __repr__(self) -> str:
        raise ValueError

    def __init__(self) -> None:
        super().__init__(threading.Lock())


class BecomesAnother(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("other",)


class BecomesNone(Exception):
    def __reduce__(self) -> Any:
        return "None"


class RefusesCause(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Interrupts(Exception):
    def __reduce__(self) -> Any:
        return interrupt, ()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "exc",
    [
        NeedsTwo(1, 2),
        RaisesInReduce("a"),
        RaisesInText("a"),
        RaisesInRepr(),
        BecomesAnother("a"),
        BecomesNone("a"),
        Interrupts("a"),
        RefusesCause("a"),
        ValueError(threading.Lock()),
    ],
)
def test_exception_that_cannot_travel_arrives_as_remote_error(exc: Exception) -> None:
    arrived = unpack_error(pack_error(exc))
    assert type(arrived) is RemoteError
    assert arrived.type_name.endswith(type(exc).__name__)
    assert pickle.loads(pickle.dumps(arrived)).text == arrived.text


class BreaksTraceback(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt


def test_traceback_that_cannot_be_formatted_is_said_so() -> None:
    arrived = raised(BreaksTraceback("a"))
    assert type(arrived) is RemoteError
    assert arrived.text == "a"
    assert "cannot be shown" in arrived.traceback


class HasNoTraceback(Exception):
    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise SystemExit


class HasNoAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


class HasNoName(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__"):
            raise KeyboardInterrupt(name)
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=HasNoName):
    pass


class BadText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise SystemExit


class SpeaksBadText(Exception):
    def __str__(self) -> str:
        return BadText("bad")

    def __reduce__(self) -> Any:
        raise ValueError


@pytest.mark.parametrize(
    ("name", "text"), [("HasNoTraceback", "a"), ("HasNoAttributes", "a"), ("Nameless", "a"), ("SpeaksBadText", "bad")]
)
def test_exception_that_raises_when_it_is_looked_at_is_told_all_the_same(name: str, text: str) -> None:
    make: Callable[[str], Exception] = globals()[name]  # by its name: what runs the tests would look at it
    told, said, _traceback, _pickle = msgpack.unpackb(pack_error(make("a")))
    assert told.rpartition(".")[2] == name
    assert said == text


def test_text_without_end_is_shortened_and_odd_text_is_escaped() -> None:
    arrived = raised(StopIteration("a" * 1_000_000 + "z"))
    assert isinstance(arrived, RemoteError)
    assert len(arrived.text) < MAX_TEXT + 100
    assert arrived.text.endswith("z")
    arrived = raised(StopIteration("\udcff"))
    assert isinstance(arrived, RemoteError)
    assert arrived.text == "\\udcff"


def test_builtin_exception_is_named_without_its_module() -> None:
    arrived = raised(SystemExit())
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == "SystemExit"
    assert str(arrived) == "SystemExit"


def test_exception_that_loads_here_no_more_arrives_as_remote_error() -> None:
    data = msgpack.packb(["mod.Gone", "text", "trace", b"cmod\nGone\n."])
    arrived = unpack_error(data)
    assert type(arrived) is RemoteError
    assert str(arrived) == "mod.Gone: text"


@pytest.mark.parametrize("smuggled", [SystemExit(), 5, ValueError])
def test_pickle_of_something_else_does_not_reach_the_caller(smuggled: Any) -> None:
    data = msgpack.packb(["T", "text", "", pickle.dumps((smuggled, None))])
    assert type(unpack_error(data)) is RemoteError


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([1, "", "", None]),
        msgpack.packb(["", "", "", "x"]),
        b"\x91" * 2000,
    ],
)
def test_bytes_that_are_no_error_are_an_error_all_the_same(data: bytes) -> None:
    assert type(unpack_error(data)) is ProtocolError


@given(st.binary(max_size=100))
def test_unpacking_an_error_never_raises(data: bytes) -> None:
    assert isinstance(unpack_error(data), BaseException)


def test_dates_and_functions_travel() -> None:
    day = datetime.date(2024, 2, 29)
    function: Callable[..., Any]
    arrived, function = travelled((day, len))
    assert arrived == day
    assert function is len


def test_a_value_with_very_many_buffers_has_a_bounded_number_of_them_beside_it() -> None:
    pieces = [bytearray(bytes([n % 256]) * OUT_OF_BAND_BYTES) for n in range(BUFFERS_PER_VALUE + 50)]
    data, buffers = pack([pickle.PickleBuffer(piece) for piece in pieces])
    assert len(buffers) == BUFFERS_PER_VALUE + 1, "the pickle is one, as it is large"
    assert not data
    assert [bytes(one) for one in unpack(data, buffers)] == [bytes(piece) for piece in pieces]
