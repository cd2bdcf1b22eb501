"""What a field of a message must be, and how the columns of one message must agree.

A check takes one decoded value and says yes or no; a rule takes a whole message whose fields passed their checks and gives the
complaint, or nothing. Neither ever raises, whatever msgpack produced, and a complaint never quotes what was decoded.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from math import isnan
from operator import attrgetter, lt
from typing import Any

Check = Callable[[Any], bool]
Rule = Callable[[Any], "str | None"]

U64 = 2**64 - 1
I64 = 2**63 - 1
MAX_DEPTH = 16
"""How deep plain data (`anything`) may nest: its readers recurse over it."""


# --- one value -----------------------------------------------------------------------------------------------------------


def u64(value: Any) -> bool:
    return type(value) is int and 0 <= value <= U64


def i64(value: Any) -> bool:
    return type(value) is int and -I64 <= value <= I64


def positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= U64


def boolean(value: Any) -> bool:
    return type(value) is bool


def number(value: Any) -> bool:
    """A finite number that is not negative; a NaN fails both comparisons."""
    return type(value) in (int, float) and 0 <= value <= 1e15


def text(limit: int) -> Check:
    return lambda value: type(value) is str and len(value) <= limit


def one_of(*allowed: str | int) -> Check:
    kinds = frozenset(map(type, allowed))
    return lambda value: type(value) in kinds and value in allowed


def blob(value: Any) -> bool:
    return type(value) is bytes


def exactly(size: int) -> Check:
    return lambda value: type(value) is bytes and len(value) == size


def scalar(value: Any) -> bool:
    """Nothing, a truth value, a number that is one, text or bytes; a NaN would poison what is computed from it."""
    return value is None or type(value) in (bool, int, str, bytes) or (type(value) is float and not isnan(value))


def mapping(value: Any) -> bool:
    """A map from short text to scalars, for settings and figures."""
    return type(value) is dict and all(type(key) is str and len(key) <= 64 and scalar(item) for key, item in value.items())


def keyed(**checks: Check) -> Check:
    """A map with no other keys than these, each value as its check says."""

    def check(value: Any) -> bool:
        return type(value) is dict and all(
            type(key) is str and key in checks and checks[key](item) for key, item in value.items()
        )

    return check


def amounts(value: Any) -> bool:
    """A map from short text to numbers, for resources."""
    return type(value) is dict and all(type(key) is str and len(key) <= 64 and number(item) for key, item in value.items())


def plain_within(value: Any, depth: int) -> bool:
    """Plain msgpack data that nests no deeper than this, with text as the keys of maps. It does not recurse itself."""
    level = [value]
    for _ in range(depth):
        deeper: list[Any] = []
        for item in level:
            if type(item) is list:
                deeper += item
            elif type(item) is dict:
                if not all(type(key) is str for key in item):
                    return False
                deeper += item.values()
            elif not scalar(item):
                return False
        if not deeper:
            return True
        level = deeper
    return False


def anything(value: Any) -> bool:
    """Plain data, not deeper than `MAX_DEPTH`; its meaning is checked by its reader."""
    return plain_within(value, MAX_DEPTH)


# --- columns and tables --------------------------------------------------------------------------------------------------


def column_u64(value: Any) -> bool:
    if type(value) is not list:
        return False
    if len(value) == 1:  # one call at a time is a case of its own, and waits for this
        return u64(value[0])
    try:
        array("Q", value)  # refuses what is no integer, is negative or too large, at a third of the cost of min and max
    except (TypeError, OverflowError):
        return False
    return not value or set(map(type, value)) == {int}  # what is left are booleans


def column_blob(value: Any) -> bool:
    if type(value) is not list:
        return False
    if len(value) == 1:
        return type(value[0]) is bytes
    return not value or set(map(type, value)) == {bytes}


def column_text(value: Any) -> bool:
    return type(value) is list and (not value or set(map(type, value)) == {str})


def plain_list(value: Any) -> bool:
    return type(value) is list and anything(value)


def column(check: Check) -> Check:
    """A list whose every entry passes the check: for columns that are short."""
    return lambda value: type(value) is list and all(map(check, value))


def table(*checks: Check) -> Check:
    """A list of rows, each a list with one entry for each check: for what only few entries of a frame have."""
    width = len(checks)

    def row_fits(row: Any) -> bool:
        if type(row) is not list or len(row) != width:
            return False
        for check, field in zip(checks, row, strict=True):  # noqa: SIM110  # a generator would cost more than the checks
            if not check(field):
                return False
        return True

    return lambda value: type(value) is list and (not value or all(map(row_fits, value)))


def codes(last: int) -> Check:
    """Bytes, each a code from 0 to `last`."""
    allowed = bytes(range(last + 1))
    return lambda value: type(value) is bytes and not value.translate(None, allowed)


# --- how the fields of one message agree ---------------------------------------------------------------------------------


def same_length(*names: str) -> Rule:
    """These columns have one entry for each of the same things."""
    columns = attrgetter(*names)

    def rule(message: Any) -> str | None:
        lengths = [*map(len, columns(message))]
        if lengths.count(lengths[0]) == len(lengths):
            return None
        name = next(name for name, length in zip(names, lengths, strict=True) if length != lengths[0])
        return f"{name} and {names[0]} differ in length"

    return rule


def rows_of(column: str, *names: str) -> Rule:
    """In these tables each row begins with an index into the column, and the indexes ascend."""
    tables = attrgetter(column, *names)  # with the column, as one name alone would not give a tuple

    def rule(message: Any) -> str | None:
        entries, *found = tables(message)
        if not any(found):
            return None
        for name, rows in zip(names, found, strict=True):
            indexes = [-1, *(row[0] for row in rows), len(entries)]
            if not all(map(lt, indexes, indexes[1:])):
                return f"an index in {name} is out of range or out of order"
        return None

    return rule


def both(*rules: Rule) -> Rule:
    """The first complaint of several rules."""

    def rule(message: Any) -> str | None:
        for one in rules:
            complaint = one(message)
            if complaint is not None:
                return complaint
        return None

    return rule


def no_rule(message: Any) -> str | None:
    """For messages whose fields are independent of each other."""
    return None
