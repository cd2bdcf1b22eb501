"""Names of things: what identifies a cluster, a node, a worker, a call and a link.

Plain integers and strings wherever a person or the wire sees them. Only shells make random ones; the core is handed them.
"""

from __future__ import annotations

import hmac
import secrets
from typing import NewType

__all__ = ["MANAGER_ID", "CallId", "ClusterId", "LinkId", "NodeName", "Token", "WorkerId", "new_cluster_id", "new_link_id"]

ClusterId = NewType("ClusterId", str)
NodeName = NewType("NodeName", str)
WorkerId = NewType("WorkerId", int)
CallId = NewType("CallId", int)
LinkId = NewType("LinkId", bytes)

MANAGER_ID = WorkerId(0)
"""The manager's own id; workers count from 1 and an id is never given twice within a cluster."""


class Token:
    """The 256-bit secret of a cluster; it never shows in a repr, a log line or a pickle."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError(f"a cluster token has 32 bytes, not {len(secret)}")
        self._secret = secret

    @classmethod
    def generate(cls) -> Token:
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_hex(cls, text: str) -> Token:
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise ValueError("a cluster token is 64 hexadecimal digits") from None

    def reveal(self) -> bytes:
        """The secret itself, for the handshake and for a node's environment only."""
        return self._secret

    def __repr__(self) -> str:
        return "Token(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and hmac.compare_digest(self._secret, other._secret)

    __hash__ = None  # type: ignore[assignment]  # a secret is no key

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a cluster token does not pickle")


def new_cluster_id() -> ClusterId:
    return ClusterId(f"c-{secrets.token_hex(6)}")


def new_link_id() -> LinkId:
    return LinkId(secrets.token_bytes(16))
