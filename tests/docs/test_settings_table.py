"""The guide's table of settings says what `aiocluster/config.py` says, and nothing else."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from aiocluster.config import Settings

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
BEGIN = "<!-- settings: a test compares this table with aiocluster/config.py -->\n"
END = "\n<!-- end of settings -->"


def settings_table() -> str:
    """The table as it must stand in the guide."""
    rows = ["| field | variable | default | meaning |", "|---|---|---|---|"]
    for item in fields(Settings):
        default = f"{item.default:,}" if isinstance(item.default, int) else f"{item.default:g}"
        rows.append(f"| `{item.name}` | `{item.metadata['variable']}` | {default} | {item.metadata['about']} |")
    return "\n".join(rows)


def test_the_table_in_the_guide_is_that_of_the_settings() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0]
    assert table == settings_table(), f"docs/guide.md should have this table:\n\n{settings_table()}\n"


def test_every_variable_is_read() -> None:
    defaults = Settings()
    for item in fields(Settings):
        value = getattr(defaults, item.name) * 3 if item.name != "heartbeat_interval_s" else 1.0
        read = Settings.from_env({item.metadata["variable"]: f"{value}"})
        assert getattr(read, item.name) == value, item.metadata["variable"]
