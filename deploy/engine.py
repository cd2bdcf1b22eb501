#!/usr/bin/env python3
"""A Docker engine for tests: found, or started without a service manager, and an image of this checkout on it.

    engine.py start    finds an engine that answers, or starts one, and prints DOCKER_HOST=unix://…
    engine.py image    builds aiocluster-test:latest from deploy/Dockerfile, on that engine
    engine.py stop     ends the engine that `start` started, and no other

An engine of its own lives in a folder of the cache, with its data, socket, pid file and log, and goes on until `stop`.
Runs on Python's standard library alone. It must never touch an engine, an image or a container that it has not made.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
IMAGE = "aiocluster-test:latest"
OFFICIAL_BASE = "python:3.11-slim"
OWN_BASE = "aiocluster-base:bookworm"
"""A base made of Debian's packages, where no image can be pulled: Debian 12 has Python 3.11."""
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
START_TIMEOUT_S = 60.0
"""An engine is up in about 3 s; on a busy machine, or after a crash, it takes longer."""
STOP_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 10.0
POLL_S = 0.1


class EngineError(Exception):
    """What a person has to know, and what they can do."""


@dataclass(frozen=True)
class Engine:
    """The folder of one engine of our own.

    Args:
        folder: Where it keeps everything, short enough for the path of a socket (100 bytes).
    """

    folder: Path

    @property
    def host(self) -> str:
        return f"unix://{self.folder / 'docker.sock'}"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def pid(self) -> int | None:
        """The process that the pid file names, if it is still an engine of this folder and not another that has its number."""
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.pid_file).encode() in command else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time works in this folder; the others wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def cache_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aiocluster"


def answers(host: str) -> bool:
    """Whether an engine is there; an engine that says nothing within a time is none."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    command = [docker, "--host", host, "version", "--format", "{{.Server.Version}}"]
    try:
        asked = subprocess.run(command, capture_output=True, timeout=PING_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


def find(engine: Engine, environ: Mapping[str, str]) -> str | None:
    """The address of an engine that answers: the one that is asked for, the machine's, or our own."""
    asked_for = environ.get("DOCKER_HOST")
    if asked_for:
        need({"docker": "docker.io"})
        if asked_for != engine.host and not answers(asked_for):
            raise EngineError(f"no engine answers at DOCKER_HOST={asked_for}; start it, or unset DOCKER_HOST to have one started")
        candidates = [asked_for]
    else:
        candidates = [DEFAULT_SOCKET, engine.host]
    return next((host for host in candidates if host == asked_for != engine.host or answers(host)), None)


def start(engine: Engine, environ: Mapping[str, str]) -> str:
    """An engine answers at the address returned.

    Raises:
        EngineError: None was found and none could be started; says why.
    """
    found = find(engine, environ)
    if found:
        return found
    with engine.locked():
        if answers(engine.host):  # somebody else has started it meanwhile
            return engine.host
        need({"docker": "docker.io", "dockerd": "docker.io", "iptables": "iptables", "tini": "tini"})
        if os.geteuid() != 0:
            raise EngineError("only root can start an engine: start one otherwise, and set DOCKER_HOST")
        launch(engine)
    return engine.host


def launch(engine: Engine) -> None:
    pid = engine.pid()
    if pid is not None:
        raise EngineError(f"the engine of {engine.folder} runs as process {pid} and does not answer; see {engine.log}")
    engine.pid_file.unlink(missing_ok=True)
    command = ["dockerd", "--host", engine.host, "--pidfile", str(engine.pid_file)]
    command += ["--data-root", str(engine.folder / "data"), "--exec-root", str(engine.folder / "exec")]
    with engine.log.open("ab") as log:
        # A session of its own, so that it survives us. tini adopts and reaps the orphans of the engine, the shims of its
        # containers: they would otherwise become children of whoever adopts ours, such as a run of tests.
        process = subprocess.Popen(
            ["tini", "-s", "--", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(engine.host):
        if process.poll() is not None:
            raise EngineError(f"the engine ended at once, with {process.returncode}; its last lines:\n{last_lines(engine.log)}")
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGTERM)
            raise EngineError(
                f"the engine did not answer within {START_TIMEOUT_S:g} s; its last lines:\n{last_lines(engine.log)}"
            )
        time.sleep(POLL_S)
    process.returncode = 0  # it is not ours to wait for: it goes on without us


def last_lines(log: Path, number: int = 10) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-number:])


