"""Tables: what others have named neither steers a terminal nor breaks what is shown."""

from __future__ import annotations

import pytest

from aiocluster.cli.shown import console, plain, table


@pytest.mark.parametrize(
    ("text", "seen"),
    [("plain é", "plain é"), ("[/x][red]y", "[/x][red]y"), (":smile:", ":smile:"), ("\x1b[2J\n\x9b", "\\x1b[2J\\n\\x9b")],
)
def test_what_others_have_named_is_shown_as_it_is(text: str, seen: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = table("A", "B")
    shown.add_row(plain(text), "[/b]")
    console().print(shown)
    assert capsys.readouterr().out.splitlines()[1].split("  ")[0].strip() == seen
