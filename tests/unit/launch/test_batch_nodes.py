"""Nodes of a multi-node job: what both sides know by themselves, and what the main node's launcher says of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from aiocluster.config import Settings
from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId, Token
from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.batch_nodes import BatchNodes
from aiocluster.launch.multinode import indexes, member_environment
from aiocluster.launch.own_job import own_job
from aiocluster.launch.poller import Figures
from aiocluster.runtime.agent_settings import AgentSettings

JOB = "0a1b2c3d-0000-4000-8000-000000000001"


def environ(node: int, more: Mapping[str, str] | None = None, *, nodes: int = 4, main: int = 0) -> dict[str, str]:
    """What AWS tells one node."""
    told = {
        "AWS_BATCH_JOB_ID": f"{JOB}#{node}",
        "AWS_BATCH_JQ_NAME": "queue",
        "AWS_BATCH_JOB_ATTEMPT": "1",
        "AWS_BATCH_JOB_NODE_INDEX": str(node),
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(main),
        "AWS_BATCH_JOB_NUM_NODES": str(nodes),
    }
    if node != main:
        told["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = "10.1.2.3"
    return {**told, **(more or {})}


class Api:
    """AWS Batch as it is scripted: the states of jobs by id."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.closed = False
        self.log: dict[str, Any] = {"events": [{"message": "its last words\n"}]}

    async def region(self) -> str:
        return "us-east-1"

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        if operation == "get_log_events":
            return self.log
        assert (service, operation) == ("batch", "describe_jobs")
        return {"jobs": [{"jobId": id, **self.jobs[id]} for id in arguments["jobs"] if id in self.jobs]}

    async def close(self) -> None:
        self.closed = True


class Heard:
    """Who launches, and hears what becomes of nodes."""

    def __init__(self) -> None:
        self.observed: list[tuple[str, str, str]] = []
        self.exited: dict[str, str] = {}
        self.news = asyncio.Event()

    def request(self, *nodes: str, minimum: int = 1, workers: int = 1) -> LaunchRequest:
        return LaunchRequest(
            cluster_id=ClusterId("c"),
            token=Token.generate(),
            address="tcp://10.1.2.3:49152",
            nodes=nodes,
            workers=dict.fromkeys(nodes, workers),
            minimum=minimum,
            observed=lambda *seen: self.observed.append(seen),
            exited=self._exited,
            expect=lambda node, before: pytest.fail("nothing comes in the place of a node"),
            settings=Settings(),
        )

    def _exited(self, node: str, reason: str) -> None:
        self.exited[node] = reason
        self.news.set()


def main_node(api: Api, **more: Any) -> BatchNodes:
    return BatchNodes(api=api, environ=environ(0), figures=Figures(quick_s=0.01, slow_s=0.01), pause=_no_pause, **more)


async def _no_pause(seconds: float) -> None:
    return


# --- what both sides know ------------------------------------------------------------------------------------------------


def test_all_nodes_derive_the_same_and_those_of_another_job_something_else() -> None:
    manager = BatchNodes(environ=environ(0)).agreed
    assert manager is not None
    for node in (1, 2, 3):
        told = member_environment(environ(node))
        assert told["AIOCLUSTER_CLUSTER"] == manager.cluster_id
        assert told["AIOCLUSTER_TOKEN"] == manager.token.reveal().hex()
        assert told["AIOCLUSTER_MANAGER"] == "tcp://10.1.2.3:49152"
        assert told["AIOCLUSTER_NODE"] == f"node-{node}"
    for other in ({"AWS_BATCH_JOB_ID": "another#1"}, {"AWS_BATCH_JOB_ATTEMPT": "2"}):
        told = member_environment(environ(1, other))
        assert told["AIOCLUSTER_CLUSTER"] != manager.cluster_id
        assert told["AIOCLUSTER_TOKEN"] != manager.token.reveal().hex()


def test_a_secret_of_the_job_definition_goes_first() -> None:
    secret = {"AIOCLUSTER_TOKEN": "ab" * 32, "AIOCLUSTER_CLUSTER": "c-mine", "AIOCLUSTER_PORT": "50000"}
    launcher = BatchNodes(environ=environ(0, secret))
    assert launcher.agreed is not None
    assert launcher.agreed.cluster_id == "c-mine"
    assert launcher.agreed.token == Token.from_hex("ab" * 32)
    assert launcher.reach is not None
    assert launcher.reach.port == 50000
    assert member_environment(environ(1, secret))["AIOCLUSTER_MANAGER"] == "tcp://10.1.2.3:50000"


def test_names_count_the_other_nodes_whichever_is_the_main_one() -> None:
    job = own_job(environ(2, main=2))
    assert job is not None
    assert indexes(job) == [0, 1, 3]
    assert [member_environment(environ(node, main=2))["AIOCLUSTER_NODE"] for node in (0, 1, 3)] == ["node-1", "node-2", "node-3"]


