"""`ECS` against an ECS that is a few dictionaries: what it asks for, what it makes of the answers, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aiocluster.errors import LaunchError
from aiocluster.launch import ecs as ecs_module
from aiocluster.launch import ecs_fleet
from aiocluster.launch.aws import AwsError, Fault
from aiocluster.launch.ecs import ECS, end, leftovers
from aiocluster.launch.ecs_tasks import REQUEST, TaskState
from aiocluster.launch.marks import CLUSTER as CLUSTER_TAG
from aiocluster.launch.marks import CREATED, MANAGER
from aiocluster.launch.poller import Figures
from tests.unit.launch.fake_batch import DENIED, EXPIRED, LOST, REFUSED, THROTTLED, Told
from tests.unit.launch.fake_ecs import CLUSTER, DEFINITION, SAFETY_S, FakeEcs
from tests.unit.launch.metadata_server import Metadata, metadata_served

AT_ONCE = Figures(quick_s=0.001, slow_s=0.001)


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


def launcher_of(ecs: FakeEcs, **arguments: Any) -> ECS:
    given: dict[str, Any] = {"cluster": "nodes", "task_definition": "workers", "environ": {}, "pause": no_pause, **arguments}
    return ECS(api=ecs, figures=AT_ONCE, random=lambda: 0.5, **given)


@contextlib.asynccontextmanager
async def opened(ecs: FakeEcs | None = None, **arguments: Any) -> AsyncIterator[tuple[FakeEcs, ECS, Told]]:
    """A launcher; whatever the test does, no task is left when it has closed."""
    ecs = FakeEcs() if ecs is None else ecs
    launcher = launcher_of(ecs, **arguments)
    try:
        yield ecs, launcher, Told()
    finally:
        await launcher.close(0.0)
        assert ecs.live() == []
        assert ecs.closed == 1


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells the tasks of these tests to end, so that none does before it is stopped."""
    monkeypatch.setattr(ecs_module, "END_GRACE_S", 0.0)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with metadata_served() as served:
        yield served


def nodes(n: int, first: int = 1) -> list[str]:
    return [f"ecs-{number}" for number in range(first, first + n)]


def override(run_task: dict[str, Any]) -> dict[str, Any]:
    (one,) = run_task["overrides"]["containerOverrides"]
    return dict(one)


def environment(run_task: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in override(run_task)["environment"]}


def tags(run_task: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run_task["tags"]}


def as_called(run_task: dict[str, Any], task: str) -> str:
    """What the agent of a task calls itself."""
    return environment(run_task)["AIOCLUSTER_NODE"].replace("*", task)


async def starting_of(launcher: ECS, told: Told, ecs: FakeEcs, *names: str) -> asyncio.Task[None]:
    """A start whose RunTask has been carried out, and is not answered before `hold` is set."""
    ecs.hold = asyncio.Event()
    starting = asyncio.ensure_future(launcher.start(told.request(*names)))
    await ecs.until(lambda: len(ecs.tasks) == len(names))
    return starting


# --- what is asked for -------------------------------------------------------------------------------------------------------


async def test_nodes_are_tasks_of_one_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiocluster")
    async with opened(env={"MODEL": "small"}, tags={"team": "a"}, launch_type="EC2") as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(3)))
        (asked,) = ecs.arguments("run_task")
        assert (asked["cluster"], asked["taskDefinition"], asked["count"]) == ("nodes", DEFINITION, 3)
        assert asked["launchType"] == "EC2"
        assert "capacityProviderStrategy" not in asked
        assert "networkConfiguration" not in asked
        assert asked["startedBy"] == "c-fake"
        assert 1 <= len(asked["clientToken"]) <= 64
        assert override(asked)["name"] == "agent"
        assert override(asked)["command"] == ["aiocluster", "agent"]
        assert set(override(asked)) == {"name", "command", "environment"}
        variables = environment(asked)
        assert variables["AIOCLUSTER_NODE"] == f"ecs/{tags(asked)[REQUEST]}/*"
        assert variables["AIOCLUSTER_MANAGER"] == "tcp://10.0.0.1:7000"
        assert variables["AIOCLUSTER_TOKEN"] == told.token.reveal().hex()
        assert variables["MODEL"] == "small"
        assert set(tags(asked)) == {"team", CLUSTER_TAG, MANAGER, CREATED, REQUEST}
        assert tags(asked)[CLUSTER_TAG] == "c-fake"
        assert "spawned tasks task1, task2, task3 (n=3)" in caplog.messages
        assert told.token.reveal().hex() not in caplog.text


