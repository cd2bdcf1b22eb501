"""Calls as messages: one frame for a worker, and before it the functions that it does not know."""

from __future__ import annotations

from aiocluster.config import Settings
from aiocluster.core.batches import calls_messages
from aiocluster.core.calls import Call, CallOptions
from aiocluster.core.dispatch import Dispatch
from aiocluster.core.functions import FunctionTable
from aiocluster.wire.messages import Calls, Functions, Mode


class Bench:
    def __init__(self) -> None:
        self.functions = FunctionTable()
        self.dispatch = Dispatch(Settings(), self.functions)
        self.place = self.dispatch.add_worker(1, {}, 0.0)
        self.dispatch.open_worker(1)

    def send(self, *calls: Call) -> list[tuple[Functions | Calls, list[bytes]]]:
        for call in calls:
            assert self.dispatch.submit(call) is None
        sent: list[tuple[Functions | Calls, list[bytes]]] = []
        for place, batch in self.dispatch.assign(1.0):
            sent.extend(calls_messages(place, batch, 1.0))
        return sent


def test_a_function_goes_ahead_of_its_first_call_and_never_again() -> None:
    bench = Bench()
    f = bench.functions.intern(b"1" * 16, b"code f", "f", True)
    g = bench.functions.intern(b"2" * 16, b"code g", "g", True)
    (functions, _), (calls, _) = bench.send(Call(1, f, b"a"), Call(2, f, b"b"), Call(3, g, b"c"))
    assert functions == Functions([f.id, g.id], [b"1" * 16, b"2" * 16], [b"code f", b"code g"], ["f", "g"])
    assert calls == Calls(1, [1, 2, 3], [f.id, f.id, g.id], bytes([Mode.ASYNC] * 3), [b"a", b"b", b"c"], [], [], [])
    ((more, _),) = bench.send(Call(4, f, b"d"))
    assert isinstance(more, Calls)
    assert more.first_serial == 4


def test_what_only_some_calls_have_travels_in_rows() -> None:
    bench = Bench()
    f = bench.functions.intern(b"1" * 16, b"", "f", True)
    timed, late, named, large = (Call(id, f, b"") for id in range(1, 5))
    timed.deadline, late.deadline = 3.5, 0.5
    named = Call(3, f, b"", options=CallOptions(name="render"))
    large = Call(4, f, b"", [b"one", b"two"])
    frame, buffers = bench.send(timed, late, named, large)[-1]
    assert isinstance(frame, Calls)
    assert frame.timeouts == [[0, 2_500_000], [1, 0]]
    assert frame.names == [[2, "render"]]
    assert frame.buffers == [[3, 2]]
    assert buffers == [b"one", b"two"]


def test_a_call_for_one_worker_says_that_it_is_ordered() -> None:
    bench = Bench()
    f = bench.functions.intern(b"1" * 16, b"", "f", False)
    frame, _ = bench.send(Call(1, f, b"", options=CallOptions(workers=frozenset({1})), mode=Mode.CHUNK))[-1]
    assert isinstance(frame, Calls)
    assert frame.modes == bytes([Mode.CHUNK | Mode.ORDERED])
