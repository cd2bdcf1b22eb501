"""What is checked, and how: `nox -l` lists the sessions, docs/contributing.md tells more.

Each session installs what it needs into an environment of its own, so that it works on a fresh machine. Nothing here
knows of a certain machine or index of packages.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nox

HERE = Path(__file__).parent
SEEDS = 2_000
"""How many simulated clusters one run of `sim` goes through: enough to meet every fault beside every other."""
SEEDS_OF_TESTS = 50
"""A few of them with the other tests, for people who run no more than those."""

nox.options.sessions = ["lint", "types", "layers", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
nox.needs_version = ">=2024.10.9"


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that needs no account and no hour: unit, simulated, integration and documentation; what ONLINE names, too."""
    session.install(".[test]")
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
        return
    session.run("python", "-m", "tests.sim", "--seeds", str(SEEDS_OF_TESTS))
    session.run("python", "-m", "pytest")


@nox.session
def sim(session: nox.Session) -> None:
    """Simulated clusters with faults, in virtual time: `nox -s sim -- --seed 1234 --trace` replays one."""
    session.install(".[test]")
    session.run("python", "-m", "tests.sim", *(session.posargs or ["--seeds", str(SEEDS)]))


@nox.session
def coverage(session: nox.Session) -> None:
    """Every branch of wire/ and core/ is taken by their own unit tests."""
    session.install(".[test]")
    data = Path(session.create_tmp()) / "coverage"
    env = {"COVERAGE_FILE": str(data), "COVERAGE_CORE": "ctrace"}
    pure = "--source=aiocluster.wire,aiocluster.core"
    command = ("python", "-m", "coverage", "run", pure, "-m", "pytest", "-q", "tests/unit/wire", "tests/unit/core")
    session.run(*command, *session.posargs, env=env)
    session.run("python", "-m", "coverage", "report", "--fail-under=100", "--precision=2", env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and format, by ruff; templates of CloudFormation, by cfn-lint."""
    session.install(*requirements("lint", "cfn-lint", "ruff"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("cfn-lint", *sorted(str(template) for template in (HERE / "deploy").glob("*.yml")))


@nox.session
def types(session: nox.Session) -> None:
    """Types, by two checkers that see different things."""
    session.install(".[dev]")
    session.run("mypy")
    python = str(Path(session.bin) / "python")
    session.run("pyright", "--pythonpath", python)
    session.run("pyright", "--pythonpath", python, "tests/unit/public_types.py")


@nox.session
def layers(session: nox.Session) -> None:
    """Nothing imports what it must not."""
    session.install(*requirements("lint", "import-linter"))
    session.run("lint-imports", "--no-cache")


@nox.session
def docs(session: nox.Session) -> None:
    """Every code block of README.md and docs/ does what it says."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "tests/docs", *session.posargs)


@nox.session
def online(session: nox.Session) -> None:
    """On a Docker engine and emulators of AWS, or with STACK_NAME in an account, where it starts what costs money."""
    session.install(".[test]")
    parts = {"ONLINE": os.environ.get("ONLINE", "docker,batch,batch-node,ecs")}
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/online"]), env=parts)


@nox.session
def bench(session: nox.Session) -> None:
    """What the runtime costs beside the limit of this machine (bench/README.md)."""
    session.install(".[test]")
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel, built from the source distribution, works where there is no checkout."""
    session.install("build")
    with tempfile.TemporaryDirectory(prefix="aiocluster-wheel-") as folder:
        outside = Path(folder)
        session.run("python", "-m", "build", "--outdir", str(outside), str(HERE))
        (built,) = outside.glob("*.whl")
        session.run("python", "-m", "venv", str(outside / "venv"))
        programs = outside / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        python = str(programs / "python")
        session.run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(built), external=True)
        (outside / "smoke.py").write_bytes((HERE / "tests" / "smoke.py").read_bytes())
        command = str(programs / "aiocluster")
        with session.chdir(outside):
            session.run(python, "-W", "error", "smoke.py", external=True)
            session.run(command, "--version", external=True)
            session.run(command, "--help", external=True)
            session.run(command, "demo", "--workers", "2", external=True)


def requirements(extra: str, *names: str) -> list[str]:
    """The requirements of an extra that begin with one of these names, for sessions that need no installed aiocluster."""
    listed = nox.project.load_toml(HERE / "pyproject.toml")["project"]["optional-dependencies"][extra]
    return [line for line in listed if line.startswith(names)]
