"""The tree of errors: complete, as its docstring draws it, and able to travel."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

import aiocluster
from aiocluster import errors
from aiocluster.errors import (
    AioclusterError,
    AuthenticationError,
    CallTimeout,
    ClusterClosed,
    LaunchError,
    NodeReport,
    Overloaded,
    ProtocolError,
    RemoteError,
    RemoteTraceback,
    ResultsError,
    Unschedulable,
    VersionMismatch,
    WorkerLost,
)

NODE = NodeReport("node-1", "failed", 2.5, "exit code 3", ("starting", "no such file"))

EXAMPLES: list[tuple[AioclusterError, str]] = [
    (AioclusterError("what happened"), "what happened"),
    (LaunchError("no worker joined"), "no worker joined"),
    (
        LaunchError("0 of 2 workers joined", [NODE, NodeReport("node-2", "starting", 60.0)]),
        (
            "0 of 2 workers joined\n"
            "  node node-1: failed for 2.5 s: exit code 3\n"
            "    | starting\n"
            "    | no such file\n"
            "  node node-2: starting for 60.0 s"
        ),
    ),
    (
        WorkerLost(3, "killed by signal 9", maybe_executed=True, call="crunch", items_started=4, running=True),
        "worker 3 is lost: killed by signal 9; the call of crunch MAY have run",
    ),
    (
        WorkerLost(3, "its node is silent", maybe_executed=False),
        "worker 3 is lost: its node is silent; the call never started",
    ),
    (CallTimeout("crunch", 0.25), "crunch did not finish within 0.25 s"),
    (Unschedulable("crunch", "no worker has a gpu"), "crunch cannot be placed: no worker has a gpu"),
    (
        Unschedulable("crunch", "no worker has a gpu", maybe_executed=True),
        "crunch cannot be placed: no worker has a gpu; it MAY have run on a worker that was lost",
    ),
    (Overloaded("2,000,000 calls wait"), "2,000,000 calls wait"),
    (ClusterClosed(), "the cluster is closed"),
    (ClusterClosed("the manager got SIGTERM"), "the manager got SIGTERM"),
    (RemoteError("shop.Sold", "out of cheese", "Traceback ..."), "shop.Sold: out of cheese"),
    (RemoteError("SystemExit", ""), "SystemExit"),
    (ResultsError("nothing named mean was saved"), "nothing named mean was saved"),
    (ProtocolError("a frame of 0 bytes"), "a frame of 0 bytes"),
    (AuthenticationError("the peer does not know the token"), "the peer does not know the token"),
    (
        VersionMismatch("protocol 1", "protocol 2"),
        (
            "versions do not match: the manager runs protocol 1, the peer runs protocol 2; "
            "install the same aiocluster on the same minor version of Python at both ends"
        ),
    ),
]
IDS = [f"{type(error).__name__}-{number}" for number, (error, _) in enumerate(EXAMPLES)]


def all_errors() -> set[type[AioclusterError]]:
    return {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AioclusterError)}


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=IDS)
def test_error_writes_its_text_from_its_data(error: AioclusterError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=IDS)
def test_error_travels_with_its_text_data_and_notes(error: AioclusterError, text: str, protocol: int) -> None:
    error = copy.copy(error)
    error.add_note("seen twice")
    arrived = pickle.loads(pickle.dumps(error, protocol))
    assert type(arrived) is type(error)
    assert str(arrived) == text
    assert repr(arrived) == repr(error)
    assert arrived.args == error.args
    assert arrived.__dict__ == error.__dict__
    assert arrived.__notes__ == ["seen twice"]


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=IDS)
def test_copy_of_an_error_is_equal_and_its_own(error: AioclusterError, text: str) -> None:
    twin = copy.deepcopy(error)
    assert twin is not error
    assert (str(twin), twin.__dict__) == (text, error.__dict__)


class Sold(AioclusterError):
    """An error of a user, with an `__init__` that no pickle could guess."""

    def __init__(self, *, what: str, left: int) -> None:
        super().__init__(f"{left} of {what}")
        self.what = what
        self.left = left


def test_errors_derived_by_users_travel_too() -> None:
    arrived = pickle.loads(pickle.dumps(Sold(what="cheese", left=0)))
    assert (str(arrived), arrived.what, arrived.left) == ("0 of cheese", "cheese", 0)


def test_remote_traceback_travels_and_starts_on_a_line_of_its_own() -> None:
    arrived = pickle.loads(pickle.dumps(RemoteTraceback("Traceback ...\nValueError\n")))
    assert str(arrived) == "\nTraceback ...\nValueError"
    assert arrived.text == "Traceback ...\nValueError\n"


def test_every_error_has_an_example_here() -> None:
    assert {type(error) for error, _ in EXAMPLES} == all_errors()


def test_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    """Depth by indentation: a name's parent is the last name above it that is drawn less deep."""
    drawn: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}(?P<branch>[ │├└─]*)(?P<name>[A-Z]\w+)\b", line)
        if match is None:
            continue
        depth = len(match["branch"])
        above = [entry for entry in above if entry[0] < depth]
        drawn[match["name"]] = above[-1][1] if above else None
        above.append((depth, match["name"]))
    real = {
        kind.__name__: next((base.__name__ for base in kind.__bases__ if issubclass(base, AioclusterError)), None)
        for kind in all_errors()
    }
    assert drawn == real


def test_every_error_is_public() -> None:
    public = {kind.__name__ for kind in all_errors()} | {"RemoteTraceback", "NodeReport"}
    assert set(errors.__all__) == public
    assert public <= set(aiocluster.__all__)
    for name in public:
        assert getattr(aiocluster, name) is getattr(errors, name)


def test_call_timeout_is_caught_as_the_timeout_of_python() -> None:
    assert issubclass(CallTimeout, TimeoutError)


@pytest.mark.parametrize("kind", [AuthenticationError, VersionMismatch])
def test_what_ends_a_handshake_is_a_protocol_error(kind: type[Exception]) -> None:
    assert issubclass(kind, ProtocolError)


def test_launch_error_keeps_its_own_list_of_nodes() -> None:
    nodes = [NODE]
    error = LaunchError("no worker joined", nodes)
    nodes.clear()
    assert error.nodes == (NODE,)
