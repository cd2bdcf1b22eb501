"""The table of messages: what each says, who may send it, and what each field must be.

A message is a named tuple; on the wire it is the msgpack array `[tag, *fields, sizes]`, where `sizes` are the lengths of
the buffers that follow the header. `decode` checks every field, so nothing behind it meets a surprise. Hot messages
(`Calls`, `Results`) carry columns, one entry per call, so that a frame of a thousand calls costs one decode and a few checks.

This module never imports pickle: payloads stay bytes here.
"""

from __future__ import annotations

from operator import call
from typing import Any, NamedTuple

from aiocluster.errors import ProtocolError
from aiocluster.wire.checks import (
    U64,
    Check,
    Rule,
    amounts,
    anything,
    blob,
    boolean,
    both,
    codes,
    column,
    column_blob,
    column_text,
    column_u64,
    exactly,
    i64,
    keyed,
    mapping,
    no_rule,
    number,
    one_of,
    plain_list,
    positive,
    rows_of,
    same_length,
    table,
    text,
    u64,
)

__all__ = [
    "MESSAGES",
    "Ack",
    "Answer",
    "Ask",
    "Beat",
    "CallStatus",
    "Calls",
    "CancelCalls",
    "DropFunctions",
    "FlushOutput",
    "Functions",
    "Hello",
    "KillWorker",
    "Message",
    "MessageKind",
    "Mode",
    "NodeBeat",
    "NodeDraining",
    "Outcomes",
    "Output",
    "OutputFlushed",
    "Recall",
    "Refused",
    "Results",
    "Resumed",
    "Returned",
    "Shutdown",
    "StartGaveUp",
    "StartWorkers",
    "StopWorker",
    "Submit",
    "Welcome",
    "WorkerExited",
    "WorkerStarted",
    "Yielded",
    "buffer_count",
    "decode",
    "fields_of",
    "tag_of",
]


class CallStatus:
    """How a call ended, one byte each in `Results.statuses`."""

    OK = 0
    """The payload is the value."""
    ERROR = 1
    """The payload is the error."""
    CANCELLED = 2
    """It was cancelled on request; there is no payload."""
    OK_PARTLY = 3
    """A chunk of a map in which some items failed: the payload holds values and errors."""

    LAST = 3


class Mode:
    """What kind of call it is, one byte of flags each in `Calls.modes`."""

    PLAIN = 0
    CHUNK = 1
    """The payload is a list of items; the function is called with each and the result is the list of values."""
    STAR = 2
    """With CHUNK: each item is a tuple of arguments."""
    KEEP_GOING = 4
    """With CHUNK: an item that fails does not end the chunk."""
    ORDERED = 8
    """It starts after all ordered calls sent to the worker before it have started."""
    ASYNC = 16
    """The function is an `async def`: the call runs on the loop, beside others."""

    ALL = 31


# --- joining, and the life of a link -----------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The first message of an authenticated connection, from whoever dialled: who it is, and which link it resumes."""

    role: str  # "agent" | "worker"
    cluster_id: str
    protocol: int
    version: str  # of aiocluster
    python: str  # "3.11"
    node: str  # the name the launcher gave
    worker_id: int  # 0 for an agent
    host: str
    pid: int
    link_id: bytes  # chosen by the dialler, the same when it resumes
    received: int  # numbered frames received on this link so far; 0 on a new one
    resuming: bool


class Welcome(NamedTuple):
    """The manager's answer: the link stands. `settings` are those that the peer needs."""

    received: int
    settings: dict[str, Any]


class Refused(NamedTuple):
    """The manager's refusal, with the reason. `code`: "version", "cluster", "stale", "unknown", "closing", "protocol"."""

    code: str
    reason: str
    ours: str
    theirs: str


class Ack(NamedTuple):
    """So many numbered frames have been received on this link. Not numbered itself."""

    received: int


# --- manager and agent ---------------------------------------------------------------------------------------------------


class StartWorkers(NamedTuple):
    """Manager to agent: start a worker process for each id."""

    worker_ids: list[int]


class StopWorker(NamedTuple):
    """Manager to agent: this worker has been told to end; kill it if it still lives after the grace."""

    worker_id: int
    grace_s: float


class KillWorker(NamedTuple):
    """Manager to agent: kill this worker now."""

    worker_id: int
    reason: str


class Shutdown(NamedTuple):
    """Manager to agent or worker: end, after running calls have had so many seconds to finish."""

    grace_s: float


