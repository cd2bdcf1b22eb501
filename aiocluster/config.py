"""Settings: frozen, validated, with units in their names, and the reason for a default beside it.

Each field that a user may set from outside names its environment variable; `Settings.from_env` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

__all__ = ["Settings", "worker_count"]


def worker_count(text: str) -> int | tuple[int, int]:
    """How many workers a text asks for: "4", or "2,8" for at least two. Raises `ValueError` for what is neither."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or numbers != sorted(numbers) or numbers[0] < 0:
        raise ValueError(f'{text!r} is neither a number of workers nor "minimum,maximum"')
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _setting(default: float, variable: str, about: str) -> Any:
    return field(default=default, metadata={"variable": variable, "about": about})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The figures by which one cluster lives; every one is validated when the object is made."""

    heartbeat_interval_s: float = _setting(
        2.0, "AIOCLUSTER_HEARTBEAT_INTERVAL", "seconds between two heartbeats of a node: five fit into the timeout"
    )
    heartbeat_timeout_s: float = _setting(
        10.0,
        "AIOCLUSTER_HEARTBEAT_TIMEOUT",
        "seconds of silence after which a node is declared lost; shorter would take pauses of 5 s for deaths",
    )
    orphan_timeout_s: float = _setting(
        60.0, "AIOCLUSTER_ORPHAN_TIMEOUT", "seconds of silence of the manager after which a node ends itself"
    )
    launch_timeout_s: float = _setting(
        60.0, "AIOCLUSTER_LAUNCH_TIMEOUT", "seconds for the minimum of workers to join on this machine"
    )
    close_grace_s: float = _setting(
        5.0, "AIOCLUSTER_CLOSE_GRACE", "seconds that a process gets to end by itself before it is killed"
    )
    window_s: float = _setting(
        0.002,
        "AIOCLUSTER_WINDOW",
        "seconds of measured work sent ahead to one worker: hides a round trip, and leaves little behind a slow call",
    )
    window_calls: int = _setting(
        4096, "AIOCLUSTER_WINDOW_CALLS", "calls sent ahead to one worker at most, however short they are"
    )
    window_bytes: int = _setting(
        64 * 2**20, "AIOCLUSTER_WINDOW_BYTES", "bytes of arguments sent ahead to one worker at most (a larger call travels alone)"
    )
    async_calls: int = _setting(1000, "AIOCLUSTER_ASYNC_CALLS", "`async def` calls that run at once on one worker")
    max_pending_calls: int = _setting(
        2_000_000, "AIOCLUSTER_MAX_PENDING_CALLS", "calls that may wait or run; one more ends in Overloaded"
    )
    max_pending_bytes: int = _setting(
        4 * 2**30, "AIOCLUSTER_MAX_PENDING_BYTES", "bytes of arguments that may wait or run; more ends in Overloaded"
    )
    adapt_idle_s: float = _setting(
        5.0,
        "AIOCLUSTER_ADAPT_IDLE",
        "seconds without enough work after which `adapt` retires workers; starting one again costs less",
    )
    output_lines: int = _setting(
        20_000, "AIOCLUSTER_OUTPUT_LINES", "lines of workers' output that the manager keeps for `Future.logs`"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            kinds = int if isinstance(item.default, int) else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
                kind = "whole number" if kinds is int else "number"
                raise ValueError(f"{item.name} must be a positive, finite {kind}, not {value!r}")
        if self.heartbeat_timeout_s < 2 * self.heartbeat_interval_s:
            raise ValueError(
                f"heartbeat_timeout_s ({self.heartbeat_timeout_s:g}) must be at least "
                f"twice heartbeat_interval_s ({self.heartbeat_interval_s:g})"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **changes: Any) -> Settings:
        """The defaults, then what the environment says, then `changes` (a value of None changes nothing).

        Raises:
            ValueError: a variable is no number or out of range; the text names the variable.
        """
        environ = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for item in fields(cls):
            variable = item.metadata["variable"]
            text = environ.get(variable)
            if text:
                kind = int if isinstance(item.default, int) else float
                try:
                    found[item.name] = kind(text)
                except ValueError:
                    raise ValueError(f"{variable}={text!r} is not a number") from None
        found.update((name, value) for name, value in changes.items() if value is not None)
        return cls(**found)

    def with_changes(self, **changes: Any) -> Settings:
        """These settings with some changed; a value of None changes nothing."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})
