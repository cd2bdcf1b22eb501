"""The messages: what each says, and who may send it.

A message is a named tuple; on the wire it is the msgpack array `[tag, *fields, sizes]`, where `sizes` are the lengths of
the buffers that follow the header. Hot messages (`Calls`, `Results`) carry columns, one entry per call, so that a frame of a
thousand calls costs one decode and a few checks. Tags and checks are in `aiocluster.wire.table`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
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

    `sync_started`, `sync_finished`, `async_started` are call serials (0: none); `item` counts the items that had started of the
    sync chunk that last began one, and `item_call` is its serial (0: none, or not known). `ids`, `statuses`,
    `payloads` are results that were finished but not yet sent.
    """

    worker_id: int
    cause: str
    expected: bool
    sync_started: int
    sync_finished: int
    async_started: int
    item: int
    item_call: int
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
