"""`aiocluster run`: the script is run as Python runs it, and its environment says what the options say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiocluster import Cluster, LaunchError
from aiocluster.cli import run as module
from aiocluster.cli.main import app
from aiocluster.cloud import stack as stacks
from aiocluster.cloud.stack import Stack

OUTPUTS = {
    "WorkerJobQueueArn": "arn:queue",
    "JobDefinitionName": "job",
    "EcsClusterArn": "arn:cluster",
    "TaskDefinitionArn": "arn:task",
    "Subnets": "subnet-1,subnet-2",
    "SecurityGroup": "sg-1",
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def ran(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiocluster.cli.main", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environ})


def test_a_script_is_run_as_main_with_its_arguments_and_its_neighbours(script: Path) -> None:
    (script.parent / "neighbour.py").write_text("name = 'next door'")
    script.write_text("import sys, neighbour; print(__name__, __file__ == sys.argv[0], sys.argv[1:], neighbour.name)")
    done = ran(str(script), "one", "--workers", "-h")
    assert (done.returncode, done.stdout) == (0, "__main__ True ['one', '--workers', '-h'] next door\n")


def test_asyncio_run_in_the_script_is_on_uvloop(script: Path) -> None:
    script.write_text("import asyncio\nasync def main(): print(type(asyncio.get_running_loop()).__module__)\nasyncio.run(main())")
    done = ran(str(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "uvloop\n", "")


@pytest.mark.parametrize(
    ("program", "code", "stderr"),
    [
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('out of cheese')", 1, "out of cheese\n"),
        ("raise KeyboardInterrupt", 130, "Interrupted; the script's clusters have been closed.\n"),
    ],
)
def test_the_exit_code_is_the_scripts(script: Path, program: str, code: int, stderr: str) -> None:
    script.write_text(program)
    done = ran(str(script))
    assert (done.returncode, done.stderr) == (code, stderr)


def test_an_error_of_the_script_is_shown_from_its_first_line_on(script: Path) -> None:
    script.write_text("def fail():\n    1 / 0\nfail()\n")
    done = ran(str(script))
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == ["Traceback (most recent call last):", f'  File "{script}", line 3, in <module>']
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_script_that_is_not_there_is_wrong_usage(script: Path) -> None:
    assert ran(str(script)).returncode == 2


@pytest.fixture
def environ_seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the script would find of the variables, instead of running it."""
    seen: dict[str, str] = {}
    for name in [name for name in os.environ if name.startswith(("AIOCLUSTER_", "AWS_"))]:
        monkeypatch.delenv(name)
    environ = dict(os.environ)
    monkeypatch.setattr(os, "environ", environ)

    def execute(script: Path, arguments: list[str]) -> int:
        seen.update((name, value) for name, value in environ.items() if name.startswith(("AIOCLUSTER_", "AWS_")))
        return 0

    monkeypatch.setattr(module, "execute", execute)
    return seen


def test_options_become_variables(script: Path, environ_seen: dict[str, str]) -> None:
    script.touch()
    options = {
        "--launcher": "ecs", "--workers": "2,8", "--output": "log", "--image": "i", "--queue": "q", "--definition": "d",
        "--ecs-cluster": "c", "--launch-type": "FARGATE", "--advertise": "h:1", "--region": "r", "--results": "s3://b/x",
    }  # fmt: skip
    lists = ["--subnet", "s1", "--subnet", "s2", "--security-group", "g1"]
    done = CliRunner().invoke(app, ["run", *[word for pair in options.items() for word in pair], *lists, str(script)])
    assert done.exit_code == 0
    assert environ_seen == {
        "AIOCLUSTER_LAUNCHER": "ecs",
        "AIOCLUSTER_WORKERS": "2,8",
        "AIOCLUSTER_OUTPUT": "log",
        "AIOCLUSTER_DOCKER_IMAGE": "i",
        "AIOCLUSTER_QUEUE": "q",
        "AIOCLUSTER_DEFINITION": "d",
        "AIOCLUSTER_ECS_CLUSTER": "c",
        "AIOCLUSTER_LAUNCH_TYPE": "FARGATE",
        "AIOCLUSTER_SUBNETS": "s1,s2",
        "AIOCLUSTER_SECURITY_GROUPS": "g1",
        "AIOCLUSTER_ADVERTISE": "h:1",
        "AIOCLUSTER_RESULTS": "s3://b/x",
        "AWS_REGION": "r",
    }


