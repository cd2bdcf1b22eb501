"""The tests that docs/semantics.md and docs/security.md name exist, and every promise names some."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEMANTICS = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", SEMANTICS, flags=re.MULTILINE)[1:]


def named_tests(text: str) -> list[str]:
    """The paths below tests/ that stand in the paragraph of tests."""
    paragraph = text.partition("**Tests.**")[2]
    return re.findall(r"`([a-z_/.]+)`", paragraph)


def test_all_ten_promises_are_there() -> None:
    numbers = [int(found[1]) for section in SECTIONS if (found := re.match(r"(\d+)\. ", section))]
    assert numbers == list(range(1, 11))


@pytest.mark.parametrize("section", [pytest.param(section, id=section.splitlines()[0]) for section in SECTIONS])
def test_a_section_names_tests_that_exist(section: str) -> None:
    names = named_tests(section)
    assert names
    assert [name for name in names if not (ROOT / "tests" / name).exists()] == []


def test_security_names_tests_that_exist() -> None:
    names = re.findall(r"`(tests/[a-z_/.]+)`", SECURITY)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