async def test_no_nodes_ask_nothing_of_aws() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request())
        assert ecs.asked == []


@pytest.mark.parametrize(("n", "counts"), [(1, [1]), (10, [10]), (11, [10, 1]), (25, [10, 10, 5])])
async def test_a_request_asks_for_ten_tasks_at_most(n: int, counts: list[int]) -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(n)))
        asked = ecs.arguments("run_task")
        assert sorted((one["count"] for one in asked), reverse=True) == counts
        assert len({one["clientToken"] for one in asked}) == len({tags(one)[REQUEST] for one in asked}) == len(counts)


async def test_a_capacity_provider_is_asked_for_by_its_name_and_nothing_is_said_by_default() -> None:
    async with opened(launch_type="FARGATE_SPOT") as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        assert asked["capacityProviderStrategy"] == [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
        assert "launchType" not in asked
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        assert not {"launchType", "capacityProviderStrategy"} & set(asked)


async def test_tasks_with_a_network_of_their_own_are_told_where() -> None:
    ecs = FakeEcs()
    ecs.definition["networkMode"] = "awsvpc"
    given = {"subnets": ["subnet-1", "subnet-2"], "security_groups": ["sg-1"], "assign_public_ip": True}
    async with opened(ecs, launch_type="FARGATE", **given) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        network = {"subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-1"], "assignPublicIp": "ENABLED"}
        assert asked["networkConfiguration"] == {"awsvpcConfiguration": network}


async def test_a_network_that_does_not_fit_the_definition_is_an_error() -> None:
    async with opened(subnets=["subnet-1"]) as (ecs, launcher, told):
        with pytest.raises(LaunchError, match="networkMode of workers is host, not awsvpc"):
            await launcher.start(told.request("ecs-1"))
        ecs.definition["networkMode"] = "awsvpc"
    async with opened(ecs) as (_, launcher, told):
        with pytest.raises(LaunchError, match="subnets= must be given"):
            await launcher.start(told.request("ecs-1"))
        ecs.closed = 0
        assert ecs.count("run_task") == 0


@pytest.mark.parametrize(
    ("definition", "container", "task", "own"),
    [
        ({}, {}, {}, {"cpu": 512, "memory": 2048}),
        ({}, {"memory": 512}, {}, {"cpu": 512, "memory": 2048}),
        ({"cpu": "256", "memory": "512"}, {}, {"cpu": "512", "memory": "2048"}, {}),
        ({"cpu": "256", "memory": "512"}, {"memory": 512}, {"cpu": "512", "memory": "2048"}, {"memory": 2048}),
    ],
)
async def test_cpu_and_memory_are_said_where_the_definition_says_them(
    definition: dict[str, Any], container: dict[str, Any], task: dict[str, Any], own: dict[str, Any]
) -> None:
    ecs = FakeEcs()
    ecs.definition = {**ecs.definition, **definition, "containerDefinitions": [{"name": "agent", **container}]}
    async with opened(ecs, cpu=512, memory=2048) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        limits = ("cpu", "memory")
        assert {name: value for name, value in asked["overrides"].items() if name in limits} == task
        assert {name: value for name, value in override(asked).items() if name in limits} == own


async def test_which_of_several_containers_is_meant_has_to_be_said() -> None:
    ecs = FakeEcs()
    ecs.definition["containerDefinitions"] = [{"name": "proxy"}, {"name": "agent"}]
    async with opened(ecs, container="agent") as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        assert override(ecs.arguments("run_task")[0])["name"] == "agent"
    for container, message in (
        (None, "container= must say which.*proxy, agent"),
        ("other", "no container 'other', but proxy, agent"),
    ):
        ecs.closed = 0
        async with opened(ecs, container=container) as (_, launcher, told):
            with pytest.raises(LaunchError, match=message):
                await launcher.start(told.request("ecs-1"))