class Beat(NamedTuple):
    """Manager to agent: the manager lives. Answers a `NodeBeat`."""

    number: int


class NodeBeat(NamedTuple):
    """Agent to manager: the node lives. Rows of `workers`: id, state, CPU percent, RSS bytes, sync serial started."""

    number: int
    figures: dict[str, Any]
    workers: list[list[Any]]


class WorkerStarted(NamedTuple):
    """Agent to manager: the worker's process exists."""

    worker_id: int
    pid: int


class WorkerExited(NamedTuple):
    """Agent to manager: the worker's process is gone, why, and what its flight recorder says.

    `sync_started`, `sync_finished`, `async_started` are call serials (0: none); `item` counts the items of a running chunk that
    had started. `ids`, `statuses`, `payloads` are results that were finished but not yet sent.
    """

    worker_id: int
    cause: str
    expected: bool
    sync_started: int
    sync_finished: int
    async_started: int
    item: int
    ids: list[int]
    statuses: bytes
    payloads: list[bytes]


class StartGaveUp(NamedTuple):
    """Agent to manager: workers keep dying at their start; no more will be started until asked again."""

    worker_ids: list[int]
    reason: str
    last_lines: list[str]


class NodeDraining(NamedTuple):
    """Agent to manager: the node was told to end (SIGTERM, spot notice): send no more calls."""

    reason: str
    grace_s: float


class Output(NamedTuple):
    """Agent to manager: whole lines that a worker wrote. `stream` is 1 or 2; `calls` has the id of the call that wrote
    each, or 0."""

    worker_id: int
    stream: int
    calls: list[int]
    lines: list[str]


class FlushOutput(NamedTuple):
    """Manager to agent: send what the worker has written so far, then `OutputFlushed`."""

    request: int
    worker_id: int


class OutputFlushed(NamedTuple):
    request: int


# --- manager and worker --------------------------------------------------------------------------------------------------


class Functions(NamedTuple):
    """Functions by content hash, once per worker, and the short ids that stand for them from now on. Both ways.

    From a worker, `ids` are its own numbers, which its `Submit` messages use.
    """

    ids: list[int]
    hashes: list[bytes]
    payloads: list[bytes]
    names: list[str]


class DropFunctions(NamedTuple):
    """These function ids are not used any more."""

    ids: list[int]


class Calls(NamedTuple):
    """Manager to worker: calls, in the order in which they start; the first has serial `first_serial`, the next one more.

    `timeouts`: rows of index and microseconds left. `buffers`: rows of index and how many of the frame's buffers belong to it (at
    least one). `names`: rows of index and name, for calls that were given one. In all three the indexes ascend.
    """

    first_serial: int
    ids: list[int]
    functions: list[int]
    modes: bytes
    payloads: list[bytes]
    timeouts: list[list[int]]
    buffers: list[list[int]]
    names: list[list[Any]]


class Results(NamedTuple):
    """Worker to manager: how calls ended. `busy`: rows of function id, how many calls (items), and their nanoseconds."""

    ids: list[int]
    statuses: bytes
    payloads: list[bytes]
    buffers: list[list[int]]
    busy: list[list[int]]


class CancelCalls(NamedTuple):
    """Manager to worker: cancel these calls. Worker to manager: cancel these nested calls of mine (`force` kills)."""

    ids: list[int]
    force: bool


class Recall(NamedTuple):
    """Manager to worker: give back up to so many calls that have not started, the latest first."""

    count: int  # type: ignore[assignment]  # it hides the method of tuple, which nobody needs here


class Returned(NamedTuple):
    """Worker to manager: these calls have not started and never will here. Always answers a `Recall`, even with none."""

    ids: list[int]


class Yielded(NamedTuple):
    """Worker to manager: this sync call waits for another call; its place is free."""

    call_id: int


class Resumed(NamedTuple):
    """Worker to manager: this sync call computes again."""

    call_id: int


class Submit(NamedTuple):
    """Worker to manager: nested calls. `ids` and `functions` are the worker's own numbers; `parents` the calls they
    are made from.

    `options`: rows of index and a map (timeout_s, retries, idempotent, workers, resources, priority, name;
    left_s: seconds to a deadline that is set already; items of a chunk, and the workers they have killed), only where set.
    """

    ids: list[int]
    parents: list[int]
    functions: list[int]
    modes: bytes
    payloads: list[bytes]
    options: list[list[Any]]
    buffers: list[list[int]]


