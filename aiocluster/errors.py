"""Every error that aiocluster raises, in one tree.

    AioclusterError
    ├── LaunchError            a launch missed its minimum, or could not begin
    ├── WorkerLost             the worker of a call is gone; the call may have run
    ├── CallTimeout            a call's deadline passed (also a TimeoutError)
    ├── Unschedulable          no worker can ever take the call
    ├── Overloaded             too many calls, or bytes, are waiting already
    ├── ClusterClosed          the cluster is closed, or closes while the call waits
    ├── RemoteError            an exception that could not travel as itself
    ├── ResultsError           a result is not there, is damaged, or could not be saved
    └── ProtocolError          a peer said what the protocol does not allow
        ├── AuthenticationError    a peer did not prove that it knows the token
        └── VersionMismatch        a peer runs another Python, aiocluster or protocol

Errors carry data and write their text from it; all of them pickle. This module imports nothing of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "AioclusterError",
    "AuthenticationError",
    "CallTimeout",
    "ClusterClosed",
    "LaunchError",
    "NodeReport",
    "Overloaded",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "ResultsError",
    "Unschedulable",
    "VersionMismatch",
    "WorkerLost",
]


def _rebuild(cls: type[AioclusterError], state: dict[str, Any]) -> AioclusterError:
    error = cls.__new__(cls)
    error.args = state["args"]
    error.__dict__.update((name, value) for name, value in state.items() if name != "args")
    return error


class AioclusterError(Exception):
    """The base of all errors of aiocluster: catching it catches every one of them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {**self.__dict__, "args": self.args})


class NodeReport(NamedTuple):
    """What is known of one node of a launch, for people to read."""

    name: str
    state: str
    for_s: float
    reason: str = ""
    last_lines: tuple[str, ...] = ()


class LaunchError(AioclusterError):
    """The cluster did not get the workers it needs; all that was started has been released.

    Attributes:
        reason: what went wrong, and what to try.
        nodes: one report for each node: its state, for how long, why, and its last lines of output.
    """

    def __init__(self, reason: str, nodes: Sequence[NodeReport] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.nodes = tuple(nodes)

    def __str__(self) -> str:
        lines = [self.reason]
        for node in self.nodes:
            why = f": {node.reason}" if node.reason else ""
            lines.append(f"  node {node.name}: {node.state} for {node.for_s:.1f} s{why}")
            lines.extend(f"    | {line}" for line in node.last_lines)
        return "\n".join(lines)


class WorkerLost(AioclusterError):
    """The worker that held the call is gone.

    Attributes:
        worker_id: the worker, or 0 where the manager itself is meant.
        cause: why it is gone, such as "killed by signal 9 (out of memory)".
        maybe_executed: False if the call certainly never started; True if it may have run, in part or in whole.
        call: what the call is called.
        items_started: for a chunk of a map, how many of its items had started; None where that is not known.
        running: True if the call, or the last started item of the chunk, is known to have been running when the worker ended.
        kills: how many workers the call may have killed so far, this one among them if it ended by itself.
    """

    def __init__(
        self,
        worker_id: int,
        cause: str,
        *,
        maybe_executed: bool,
        call: str = "",
        items_started: int | None = None,
        running: bool = False,
        kills: int = 0,
    ) -> None:
        super().__init__(worker_id, cause)
        self.worker_id = worker_id
        self.cause = cause
        self.maybe_executed = maybe_executed
        self.call = call
        self.items_started = items_started
        self.running = running
        self.kills = kills

    def __str__(self) -> str:
        what = f"the call of {self.call}" if self.call else "the call"
        fate = f"{what} MAY have run" if self.maybe_executed else f"{what} never started"
        return f"worker {self.worker_id} is lost: {self.cause}; {fate}"


class CallTimeout(AioclusterError, TimeoutError):
    """The call's deadline passed before its result arrived; it has been cancelled where it ran.

    Attributes:
        call: what the call is called.
        timeout_s: the seconds that it was given; None if the deadline was that of the call which made it, or of its map.
    """

    def __init__(self, call: str, timeout_s: float | None = None) -> None:
        super().__init__(call, timeout_s)
        self.call = call
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        if self.timeout_s is None:
            return f"{self.call} did not finish before the deadline of what it belongs to"
        return f"{self.call} did not finish within {self.timeout_s:g} s"


class Unschedulable(AioclusterError):
    """No worker that the cluster has, or waits for, can ever take the call.

    Attributes:
        call: what the call is called.
        reason: why no worker can take it, and what to try.
        maybe_executed: True if it was to run again after its worker was lost, so that it may have run there.
    """

    def __init__(self, call: str, reason: str, *, maybe_executed: bool = False) -> None:
        super().__init__(call, reason)
        self.call = call
        self.reason = reason
        self.maybe_executed = maybe_executed

    def __str__(self) -> str:
        fate = "; it MAY have run on a worker that was lost" if self.maybe_executed else ""
        return f"{self.call} cannot be placed: {self.reason}{fate}"


class Overloaded(AioclusterError):
    """The cluster holds as many waiting calls, or bytes of arguments, as its limits allow."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClusterClosed(AioclusterError):
    """The cluster is closed: it takes no calls, and those it still held have ended."""

    def __init__(self, reason: str = "the cluster is closed") -> None:
        super().__init__(reason)
        self.reason = reason


class RemoteError(AioclusterError):
    """An exception of the called function that could not, or must not, travel as itself.

    Attributes:
        type_name: the qualified name of its type.
        text: what `str()` gave of it, where that worked.
        traceback: the formatted traceback of the worker.
    """

    def __init__(self, type_name: str, text: str, traceback: str = "") -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class ResultsError(AioclusterError):
    """A result is not there, is not what was saved, or could not be saved."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RemoteTraceback(Exception):
    """The `__cause__` of an exception that arrived from a worker: its traceback there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


class ProtocolError(AioclusterError):
    """A peer sent what the protocol does not allow; its link is closed, nobody else is hurt."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AuthenticationError(ProtocolError):
    """A peer did not prove that it knows the cluster's token."""


class VersionMismatch(ProtocolError):
    """Two ends run versions that do not work together.

    Attributes:
        ours, theirs: the versions of each end, such as "protocol 1, aiocluster 0.1.0, Python 3.11".
    """

    def __init__(self, ours: str, theirs: str) -> None:
        super().__init__(f"{ours} / {theirs}")
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return (
            f"versions do not match: the manager runs {self.ours}, the peer runs {self.theirs}; "
            "install the same aiocluster on the same minor version of Python at both ends"
        )
