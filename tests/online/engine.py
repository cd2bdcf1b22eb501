"""The Docker engine and the image that these tests use, through deploy/engine.py; both outlive the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
IMAGE = "aiocluster-test:latest"
BUILD_TIMEOUT_S = 600.0
"""The first build may make a base, and takes a minute or two; later ones take seconds."""
COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Engine:
    """An engine that answers, with the image of this checkout.

    Args:
        host: Its address, as DOCKER_HOST has it.
        image: The image's name.
        address: Where this machine is reached by containers of every network, and by itself; loopback if there is no such.
    """

    host: str
    image: str
    address: str

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What a command of docker prints.

        Raises:
            AssertionError: It failed, and `check` is set.
        """
        return docker(self.host, *arguments, check=check)

    def remove(self, label: str) -> None:
        """No container with this label is there any more."""
        found = self.docker("ps", "--all", "--quiet", "--filter", f"label={label}").split()
        if found:
            self.docker("rm", "--force", *found, check=False)


def docker(host: str, *arguments: str, check: bool = True) -> str:
    command = ["docker", "--host", host, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    assert done.returncode == 0 or not check, f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout


def prepared() -> Engine:
    """An engine that was found or started, with a new image; neither is ended with the tests.

    Raises:
        AssertionError: There is none; says why.
    """
    script = PROJECT / "deploy" / "engine.py"
    command = [sys.executable, str(script), "image", "--tag", IMAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"no engine, or no image:\n{done.stderr[-4000:]}"
    host = done.stdout.strip().removeprefix("DOCKER_HOST=")
    return Engine(host, IMAGE, reachable_address(host))


def reachable_address(host: str) -> str:
    """The bridge's own address, if the engine is on this machine."""
    gateway = docker(host, "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    with socket.socket() as probe:
        try:
            probe.bind((gateway or "127.0.0.1", 0))
        except OSError:  # not an address of this machine
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def host_environ(engine: Engine) -> dict[str, str]:
    """The environment of a process that uses the engine."""
    return {**os.environ, "DOCKER_HOST": engine.host}