class Outcomes(NamedTuple):
    """Manager to worker: how nested calls ended. `workers`: which worker ran each. Same columns as `Results`."""

    ids: list[int]
    statuses: bytes
    payloads: list[bytes]
    workers: list[int]
    buffers: list[list[int]]


class Ask(NamedTuple):
    """Worker to manager: a question about the cluster, answered by `Answer`."""

    request: int
    method: str
    arguments: list[Any]


class Answer(NamedTuple):
    """Manager to worker: plain data, or the payload of an error."""

    request: int
    ok: bool
    value: Any
    error: bytes


Message = (
    Hello
    | Welcome
    | Refused
    | Ack
    | StartWorkers
    | StopWorker
    | KillWorker
    | Shutdown
    | Beat
    | NodeBeat
    | WorkerStarted
    | WorkerExited
    | StartGaveUp
    | NodeDraining
    | Output
    | FlushOutput
    | OutputFlushed
    | Functions
    | DropFunctions
    | Calls
    | Results
    | CancelCalls
    | Recall
    | Returned
    | Yielded
    | Resumed
    | Submit
    | Outcomes
    | Ask
    | Answer
)


class MessageKind(NamedTuple):
    """One row of the table: the message's type, the check of each field, and how its fields must agree."""

    type: type[Any]
    checks: tuple[Check, ...]
    rule: Rule = no_rule
    is_plain: Check | None = None
    """True for values in the form that is by far the most frequent; all checks and the rule hold for those."""


short = text(256)
reason = text(4096)
role = one_of("agent", "worker")
refusal = one_of("version", "cluster", "stale", "unknown", "closing", "protocol")
statuses = codes(CallStatus.LAST)
modes = codes(Mode.ALL)
counts = table(u64, positive)
options = keyed(
    timeout_s=number,
    retries=u64,
    idempotent=boolean,
    workers=column_u64,
    resources=amounts,
    priority=i64,
    name=short,
    left_s=number,
    items=u64,
    kills=u64,
)
results = both(same_length("ids", "statuses", "payloads"), rows_of("ids", "buffers"))


def _hello(message: Hello) -> str | None:
    return None if (message.role == "agent") == (message.worker_id == 0) else "worker_id does not fit the role"


def _one_call(values: list[Any]) -> bool:
    """A `Calls` with one call and nothing special about it: the round trip of one call at a time waits for this."""
    serial, ids, functions, modes, payloads, timeouts, buffers, names = values
    return (
        type(serial) is type(ids[0]) is type(functions[0]) is int
        and type(ids) is type(functions) is type(payloads) is list
        and len(ids) == len(functions) == len(payloads) == len(modes) == 1
        and 0 <= serial <= U64
        and 0 <= ids[0] <= U64
        and 0 <= functions[0] <= U64
        and type(modes) is type(payloads[0]) is bytes
        and modes[0] <= Mode.ALL
        and timeouts == buffers == names == []
    )


def _one_result(values: list[Any]) -> bool:
    """A `Results` with one result, its duration, and no buffers."""
    ids, statuses, payloads, buffers, busy = values
    (row,) = busy
    function, count, ns = row
    return (
        type(ids) is type(payloads) is type(busy) is type(row) is list
        and type(ids[0]) is type(function) is type(count) is type(ns) is int
        and len(ids) == len(payloads) == len(statuses) == 1
        and 0 <= ids[0] <= U64
        and 0 <= function <= U64
        and 0 <= count <= U64
        and 0 <= ns <= U64
        and type(statuses) is type(payloads[0]) is bytes
        and statuses[0] <= CallStatus.LAST
        and buffers == []
    )