async def test_overrides_that_aws_would_refuse_are_an_error_that_names_the_largest() -> None:
    async with opened(env={"SMALL": "x", "LARGE": "x" * 9000}) as (ecs, launcher, told):
        with pytest.raises(LaunchError, match=r"ECS allows 8192; the largest variables: LARGE \(9000 characters\)"):
            await launcher.start(told.request("ecs-1"))
        assert ecs.count("run_task") == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"workers_per_node": 0}, ValueError, "workers_per_node must be at least 1"),
        ({"cpu": 0}, ValueError, "cpu must be at least 1"),
        ({"memory": 5}, ValueError, "memory must be at least 6"),
        ({"command": "aiocluster agent"}, ValueError, "command must be a list"),
        ({"command": []}, ValueError, "command must be a list"),
        ({"subnets": "subnet-1"}, TypeError, "subnets must be a list"),
        ({"security_groups": "sg-1"}, TypeError, "security_groups must be a list"),
        ({"env": {"A": 1}}, TypeError, "env must have strings"),
        ({"secret_store": "vault"}, ValueError, "secret_store must be one of"),
        ({"network": "nonsense"}, ValueError, "network must be a CIDR"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        launcher_of(FakeEcs(), **arguments)


async def test_tasks_are_told_only_where_the_token_is() -> None:
    async with opened(secret_store="ssm") as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        variables = environment(ecs.arguments("run_task")[0])
        assert "AIOCLUSTER_TOKEN" not in variables
        assert variables["AIOCLUSTER_TOKEN_FROM"] == "ssm:/aiocluster/c-fake/token"
        assert ecs.secrets == {"/aiocluster/c-fake/token": told.token.reveal().hex()}
    assert ecs.secrets == {}


# --- the manager's own task --------------------------------------------------------------------------------------------------


def own_in(ecs: FakeEcs, **told: Any) -> None:
    """The manager is a task of this account."""
    arn = "arn:aws:ecs:eu-west-1:1:task/nodes/0a1b2c"
    ecs.tasks["0a1b2c"] = {"taskArn": arn, "lastStatus": "STOPPED", "startedBy": "", "containers": [], **told}


async def test_cluster_definition_container_and_launch_type_are_those_of_the_manager(metadata: Metadata) -> None:
    ecs = FakeEcs()
    ecs.definition["containerDefinitions"] = [{"name": "main"}, {"name": "proxy"}]
    own_in(ecs, launchType="FARGATE")
    async with opened(ecs, cluster=None, task_definition=None, environ=metadata.environ) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        assert ecs.arguments("describe_task_definition") == [{"taskDefinition": "managers:7"}]
        (asked,) = ecs.arguments("run_task")
        assert (asked["cluster"], asked["launchType"]) == ("nodes", "FARGATE")
        assert override(asked)["name"] == "main"
        await launcher.start(told.request("ecs-2"))
        assert ecs.count("describe_task_definition") == 1


async def test_the_capacity_provider_of_the_manager_goes_before_its_launch_type(metadata: Metadata) -> None:
    ecs = FakeEcs()
    own_in(ecs, launchType="EC2", capacityProviderName="growing")
    async with opened(ecs, cluster=None, environ=metadata.environ) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        assert asked["capacityProviderStrategy"] == [{"capacityProvider": "growing", "weight": 1}]


async def test_subnet_and_security_groups_are_those_of_the_manager(metadata: Metadata) -> None:
    ecs = FakeEcs()
    ecs.definition["networkMode"] = "awsvpc"
    details = [{"name": "subnetId", "value": "subnet-9"}, {"name": "networkInterfaceId", "value": "eni-9"}]
    own_in(ecs, launchType="FARGATE", attachments=[{"type": "ElasticNetworkInterface", "details": details}])
    ecs.interfaces["eni-9"] = ["sg-9"]
    async with opened(ecs, launch_type="FARGATE", environ=metadata.environ) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        network = {"subnets": ["subnet-9"], "securityGroups": ["sg-9"], "assignPublicIp": "DISABLED"}
        assert asked["networkConfiguration"] == {"awsvpcConfiguration": network}


async def test_what_is_said_goes_before_what_the_manager_has(metadata: Metadata) -> None:
    async with opened(environ=metadata.environ, launch_type="EC2") as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        assert ecs.arguments("describe_task_definition") == [{"taskDefinition": "workers"}]
        assert ecs.count("run_task") == 1


@pytest.mark.parametrize("environ", [{}, {"AWS_BATCH_JOB_ID": "abc"}])
async def test_outside_of_a_task_cluster_and_definition_must_be_given(metadata: Metadata, environ: dict[str, str]) -> None:
    """A job of AWS Batch is a task of a cluster that is not for others."""
    if environ:
        environ = {**environ, **metadata.environ}
    async with opened(environ=environ, cluster=None, task_definition=None) as (ecs, launcher, told):
        with pytest.raises(LaunchError, match="cluster= and task_definition= must be given"):
            await launcher.start(told.request("ecs-1"))
        assert ecs.asked == []


# --- who is which node -------------------------------------------------------------------------------------------------------


async def test_agents_are_known_by_their_tasks() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        (asked,) = ecs.arguments("run_task")
        assert [launcher.adopt(as_called(asked, task)) for task in ("task2", "task1", "task2")] == ["ecs-2", "ecs-1", "ecs-2"]


@pytest.mark.parametrize("name", ["ecs-1", "ecs/", "ecs/0000/task1", "ecs//task1", "batch-1", "*"])
async def test_others_are_not_known(name: str) -> None:
    async with opened() as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        assert launcher.adopt(name) is None


async def test_a_task_that_is_not_in_the_answer_is_no_node() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        (asked,) = ecs.arguments("run_task")
        assert launcher.adopt(as_called(asked, "task9")) is None


async def test_agents_that_dial_before_the_answer_get_the_next_names_and_keep_them() -> None:
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, *nodes(3))
        (asked,) = ecs.arguments("run_task")
        assert launcher.adopt(as_called(asked, "task3")) == "ecs-1"
        assert launcher.adopt(as_called(asked, "task2")) == "ecs-2"
        assert launcher.adopt(as_called(asked, "task3")) == "ecs-1"
        assert ecs.hold is not None
        ecs.hold.set()
        await starting
        called = {task: launcher.adopt(as_called(asked, task)) for task in ("task1", "task2", "task3")}
        assert called == {"task3": "ecs-1", "task2": "ecs-2", "task1": "ecs-3"}
        assert ecs.count("stop_task") == 0


