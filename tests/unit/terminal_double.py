"""A terminal for tests: it knows the few escape sequences that the package uses, and what a person would see."""

from __future__ import annotations

import io
import re

_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.DOTALL)


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that a person sees, without colours."""
        lines: list[str] = [""]
        row = column = 0
        for match in _PIECE.finditer(self.getvalue()):
            number, command, character = match.groups()
            if command == "A":
                row = max(0, row - int(number or 1))
            elif command == "K":
                assert number == "2"
                lines[row] = ""
            elif command == "m":
                continue
            elif command:
                raise AssertionError(f"a sequence that this terminal does not know: {match.group()!r}")
            elif character == "\r":
                column = 0
            elif character == "\n":
                row, column = row + 1, 0
                if row == len(lines):
                    lines.append("")
            else:
                lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
                column += 1
        while lines and not lines[-1]:
            lines.pop()
        return lines
