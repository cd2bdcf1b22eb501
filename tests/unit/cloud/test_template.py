"""The templates that come with aiocluster, in a checkout and in an installation, and those of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import aiocluster.launch
from aiocluster.cloud.template import LARGEST, TEMPLATES, read_template, template_path
from aiocluster.errors import LaunchError

PROJECT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", TEMPLATES)
def test_in_a_checkout_they_are_those_of_deploy(name: str) -> None:
    assert template_path(name) == PROJECT / "deploy" / f"{name}.yml"
    assert read_template(name) == (PROJECT / "deploy" / f"{name}.yml").read_text()


def test_in_an_installation_they_are_in_the_package(tmp_path: Path) -> None:
    package = tmp_path / "aiocluster" / "cloud"
    (package / "templates").mkdir(parents=True)
    (package / "templates" / "batch.yml").write_text("Resources: {}")
    assert template_path("batch", package=package) == package / "templates" / "batch.yml"


def test_an_installation_without_them_says_so(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"has no template batch\.yml .*: install it again"):
        template_path("batch", package=tmp_path / "aiocluster" / "cloud")


def test_a_template_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text("Resources: {} # größer")
    assert read_template(str(path)) == "Resources: {} # größer"


def test_a_template_that_is_not_there_is_an_error_that_names_those_of_aiocluster(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"cannot be read: .*; those of aiocluster are batch, ecs"):
        read_template(str(tmp_path / "none.yml"))


def test_a_template_that_is_too_large_for_aws_is_refused_here(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text("#" * LARGEST)
    assert read_template(str(path))
    path.write_text("ö" + "#" * (LARGEST - 1))
    with pytest.raises(LaunchError, match=f"has {LARGEST + 1} bytes, and AWS takes {LARGEST}"):
        read_template(str(path))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_aiocluster_have_no_aliases_which_aws_does_not_understand(name: str) -> None:
    lines = [line.split(" #")[0] for line in template_path(name).read_text().splitlines()]
    assert not [line for line in lines if "<<:" in line or ": *" in line or "- *" in line or ": &" in line]


@pytest.mark.parametrize(
    ("name", "services"),
    [("batch", "batch|logs|ssm|secretsmanager"), ("ecs", "ecs|ec2|logs|ssm|secretsmanager")],
)
def test_roles_may_do_all_that_launchers_ask_of_aws(name: str, services: str) -> None:
    (folder,) = aiocluster.launch.__path__
    sources = [path for path in Path(folder).glob("*.py") if "leftovers" not in path.name]
    asked = {
        f"{service}:{''.join(word.capitalize() for word in operation.split('_'))}"
        for path in sources
        for service, operation in re.findall(rf'"({services})",\s*"([a-z]+_[a-z_]+)"', path.read_text())
    }
    assert len(asked) > 10
    # The function that deletes the stack has rights of its own, which are not those of managers.
    rights, _, _ = read_template(name).partition("# --- teardown")
    assert {action for action in asked if action not in rights} == set()
