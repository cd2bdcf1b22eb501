"""What is written in a form of its own is wrong usage in any other, before anything is done."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from aiocluster.cli.main import app
from aiocluster.config import worker_count


@pytest.mark.parametrize(("text", "n"), [("4", 4), ("0", 0), ("2,8", (2, 8)), (" 2 , 2 ", (2, 2))])
def test_numbers_of_workers(text: str, n: object) -> None:
    assert worker_count(text) == n


@pytest.mark.parametrize("text", ["", "many", "-1", "2,1", "1,2,3", "1,", "1.5", "0,-1"])
def test_what_is_no_number_of_workers(text: str) -> None:
    with pytest.raises(ValueError, match=r'neither a number of workers nor "minimum,maximum"'):
        worker_count(text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["run", "--workers", "many", __file__], "neither a number of workers"),
        (["job", "submit", "--workers", "2,1", "x.py"], "neither a number of workers"),
        (["job", "submit", "--env", "A", "x.py"], "'A' is not NAME=VALUE"),
        (["job", "submit", "--env", "=A", "x.py"], "'=A' is not NAME=VALUE"),
        (["image", "build", "--build-arg", "A"], "'A' is not NAME=VALUE"),
        (["stack", "deploy", "A"], "'A' is not PARAMETER=VALUE"),
        (["job", "submit", "--build", "x.py"], "--push and --register go with it"),
    ],
)
def test_wrong_options_are_named_before_anything_is_done(line: list[str], said: str) -> None:
    result = CliRunner().invoke(app, line, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
