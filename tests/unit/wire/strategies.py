"""Every message, drawn at random within what the protocol allows: for round trips, and to be broken by other tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from aiocluster.wire import messages as m
from aiocluster.wire.table import buffer_count

u64 = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
positive = st.integers(1, 3)
boolean = st.booleans()
number = st.one_of(st.integers(0, 10**9), st.floats(0, 1e15))
short = st.text(max_size=20)
blob = st.binary(max_size=40)
hash16 = st.binary(min_size=16, max_size=16)
column_u64 = st.lists(u64, max_size=5)
column_text = st.lists(short, max_size=5)
scalar = st.one_of(st.none(), boolean, u64, st.floats(allow_nan=False), short, blob)
mapping = st.dictionaries(short, scalar, max_size=4)
plain = st.recursive(
    scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(short, inner, max_size=3)),
    max_leaves=8,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "timeout_s": number,
        "retries": u64,
        "idempotent": boolean,
        "workers": column_u64,
        "resources": st.dictionaries(short, number, max_size=2),
        "priority": st.integers(-1000, 1000),
        "name": short,
        "left_s": number,
        "items": u64,
        "kills": u64,
    },
)


def statuses(count: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.integers(0, m.CallStatus.LAST), min_size=count, max_size=count).map(bytes)


def modes(count: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.integers(0, m.Mode.ALL), min_size=count, max_size=count).map(bytes)


def exactly(count: int, entry: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(entry, min_size=count, max_size=count)


@st.composite
def rows(draw: st.DrawFn, count: int, entry: st.SearchStrategy[Any]) -> list[list[Any]]:
    indexes = sorted(draw(st.sets(st.integers(0, count - 1)))) if count else []
    return [[index, draw(entry)] for index in indexes]


@st.composite
def hello(draw: st.DrawFn) -> m.Hello:
    role = draw(st.sampled_from(["agent", "worker"]))
    worker_id = 0 if role == "agent" else draw(st.integers(1, 2**64 - 1))
    text = [draw(short) for _ in range(5)]
    return m.Hello(
        role,
        text[0],
        draw(u64),
        text[1],
        text[2],
        text[3],
        worker_id,
        text[4],
        draw(u64),
        draw(hash16),
        draw(u64),
        draw(boolean),
    )


@st.composite
def calls(draw: st.DrawFn) -> m.Calls:
    n = draw(st.integers(0, 5))
    return m.Calls(
        draw(u64),
        draw(exactly(n, u64)),
        draw(exactly(n, u64)),
        draw(modes(n)),
        draw(exactly(n, blob)),
        draw(rows(n, u64)),
        draw(rows(n, positive)),
        draw(rows(n, short)),
    )


@st.composite
def submit(draw: st.DrawFn) -> m.Submit:
    n = draw(st.integers(0, 5))
    ids, parents, functions = [draw(exactly(n, u64)) for _ in range(3)]
    return m.Submit(
        ids, parents, functions, draw(modes(n)), draw(exactly(n, blob)), draw(rows(n, options)), draw(rows(n, positive))
    )


@st.composite
def results(draw: st.DrawFn) -> m.Results:
    n = draw(st.integers(0, 5))
    busy = draw(st.lists(st.lists(u64, min_size=3, max_size=3), max_size=3))
    return m.Results(draw(exactly(n, u64)), draw(statuses(n)), draw(exactly(n, blob)), draw(rows(n, positive)), busy)


@st.composite
def outcomes(draw: st.DrawFn) -> m.Outcomes:
    n = draw(st.integers(0, 5))
    return m.Outcomes(
        draw(exactly(n, u64)), draw(statuses(n)), draw(exactly(n, blob)), draw(exactly(n, u64)), draw(rows(n, positive))
    )


@st.composite
def worker_exited(draw: st.DrawFn) -> m.WorkerExited:
    n = draw(st.integers(0, 5))
    started, finished, started_async, item, item_call = [draw(u64) for _ in range(5)]
    return m.WorkerExited(
        draw(u64),
        draw(short),
        draw(boolean),
        started,
        finished,
        started_async,
        item,
        item_call,
        draw(exactly(n, u64)),
        draw(statuses(n)),
        draw(exactly(n, blob)),
    )


@st.composite
def functions(draw: st.DrawFn) -> m.Functions:
    n = draw(st.integers(0, 5))
    return m.Functions(draw(exactly(n, u64)), draw(exactly(n, hash16)), draw(exactly(n, blob)), draw(exactly(n, short)))


@st.composite
def output(draw: st.DrawFn) -> m.Output:
    n = draw(st.integers(0, 5))
    return m.Output(draw(u64), draw(st.sampled_from([1, 2])), draw(exactly(n, u64)), draw(exactly(n, short)))


codes = st.sampled_from(["version", "cluster", "stale", "unknown", "closing", "protocol"])
node_row = st.tuples(u64, short, number, u64, u64).map(list)

BY_TYPE: dict[type[Any], st.SearchStrategy[Any]] = {
    m.Hello: hello(),
    m.Welcome: st.builds(m.Welcome, u64, mapping),
    m.Refused: st.builds(m.Refused, codes, short, short, short),
    m.Ack: st.builds(m.Ack, u64),
    m.StartWorkers: st.builds(m.StartWorkers, column_u64),
    m.StopWorker: st.builds(m.StopWorker, u64, number),
    m.KillWorker: st.builds(m.KillWorker, u64, short),
    m.Shutdown: st.builds(m.Shutdown, number),
    m.Beat: st.builds(m.Beat, u64),
    m.NodeBeat: st.builds(m.NodeBeat, u64, mapping, st.lists(node_row, max_size=3)),
    m.WorkerStarted: st.builds(m.WorkerStarted, u64, u64),
    m.WorkerExited: worker_exited(),
    m.StartGaveUp: st.builds(m.StartGaveUp, column_u64, short, column_text),
    m.NodeDraining: st.builds(m.NodeDraining, short, number),
    m.Output: output(),
    m.FlushOutput: st.builds(m.FlushOutput, u64, u64),
    m.OutputFlushed: st.builds(m.OutputFlushed, u64),
    m.Functions: functions(),
    m.DropFunctions: st.builds(m.DropFunctions, column_u64),
    m.Calls: calls(),
    m.Results: results(),
    m.CancelCalls: st.builds(m.CancelCalls, column_u64, boolean),
    m.Recall: st.builds(m.Recall, u64),
    m.Returned: st.builds(m.Returned, column_u64),
    m.Yielded: st.builds(m.Yielded, u64),
    m.Resumed: st.builds(m.Resumed, u64),
    m.Submit: submit(),
    m.Outcomes: outcomes(),
    m.Ask: st.builds(m.Ask, u64, short, st.lists(plain, max_size=3)),
    m.Answer: st.builds(m.Answer, u64, boolean, plain, blob),
}

messages = st.one_of(*BY_TYPE.values())


def buffers_for(message: m.Message) -> list[bytes]:
    """Buffers as many as the message speaks of, of various sizes."""
    return [bytes([index % 251]) * (index * 7) for index in range(buffer_count(message))]
