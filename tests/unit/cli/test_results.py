"""`aiocluster job results`, over a folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from aiocluster import results
from aiocluster.cli.results import results as command

app = typer.Typer()
app.command("results")(command)
app.command("other")(lambda: None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["results", *arguments])


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    place = tmp_path / "kept"

    async def save() -> None:
        await results.save("mean", 2.5, place=place)
        await results.save("deep/[x].txt", tmp_path / "text", place=place)

    (tmp_path / "text").write_bytes(b"text")
    asyncio.run(save())
    return place


def test_what_is_there_is_a_table(kept: Path) -> None:
    done = run(str(kept))
    assert done.exit_code == 0
    assert [line.split()[:3] for line in done.output.splitlines()[1:]] == [
        ["deep/[x].txt", "4", "bytes"],
        ["mean", "21", "bytes"],
    ]


def test_what_is_there_is_json_for_programs(kept: Path) -> None:
    rows = json.loads(run(str(kept), "--json").output)
    assert [(row["name"], row["size"], row["format"]) for row in rows] == [("deep/[x].txt", 4, "file"), ("mean", 21, "pickle")]
    assert set(rows[0]) == {"name", "key", "size", "sha256", "format", "created"}


def test_a_download_is_files_and_says_what_has_arrived(kept: Path, tmp_path: Path) -> None:
    done = run(str(kept), "--download", str(tmp_path / "down"))
    assert done.exit_code == 0
    assert (tmp_path / "down" / "deep" / "[x].txt").read_bytes() == b"text"
    assert done.stderr.splitlines() == ["deep/[x].txt: 4 bytes", "mean: 21 bytes"]
    assert f"2 results of {kept} are in {tmp_path / 'down'}" in done.stdout


def test_nothing_was_saved(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert (done.exit_code, done.output) == (0, f"nothing was saved to {tmp_path}\n")


@pytest.mark.parametrize(
    ("job", "code", "text"),
    [
        ("nowhere", 1, "aiocluster job results: 'nowhere' is no id of a job"),
        ("gs://bucket/x", 2, "neither a folder nor s3://bucket"),
    ],
)
def test_what_is_no_place_is_refused(job: str, code: int, text: str) -> None:
    done = run(job)
    assert done.exit_code == code
    assert text in " ".join(done.output.replace("│", " ").split())