def test_an_agent_takes_what_it_needs_from_the_job_and_waits_longer_for_its_manager() -> None:
    variables = environ(3)
    settings = AgentSettings(variables)
    assert (settings.node, settings.address, settings.dial_for_s) == ("node-3", "tcp://10.1.2.3:49152", 120.0)
    assert "AIOCLUSTER_TOKEN" not in variables


def test_an_agent_that_a_launcher_has_started_in_such_a_job_is_that_launchers() -> None:
    told = {
        "AIOCLUSTER_MANAGER": "unix:/s",
        "AIOCLUSTER_CLUSTER": "c",
        "AIOCLUSTER_NODE": "local-1",
        "AIOCLUSTER_TOKEN": "cd" * 32,
    }
    settings = AgentSettings(environ(0, told))
    assert (settings.node, settings.address, settings.dial_for_s) == ("local-1", "unix:/s", 60.0)


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        (environ(0), "main node"),
        ({**environ(1), "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "169.254.1.2"}, "usable interfaces"),
        ({**environ(1), "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": ""}, "is not set"),
        (environ(1, {"AIOCLUSTER_PORT": "x"}), "AIOCLUSTER_PORT"),
        (environ(1, {"AIOCLUSTER_TOKEN": "short"}), "64 hexadecimal"),
    ],
)
def test_an_agent_that_cannot_know_its_manager_says_why(variables: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        AgentSettings(variables)


# --- the launcher --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "word"),
    [({}, "does not run in a multi-node"), ({"AWS_BATCH_JOB_ID": "j:1"}, "does not run in"), (environ(2), "this is node 2")],
)
async def test_elsewhere_than_on_a_main_node_it_is_refused(variables: dict[str, str], word: str) -> None:
    launcher = BatchNodes(api=Api(), environ=variables)
    with pytest.raises(LaunchError, match=word):
        await launcher.find_reach()
    with pytest.raises(LaunchError, match=word):
        await launcher.start(Heard().request("node-1"))
    await launcher.close(0.0)


async def test_more_workers_than_the_job_has_nodes_are_refused_or_told_of() -> None:
    heard, launcher = Heard(), main_node(Api())
    five = [f"node-{number}" for number in range(1, 6)]
    with pytest.raises(LaunchError, match="5 workers are needed, and the job has only 3 other nodes"):
        await launcher.start(heard.request(*five, minimum=5))
    await launcher.start(heard.request(*five, minimum=2))
    assert heard.exited == dict.fromkeys(five[3:], "the job has only 3 other nodes")
    with pytest.raises(LaunchError, match="join once, all together"):
        await launcher.start(heard.request("node-6"))
    await launcher.close(0.0)


async def test_all_workers_of_all_other_nodes_are_the_most() -> None:
    launcher = main_node(Api(), workers_per_node=2)
    assert launcher.most_workers == 6
    with pytest.raises(LaunchError):
        await launcher.start(Heard().request("node-1", "node-2", "node-3", minimum=7, workers=2))
    await launcher.close(0.0)


async def test_a_node_that_ends_is_told_with_its_reason_and_last_lines() -> None:
    api, heard = Api(), Heard()
    api.jobs = {f"{JOB}#{index}": {"status": "RUNNING"} for index in (1, 2, 3)}
    launcher = main_node(api)
    await launcher.start(heard.request("node-1", "node-2", "node-3"))
    api.jobs[f"{JOB}#2"] = {
        "status": "FAILED",
        "statusReason": "Essential container in task exited",
        "container": {"exitCode": 3, "logStreamName": "s"},
    }
    async with asyncio.timeout(30):
        await heard.news.wait()
    assert heard.exited == {"node-2": "its job has FAILED: Essential container in task exited; exit code 3"}
    assert launcher.last_lines("node-2") == ("its last words",)
    assert ("node-1", "RUNNING", "") in heard.observed
    await launcher.stop("node-1")
    await launcher.close(0.0)
    assert api.closed


async def test_a_node_whose_lines_make_no_sense_is_told_all_the_same() -> None:
    api, heard = Api(), Heard()
    api.log = {"events": [{}]}
    api.jobs = {f"{JOB}#1": {"status": "FAILED", "container": {"exitCode": 3, "logStreamName": "s"}}}
    launcher = main_node(api)
    await launcher.start(heard.request("node-1"))
    async with asyncio.timeout(30):
        await heard.news.wait()
    assert heard.exited == {"node-1": "its job has FAILED: exit code 3"}
    await launcher.close(0.0)


def test_arguments_that_make_no_sense_are_refused() -> None:
    wrong: Sequence[dict[str, Any]] = (
        {"workers_per_node": 0},
        {"port": -1},
        {"network": "x"},
        {"env": {"A": "x" * 65536}},
        {"env": {"": "x"}},
    )
    for arguments in wrong:
        with pytest.raises(ValueError):
            BatchNodes(environ=environ(0), **arguments)
