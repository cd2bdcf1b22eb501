"""The command line, as far as it needs no measuring."""

from __future__ import annotations

import pytest

from bench.cli import main, parser
from bench.machine import facts
from bench.workloads import TABLE
from bench.workloads.imbalance import durations, ideal_makespan


def test_list_names_every_workload_and_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}\n" in said for name in TABLE)
    assert "apart: at most 1.8 x the limit" in said
    assert "cpu: at most 0.5 %" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "there is no workload 'nonsense'"),
        (["--rounds", "0"], "must be at least 1"),
        (["--rounds", "x"], "x"),
    ],
)
def test_wrong_usage_says_what_is_wrong(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_help_explains_exit_codes() -> None:
    assert "Exit codes: 0 done" in parser().format_help()


def test_every_target_of_the_table_is_there() -> None:
    targets = {name: [metric.target for metric in work.metrics if metric.target] for name, work in TABLE.items()}
    assert targets == {
        "roundtrip": [1.8],
        "submit20k": [5.0],
        "map100k": [0.8],
        "array100": [1.2],
        "arrays200": [1.6],
        "waiting": [1.1, 1024],
        "imbalance": [1.06, 1.06],
        "core1000": [1.2],
        "idle": [0.5],
        "coldstart2": [6.0],
        "coldstart8": [10.0],
        "rss": [],
    }


def test_ideal_makespan_is_the_mean_share_or_the_longest_call() -> None:
    assert ideal_makespan(durations(1000), 2) == pytest.approx(2.95)
    assert ideal_makespan([0.05, 0.001], 2) == 0.05


def test_machine_facts_name_python_versions_collector_and_load() -> None:
    found = facts()
    assert found["python"].startswith("CPython 3.")
    assert found["versions"]["msgpack"]
    assert found["gc"].keys() == {"enabled", "thresholds"}
    assert found["cpus"] >= 1