async def test_no_more_agents_than_were_asked_for_are_taken_before_the_answer() -> None:
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, "ecs-1")
        (asked,) = ecs.arguments("run_task")
        assert launcher.adopt(as_called(asked, "task1")) == "ecs-1"
        assert launcher.adopt(as_called(asked, "of-another")) is None
        assert ecs.hold is not None
        ecs.hold.set()
        await starting


async def test_an_agent_that_comes_back_after_its_end_gets_no_other_name() -> None:
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, *nodes(2))
        (asked,) = ecs.arguments("run_task")
        assert launcher.adopt(as_called(asked, "task1")) == "ecs-1"
        await launcher.stop("ecs-1")
        assert launcher.adopt(as_called(asked, "task1")) == "ecs-1"
        assert ecs.hold is not None
        ecs.hold.set()
        await starting
        assert launcher.adopt(as_called(asked, "task2")) == "ecs-2"


# --- what AWS says -----------------------------------------------------------------------------------------------------------


async def test_states_are_told_as_they_change() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        for state in ("PROVISIONING", "PENDING", "RUNNING"):
            ecs.become("task1", state)
            await told.until(lambda: ("ecs-1", state, "") in told.of("observed"))  # noqa: B023  # it is called before the next
        assert told.of("exited") == []


async def test_a_task_that_ends_is_told_with_reason_exit_code_and_last_lines() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        ecs.lines["w/agent/task1"] = ["out of order\n"]
        ecs.become("task1", "DEPROVISIONING", container={"exitCode": 3}, stoppedReason="Essential container in task exited")
        await told.until(lambda: told.of("exited"))
        reason = "its task has STOPPED: Essential container in task exited; exit code 3"
        assert told.of("exited") == [("ecs-1", reason)]
        assert launcher.last_lines("ecs-1") == ("out of order",)
        assert launcher.last_lines("ecs-2") == ()


async def test_lines_that_are_late_are_waited_for() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        ecs.become("task1", "STOPPED", stoppedReason="Essential container in task exited")
        await ecs.until(lambda: ecs.count("get_log_events") == 1)
        ecs.lines["w/agent/task1"] = ["late"]
        await told.until(lambda: told.of("exited"))
        assert launcher.last_lines("ecs-1") == ("late",)