def stop(engine: Engine) -> str:
    """The engine of this folder has ended, with its containers; returns what was done.

    Raises:
        EngineError: It did not end in time.
    """
    with engine.locked():
        pid = engine.pid()
        if pid is None:
            return "no engine was started here"
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return "the engine has just ended"
        try:
            os.kill(pid, signal.SIGTERM)
            if not select.select([descriptor], [], [], STOP_TIMEOUT_S)[0]:
                raise EngineError(f"the engine, process {pid}, did not end within {STOP_TIMEOUT_S:g} s; see {engine.log}")
        finally:
            os.close(descriptor)
        engine.pid_file.unlink(missing_ok=True)
        return f"ended the engine, process {pid}"


def need(packages: Mapping[str, str]) -> None:
    """All these programs are there: Debian's packages that hold the missing ones are installed, where that can be done.

    Args:
        packages: Programs, and the packages that hold them.
    """
    missing = sorted({package for program, package in packages.items() if shutil.which(program) is None})
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise EngineError(f"{names}: not installed, and only root can install them, by apt-get; install them, or set DOCKER_HOST")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    say(f"installing {names}")
    run(["apt-get", "update", "-qq"], env=env)
    run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing], env=env)


def image(engine: Engine, environ: Mapping[str, str], *, tag: str = IMAGE, base: str | None = None) -> str:
    """The image of this checkout is on the engine; builds are cached by the engine.

    Args:
        tag: The name of the image.
        base: The image that it stands on: by default the official one, or where that cannot be had, one of Debian's packages.

    Returns:
        The address of the engine.

    Raises:
        EngineError: The build failed; its output went to stderr.
    """
    host = start(engine, environ)
    with engine.locked():
        docker = ["docker", "--host", host]
        base = base or have_base(docker, engine)
        say(f"building {tag} on {base}")
        build = [
            *docker,
            "build",
            "--network",
            "host",
            "--file",
            "deploy/Dockerfile",
            "--tag",
            tag,
            "--build-arg",
            f"BASE={base}",
        ]
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
            if environ.get(name):
                build += ["--build-arg", name]  # known to every build, and kept in no layer
        # Without BuildKit, which Debian does not have, and which asks a registry for what it needs itself.
        run([*build, "-"], env={**environ, "DOCKER_BUILDKIT": "0"}, stdin=context(environ))
    return host


def have_base(docker: list[str], engine: Engine) -> str:
    """The name of a base that is on the engine: the official one if it is there or can be pulled."""
    for name in (OFFICIAL_BASE, OWN_BASE):
        if quiet([*docker, "image", "inspect", name]):
            return name
    if quiet([*docker, "pull", OFFICIAL_BASE]):
        return OFFICIAL_BASE
    say(f"{OFFICIAL_BASE} cannot be pulled")
    archive = cached_base(engine.folder)
    with archive.open("rb") as file:
        run([*docker, "import", "-", OWN_BASE], stdin=file)
    return OWN_BASE


