"""How a link ends when no protocol was broken; `aiocluster.errors` has the errors that users meet."""

from __future__ import annotations

from aiocluster.errors import AioclusterError, ProtocolError, VersionMismatch
from aiocluster.wire.messages import Refused

__all__ = ["LinkLost", "LinkRefused", "ManagerGone", "refusal_error"]


class LinkLost(AioclusterError):
    """The connection broke, and was not resumed in the time that was allowed."""


class ManagerGone(LinkLost):
    """Nobody listens at the manager's address any more: its process has ended, or its cluster is closed."""


class LinkRefused(AioclusterError):
    """The manager does not want this link.

    Attributes:
        code: "cluster", "stale", "unknown" or "closing", as in the message `Refused`.
        reason: the manager's own words.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"the manager refused the link ({self.code}): {self.reason}"


def refusal_error(refused: Refused) -> AioclusterError:
    """The error that stands for a refusal."""
    if refused.code == "version" or (refused.code == "protocol" and refused.ours):
        return VersionMismatch(refused.ours, refused.theirs)
    if refused.code == "protocol":
        return ProtocolError(f"the peer ended the link: {refused.reason}")
    return LinkRefused(refused.code, refused.reason)
