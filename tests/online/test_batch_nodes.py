"""Workers that are the other nodes of the manager's own multi-node parallel job."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from tests.online.batch_jobs import ENDED, described, output_of
from tests.online.ground import Batch, job_container
from tests.online.waiting import until

pytestmark = pytest.mark.online("batch-node")

SOON_S = 90.0
MANAGER = """
import asyncio, json, os, sys
import aiocluster
from aiocluster import Cluster, LaunchError

def place():
    return [os.environ["AWS_BATCH_JOB_NODE_INDEX"], aiocluster.get_worker().node]

async def main():
    minimum, maximum, timeout = map(int, sys.argv[1:])
    n = None if maximum == 0 else (minimum, maximum)
    try:
        async with Cluster.batch_nodes(n, timeout=timeout, output="quiet") as cluster:
            places = await cluster.everywhere(place)
            print(json.dumps({"places": places, "sum": sum(await cluster.map(abs, range(1000)))}), flush=True)
    except LaunchError as error:
        print(json.dumps({"error": str(error)}), flush=True)

aiocluster.run(main())
"""
AGENT = ["aiocluster", "agent"]
LATE = ["sh", "-c", "sleep 5; exec aiocluster agent"]
"""A node that starts late: the others are there, and wait."""


def python(*arguments: object) -> list[str]:
    return ["python", "-c", MANAGER, *map(str, arguments)]


def submit(batch: Batch, commands: Sequence[list[str]], environments: Sequence[dict[str, str]] = ()) -> str:
    """A job with one node for each command, the first of which is the main one."""
    name = f"test-nodes-{uuid.uuid4().hex[:8]}"
    ranges = []
    for index, command in enumerate(commands):
        more = environments[index] if environments else {}
        container = job_container(batch.image, {**batch.job_environ, **more})
        ranges.append({"targetNodes": str(index), "container": {**container, "command": command}})
    with batch.client("batch") as client:
        client.register_job_definition(
            jobDefinitionName=name,
            type="multinode",
            nodeProperties={"mainNode": 0, "numNodes": len(commands), "nodeRangeProperties": ranges},
        )
        return str(client.submit_job(jobName=name, jobQueue=batch.queue, jobDefinition=name)["jobId"])


async def told_by(batch: Batch, job_id: str) -> dict[str, Any]:
    """What the manager has said, when its job is over; all other nodes have ended by then."""
    await until(lambda: described(batch, job_id), lambda job: job["status"] in ENDED, timeout=SOON_S)
    lines = await asyncio.to_thread(output_of, batch, f"{job_id}#0")
    told = [line for line in lines if line.startswith("{")]
    assert told, lines
    answer: dict[str, Any] = json.loads(told[-1])
    return answer


async def test_all_other_nodes_are_workers_whose_ids_follow_their_indexes(batch: Batch) -> None:
    job_id = submit(batch, [python(0, 0, 60), AGENT, AGENT, AGENT])
    told = await told_by(batch, job_id)
    assert told == {"places": {"1": ["1", "node-1"], "2": ["2", "node-2"], "3": ["3", "node-3"]}, "sum": 499500}
    job = await asyncio.to_thread(described, batch, job_id)
    assert job["status"] == "SUCCEEDED"


async def test_ids_follow_the_indexes_also_where_a_node_starts_late(batch: Batch) -> None:
    told = await told_by(batch, submit(batch, [python(0, 0, 60), LATE, AGENT]))
    assert told["places"] == {"1": ["1", "node-1"], "2": ["2", "node-2"]}


async def test_nodes_wait_for_a_manager_that_starts_late(batch: Batch) -> None:
    late = ["sh", "-c", 'sleep 8; exec python -c "$0" "$@"', MANAGER, "0", "0", "60"]
    told = await told_by(batch, submit(batch, [late, AGENT, AGENT]))
    assert told["places"] == {"1": ["1", "node-1"], "2": ["2", "node-2"]}


async def test_a_node_that_exits_at_once_fails_the_launch_with_its_last_words(batch: Batch) -> None:
    broken = ["sh", "-c", "echo out of order; exit 3"]
    told = await told_by(batch, submit(batch, [python(2, 2, 60), AGENT, broken]))
    assert "only 1 of at least 2 workers can still join" in told["error"]
    assert "exit code 3" in told["error"]
    assert "out of order" in told["error"]


async def test_the_others_are_used_where_the_minimum_is_there(batch: Batch) -> None:
    told = await told_by(batch, submit(batch, [python(1, 2, 20), AGENT, ["sh", "-c", "exit 3"]]))
    assert told["places"] == {"1": ["1", "node-1"]}


async def test_more_workers_than_the_job_has_nodes_are_refused(batch: Batch) -> None:
    told = await told_by(batch, submit(batch, [python(5, 5, 60), AGENT]))
    assert "5 workers are needed, and the job has only 1 other nodes" in told["error"]


async def test_a_main_node_with_a_link_local_address_is_refused_with_the_interfaces(batch: Batch) -> None:
    link_local = {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "169.254.172.2"}
    wait = ["sh", "-c", "sleep 10"]
    job_id = submit(batch, [wait, ["env", *[f"{name}={value}" for name, value in link_local.items()], *AGENT]])
    lines = await until(lambda: output_of(batch, f"{job_id}#1"), lambda lines: any("link-local" in line for line in lines))
    assert any("usable interfaces:" in line for line in lines)
    await until(lambda: described(batch, job_id), lambda job: job["status"] in ENDED, timeout=SOON_S)


async def test_a_stranger_to_the_job_has_another_token(batch: Batch) -> None:
    """Whoever dials the port without knowing the job is turned away, and delays nobody."""
    foreign = ["env", "AIOCLUSTER_TOKEN=" + "ab" * 32, *AGENT]
    told = await told_by(batch, submit(batch, [python(1, 2, 20), AGENT, foreign]))
    assert told["places"] == {"1": ["1", "node-1"]}
