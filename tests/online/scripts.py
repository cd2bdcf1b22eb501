"""Images with a script in them, for jobs of AWS Batch that run it, and job definitions for these."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.online.engine import COMMAND_TIMEOUT_S, Engine
from tests.online.ground import Batch, job_container


@contextlib.contextmanager
def definition_with(batch: Batch, engine: Engine, folder: Path, scripts: Mapping[str, str]) -> Iterator[str]:
    """A job definition whose image has these scripts where jobs start; both are gone afterwards."""
    tag = f"aiocluster-scripts:{uuid.uuid4().hex[:12]}"
    for name, text in scripts.items():
        (folder / name).write_text(text)
    (folder / "Dockerfile").write_text(f"FROM {batch.image}\nCOPY *.py /work/\n")
    command = ["docker", "--host", engine.host, "build", "--quiet", "--network", "host", "--tag", tag, str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        env={"DOCKER_BUILDKIT": "0", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    name = f"scripts-{uuid.uuid4().hex[:8]}"
    try:
        with batch.client("batch") as client:
            client.register_job_definition(
                jobDefinitionName=name, type="container", containerProperties=job_container(tag, batch.job_environ)
            )
        yield name
    finally:
        engine.docker("rmi", "--force", tag, check=False)
