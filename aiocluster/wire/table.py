"""The table of messages: the tag of each, what each field must be, and how the fields must agree.

`decode` checks everything, so nothing behind it meets a surprise. This module never imports pickle: payloads stay bytes here.
"""

from __future__ import annotations

import operator
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
from aiocluster.wire.messages import (
    Ack,
    Answer,
    Ask,
    Beat,
    Calls,
    CallStatus,
    CancelCalls,
    DropFunctions,
    FlushOutput,
    Functions,
    Hello,
    KillWorker,
    Message,
    Mode,
    NodeBeat,
    NodeDraining,
    Outcomes,
    Output,
    OutputFlushed,
    Recall,
    Refused,
    Results,
    Resumed,
    Returned,
    Shutdown,
    StartGaveUp,
    StartWorkers,
    StopWorker,
    Submit,
    Welcome,
    WorkerExited,
    WorkerStarted,
    Yielded,
)

__all__ = ["MESSAGES", "MessageKind", "buffer_count", "decode", "fields_of", "tag_of"]


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
        (u64, reason, boolean, u64, u64, u64, u64, u64, column_u64, statuses, column_blob),
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

_call: Any = operator.call  # its type says less than `map` with two lists asks for
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
    if not all(map(_call, kind.checks, values)):
        raise ProtocolError(f"{kind.type.__name__}.{_wrong_field(kind, values)} is not what the protocol allows")
    message: Message = kind.type._make(values)
    complaint = kind.rule(message)
    if complaint is not None:
        raise ProtocolError(f"{kind.type.__name__}: {complaint}")
    return message
