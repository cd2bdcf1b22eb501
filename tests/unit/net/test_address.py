"""Addresses as text, both ways."""

from __future__ import annotations

import pytest

from aiocluster.net.address import TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/m", UnixAddress("/run/m")),
        ("tcp://10.0.0.1:49152", TcpAddress("10.0.0.1", 49152)),
        ("tcp://manager.example.org:0", TcpAddress("manager.example.org", 0)),
        ("tcp://[fd00::1]:65535", TcpAddress("fd00::1", 65535)),
    ],
)
def test_address_is_the_same_after_a_round_trip(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:relative",
        "unix:/" + "x" * 107,
        "unix:/a\0b",
        "tcp://host",
        "tcp://host:",
        "tcp://:1",
        "tcp://host:65536",
        "tcp://host:-1",
        "tcp://fd00::1:5",
        "tcp://[]:5",
        "tcp://user@host:1",
        "http://host:1",
        "10.0.0.1:5",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # each says something else
        parse_address(text)


def test_a_host_cannot_be_empty() -> None:
    with pytest.raises(ValueError, match="host"):
        TcpAddress("", 1)
