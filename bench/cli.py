"""The command line of the harness: what to run, how often, and where the figures go."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvloop

from bench import machine, report
from bench.model import Outcome, Plan, Workload
from bench.run import run_workload
from bench.workloads import TABLE

__all__ = ["main", "parser"]

EXIT_MISSED = 1
EXIT_FAILED = 3
EXIT_INTERRUPTED = 130

_ABOUT = """\
Measure aiocluster beside the limit of this machine: two bare processes on uvloop that exchange
the same frames with no runtime around them. Both take turns, round by round, so read the ratios:
they hold on a noisy machine where the figures themselves do not. bench/README.md has the method.
"""
_AFTER = f"""\
Exit codes: 0 done; {EXIT_MISSED} a target was missed (only with --check); 2 wrong usage;
{EXIT_FAILED} a workload failed or gave a wrong result; {EXIT_INTERRUPTED} interrupted.
Everything that was started is ended in each case.
"""


def _rounds(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _warm_ups(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {number}")
    return number


def parser() -> argparse.ArgumentParser:
    """The options, with what `--help` says of them."""
    made = argparse.ArgumentParser(
        prog="python -m bench", description=_ABOUT, epilog=_AFTER, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "workloads", nargs="*", metavar="workload", help="names from --list, or the beginning of one (default: all)"
    )
    made.add_argument("--list", action="store_true", help="say which workloads there are, and what they measure")
    made.add_argument("--rounds", type=_rounds, metavar="N", help="rounds that count (default: 5; with --quick 2)")
    made.add_argument("--warm-ups", type=_warm_ups, default=1, metavar="N", help="rounds that do not count (default: 1)")
    made.add_argument("--quick", action="store_true", help="a tenth of the size and 2 rounds: shows that it works, no more")
    made.add_argument("--limit-only", action="store_true", help="measure only what this machine can reach")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON ('-': standard output)")
    made.add_argument("--check", action="store_true", help=f"exit with {EXIT_MISSED} if a target is missed")
    return made


def _chosen(names: Sequence[str], made: argparse.ArgumentParser) -> list[Workload]:
    if not names:
        return list(TABLE.values())
    chosen: dict[str, Workload] = {}
    for name in names:
        found = [name] if name in TABLE else [known for known in TABLE if known.startswith(name)]
        if not found:
            made.error(f"there is no workload {name!r}; there are: {', '.join(TABLE)}")
        chosen.update((known, TABLE[known]) for known in found)
    return list(chosen.values())


def _print_list() -> None:
    for workload in TABLE.values():
        print(workload.name)
        print(f"    measures  {workload.measures}")
        print(f"    against   {workload.against}")
        for metric in workload.metrics:
            if metric.target is not None:
                bound = f"{metric.target:g} x the limit" if metric.kind.value == "ratio" else f"{metric.target:g} {metric.unit}"
                print(f"    target    {metric.key}: at most {bound}")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Where the run says what it does: one changing line on a terminal, otherwise a line for each workload."""
    if not sys.stderr.isatty():

        def say(text: str) -> None:
            if text.endswith(": starting"):
                print(f"measuring {text.removesuffix(': starting')}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(text)


def _say(tell: Callable[[str], None], head: str, text: str) -> None:
    tell(f"{head}: {text}")


async def _run(chosen: Sequence[Workload], plan: Plan, limit_only: bool) -> list[Outcome]:
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM ends the run as Ctrl-C does: by cancelling, so that all that was started is ended.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    outcomes = []
    with _progress() as tell:
        for number, workload in enumerate(chosen):
            said = functools.partial(_say, tell, f"{workload.name} ({number + 1} of {len(chosen)})")
            outcomes.append(await run_workload(workload, plan, limit_only=limit_only, tell=said))
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness; the exit code."""
    made = parser()
    options = made.parse_args(arguments)
    if options.list:
        _print_list()
        return 0
    chosen = _chosen(options.workloads, made)
    plan = Plan(rounds=options.rounds or (2 if options.quick else 5), warm_ups=options.warm_ups, quick=options.quick)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = machine.facts()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcomes = runner.run(_run(chosen, plan, options.limit_only))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; everything that was started has been ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    facts["load_after"] = machine.load_average()
    to_stdout = options.json is not None and str(options.json) == "-"
    report.write_table(outcomes, *_words(plan, facts), sys.stderr if to_stdout else sys.stdout)
    if options.json is not None:
        text = report.as_json(outcomes, plan, facts, started)
        if to_stdout:
            sys.stdout.write(text)
        else:
            options.json.write_text(text, encoding="utf-8")
    if report.failed(outcomes):
        return EXIT_FAILED
    return EXIT_MISSED if options.check and report.missed(outcomes) else 0


def _words(plan: Plan, facts: dict[str, object]) -> tuple[str, list[str]]:
    """The title of the table and the notes below it."""
    title = f"Medians of {plan.rounds} rounds after {plan.warm_ups} that did not count; less is better"
    if plan.quick:
        title += "; QUICK: reduced sizes, so the ratios are no verdict"
    versions = facts["versions"]
    collector = facts["gc"]
    assert isinstance(versions, dict)
    assert isinstance(collector, dict)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    state = "on" if collector["enabled"] else "off"
    notes = [
        f"{facts['cpus_usable']} CPUs ({facts['cpu']}), {facts['python']}, {facts['system']}; {packages}",
        (
            f"load {facts['load']} before, {facts['load_after']} after; "
            f"garbage collector {state}, thresholds {collector['thresholds']}"
        ),
    ]
    return title, notes
