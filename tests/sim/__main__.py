"""Run seeds: `python -m tests.sim --seeds 2000 [--start S]`, or replay one: `python -m tests.sim --seed S --trace`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable

from .clock import Violation
from .run import simulate


def main() -> int:
    """0 if every promise held for every seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        return _replay(chosen.seed, chosen.trace)
    began = shown = time.perf_counter()
    events = calls = failed = 0
    for number, seed in enumerate(range(chosen.start, chosen.start + chosen.seeds)):
        try:
            run = simulate(seed)
        except Violation as violation:
            _tell(seed, violation)
            failed += 1
            if not chosen.keep_going:
                print(f"{number} seeds passed, 1 failed")
                return 1
            continue
        events += run.world.clock.events
        calls += len(run.checker.by_call)
        now = time.perf_counter()
        if now - shown >= 10:
            shown = now
            print(f"  {number + 1} of {chosen.seeds} seeds, {(number + 1) / (now - began):.0f} a second", flush=True)
    took_s = time.perf_counter() - began
    print(f"{chosen.seeds - failed} seeds passed, {failed} failed ({calls} calls, {events} events, {took_s:.1f} s)")
    return 1 if failed else 0


def _tell(seed: int, violation: Violation) -> None:
    print(f"seed {seed}: promise broken: {violation}")
    if violation.__cause__ is not None:
        print("".join(traceback.format_exception(violation.__cause__)))
    print(f"replay it: python -m tests.sim --seed {seed} --trace", flush=True)


def _replay(seed: int, trace: bool) -> int:
    write: Callable[[str], None] | None = print if trace else None
    try:
        run = simulate(seed, write)
    except Violation as violation:
        _tell(seed, violation)
        return 1
    clock = run.world.clock
    print(f"seed {seed} passed ({len(run.checker.by_call)} calls, {clock.events} events, {clock.now:.1f} s of virtual time)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
