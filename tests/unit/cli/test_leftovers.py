"""`aiocluster ls` and `aiocluster reap`, over a launcher's module that is a list."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner, Result

from aiocluster import leftovers
from aiocluster.cli.main import app
from aiocluster.launch.marks import Leftover

from . import fake_docker


def one(id: str, *, cluster: str = "c-1", alive: bool | None = False) -> Leftover:
    return Leftover(
        kind="docker container",
        id=id,
        name=f"aiocluster-{id}",
        state="running",
        cluster=cluster,
        manager="process:h:m:1:2",
        created=datetime(2030, 1, 1, tzinfo=UTC),
        alive=alive,
    )


@pytest.fixture(autouse=True)
def docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(leftovers._HOMES, "docker", fake_docker.__name__)
    fake_docker.left[:] = [one("dead"), one("living", alive=True), one("unknown", alive=None), one("foreign", cluster="c-2")]
    yield
    fake_docker.left.clear()
    fake_docker.unreachable = ""
    fake_docker.stubborn.clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [arguments[0], "-k", "docker", *arguments[1:]])


def ids() -> set[str]:
    return {one.id for one in fake_docker.left}


def test_ls_shows_what_is_there_and_whose_manager_runs() -> None:
    result = run("ls")
    assert result.exit_code == 0
    rows = {line.split()[-1]: line for line in result.output.splitlines()[1:]}
    assert set(rows) == {"dead", "living", "unknown", "foreign"}
    assert "gone" in rows["dead"]
    assert "runs" in rows["living"]
    assert "c-2" in rows["foreign"]


def test_ls_speaks_json_and_keeps_to_one_cluster() -> None:
    rows = json.loads(run("ls", "--json", "--cluster", "c-2").output)
    assert [(row["id"], row["manager_alive"], row["created"]) for row in rows] == [
        ("foreign", False, "2030-01-01T00:00:00+00:00")
    ]


def test_an_empty_list_is_told_in_words() -> None:
    fake_docker.left.clear()
    assert "nothing is left" in run("ls").output


@pytest.mark.parametrize(
    ("options", "spared"),
    [
        ((), {"living", "unknown"}),
        (("--unknown",), {"living"}),
        (("--all",), set()),
        (("--cluster", "c-2"), {"dead", "living", "unknown"}),
        (("--dry-run", "--all"), {"dead", "living", "unknown", "foreign"}),
    ],
)
def test_reap_ends_only_what_it_is_told_to(options: tuple[str, ...], spared: set[str]) -> None:
    result = run("reap", *options)
    assert result.exit_code == 0
    assert ids() == spared


def test_reap_says_what_it_left_alone_and_what_it_did() -> None:
    output = run("reap").output
    assert "ended docker container aiocluster-dead" in output
    assert "2 left alone" in output
    assert "would end" in run("reap", "--all", "--dry-run").output


def test_what_cannot_be_ended_is_told_and_is_a_failure() -> None:
    fake_docker.stubborn.add("dead")
    result = run("reap")
    assert result.exit_code == 1
    assert "could not end docker container aiocluster-dead (dead): it will not go" in result.output
    assert ids() == {"dead", "living", "unknown"}
    (row,) = json.loads(run("reap", "--json").output)
    assert (row["ended"], row["error"]) == (False, "it will not go")


@pytest.mark.parametrize("command", ["ls", "reap"])
def test_a_place_that_cannot_be_reached_is_told_and_is_a_failure(command: str) -> None:
    fake_docker.unreachable = "cannot reach a Docker engine"
    result = run(command)
    assert result.exit_code == 1
    assert result.output == "docker: cannot reach a Docker engine\n"  # and not that there is nothing


@pytest.mark.parametrize("command", ["ls", "reap"])
def test_a_place_that_is_named_twice_is_one_place(command: str) -> None:
    fake_docker.unreachable = "cannot reach a Docker engine"
    assert run(command, "-k", "docker").exit_code == 1


@pytest.mark.parametrize(
    ("command", "said"), [("ls", "nothing is left of any cluster in docker"), ("reap", "nothing to end in docker")]
)
def test_where_one_place_has_nothing_and_another_is_not_reached_it_says_where(
    monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.setitem(leftovers._HOMES, "batch", "tests.unit.cli.fake_broken")
    fake_docker.left.clear()
    result = CliRunner().invoke(app, [command, "-k", "docker", "-k", "batch"])
    assert result.exit_code == 0
    assert said in result.output


def test_an_unknown_kind_is_a_wrong_option() -> None:
    assert CliRunner().invoke(app, ["ls", "-k", "cloud"]).exit_code == 2


def test_one_place_that_fails_in_a_way_of_its_own_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(leftovers._HOMES, "batch", "tests.unit.cli.fake_broken")
    result = CliRunner().invoke(app, ["ls", "-k", "docker", "-k", "batch"])
    assert result.exit_code == 0
    assert "batch: KeyError: 'jobs'" in result.output
    assert "dead" in result.output


@pytest.mark.parametrize("command", ["ls", "reap"])
def test_where_nothing_can_be_reached_every_place_says_why(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """With the launchers' own modules."""
    monkeypatch.setitem(leftovers._HOMES, "docker", "aiocluster.launch.docker")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert "docker: cannot reach a Docker engine at unix:///nowhere/docker.sock" in result.output
    assert "batch: no region" in result.output
    assert "ecs: no region" in result.output
