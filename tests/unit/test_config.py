"""Settings: validated when they are made, read from the environment, never changed."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from aiocluster.config import Settings

FIELDS = dataclasses.fields(Settings)
VARIABLES = {field.name: str(field.metadata["variable"]) for field in FIELDS}


def test_defaults_are_those_that_are_promised() -> None:
    settings = Settings()
    assert settings.heartbeat_interval_s == 2.0
    assert settings.heartbeat_timeout_s == 10.0
    assert settings.orphan_timeout_s == 60.0


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_setting_names_its_variable_and_says_what_it_is(field: dataclasses.Field[Any]) -> None:
    assert field.metadata["variable"].startswith("AIOCLUSTER_")
    assert field.metadata["about"]


def test_no_two_settings_share_a_variable() -> None:
    assert len(set(VARIABLES.values())) == len(FIELDS)


@pytest.mark.parametrize("field", [field for field in FIELDS if isinstance(field.default, float)], ids=lambda field: field.name)
def test_durations_have_their_unit_in_the_name(field: dataclasses.Field[Any]) -> None:
    assert field.name.endswith("_s")


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, None, "5", True, [1]], ids=repr)
def test_what_is_no_positive_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a positive, finite "):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_timeout_of_heartbeats_allows_one_to_be_missed() -> None:
    Settings(heartbeat_interval_s=5, heartbeat_timeout_s=10)
    with pytest.raises(ValueError, match=r"heartbeat_timeout_s \(9\) must be at least twice heartbeat_interval_s \(5\)"):
        Settings(heartbeat_interval_s=5, heartbeat_timeout_s=9)


def test_settings_are_keyword_only_and_frozen() -> None:
    with pytest.raises(TypeError):
        Settings(2.0)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().window_calls = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", VARIABLES)
def test_environment_sets_each_of_them(name: str) -> None:
    default = getattr(Settings(), name)
    # More than the default for a timeout, less for an interval: both keep the two in order.
    value = default / 2 if name == "heartbeat_interval_s" else default * 2
    text = str(value) if isinstance(default, float) else str(int(value))
    settings = Settings.from_env({VARIABLES[name]: text})
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(default)
    assert settings == dataclasses.replace(Settings(), **{name: type(default)(value)})


@pytest.mark.parametrize("text", ["soon", "1,5", "0x10", "5 s"])
def test_variable_that_is_no_number_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"^AIOCLUSTER_ORPHAN_TIMEOUT={text!r} is not a number$"):
        Settings.from_env({"AIOCLUSTER_ORPHAN_TIMEOUT": text})


def test_fraction_of_a_call_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^AIOCLUSTER_WINDOW_CALLS='1\.5' is not a number$"):
        Settings.from_env({"AIOCLUSTER_WINDOW_CALLS": "1.5"})


def test_variable_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a positive, finite whole number, not -3"):
        Settings.from_env({"AIOCLUSTER_WINDOW_CALLS": "-3"})


def test_empty_variable_is_as_none() -> None:
    assert Settings.from_env({"AIOCLUSTER_ORPHAN_TIMEOUT": ""}) == Settings()


def test_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    assert Settings.from_env() == Settings()
    monkeypatch.setenv("AIOCLUSTER_ORPHAN_TIMEOUT", "7.5")
    assert Settings.from_env().orphan_timeout_s == 7.5


def test_argument_wins_over_the_environment_and_none_changes_nothing() -> None:
    environ = {"AIOCLUSTER_ORPHAN_TIMEOUT": "7", "AIOCLUSTER_CLOSE_GRACE": "8"}
    settings = Settings.from_env(environ, orphan_timeout_s=9, close_grace_s=None)
    assert (settings.orphan_timeout_s, settings.close_grace_s) == (9, 8)


def test_with_changes_leaves_the_original_as_it_was() -> None:
    original = Settings()
    changed = original.with_changes(orphan_timeout_s=9, close_grace_s=None)
    assert changed.orphan_timeout_s == 9
    assert changed.close_grace_s == original.close_grace_s
    assert original == Settings()


def test_changes_are_validated_too() -> None:
    with pytest.raises(ValueError, match="orphan_timeout_s must be a positive, finite number"):
        Settings().with_changes(orphan_timeout_s=0)


def test_settings_travel() -> None:
    settings = Settings(orphan_timeout_s=9)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("name", "value"), [("orphan_timeout_s", float("inf")), ("window_calls", 1.5), ("async_calls", float("inf"))]
)
def test_figures_without_end_and_fractions_of_whole_things_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a positive, finite"):
        Settings(**{name: value})