@pytest.mark.parametrize(
    ("launcher", "variables"),
    [
        ("batch", {"AIOCLUSTER_QUEUE": "mine", "AIOCLUSTER_DEFINITION": "job"}),
        (
            "ecs",
            {
                "AIOCLUSTER_QUEUE": "mine",
                "AIOCLUSTER_ECS_CLUSTER": "arn:cluster",
                "AIOCLUSTER_DEFINITION": "arn:task",
                "AIOCLUSTER_SUBNETS": "subnet-1,subnet-2",
                "AIOCLUSTER_SECURITY_GROUPS": "sg-1",
            },
        ),
    ],
)
def test_a_stack_gives_what_is_not_given(
    script: Path, environ_seen: dict[str, str], monkeypatch: pytest.MonkeyPatch, launcher: str, variables: dict[str, str]
) -> None:
    async def find_stack(name: str) -> Stack:
        assert name == "lab"
        return Stack(name, "eu-west-1", OUTPUTS)

    monkeypatch.setattr(stacks, "find_stack", find_stack)
    script.touch()
    done = CliRunner().invoke(app, ["run", "-l", launcher, "--stack", "lab", "--queue", "mine", str(script)])
    assert done.exit_code == 0, done.output
    assert environ_seen == {"AIOCLUSTER_LAUNCHER": launcher, **variables}


def test_a_stack_that_is_not_there_or_of_no_use_is_told(
    script: Path, environ_seen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find_stack(name: str) -> Stack:
        raise LaunchError(f"no stack {name}")

    monkeypatch.setattr(stacks, "find_stack", find_stack)
    script.touch()
    done = CliRunner().invoke(app, ["run", "-l", "batch", "--stack", "lab", str(script)])
    assert (done.exit_code, done.output) == (1, "aiocluster run: no stack lab\n")
    assert CliRunner().invoke(app, ["run", "-l", "docker", "--stack", "lab", str(script)]).exit_code == 2
    assert environ_seen == {}


@pytest.mark.parametrize(
    ("launcher", "environ", "told"),
    [
        ("docker", {"AIOCLUSTER_ADVERTISE": "h"}, {"advertise": "h"}),
        ("batch", {"AIOCLUSTER_QUEUE": "q", "AIOCLUSTER_DEFINITION": "d"}, {"queue": "q", "definition": "d"}),
        ("batch", {"AIOCLUSTER_QUEUE": ""}, {}),
        ("batch-nodes", {"AIOCLUSTER_ADVERTISE": "h"}, {"advertise": "h"}),
        (
            "ecs",
            {
                "AIOCLUSTER_ECS_CLUSTER": "c",
                "AIOCLUSTER_DEFINITION": "t",
                "AIOCLUSTER_LAUNCH_TYPE": "EC2",
                "AIOCLUSTER_SUBNETS": "a, b",
                "AIOCLUSTER_SECURITY_GROUPS": "g",
            },
            {"cluster": "c", "task_definition": "t", "launch_type": "EC2", "subnets": ["a", "b"], "security_groups": ["g"]},
        ),
    ],
)
def test_from_env_tells_the_constructor_what_the_variables_say(
    monkeypatch: pytest.MonkeyPatch, launcher: str, environ: dict[str, str], told: dict[str, Any]
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(Cluster, launcher.replace("-", "_"), lambda n, **how: seen.update(how, n=n))
    Cluster.from_env({"AIOCLUSTER_LAUNCHER": launcher, "AIOCLUSTER_WORKERS": "2", **environ})
    assert seen.pop("n") == 2
    assert seen.pop("output") == "forward"
    del seen["settings"]
    assert json.dumps(seen) == json.dumps(told)


@pytest.mark.parametrize("body", ["asyncio.run(asyncio.sleep(60))", "time.sleep(60)"])
def test_sigterm_ends_it_also_where_a_shell_ignores_interrupts(script: Path, body: str) -> None:
    script.write_text(f"import asyncio, time\nprint('up', flush=True)\n{body}\n")
    command = [sys.executable, "-m", "aiocluster.cli.main", "run", str(script)]
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", ignore, *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.communicate()