MESSAGES: dict[int, MessageKind] = {
    1: MessageKind(Hello, (role, short, u64, short, short, short, u64, short, u64, exactly(16), u64, boolean), _hello),
    2: MessageKind(Welcome, (u64, mapping)),
    3: MessageKind(Refused, (refusal, reason, short, short)),
    4: MessageKind(Ack, (u64,)),
    16: MessageKind(StartWorkers, (column_u64,)),
    17: MessageKind(StopWorker, (u64, number)),
    18: MessageKind(KillWorker, (u64, reason)),
    19: MessageKind(Shutdown, (number,)),
    20: MessageKind(Beat, (u64,)),
    21: MessageKind(NodeBeat, (u64, mapping, table(u64, short, number, u64, u64))),
    22: MessageKind(WorkerStarted, (u64, u64)),
    23: MessageKind(
        WorkerExited,
        (u64, reason, boolean, u64, u64, u64, u64, column_u64, statuses, column_blob),
        same_length("ids", "statuses", "payloads"),
    ),
    24: MessageKind(StartGaveUp, (column_u64, reason, column_text)),
    25: MessageKind(NodeDraining, (reason, number)),
    26: MessageKind(Output, (u64, one_of(1, 2), column_u64, column_text), same_length("calls", "lines")),
    27: MessageKind(FlushOutput, (u64, u64)),
    28: MessageKind(OutputFlushed, (u64,)),
    32: MessageKind(
        Functions,
        (column_u64, column(exactly(16)), column_blob, column(short)),
        same_length("ids", "hashes", "payloads", "names"),
    ),
    33: MessageKind(DropFunctions, (column_u64,)),
    34: MessageKind(
        Calls,
        (u64, column_u64, column_u64, modes, column_blob, table(u64, u64), counts, table(u64, short)),
        both(same_length("ids", "functions", "modes", "payloads"), rows_of("ids", "timeouts", "buffers", "names")),
        _one_call,
    ),
    35: MessageKind(Results, (column_u64, statuses, column_blob, counts, table(u64, u64, u64)), results, _one_result),
    36: MessageKind(CancelCalls, (column_u64, boolean)),
    37: MessageKind(Recall, (u64,)),
    38: MessageKind(Returned, (column_u64,)),
    39: MessageKind(Yielded, (u64,)),
    40: MessageKind(Resumed, (u64,)),
    41: MessageKind(
        Submit,
        (column_u64, column_u64, column_u64, modes, column_blob, table(u64, options), counts),
        both(same_length("ids", "parents", "functions", "modes", "payloads"), rows_of("ids", "options", "buffers")),
    ),
    42: MessageKind(
        Outcomes, (column_u64, statuses, column_blob, column_u64, counts), both(results, same_length("ids", "workers"))
    ),
    43: MessageKind(Ask, (u64, short, plain_list)),
    44: MessageKind(Answer, (u64, boolean, anything, blob)),
}
"""Tag to message and what it must be. A tag is never given to another message: a new meaning takes a new tag."""

_TAGS: dict[type[Any], int] = {kind.type: tag for tag, kind in MESSAGES.items()}


def tag_of(message: Message) -> int:
    """The number that stands for the message's type on the wire."""
    return _TAGS[type(message)]


def fields_of(message: Message) -> list[Any]:
    """The header of a message without the sizes: its tag and its fields, as plain data for msgpack."""
    return [_TAGS[type(message)], *message]


def buffer_count(message: Message) -> int:
    """How many buffers a frame with this message must carry."""
    rows: list[list[int]] | None = getattr(message, "buffers", None)
    return sum([row[1] for row in rows]) if rows else 0


def _wrong_field(kind: MessageKind, values: list[Any]) -> str:
    names: tuple[str, ...] = kind.type._fields
    return next(name for name, check, value in zip(names, kind.checks, values, strict=True) if not check(value))


def decode(fields: Any) -> Message:
    """The message that a header says, with every field checked, so that nothing behind it meets a surprise.

    Args:
        fields: what msgpack decoded, without the sizes at its end; the first entry is the tag.

    Raises:
        ProtocolError: it is no message of the table; the text names the field and never what stood in it.
    """
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise ProtocolError("a header is not an array that begins with a tag")
    kind = MESSAGES.get(fields[0])
    if kind is None:
        raise ProtocolError("a header has an unknown tag")
    if len(fields) != len(kind.checks) + 1:
        raise ProtocolError(f"{kind.type.__name__} has the wrong number of fields")
    values = fields[1:]
    if kind.is_plain is not None:
        try:
            plain = kind.is_plain(values)
        except (TypeError, ValueError, IndexError, KeyError):
            plain = False  # of another form altogether: the checks say which field is wrong, if any is
        if plain:
            return kind.type._make(values)  # type: ignore[no-any-return]
    if not all(map(call, kind.checks, values)):
        raise ProtocolError(f"{kind.type.__name__}.{_wrong_field(kind, values)} is not what the protocol allows")
    message: Message = kind.type._make(values)
    complaint = kind.rule(message)
    if complaint is not None:
        raise ProtocolError(f"{kind.type.__name__}: {complaint}")
    return message