async def test_the_state_of_a_task_that_has_ended_is_told_before_its_lines_are_there() -> None:
    """A launch that fails because of another node says it."""
    asked_again = asyncio.Event()

    async def pause(_seconds: float) -> None:
        await asked_again.wait()

    async with opened(pause=pause) as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        ecs.become("task1", "STOPPED", stoppedReason="CannotPullContainerError: no such image")
        await told.until(lambda: any(state == "STOPPED" for _, state, _ in told.of("observed")))
        (seen,) = [reason for _, state, reason in told.of("observed") if state == "STOPPED"]
        assert seen.startswith("CannotPullContainerError: no such image (is the image's name right")
        assert told.of("exited") == []
        asked_again.set()
        await told.until(lambda: told.of("exited"))


async def test_a_close_does_not_wait_for_lines() -> None:
    async def pause(_seconds: float) -> None:
        await asyncio.Event().wait()

    async with opened(pause=pause) as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        ecs.become("task1", "STOPPED")
        await ecs.until(lambda: ecs.count("get_log_events") == 1)
    assert told.of("exited") == []


async def test_without_a_prefix_the_stream_is_named_after_the_container() -> None:
    ecs = FakeEcs()
    del ecs.definition["containerDefinitions"][0]["logConfiguration"]["options"]["awslogs-stream-prefix"]
    async with opened(ecs) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        ecs.lines["container-of-task1"] = ["here"]
        ecs.become("task1", "STOPPED")
        await told.until(lambda: told.of("exited"))
        assert launcher.last_lines("ecs-1") == ("here",)


@pytest.mark.parametrize("driver", [None, {"logDriver": "json-file"}, {"logDriver": "awslogs"}])
async def test_output_that_is_elsewhere_is_not_looked_for(driver: dict[str, Any] | None) -> None:
    ecs = FakeEcs()
    ecs.definition["containerDefinitions"] = [{"name": "agent", "logConfiguration": driver}]
    async with opened(ecs) as (_, launcher, told):
        await launcher.start(told.request("ecs-1"))
        ecs.become("task1", "STOPPED")
        await told.until(lambda: told.of("exited"))
        assert told.of("exited") == [("ecs-1", "its task has STOPPED: no reason given")]
        assert ecs.count("get_log_events") == 0


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (
            {"stoppedReason": "CannotPullContainerError: no such image"},
            "CannotPullContainerError: no such image (is the image's name right",
        ),
        ({"stoppedReason": "x", "containers": [{"name": "agent", "reason": "OutOfMemoryError: killed"}]}, "memory= gives more"),
        ({"stoppedReason": "x", "containers": [{"name": "proxy", "exitCode": 2}]}, "x; container proxy: exit code 2"),
        ({"stoppedReason": "x", "containers": [{"name": "proxy", "reason": "no"}]}, "x; container proxy: no"),
        ({"stopCode": "SpotInterruption"}, "SpotInterruption (AWS has taken the spot capacity back)"),
        ({"stoppedReason": "Host EC2 (instance i-1) terminated."}, "as spot instances are"),
        ({}, "no reason given"),
    ],
)
def test_the_end_of_a_task_is_explained(task: dict[str, Any], reason: str) -> None:
    assert reason in TaskState.of({"lastStatus": "STOPPED", **task}, "agent").end()


@pytest.mark.parametrize(
    ("failure", "explained"),
    [
        ({"reason": "RESOURCE:MEMORY", "arn": "arn:i-1"}, "RESOURCE:MEMORY (no container instance has so much memory free"),
        ({"reason": "RESOURCE:CPU"}, "ask for less with cpu="),
        ({"reason": "RESOURCE:PORTS"}, "taken on every container instance"),
        ({"reason": "RESOURCE:FUTURE"}, "no container instance has room"),
        ({"reason": "No Container Instances were found in your cluster."}, "launch_type='FARGATE'"),
        ({"reason": "Capacity is unavailable at this time."}, "AWS has no such capacity"),
        ({"reason": "AGENT", "detail": "disconnected"}, "AGENT; disconnected (the ECS agent"),
        ({}, "no reason given"),
    ],
)
async def test_tasks_that_are_not_started_are_told_at_once_with_what_to_do(failure: dict[str, str], explained: str) -> None:
    async with opened() as (ecs, launcher, told):
        ecs.failures = [failure]
        await launcher.start(told.request(*nodes(3), minimum=2))
        ((node, reason),) = told.of("exited")
        assert node == "ecs-3"
        assert reason.startswith("its task was not started: ")
        assert explained in reason
        await launcher.stop("ecs-3")
        assert ecs.live() == ["task1", "task2"]