def cached_base(folder: Path) -> Path:
    """An archive of a small Debian with Python, made once."""
    archive = folder / "base-bookworm.tar"
    if archive.exists():
        return archive
    need({"debootstrap": "debootstrap"})
    if os.geteuid() != 0:
        raise EngineError(f"{OFFICIAL_BASE} cannot be pulled, and only root can make a base: build one, and give it by --base")
    say("making a base of Debian's packages: this takes about a minute, once")
    with tempfile.TemporaryDirectory(dir=folder, prefix="base-") as work:
        root = Path(work) / "root"
        run(["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(root)])
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        made = Path(work) / archive.name
        run(["tar", "-C", str(root), "-cf", str(made), "."])
        made.rename(archive)
    return archive


def context(environ: Mapping[str, str]) -> io.BufferedReader:
    """What a build may see, as an archive: the package, and how this machine's pip is set up."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is handed on, and closed by the caller
    with tarfile.open(fileobj=file, mode="w") as archive:
        templates = [f"deploy/{path.name}" for path in sorted((PROJECT / "deploy").glob("*.yml"))]  # parts of the package
        for name in ("pyproject.toml", "README.md", "LICENSE", "deploy/Dockerfile", *templates, "aiocluster"):
            archive.add(PROJECT / name, name, filter=reproducible)
        for name, content in pip_files(environ).items():
            member = tarfile.TarInfo(f"deploy/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    file.seek(0)
    return file  # type: ignore[return-value]


def reproducible(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The same source makes the same layers, whoever checked it out and when."""
    if member.name.endswith((".pyc", "__pycache__")):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def pip_files(environ: Mapping[str, str]) -> dict[str, bytes]:
    """The pip.conf, and the certificates if there are special ones, with which a build reaches what pip reaches here."""
    settings = {}
    for line in listed_by_pip():
        key, equals, value = line.partition("=")
        if equals:
            settings[key.split(".", 1)[-1].replace("_", "-")] = value.strip("'\"").replace("\\n", " ")
    for name in ("index-url", "extra-index-url", "trusted-host", "cert", "timeout", "proxy"):
        settings[name] = environ.get("PIP_" + name.upper().replace("-", "_")) or settings.get(name, "")
    certificates = settings.pop("cert") or environ.get("REQUESTS_CA_BUNDLE") or environ.get("SSL_CERT_FILE")
    files = {}
    kept = {name: settings[name] for name in ("index-url", "extra-index-url", "trusted-host", "timeout", "proxy")}
    # Folders of this machine are not there in a build.
    kept["extra-index-url"] = " ".join(url for url in kept["extra-index-url"].split() if not url.startswith("file:"))
    if certificates and Path(certificates).is_file():
        files["pip.crt"] = Path(certificates).read_bytes()
        kept["cert"] = "/build/pip.crt"
    lines = ["[global]", *(f"{name} = {value}" for name, value in kept.items() if value)]
    files["pip.conf"] = ("\n".join(lines) + "\n").encode()
    return files


def listed_by_pip() -> list[str]:
    """The lines in which pip tells how it is set up here: none where there is no pip."""
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    return asked.stdout.splitlines()


def quiet(command: list[str]) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def run(command: list[str], *, env: Mapping[str, str] | None = None, stdin: io.IOBase | None = None) -> None:
    """The command succeeds; what it prints goes to stderr, for stdout is the answer of this program."""
    with contextlib.closing(stdin) if stdin else contextlib.nullcontext():
        done = subprocess.run(command, env=env, stdin=stdin or subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False)  # type: ignore[arg-type]
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command)}: ended with {done.returncode}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where an engine of its own lives (default: in the cache)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start", help="find or start an engine, print DOCKER_HOST=…")
    commands.add_parser("stop", help="end the engine that was started here")
    build = commands.add_parser("image", help=f"build {IMAGE}, print DOCKER_HOST=…")
    build.add_argument("--tag", default=IMAGE)
    build.add_argument("--base", help=f"the image to stand on (default: {OFFICIAL_BASE} where it can be had)")
    given = parser.parse_args()
    engine = Engine((given.folder or cache_folder(os.environ) / "engine").absolute())
    try:
        match given.command:
            case "start":
                print(f"DOCKER_HOST={start(engine, os.environ)}")
            case "image":
                print(f"DOCKER_HOST={image(engine, os.environ, tag=given.tag, base=given.base)}")
            case _:
                print(stop(engine))
    except EngineError as error:
        say(f"engine.py: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
