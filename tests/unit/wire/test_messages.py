"""The table of messages: what is within it decodes to itself, what is not is refused by a text that quotes nothing."""

from __future__ import annotations

from math import inf, nan
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocluster.errors import ProtocolError
from aiocluster.wire import checks
from aiocluster.wire.messages import Calls, CallStatus, Hello, Message, Mode, Results, Submit, WorkerExited
from aiocluster.wire.table import MESSAGES, buffer_count, decode, fields_of, tag_of

from .strategies import BY_TYPE, messages

U64 = 2**64 - 1
CALLS: Any = Calls(7, [1, 2], [3, 3], b"\0\1", [b"a", b"b"], [[0, 5]], [[0, 1], [1, 2]], [[1, "x"]])
RESULTS: Any = Results([1, 2], b"\0\3", [b"a", b"b"], [[1, 1]], [[3, 1, 100]])
SUBMIT: Any = Submit([1], [2], [3], b"\0", [b""], [[0, {}]], [])
HELLO: Any = Hello("worker", "c-1", 1, "0.1.0", "3.11", "local-1", 1, "host", 99, b"l" * 16, 0, False)
EXITED = WorkerExited(1, "exit code 1", False, 1, 0, 0, 0, 0, [4], b"\0", [b"v"])


@given(messages)
def test_every_message_decodes_to_itself(message: Message) -> None:
    assert decode(fields_of(message)) == message


def test_table_has_every_message_once_with_a_check_for_each_field() -> None:
    assert {kind.type for kind in MESSAGES.values()} == set(get_args(Message)) == set(BY_TYPE)
    for tag, kind in MESSAGES.items():
        assert len(kind.checks) == len(kind.type._fields), tag


@given(messages)
def test_tag_is_the_first_field_and_leads_to_the_type(message: Message) -> None:
    assert fields_of(message)[0] == tag_of(message)
    assert MESSAGES[tag_of(message)].type is type(message)


def test_buffer_count_is_the_sum_of_the_rows_or_none() -> None:
    assert buffer_count(CALLS) == 3
    assert buffer_count(RESULTS) == 1
    assert buffer_count(HELLO) == 0


@pytest.mark.parametrize("fields", [None, 1, "x", {}, [], ["1"], [True], [1.0], [None], [[1]]])
def test_header_that_does_not_begin_with_a_tag_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError, match="begins with a tag"):
        decode(fields)


@pytest.mark.parametrize("tag", [-1, 0, 5, 255, U64])
def test_unknown_tag_is_refused(tag: int) -> None:
    with pytest.raises(ProtocolError, match="unknown tag"):
        decode([tag, 1])


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("tag", MESSAGES)
def test_wrong_number_of_fields_is_refused(tag: int, extra: int) -> None:
    count = len(MESSAGES[tag].checks) + extra
    with pytest.raises(ProtocolError, match=f"{MESSAGES[tag].type.__name__} has the wrong number"):
        decode([tag, *[0] * count])


SECRET = "hunter2"
PLAIN = st.recursive(
    st.sampled_from([None, True, -1, 1.5, nan, SECRET, SECRET.encode(), 2**64]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.just(SECRET), inner, max_size=1)),
    max_leaves=5,
)


@given(tag=st.sampled_from(list(MESSAGES)), data=st.data())
def test_wrong_field_is_named_and_never_quoted(tag: int, data: st.DataObject) -> None:
    kind = MESSAGES[tag]
    fields = fields_of(data.draw(BY_TYPE[kind.type]))
    index = data.draw(st.integers(0, len(kind.checks) - 1))
    fields[index + 1] = data.draw(PLAIN)
    text = kind.type.__name__
    try:
        decode(fields)
    except ProtocolError as error:
        text = str(error)
    assert SECRET not in text
    assert text.startswith(kind.type.__name__)
    assert kind.checks[index](fields[index + 1]) or kind.type._fields[index] in text


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (CALLS._replace(functions=[3]), "functions and ids differ in length"),
        (CALLS._replace(modes=b"\0"), "modes and ids differ in length"),
        (CALLS._replace(payloads=[b"a"]), "payloads and ids differ in length"),
        (CALLS._replace(modes=bytes([0, Mode.ALL + 1])), "Calls.modes is not"),
        (CALLS._replace(timeouts=[[2, 5]]), "an index in timeouts"),
        (CALLS._replace(timeouts=[[0, -5]]), "Calls.timeouts is not"),
        (CALLS._replace(buffers=[[1, 1], [0, 1]]), "an index in buffers"),
        (CALLS._replace(buffers=[[1, 1], [1, 1]]), "an index in buffers"),
        (CALLS._replace(buffers=[[1, 0]]), "Calls.buffers is not"),
        (CALLS._replace(names=[[0, "x" * 257]]), "Calls.names is not"),
        (CALLS._replace(names=[[0]]), "Calls.names is not"),
        (CALLS._replace(names=[0]), "Calls.names is not"),
        (CALLS._replace(names=[[5, "x"]]), "an index in names"),
        (RESULTS._replace(statuses=b"\0"), "statuses and ids differ"),
        (RESULTS._replace(statuses=bytes([0, CallStatus.LAST + 1])), "Results.statuses is not"),
        (RESULTS._replace(buffers=[[2, 1]]), "an index in buffers"),
        (RESULTS._replace(ids=[1, True]), "Results.ids is not"),
        (RESULTS._replace(ids=[1, -1]), "Results.ids is not"),
        (RESULTS._replace(ids=[1, 1.0]), "Results.ids is not"),
        (RESULTS._replace(payloads=[b"a", "b"]), "Results.payloads is not"),
        (SUBMIT._replace(options=[[1, {}]]), "an index in options"),
        (SUBMIT._replace(parents=[]), "parents and ids differ"),
        (HELLO._replace(worker_id=0), "worker_id does not fit"),
        (HELLO._replace(role="agent"), "worker_id does not fit"),
        (HELLO._replace(role="manager"), "Hello.role is not"),
        (HELLO._replace(role=1), "Hello.role is not"),
        (HELLO._replace(link_id=b"short"), "Hello.link_id is not"),
        (HELLO._replace(node="x" * 257), "Hello.node is not"),
        (EXITED._replace(statuses=b""), "statuses and ids differ"),
    ],
)
def test_columns_that_do_not_agree_are_refused(message: Message, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode(fields_of(message))


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 1},
        {1: 1},
        {"timeout_s": -1},
        {"timeout_s": nan},
        {"timeout_s": inf},
        {"timeout_s": True},
        {"retries": -1},
        {"retries": 1.0},
        {"idempotent": 1},
        {"workers": [1, "2"]},
        {"workers": 1},
        {"resources": {"gpu": "1"}},
        {"resources": {1: 1}},
        {"resources": []},
        {"priority": 1.5},
        {"priority": True},
        {"name": "x" * 257},
        {"name": b"x"},
        [],
    ],
)
def test_options_of_a_nested_call_have_known_keys_and_fitting_values(options: Any) -> None:
    with pytest.raises(ProtocolError, match=r"Submit\.options is not"):
        decode(fields_of(SUBMIT._replace(options=[[0, options]])))


