"""Times as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aiocluster.cli.times import lasted, moment

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1.5 h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
    ],
)
def test_so_long_ago(text: str, ago: timedelta) -> None:
    assert moment(text, NOW) == NOW - ago


def test_a_time_of_its_own() -> None:
    assert moment("2030-01-31T08:00+00:00") == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert moment("2030-01-31T08:00").tzinfo is UTC


@pytest.mark.parametrize("text", ["", "soon", "15", "m", "-3h", "2030-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        moment(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (90000, "1 d 1 h"),
        (-5, "0 s"),
    ],
)
def test_how_long(seconds: float, text: str) -> None:
    assert lasted(timedelta(seconds=seconds)) == text


def test_how_long_is_not_known() -> None:
    assert lasted(None) == ""


@pytest.mark.parametrize("text", ["99999999999999d", "999999999d", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_no_calendar_has_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        moment(text)
