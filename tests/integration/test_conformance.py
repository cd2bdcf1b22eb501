"""`Local` is a launcher like any other: it passes what each of them must pass."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import psutil
import pytest

from aiocluster.launch.local import Local
from aiocluster.testing import Check, Ground, launcher_conformance


async def agents(cluster_id: str) -> Collection[str]:
    """The agents of the cluster that run, whoever's children they are."""
    found = []
    for process in psutil.process_iter():
        try:
            if "aiocluster.runtime.agent" in process.cmdline() and process.environ().get("AIOCLUSTER_CLUSTER") == cluster_id:
                parent = process.parent()
                if parent is None or "aiocluster.runtime.agent" not in parent.cmdline():  # its fork server has its command
                    found.append(f"process {process.pid}")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.parametrize("check", launcher_conformance, ids=lambda check: check.__name__)
async def test_local_conforms(check: Check, tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import os, sys\nprint('out of order', file=sys.stderr, flush=True)\nos._exit(9)\n")
    ground = Ground(
        launcher=Local,
        broken=lambda: Local(env={"PYTHONPATH": str(tmp_path)}),
        broken_says="out of order",
        left=agents,
    )
    await check(ground)