async def test_fewer_tasks_without_a_reason_are_told_too() -> None:
    async with opened() as (ecs, launcher, told):
        ecs.failures = [{}]
        starting = await starting_of_failed(launcher, told, ecs)
        await starting
        assert told.of("exited") == [("ecs-2", "its task was not started: AWS gives no reason")]


async def starting_of_failed(launcher: ECS, told: Told, ecs: FakeEcs) -> asyncio.Task[None]:
    """AWS starts one of two, and forgets to say why."""
    ecs.hold = asyncio.Event()
    starting = asyncio.ensure_future(launcher.start(told.request(*nodes(2), minimum=1)))
    await ecs.until(lambda: ecs.count("run_task") == 1 and ecs.tasks)
    for answer in ecs._answers.values():
        answer["failures"] = []
    ecs.hold.set()
    return starting


async def test_what_waits_for_capacity_is_told_with_what_may_be_the_matter() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        ecs.become("task2", "RUNNING")
        await launcher.look([*nodes(2), "unknown-1"])
        (seen,) = [news for news in told.of("observed") if news[2]]
        assert seen == ("ecs-1", "PROVISIONING", ecs_module.NO_ROOM)


async def test_states_that_cannot_be_asked_for_are_no_end() -> None:
    async with opened() as (ecs, launcher, told):
        ecs.fail("describe_tasks", THROTTLED, LOST, EXPIRED)
        await launcher.start(told.request("ecs-1"))
        ecs.become("task1", "RUNNING")
        await told.until(lambda: ("ecs-1", "RUNNING", "") in told.of("observed"))
        assert told.of("exited") == []


async def test_last_lines_are_kept_of_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecs_module, "KEPT_LINES", 1)
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        for number in (1, 2):
            ecs.lines[f"w/agent/task{number}"] = [f"line {number}"]
            ecs.become(f"task{number}", "STOPPED")
            await told.until(lambda: len(told.of("exited")) == number)  # noqa: B023  # it is called before the next
        assert launcher.last_lines("ecs-1") == ()
        assert launcher.last_lines("ecs-2") == ("line 2",)


# --- what goes wrong ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DENIED, EXPIRED, REFUSED])
async def test_what_aws_refuses_is_raised(error: AwsError) -> None:
    async with opened() as (ecs, launcher, told):
        ecs.fail("run_task", *[error] * 2)
        with pytest.raises(AwsError) as caught:
            await launcher.start(told.request(*nodes(11)))
        assert caught.value is error
        assert told.of("exited") == []


async def test_some_requests_that_fail_cost_only_their_nodes() -> None:
    async with opened() as (ecs, launcher, told):
        ecs.fail("run_task", THROTTLED)
        await launcher.start(told.request(*nodes(12), minimum=2))
        assert told.of("exited") == [(node, "too many requests") for node in nodes(10)]
        assert len(ecs.live()) == 2


async def test_tasks_of_an_answer_that_was_lost_are_found_by_who_started_them() -> None:
    async with opened() as (ecs, launcher, told):
        ecs.fail("run_task", LOST, done=True)
        with pytest.raises(AwsError):
            await launcher.start(told.request(*nodes(3)))
        assert len(ecs.live()) == 3
        await asyncio.gather(*[launcher.stop(node) for node in nodes(3)])
        assert ecs.live() == []


async def test_closing_finds_them_too_and_leaves_those_of_others_alone() -> None:
    ecs = FakeEcs()
    other = ecs.start(startedBy="c-fake", tags=[{"key": REQUEST, "value": "of another launcher"}])["taskArn"].rpartition("/")[2]
    launcher, told = launcher_of(ecs), Told()
    ecs.fail("run_task", LOST, done=True)
    with pytest.raises(AwsError):
        await launcher.start(told.request(*nodes(3)))
    await launcher.close(0.0)
    assert ecs.live() == [other]


async def test_a_request_that_is_tried_again_by_the_client_starts_nothing_twice() -> None:
    """The client repeats the very request, token included; here the answer to the second one is what is heard."""
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, *nodes(2))
        (asked,) = ecs.arguments("run_task")
        again = asyncio.ensure_future(ecs.call("ecs", "run_task", **asked))
        assert ecs.hold is not None
        ecs.hold.set()
        await asyncio.gather(starting, again)
        assert ecs.live() == ["task1", "task2"]


