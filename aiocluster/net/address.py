"""Addresses of a manager as text: `unix:/path`, `tcp://host:port` (with TLS), `tcp+plain://host:port` (without it).

Nothing is resolved or opened here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["Address", "TcpAddress", "UnixAddress", "parse_address"]

_UNIX_PATH_BYTES = 107  # what fits into sockaddr_un with its final zero
_TCP = re.compile(r"(?P<scheme>tcp|tcp\+plain)://(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]:/@\s]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket by the path of its file."""

    path: str

    def __post_init__(self) -> None:
        length = len(os.fsencode(self.path))
        if not self.path.startswith("/") or "\0" in self.path:
            raise ValueError(f"the path of a Unix socket must be absolute, not {self.path!r}")
        if length > _UNIX_PATH_BYTES:
            raise ValueError(f"the path of a Unix socket has at most {_UNIX_PATH_BYTES} bytes, not {length}: {self.path!r}")

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, by name or number, and a port; port 0 is for listening only and means any free one.

    What is said there is encrypted, unless `tls` is False at both ends.
    """

    host: str
    port: int
    tls: bool = True

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("a TCP address needs a host")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"a port is at most 65535, not {self.port}")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tcp' if self.tls else 'tcp+plain'}://{host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """The address that a text says.

    Raises:
        ValueError: it is none of `unix:/path`, `tcp://host:port` and `tcp+plain://host:port` (an IPv6 host stands in brackets).
    """
    if text.startswith("unix:"):
        return UnixAddress(text.removeprefix("unix:"))
    match = _TCP.fullmatch(text)
    if match is None:
        raise ValueError(f"an address is unix:/path, tcp://host:port or tcp+plain://host:port, not {text!r}")
    return TcpAddress(match["six"] or match["host"], int(match["port"]), tls=match["scheme"] == "tcp")
