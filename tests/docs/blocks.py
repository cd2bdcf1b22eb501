"""The code blocks of Markdown files: where they are, what they say they are, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

_FENCE = re.compile(r"^(?P<indent> {0,3})(?P<ticks>`{3,})(?P<info>[^`]*)$")


class Block(NamedTuple):
    path: Path
    line: int
    """The number of the first line of the code, from 1."""
    info: str
    """What stands behind the ticks, such as "python" or "sh"."""
    code: str

    @property
    def name(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info else ""


class UnclosedBlock(ValueError):
    """A code block has no end: all that follows it would be taken for code."""


def documents() -> list[Path]:
    """README.md and all of docs/."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(path: Path) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    code: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened = (number, fence["ticks"], fence["info"].strip())
                code = []
            continue
        start, ticks, info = opened
        if fence and fence["ticks"].startswith(ticks) and not fence["info"].strip():
            found.append(Block(path, start + 1, info, "".join(f"{line}\n" for line in code)))
            opened = None
        else:
            code.append(line)
    if opened is not None:
        raise UnclosedBlock(f"{path}:{opened[0]}")
    return found


def all_blocks(*languages: str) -> list[Block]:
    return [block for path in documents() for block in blocks_of(path) if block.language in languages]
