"""The package as a whole: light to import, its public names there, its version in one place."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import aiocluster

NOT_FOR_ALL = {"aiobotocore", "botocore", "aiodocker", "aiohttp", "cryptography", "rich", "typer", "click", "numpy"}
"""What only some users need: a launcher, the command line, certificates, arrays."""


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after the statement, less those that it has anyway."""
    program = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_of_aiocluster_brings_nothing_but_itself_and_the_standard_library() -> None:
    foreign = imported_by("import aiocluster") - sys.stdlib_module_names
    assert {name for name in foreign if not name.startswith("_")} == {"aiocluster"}


@pytest.mark.parametrize("module", ["asyncio", "ssl", "subprocess", "multiprocessing"])
def test_import_of_aiocluster_leaves_the_heavy_parts_of_the_standard_library_alone(module: str) -> None:
    assert module not in imported_by("import aiocluster")


@pytest.mark.parametrize(
    "statement",
    ["import aiocluster; aiocluster.Cluster", "import aiocluster.runtime.agent", "import aiocluster.runtime.worker"],
)
def test_what_only_some_need_is_not_imported_for_all(statement: str) -> None:
    assert imported_by(statement) & NOT_FOR_ALL == set()


def test_a_worker_does_not_import_what_only_its_agent_measures_with() -> None:
    assert "psutil" not in imported_by("import aiocluster.runtime.worker")


@pytest.mark.parametrize("name", aiocluster.__all__)
def test_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(aiocluster, name) is not None
    assert name in dir(aiocluster)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'aiocluster' has no attribute 'nothing'"):
        aiocluster.nothing  # noqa: B018  # the look-up is the test


def test_version_is_that_of_the_installed_distribution() -> None:
    try:
        version = metadata.version("aiocluster")
    except metadata.PackageNotFoundError:
        pytest.skip("aiocluster is used from a checkout, not installed")
    assert version == aiocluster.__version__


def test_types_are_shipped() -> None:
    assert (Path(aiocluster.__file__).parent / "py.typed").exists()
