"""What the simulated program asks of its cluster: random calls, and the truth about what became of each.

A `Spec` is one call that the program, or another call, wants made, together with a record of everything that really happened to
it: the checks compare that record with what the cluster said.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiocluster.core.calls import CallOptions

__all__ = ["FUNCTIONS", "FunctionKind", "Load", "Nested", "Spec", "Start", "Step", "Work"]


class FunctionKind(NamedTuple):
    name: str
    is_async: bool
    seconds: tuple[float, ...]
    """One of these is about how long a call takes."""

    @property
    def hash(self) -> bytes:
        return self.name.encode().ljust(16, b".")


FUNCTIONS = (
    FunctionKind("tiny", False, (2e-6, 1e-5, 5e-5)),
    FunctionKind("short", False, (1e-3, 3e-3)),
    FunctionKind("bimodal", False, (2e-5, 2e-5, 2e-5, 2e-5, 1.5)),
    FunctionKind("long", False, (0.5, 2.0, 5.0)),
    FunctionKind("outer", False, (1e-4, 0.05)),
    FunctionKind("tiny_async", True, (1e-5, 1e-3)),
    FunctionKind("long_async", True, (0.2, 3.0)),
    FunctionKind("outer_async", True, (1e-4, 0.1)),
)
BY_NAME = {kind.name: kind for kind in FUNCTIONS}
BY_HASH = {kind.hash: kind for kind in FUNCTIONS}


class Work(NamedTuple):
    """Compute, or sleep in an `async def`. A stubborn call notices a cancel only when this is over."""

    seconds: float
    stubborn: bool


class Nested(NamedTuple):
    """Submit these calls, then wait for all of them (unless they are left to themselves)."""

    specs: list[Spec]
    wait: bool


Step = Work | Nested


@dataclass(slots=True)
class Start:
    """One real start of a call."""

    at: float
    worker_id: int
    call_id: int
    items: int = 0
    ended_at: float | None = None
    crashed: bool = False
    """The call itself ended its worker."""
    blamable: bool = False
    """It crashed, and the recorder does not point to another call."""


@dataclass(slots=True, eq=False)
class Spec:
    """One call: what it is, and what really happened."""

    id: int
    kind: FunctionKind
    steps: list[Step]
    end: str
    """ok, error, or how its worker dies: crash, post_crash (before the result is sent), flush_crash (as soon as it is sent)."""
    options: CallOptions
    items: int = 1
    depth: int = 0
    left_s: float | None = None
    parent: Spec | None = None
    made: bool = False
    prepares: bool = False
    """It, or the call around it, runs before a worker is open."""
    # --- the truth
    submitted_at: float | None = None
    order: int = 0
    """The number of its submission, over all calls."""
    deadline: float | None = None
    """The earliest deadline that it, or any call around it, has."""
    starts: list[Start] = field(default_factory=list)
    item_starts: dict[int, int] = field(default_factory=dict)
    first_item: int = 0
    withdrawn: bool = False
    """It was cancelled while it was in a queue: it must never start."""
    outcome: tuple[str, Any] | None = None
    ended_at: float | None = None
    orphaned: bool = False
    """The worker that made it is gone, or gave it up: nobody waits for it."""
    call: Any = None
    origin: int = 0

    @property
    def at_most_once(self) -> bool:
        return not self.options.idempotent and not self.options.retries

    def __repr__(self) -> str:
        parts = [f"call {self.id} {self.kind.name}"]
        if self.parent is not None:
            parts.append(f"of call {self.parent.id}")
        if self.options.workers is not None:
            parts.append(f"for {sorted(self.options.workers)}")
        if self.options.resources:
            parts.append(f"with {dict(self.options.resources)}")
        if self.options.retries or self.options.idempotent:
            parts.append("idempotent" if self.options.idempotent else f"retries={self.options.retries}")
        if self.end != "ok":
            parts.append(self.end)
        return f"<{', '.join(parts)}>"


class Load:
    """Makes calls by the dice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.specs: list[Spec] = []
        self.nested_depth = rng.choice((1, 2, 3, 6))
        self.crashes = rng.random() < 0.4
        self.resources = rng.random() < 0.5
        self.targets = rng.random() < 0.7
        self.nesting = rng.random() < 0.7
        self.deadlines = rng.random() < 0.6
        self.again = rng.random() < 0.6
        self.chunks = rng.random() < 0.5
        self.flavour = rng.choice(("mixed", "mixed", "tiny", "long", "nested"))

    def _kind(self) -> FunctionKind:
        rng = self.rng
        if self.flavour == "tiny" and rng.random() < 0.8:
            return BY_NAME[rng.choice(("tiny", "bimodal", "tiny_async"))]
        if self.flavour == "long" and rng.random() < 0.6:
            return BY_NAME[rng.choice(("long", "bimodal", "long_async"))]
        if self.flavour == "nested" and self.nesting and rng.random() < 0.6:
            return BY_NAME[rng.choice(("outer", "outer_async"))]
        return rng.choice(FUNCTIONS)

    def _options(self, known: list[int], nested: bool) -> CallOptions:
        rng = self.rng
        values: dict[str, Any] = {}
        if self.targets and known and rng.random() < 0.3:
            values["workers"] = frozenset(rng.sample(known, min(len(known), rng.choice((1, 1, 1, 2, 2)))))
        if self.resources and rng.random() < 0.3 and not nested:  # what holds one while it waits for another is the user's fault
            values["resources"] = {"gpu": rng.choice((1.0, 1.0, 2.0, 0.5))}
        if rng.random() < 0.15:
            values["priority"] = rng.choice((-1, 1, 2))
        if self.again and rng.random() < 0.4:
            values.update(rng.choice(({"retries": 1}, {"retries": 3}, {"idempotent": True})))
        if self.deadlines and rng.random() < 0.3:
            values["timeout_s"] = rng.choice((0.0, 0.001, 0.05, 1.0, 4.0, 20.0))
        if rng.random() < 0.1:
            values["name"] = "named"
        return CallOptions(**values)

    def make(self, known: list[int], parent: Spec | None = None) -> Spec:
        """A new call; `known` are the workers that it may be targeted to."""
        rng = self.rng
        depth = 0 if parent is None else parent.depth + 1
        kind = self._kind()
        end = rng.choices(("ok", "error"), (10, 1))[0]
        if self.crashes and rng.random() < 0.06:
            end = rng.choice(("crash", "crash", "post_crash", "flush_crash"))
        spec = Spec(len(self.specs) + 1, kind, [], end, self._options(known, parent is not None), depth=depth, parent=parent)
        self.specs.append(spec)
        if self.chunks and not kind.name.startswith("outer") and rng.random() < 0.2:
            spec.items = rng.randint(2, 6)
            if spec.end == "error":
                spec.end = "ok"
        stubborn = rng.random() < 0.1
        for _ in range(spec.items):
            spec.steps.append(Work(rng.choice(kind.seconds) * rng.uniform(0.5, 1.5), stubborn))
        if kind.name.startswith("outer") and self.nesting and depth < self.nested_depth:
            for _ in range(rng.choice((1, 1, 2))):
                calls = [self.make(known, spec) for _ in range(rng.choice((1, 1, 1, 2, 3)) if depth < 2 else 1)]
                spec.steps.append(Nested(calls, rng.random() < 0.92))
                spec.steps.append(Work(rng.choice(kind.seconds), stubborn))
        if parent is not None and rng.random() < 0.1:
            spec.left_s = rng.choice((0.05, 2.0))
        return spec

    def fresh(self, spec: Spec, parent: Spec) -> Spec:
        """The call itself, or one like it if it was made before: the call around it runs again."""
        if spec.parent is parent and not spec.made:
            spec.made, spec.prepares = True, parent.prepares
            return spec
        number = len(self.specs) + 1
        again = Spec(number, spec.kind, spec.steps, spec.end, spec.options, spec.items, spec.depth, spec.left_s, parent)
        again.made, again.prepares = True, parent.prepares
        self.specs.append(again)
        return again

    def rest_of(self, spec: Spec, started: int) -> Spec:
        """The items of a chunk that never started, as a map sends them again."""
        rest = Spec(len(self.specs) + 1, spec.kind, spec.steps[started:], spec.end, spec.options, depth=spec.depth)
        self.specs.append(rest)
        rest.items = spec.items - started
        rest.item_starts = spec.item_starts
        rest.first_item = spec.first_item + started
        return rest
