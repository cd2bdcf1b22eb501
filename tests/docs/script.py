"""Runs one Python block of a Markdown file as a script: `python -m tests.docs.script README.md 40`.

The block is the module `__main__`, as it would be in a file of its own; tracebacks show the lines of the Markdown file. A block
that awaits outside a function runs on uvloop.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import types
from pathlib import Path
from typing import Any

from tests.docs.blocks import Block, blocks_of


def find(path: Path, line: int) -> Block:
    for block in blocks_of(path):
        if block.line == line:
            return block
    raise LookupError(f"no code block begins at {path}:{line}")


def run(block: Block) -> None:
    # Empty lines instead of the prose: the numbers of lines are those of the Markdown file.
    source = "\n" * (block.line - 1) + block.code
    name = str(block.path)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    main = types.ModuleType("__main__")
    main.__file__ = name
    sys.modules["__main__"] = main
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, main.__dict__)
        return
    import aiocluster

    async def awaiting() -> Any:
        await types.FunctionType(code, main.__dict__)()

    aiocluster.run(awaiting())


if __name__ == "__main__":
    _, path_of_file, line_of_code = sys.argv
    run(find(Path(path_of_file).resolve(), int(line_of_code)))
