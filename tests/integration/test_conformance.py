"""`Local` is a launcher like any other: it passes what each of them must pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from aiocluster.launch.base import LaunchRequest
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


# --- the checks find what is wrong -------------------------------------------------------------------------------------------


class Deaf(Local):
    """Does not stop anything until it is closed."""

    async def stop(self, node: str, *, lost: bool = False) -> None:
        return


class Hopeful(Local):
    """Thinks that lost nodes may come back."""

    async def stop(self, node: str, *, lost: bool = False) -> None:
        if not lost:
            await super().stop(node)


class Mute(Local):
    """Tells nothing of what its nodes have written."""

    def last_lines(self, node: str) -> Sequence[str]:
        return ()


class Forgetful(Local):
    """Does not hand on what it was given."""

    def __init__(self, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__()


class Babbling(Local):
    """Puts the secret where user code sees it."""

    async def start(self, request: LaunchRequest) -> None:
        self._env["SOMETHING_ELSE"] = f"see {request.token.reveal().hex()}"
        await super().start(request)


class Fussy(Local):
    """Takes an unknown node for a mistake."""

    async def stop(self, node: str, *, lost: bool = False) -> None:
        if not self.is_running(node):
            raise KeyError(node)
        await super().stop(node, lost=lost)


async def always_something(cluster_id: str) -> Collection[str]:
    return ["something"]


CHECKS = {check.__name__: check for check in launcher_conformance}


@pytest.mark.parametrize(
    ("launcher", "check", "error"),
    [
        (Deaf, "stopping_a_node_ends_it_and_no_other", "one of two nodes was stopped"),
        (Hopeful, "a_lost_node_is_ended_too", "one of two nodes was lost, and there are process"),
        (Mute, "a_node_that_cannot_join_fails_the_launch_at_once", "no last lines are told"),
        (Forgetful, "variables_reach_workers_and_the_token_does_not", "what was given as env is not there"),
        (Babbling, "variables_reach_workers_and_the_token_does_not", "SOMETHING_ELSE"),
        (Fussy, "stopping_what_is_unknown_is_no_matter", "KeyError"),
    ],
)
async def test_a_launcher_that_does_not_conform_is_found_out(
    launcher: type[Local], check: str, error: str, tmp_path: Path
) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import os, sys\nprint('out of order', file=sys.stderr, flush=True)\nos._exit(9)\n")
    env = {"PYTHONPATH": str(tmp_path)}
    ground = Ground(launcher=launcher, broken=lambda: launcher(env=env), broken_says="out of order", left=agents)
    with pytest.raises((AssertionError, KeyError)) as caught:
        await CHECKS[check](ground)
    assert error in f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize("check", ["no_workers_need_no_nodes", "closing_ends_all_and_can_be_done_again"])
async def test_what_a_launcher_leaves_is_found(check: str) -> None:
    patience_s = 0.5 if check == "no_workers_need_no_nodes" else 60.0  # nothing is started there, and all of it is waited out
    ground = Ground(launcher=Local, broken=Local, broken_says="", left=always_something, patience_s=patience_s)
    with pytest.raises(AssertionError, match=r"is left: something|nodes are left"):
        await CHECKS[check](ground)


async def test_states_that_are_not_told_are_missed() -> None:
    ground = Ground(launcher=Local, broken=Local, broken_says="", left=agents, states=["running"])
    with pytest.raises(AssertionError, match="was told"):
        await CHECKS["nodes_join_and_their_states_are_told"](ground)


async def test_nodes_that_can_join_do_not_pass_for_broken_ones() -> None:
    ground = Ground(launcher=Local, broken=Local, broken_says="", left=agents)
    with pytest.raises(AssertionError, match="a launch of nodes that cannot join succeeded"):
        await CHECKS["a_node_that_cannot_join_fails_the_launch_at_once"](ground)


def test_the_checks_need_no_test_framework() -> None:
    program = "import sys, aiocluster.testing; sys.exit(any(name in sys.modules for name in ('pytest', '_pytest', 'unittest')))"
    subprocess.run([sys.executable, "-c", program], check=True)
