"""How figures become verdicts."""

from __future__ import annotations

import pytest

from bench.model import Kind, Metric, Plan, WrongResult, check, score

RATIO = Metric(key="call", unit="µs", target=2.0)
VALUE = Metric(key="cpu", unit="%", target=0.5, kind=Kind.VALUE)


def test_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    verdict = score(RATIO, [1.0, 10.0, 100.0], [2.0, 10.0, 500.0])
    assert (verdict.score, verdict.lowest, verdict.highest) == (2.0, 1.0, 5.0)
    assert (verdict.limit, verdict.ours) == (10.0, 10.0)


def test_a_machine_that_drifts_does_not_change_the_ratio() -> None:
    assert score(RATIO, [1.0, 2.0, 4.0], [1.5, 3.0, 6.0]).score == 1.5


def test_a_target_is_met_at_most_at_its_value() -> None:
    assert score(RATIO, [1.0], [2.0]).met is True
    assert score(RATIO, [1.0], [2.001]).met is False


def test_a_plain_figure_is_held_against_its_target_without_a_limit() -> None:
    verdict = score(VALUE, [], [0.4, 0.2, 0.9])
    assert (verdict.score, verdict.met, verdict.limit) == (0.4, True, None)


def test_without_ours_there_is_a_limit_and_no_verdict() -> None:
    verdict = score(RATIO, [1.0, 3.0], [])
    assert (verdict.limit, verdict.ours, verdict.score, verdict.met) == (2.0, None, None, None)


def test_without_a_target_there_is_no_verdict() -> None:
    assert score(Metric(key="rss", unit="MiB", target=None), [1.0], [9.0]).met is None


def test_sides_with_different_numbers_of_rounds_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        score(RATIO, [1.0, 2.0], [1.0])


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warm_ups": -1}])
def test_a_plan_without_rounds_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Plan(**wrong)  # type: ignore[arg-type]


def test_a_quick_plan_takes_the_smaller_size() -> None:
    assert (Plan().size(100, 10), Plan(quick=True).size(100, 10)) == (100, 10)


def test_a_wrong_result_is_an_error_with_its_text() -> None:
    check(True, "fine")
    with pytest.raises(WrongResult, match="the sum is off"):
        check(False, "the sum is off")