async def test_tasks_beyond_those_that_are_wanted_are_stopped() -> None:
    """Where AWS did not know the request again, agents of the first answer may have joined by the time of the second."""
    async with opened() as (ecs, launcher, told):
        ecs.idempotent = False
        starting = await starting_of(launcher, told, ecs, *nodes(2))
        (asked,) = ecs.arguments("run_task")
        earlier = ecs.start(**asked)["taskArn"].rpartition("/")[2]
        assert launcher.adopt(as_called(asked, earlier)) == "ecs-1"
        assert ecs.hold is not None
        ecs.hold.set()
        await starting
        assert ecs.live() == ["task1", earlier]
        assert launcher.adopt(as_called(asked, "task1")) == "ecs-2"


async def test_a_surplus_that_cannot_be_stopped_is_told_and_tried_again_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, "ecs-1")
        (asked,) = ecs.arguments("run_task")
        assert launcher.adopt(as_called(asked, "earlier")) == "ecs-1"
        ecs.fail("stop_task", LOST)
        assert ecs.hold is not None
        ecs.hold.set()
        await starting
        assert "tasks that could not be stopped: task1" in caplog.text
        assert ecs.live() == ["task1"]


# --- the end -----------------------------------------------------------------------------------------------------------------


async def test_stopping_ends_one_task_and_no_other() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(3)))
        ecs.all_become("RUNNING")
        for lost in (False, True):
            await launcher.stop("ecs-2", lost=lost)
        assert ecs.live() == ["task1", "task3"]
        assert ecs.count("stop_task") == 1
        assert told.of("exited") == []
        await launcher.stop("unknown-1")


async def test_a_task_that_is_gone_already_can_be_stopped() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        del ecs.tasks["task1"]
        launcher_end = asyncio.ensure_future(launcher._fleet.end(list(launcher._fleet.nodes.values()), 0.0))
        await launcher_end
        assert not launcher._fleet.nodes


async def test_a_task_that_cannot_be_stopped_is_an_error_and_tried_again_at_the_end() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request("ecs-1"))
        ecs.fail("stop_task", DENIED)
        with pytest.raises(LaunchError, match="tasks that could not be stopped: task1: access denied"):
            await launcher.stop("ecs-1")
        assert ecs.live() == ["task1"]


async def test_closing_lets_running_tasks_end_by_themselves_and_stops_the_rest() -> None:
    ecs = FakeEcs()
    launcher, told = launcher_of(ecs), Told()
    await launcher.start(told.request(*nodes(3)))
    ecs.become("task1", "RUNNING")
    await told.until(lambda: ("ecs-1", "RUNNING", "") in told.of("observed"))
    closing = asyncio.ensure_future(launcher.close(SAFETY_S))
    await ecs.until(lambda: ecs.live() == ["task1"])
    assert not closing.done()
    ecs.become("task1", "STOPPED", container={"exitCode": 0})
    await closing
    assert {asked["task"] for asked in ecs.arguments("stop_task")} == {"task2", "task3"}
    assert told.of("exited") == []


