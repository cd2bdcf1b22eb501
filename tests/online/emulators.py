"""Emulators of AWS, written by others: each in an environment of its own, as a process of these tests, on a free port.

They are installed on demand into the cache folder, at versions that are pinned, and end with the tests that started them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.online.engine import PROJECT, Engine, host_environ

MOTO = "moto[server,all]==5.2.5"
MINISTACK = "ministack[full]==1.5.33"
MICROBURST = "microburst==0.10.0"
ACCOUNT = "123456789012"
REGION = "us-east-1"

INSTALL_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 15.0
POLL_S = 0.05
LAST_LINES = 20
INSTANCE = "ministack.instance"
"""The label by which ministack knows its containers: a name that it is given, and its port."""
BATCH_LABEL = "aiocluster.tests.batch"
OURS = "aiocluster-tests-"
"""How the values of both labels begin: the process of the tests follows, and the port."""


@dataclass(frozen=True)
class Emulator:
    """A server that answers.

    Args:
        url: Its address, without a path.
        process: It ends with this.
        log: The file that has its output.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Asks what the emulator offers beside the API of AWS; gives the decoded answer.

        Raises:
            urllib.error.HTTPError: It does not like what it was asked.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310 - always of http
        with opener().open(request, timeout=READY_TIMEOUT_S) as answer:
            content = answer.read()
        return json.loads(content) if content else None


def opener() -> urllib.request.OpenerDirector:
    """Asks servers of this machine, by no proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def moto(engine: Engine, folder: Path) -> Iterator[Emulator]:
    """AWS Batch, its logs, and much else; at the end no container of a job is left."""
    remove_left(engine, BATCH_LABEL)
    port = free_port(engine.address)
    label = f"{BATCH_LABEL}={who()}:{port}"
    env = host_environ(engine) | {
        "MOTO_DOCKER_NETWORK_MODE": "host",
        "MOTO_PORT": str(port),
        "MOTO_JOB_LABEL": label,
    }
    python = environment("moto", MOTO) / "python"
    command = [str(python), "-m", "tests.online.moto_server", "--host", engine.address, "--port", str(port)]
    url = f"http://{engine.address}:{port}"
    with started(command, env=env, url=url, ready="/moto-api/data.json", log=folder / "moto.log") as emulator:
        try:
            yield emulator
        finally:
            with contextlib.suppress(OSError):  # it has ended already
                emulator.request("POST", "/moto-api/reset")
            engine.remove(label)


@contextlib.contextmanager
def ministack(engine: Engine, folder: Path, address: str = "127.0.0.1") -> Iterator[Emulator]:
    """ECS, ECR, and their logs; at the end no container of a task is left.

    It listens on loopback, whence an engine takes images without TLS: tasks need the network of the host. At the engine's
    address those with a network of their own reach it, too.
    """
    remove_left(engine, INSTANCE)
    port = free_port(address)
    name = who()
    env = host_environ(engine) | {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": address,
        "MINISTACK_HOSTNAME": name,
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_REGION": REGION,
    }
    program = environment("ministack", MINISTACK) / "ministack"
    url = f"http://{address}:{port}"
    log = folder / f"ministack-{port}.log"
    with started([str(program)], env=env, url=url, ready="/_ministack/health", log=log) as emulator:
        try:
            yield emulator
        finally:
            engine.remove(f"{INSTANCE}={name}:{port}")


def remove_left(engine: Engine, label: str) -> None:
    """No container is there of tests that were killed before they could remove them: their process is gone.

    Those of processes that cannot be seen from here are left alone.
    """
    listed = engine.docker("ps", "--all", "--filter", f"label={label}", "--format", f'{{{{.Label "{label}"}}}}')
    ours, _, _ = who().rpartition("-")
    for value in set(listed.split()):
        space, _, pid = value.partition(":")[0].rpartition("-")
        if space == ours and not Path(f"/proc/{pid}").exists():
            engine.remove(f"{label}={value}")


def who() -> str:
    """This process, among those that may use the same engine: process ids count in a namespace."""
    return f"{OURS}{os.stat('/proc/self/ns/pid').st_ino:x}-{os.getpid()}"


@contextlib.contextmanager
def microburst(upstream: str, address: str, folder: Path) -> Iterator[Emulator]:
    """A proxy before an emulator, which passes on all it gets but what its rules say (POST /_microburst/rules)."""
    port = free_port(address)
    program = environment("microburst", MICROBURST) / "microburst"
    command = [str(program), "--upstream", upstream, "--host", address, "--port", str(port), "--no-resign"]
    url = f"http://{address}:{port}"
    with started(command, env=os.environ, url=url, ready="/_microburst/health", log=folder / "microburst.log") as emulator:
        yield emulator


def environment(name: str, requirement: str) -> Path:
    """The folder of the programs of a virtual environment that has this; made once, and kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aiocluster" / "online"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{requirement.partition('==')[2]}-py{sys.version_info.major}.{sys.version_info.minor}"
    done = folder / "installed"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            install([sys.executable, "-m", "venv", "--clear", str(folder)])
            install([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement])
            done.write_text(requirement)
    return folder / "bin"


def install(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    assert ran.returncode == 0, f"{' '.join(command)}: ended with {ran.returncode}:\n{ran.stderr[-4000:]}"


@contextlib.contextmanager
def started(command: list[str], *, env: Mapping[str, str], url: str, ready: str, log: Path) -> Iterator[Emulator]:
    """A server that answers at a path; it is ended by its process, and killed if it does not end.

    Raises:
        AssertionError: It ended, or did not answer in time; says its last lines.
    """
    setpriv = shutil.which("setpriv")
    if setpriv:  # it ends with these tests even where they are killed
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=PROJECT, env=dict(env), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not answers(url + ready):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}:\n{last_lines(log)}"
            assert time.monotonic() < deadline, f"{command[0]} did not answer:\n{last_lines(log)}"
            time.sleep(POLL_S)
        yield Emulator(url, process, log)
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with opener().open(url, timeout=READY_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])


def free_port(address: str) -> int:
    with socket.socket() as listening:
        listening.bind((address, 0))
        return int(listening.getsockname()[1])
