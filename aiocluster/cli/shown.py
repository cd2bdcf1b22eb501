"""What tables and trees on a terminal are made of. What others have named is shown as it is, and steers nothing."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["console", "plain", "table"]

WIDE = 250
"""Columns where nobody looks: what is read by programs is not folded."""


def console(*, stderr: bool = False) -> Console:
    """Of stdout, or stderr. It reads no markup in what it is given."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else WIDE)


def table(*titles: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """With these columns; those of `right` are figures, those of `whole` stay on a line. Nothing in it is cut."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        made.add_column(title, overflow="fold", no_wrap=title in whole, justify="right" if title in right else "left")
    return made


def plain(text: str) -> Text:
    """The text, with escapes in place of characters that a terminal would obey."""
    return Text("".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text))
