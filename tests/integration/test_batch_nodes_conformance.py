"""`BatchNodes` passes what every launcher must pass, as far as it starts and ends nodes at all."""

from __future__ import annotations

import sys

import pytest

from aiocluster.testing import Check, Ground, a_lost_node_is_ended_too, launcher_conformance, stopping_a_node_ends_it_and_no_other

from .multinode_job import OnThisMachine, nodes_left

# AWS starts the nodes of a multi-node job together, once, and ends none of them before the main node: there is no launch of a
# second one, and nothing that would end one.
IMPOSSIBLE = {a_lost_node_is_ended_too, stopping_a_node_ends_it_and_no_other}
CHECKS = [check for check in launcher_conformance if check not in IMPOSSIBLE]
BROKEN = (sys.executable, "-c", "import sys; print('out of order', file=sys.stderr); sys.exit(3)")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_batch_nodes_conforms(check: Check) -> None:
    ground = Ground(
        launcher=OnThisMachine,
        broken=lambda: OnThisMachine(command=BROKEN),
        broken_says="out of order",
        left=nodes_left,
    )
    await check(ground)
