"""A call as the core sees it: what is to run, under which options, and where it stands."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiocluster.core.functions import FunctionEntry

if TYPE_CHECKING:
    from aiocluster.core.places import Lane
    from aiocluster.core.pools import OwnPool, Pool

__all__ = ["DEFAULT_OPTIONS", "Call", "CallOptions", "CallState", "MAX_KILLS", "PreparingCall", "check_resources"]

MAX_KILLS = 3
"""A call that has killed so many workers is blamed: it is not tried on a fourth."""


class CallState(enum.IntEnum):
    """Where a call stands. Only `ENDED` is final, and a call gets there exactly once."""

    WAITING = 0
    """In a queue of the manager."""
    SENT = 1
    """On a worker: it may have started."""
    ENDED = 2
    """Its outcome is known to its caller."""
    ABANDONED = 3
    """Its outcome is known to its caller (cancelled, out of time), but the worker still holds its slot."""


LONGEST_TIMEOUT_S = 1e9
"""Thirty years: a longer timeout is none."""
NAME_CHARS = 200
"""A longer name of a call is cut: it is for people to read."""


def check_resources(resources: Mapping[str, float]) -> None:
    """Raises `TypeError` or `ValueError` if these are no amounts by name."""
    if not isinstance(resources, Mapping):
        raise TypeError(f'resources must be amounts by name, such as {{"gpu": 1}}, not {resources!r}')
    for name, amount in resources.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a resource must be a string, not {name!r}")
        if not name.isprintable() or len(name) > NAME_CHARS:
            raise ValueError(f"the name of a resource must be printable and have {NAME_CHARS} characters at most, not {name!r}")
        _number(f"the amount of resource {name!r}", amount, "positive and finite")
        if not 0 < amount < 2**63:
            raise ValueError(f"the amount of resource {name!r} must be positive and finite, not {amount!r}")


def _number(what: str, value: object, kind: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number ({kind}), not {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CallOptions:
    """What `Cluster.options` sets; validated here, shared by all calls made through one view."""

    timeout_s: float | None = None
    retries: int = 0
    idempotent: bool = False
    workers: frozenset[int] | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    priority: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        """Raises `TypeError` or `ValueError`, which name the option: what came this far must fit into any frame."""
        if self.timeout_s is not None:
            _number("timeout", self.timeout_s, "seconds, 0 or more")
            if not self.timeout_s >= 0:
                raise ValueError(f"timeout must be a number of seconds, 0 or more, not {self.timeout_s!r}")
            if self.timeout_s > LONGEST_TIMEOUT_S:  # infinity included
                object.__setattr__(self, "timeout_s", None)
        for option, value in (("retries", self.retries), ("priority", self.priority)):
            if not isinstance(value, int) or not -(2**63) <= value < 2**63:
                raise TypeError(f"{option} must be a whole number, not {value!r}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, not {self.retries!r}")
        if self.workers is not None and not self.workers:
            raise ValueError("workers must name at least one worker")
        check_resources(self.resources)
        if self.name is not None:
            if not isinstance(self.name, str):
                raise TypeError(f"name must be a string, not {self.name!r}")
            # Half of a surrogate pair cannot be sent.
            whole = self.name.encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, "name", whole if len(whole) <= NAME_CHARS else f"{whole[: NAME_CHARS - 1]}…")

    @property
    def demand(self) -> tuple[tuple[str, float], ...]:
        """The resources in one canonical, hashable form."""
        return tuple(sorted(self.resources.items()))


DEFAULT_OPTIONS = CallOptions()


class Call:
    """One remote execution. `handle` is the shell's own; the core never looks into it."""

    __slots__ = (
        "buffers",
        "deadline",
        "function",
        "handle",
        "id",
        "items",
        "kills",
        "lane",
        "mode",
        "options",
        "origin",
        "payload",
        "pool",
        "retries_left",
        "serial",
        "size",
        "state",
        "weight",
        "yielded",
    )

    def __init__(
        self,
        id: int,
        function: FunctionEntry,
        payload: bytes,
        buffers: Sequence[Any] = (),
        options: CallOptions = DEFAULT_OPTIONS,
        mode: int = 0,
        items: int = 1,
        origin: int = 0,
        handle: Any = None,
    ) -> None:
        self.id = id
        self.function = function
        self.payload = payload
        self.buffers = buffers
        self.options = options
        self.mode = mode
        self.items = items
        self.origin = origin
        """The worker that made the call, 0 for the manager's own program."""
        self.handle = handle
        self.state = CallState.WAITING
        self.deadline: float | None = None
        self.pool: Pool | OwnPool | None = None
        """The pool it waits in, or came from."""
        self.lane: Lane | None = None
        """Where it was sent."""
        self.serial = 0
        self.weight = 0.0
        self.retries_left = options.retries
        self.kills = 0
        self.yielded = False
        self.size = len(payload) if not buffers else len(payload) + sum(len(one) for one in buffers)

    @property
    def name(self) -> str:
        """What errors and people call it."""
        return self.options.name or self.function.name

    def may_run_again(self) -> bool:
        """True if its options allow another go after one that may have run; uses up a retry."""
        if self.kills >= MAX_KILLS:
            return False
        if self.options.idempotent or self.retries_left > 0:
            self.retries_left -= 1
            return True
        return False

    @property
    def may_have_run(self) -> bool:
        """True if it has been let go again after one that may have run."""
        return self.retries_left < self.options.retries

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.name} {self.state.name}>"


class PreparingCall(Call):
    """A call that prepares a worker which has joined, before that takes any other; or one that such a call waits for.

    The worker is not open until it has ended: it never waits for a worker that is not open.
    """

    __slots__ = ("prepares",)

    def __init__(self, prepares: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepares = prepares
        """The worker's id."""