def test_priority_may_be_negative() -> None:
    message = SUBMIT._replace(options=[[0, {"priority": -5}]])
    assert decode(fields_of(message)) == message


@pytest.mark.parametrize("value", [nan, {"a": nan}, [[nan]], {1: 2}, {b"a": 1}, object(), [object()], (1,)])
def test_anything_is_plain_data_with_text_as_keys(value: Any) -> None:
    assert not checks.anything(value)


def test_anything_is_bounded_in_depth_however_deep_it_is() -> None:
    value: Any = 1
    for _ in range(checks.MAX_DEPTH - 1):
        value = [value]
    assert checks.anything(value)
    for _ in range(100_000):
        value = {"a": value}
    assert not checks.anything(value)
    while type(value) is dict:  # taken apart by hand: the interpreter would recurse
        value = value["a"]


@pytest.mark.parametrize("value", [{"a": nan}, {1: 1}, {"a": []}, {"a" * 65: 1}, []])
def test_mapping_is_flat(value: Any) -> None:
    assert not checks.mapping(value)


@pytest.mark.parametrize("check", [checks.column_u64, checks.column_blob, checks.column_text, checks.plain_list])
def test_column_is_a_list(check: checks.Check) -> None:
    assert check([])
    assert not check(())
    assert not check(b"")


def test_numbers_within_their_ranges() -> None:
    assert checks.u64(U64)
    assert not checks.u64(U64 + 1)
    assert not checks.u64(True)
    assert checks.column_u64([0, U64])
    assert not checks.column_u64([U64 + 1])
    assert checks.i64(-(2**63) + 1)
    assert not checks.i64(2**63)
    assert not checks.number(2e15)


ONE_CALL = Calls(7, [9], [2], b"\x10", [b"arguments"], [], [], [])
ONE_RESULT = Results([9], b"\0", [b"value"], [], [[2, 1, 1500]])
WRONG: list[Any] = [None, True, -1, 2**64, 1.5, "text", b"\xff", b"", []]
WRONG += [[entry] for entry in (True, -1, 2**64, None, "a", b"a", list[Any]())]


@pytest.mark.parametrize("message", [ONE_CALL, ONE_RESULT], ids=["one call", "one result"])
def test_the_most_frequent_form_is_checked_in_one_go(message: Calls | Results) -> None:
    kind = MESSAGES[tag_of(message)]
    assert kind.is_plain is not None
    assert kind.is_plain(list(message))
    assert decode(fields_of(message)) == message


@pytest.mark.parametrize("message", [ONE_CALL, ONE_RESULT], ids=["one call", "one result"])
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_is_taken_for_the_most_frequent_form_passes_all_checks(message: Calls | Results, wrong: object) -> None:
    kind = MESSAGES[tag_of(message)]
    assert kind.is_plain is not None
    for index in range(len(message)):
        values = [wrong if at == index else value for at, value in enumerate(message)]
        try:
            plain = kind.is_plain(values)
        except (TypeError, ValueError, IndexError, KeyError):
            plain = False
        if plain:
            assert all(check(value) for check, value in zip(kind.checks, values, strict=True))
            assert kind.rule(kind.type._make(values)) is None


@given(st.lists(st.lists(st.integers(-1, 2**64) | st.booleans() | st.none(), max_size=4), max_size=2))
def test_a_row_of_durations_is_checked_in_the_most_frequent_form_too(rows: list[list[Any]]) -> None:
    values = [*ONE_RESULT[:4], rows]
    kind = MESSAGES[tag_of(ONE_RESULT)]
    passes = all(check(value) for check, value in zip(kind.checks, values, strict=True))
    try:
        decoded = decode([tag_of(ONE_RESULT), *values]) is not None
    except ProtocolError:
        decoded = False
    assert decoded is passes