async def test_closing_stops_what_does_not_end() -> None:
    async with opened() as (ecs, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        ecs.all_become("RUNNING")
        await told.until(lambda: len([news for news in told.of("observed") if news[1] == "RUNNING"]) == 2)
    assert ecs.count("stop_task") == 2


async def test_closing_without_a_start_asks_nothing_of_aws_and_can_be_done_again() -> None:
    ecs = FakeEcs()
    launcher = launcher_of(ecs)
    await launcher.close(0.0)
    await launcher.close(0.0)
    assert ecs.asked == []


async def test_closing_tells_what_could_not_be_ended() -> None:
    ecs = FakeEcs()
    launcher, told = launcher_of(ecs), Told()
    await launcher.start(told.request("ecs-1"))
    ecs.fail("stop_task", *[DENIED] * 3)
    with pytest.raises(LaunchError, match="tasks that could not be stopped: task1"):
        await launcher.close(0.0)
    assert ecs.closed == 1


@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_start_that_is_cancelled_leaves_nothing(carried_out: bool) -> None:
    async with opened() as (ecs, launcher, told):
        ecs.hold = asyncio.Event()
        starting = asyncio.ensure_future(launcher.start(told.request(*nodes(2))))
        await ecs.until(lambda: ecs.tasks if carried_out else ecs.count("run_task"))
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        ecs.hold.set()
        await asyncio.gather(*[launcher.stop(node) for node in nodes(2)])
        assert len(ecs.tasks) == 2
        assert ecs.live() == []


async def test_a_request_that_is_never_answered_is_given_up_and_its_tasks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecs_fleet, "SETTLE_S", 0.01)
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, *nodes(2))
        starting.cancel()
        await asyncio.gather(*[launcher.stop(node) for node in nodes(2)])
        assert ecs.live() == []
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_a_request_whose_nodes_came_and_went_before_its_answer_does_not_outlive_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ecs_fleet, "SETTLE_S", 0.01)
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, *nodes(2))
        (asked,) = ecs.arguments("run_task")
        assert {launcher.adopt(as_called(asked, task)) for task in ("task1", "task2")} == {"ecs-1", "ecs-2"}
        starting.cancel()
        await asyncio.gather(*[launcher.stop(node) for node in nodes(2)])
        await launcher.close(0.0)
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("aiocluster ecs")] == []
        with pytest.raises(asyncio.CancelledError):
            await starting
        ecs.closed = 0  # it is closed once more at the end


async def test_nodes_that_are_stopped_before_the_answer_get_no_task() -> None:
    async with opened() as (ecs, launcher, told):
        starting = await starting_of(launcher, told, ecs, *nodes(2))
        await launcher.stop("ecs-1")
        assert ecs.hold is not None
        ecs.hold.set()
        await starting
        (asked,) = ecs.arguments("run_task")
        assert ecs.live() == ["task1"]
        assert launcher.adopt(as_called(asked, "task1")) == "ecs-2"


# --- what others have left ---------------------------------------------------------------------------------------------------


def left_by(ecs: FakeEcs, manager: str) -> str:
    marks = {CLUSTER_TAG: "c-old", MANAGER: manager, CREATED: "2030-01-01T00:00:00Z"}
    task = ecs.start(tags=[{"key": key, "value": value} for key, value in marks.items()])
    return str(task["taskArn"])


async def test_tasks_of_clusters_are_found_with_whether_their_managers_run() -> None:
    ecs = FakeEcs()
    ecs.start()  # nobody's
    running, ended = ecs.start()["taskArn"], ecs.start()["taskArn"]
    ecs.become("task3", "STOPPED")
    arns = {
        True: left_by(ecs, f"ecs:{running}"),
        False: left_by(ecs, f"ecs:{ended}"),
        None: left_by(ecs, "ecs:arn:aws:ecs:eu-west-1:2:task/other/x"),
    }
    forgotten = left_by(ecs, f"ecs:{CLUSTER.replace(':cluster/', ':task/')}/long-ago")
    gone = left_by(ecs, "process:h:m:1:2")
    ecs.become(gone.rpartition("/")[2], "STOPPED")
    found = {one.id: one for one in await leftovers(api=ecs)}
    assert set(found) == {*arns.values(), forgotten}
    assert all(found[arn].alive is alive for alive, arn in arns.items())
    assert found[forgotten].alive is False
    one = found[arns[True]]
    assert (one.kind, one.cluster, one.state, one.where) == ("ecs task", "c-old", "PROVISIONING", CLUSTER)
    assert one.name == arns[True].rpartition("/")[2]
    assert ecs.closed == 1


async def test_what_is_left_is_ended() -> None:
    ecs = FakeEcs()
    left_by(ecs, "process:h:m:1:2")
    (one,) = await leftovers(api=ecs)
    await end(one, api=ecs)
    assert ecs.arguments("stop_task")[0]["cluster"] == CLUSTER
    assert await leftovers(api=ecs) == []
    await end(one, api=ecs)


async def test_what_cannot_be_asked_for_or_ended_is_an_error() -> None:
    ecs = FakeEcs()
    left_by(ecs, "process:h:m:1:2")
    (one,) = await leftovers(api=ecs)
    ecs.fail("list_clusters", DENIED)
    with pytest.raises(AwsError, match="access denied"):
        await leftovers(api=ecs)
    ecs.fail("stop_task", AwsError("throttled", Fault.THROTTLED))
    with pytest.raises(AwsError, match="throttled"):
        await end(one, api=ecs)
    assert ecs.closed == 3
