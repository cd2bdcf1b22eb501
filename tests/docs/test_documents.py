"""The documentation does what it says: its Python runs, its commands work, its links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import README, ROOT, Block, UnclosedBlock, all_blocks, blocks_of, documents

SAFETY_S = 110
"""A safety net below that of pytest, so that what the block has said is shown."""
NOT_RUN = "notest"
"""Behind `python` in docs/: a fragment, or what needs an account. Its syntax is checked all the same. README has none."""

PYTHON = all_blocks("python")
SHELL = all_blocks("sh", "console", "shell", "bash")


def commands(block: Block) -> list[str]:
    """The command lines of a block; in a console they stand behind a `$`, what they print does not."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


# Those that follow an installation too: it is CI that installs, and the command is there already.
COMMANDS = [
    pytest.param(command, id=f"{block.name}:{command}")
    for block in SHELL
    for line in commands(block)
    for command in line.split(" && ")
    if command.split()[0] == "aiocluster" and NOT_RUN not in block.info.split()
]


def run(arguments: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SAFETY_S,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(arguments)} ended with {done.returncode}:\n{done.stdout}"


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in PYTHON if NOT_RUN not in block.info.split()])
def test_python_block_runs(block: Block, tmp_path: Path) -> None:
    script = [sys.executable, "-W", "error", "-m", "tests.docs.script", str(block.path), str(block.line)]
    run(script, tmp_path, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in PYTHON])
def test_python_block_compiles(block: Block) -> None:
    compile(block.code, block.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_documentation_works(command: str, tmp_path: Path) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(["bash", "-euo", "pipefail", "-c", command], tmp_path, PATH=programs)


def test_every_block_of_the_readme_is_run() -> None:
    assert [block.name for block in blocks_of(README) if NOT_RUN in block.info] == []
    assert [block.name for block in blocks_of(README) if block.language not in {"", "python", "sh", "console"}] == []


def test_commands_for_a_fresh_machine_are_those_that_ci_runs() -> None:
    fresh = [command for block in SHELL if block.path == README for command in commands(block) if "pip" in command]
    assert fresh == ["python -m pip install . && aiocluster demo", "python -m pip install nox && nox -s tests"]
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    for command in fresh:
        assert command in lines


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in [*documents(), ROOT / "CHANGELOG.md"]]
)
def test_relative_links_lead_to_files(path: Path) -> None:
    prose = path.read_text(encoding="utf-8")
    for block in blocks_of(path):
        prose = prose.replace(block.code, "")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert missing == []


class TestBlocks:
    def test_a_block_knows_its_line_language_and_code(self, tmp_path: Path) -> None:
        path = tmp_path / "page.md"
        path.write_text("Prose\n\n```python\nx = 1\n```\n\n````text\n```sh\n```\n````\n```\nplain\n```\n", encoding="utf-8")
        assert [block[1:] for block in blocks_of(path)] == [
            (4, "python", "x = 1\n"),
            (8, "text", "```sh\n```\n"),
            (12, "", "plain\n"),
        ]

    def test_a_block_without_an_end_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "page.md"
        path.write_text("```python\nx = 1\n", encoding="utf-8")
        with pytest.raises(UnclosedBlock, match=r"page\.md:1"):
            blocks_of(path)

    @pytest.mark.parametrize("code", ["assert __name__ == '__main__'", "import asyncio\nawait asyncio.sleep(0)"])
    def test_a_block_is_a_script_that_may_await(self, tmp_path: Path, code: str) -> None:
        path = tmp_path / "page.md"
        path.write_text(f"```python\n{code}\n```\n", encoding="utf-8")
        run([sys.executable, "-W", "error", "-m", "tests.docs.script", str(path), "2"], tmp_path, PYTHONPATH=str(ROOT))

    def test_a_block_that_fails_shows_the_line_of_its_page(self, tmp_path: Path) -> None:
        path = tmp_path / "page.md"
        path.write_text("Prose\n\n```python\nx = 1\nassert x == 2\n```\n", encoding="utf-8")
        with pytest.raises(AssertionError, match=r'(?s)ended with 1.*page\.md", line 5.*assert x == 2'):
            run([sys.executable, "-m", "tests.docs.script", str(path), "4"], tmp_path, PYTHONPATH=str(ROOT))
