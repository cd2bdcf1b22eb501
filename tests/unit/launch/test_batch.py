"""`Batch` against an AWS that is a few dictionaries: what it asks for, what it makes of the answers, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId
from aiocluster.launch import batch as batch_module
from aiocluster.launch.aws import region_of_arn
from aiocluster.launch.batch import Batch, end, leftovers
from aiocluster.launch.batch_jobs import JobState, parts
from aiocluster.launch.marks import CLUSTER, CREATED, MANAGER
from aiocluster.launch.poller import Figures
from aiocluster.launch.secret_store import SecretStore
from tests.unit.launch.fake_batch import DEFINITION, DENIED, EXPIRED, LOST, QUEUE, REFUSED, THROTTLED, FakeAws, Told

AT_ONCE = Figures(quick_s=0.001, slow_s=0.001)


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


def batch_of(aws: FakeAws, **arguments: Any) -> Batch:
    given: dict[str, Any] = {"queue": "workers", "definition": DEFINITION, "environ": {}, **arguments}
    return Batch(api=aws, figures=AT_ONCE, random=lambda: 0.5, pause=no_pause, **given)


@contextlib.asynccontextmanager
async def opened(aws: FakeAws | None = None, **arguments: Any) -> AsyncIterator[tuple[FakeAws, Batch, Told]]:
    """A launcher; whatever the test does, no job is left when it has closed."""
    aws = FakeAws() if aws is None else aws
    launcher = batch_of(aws, **arguments)
    try:
        yield aws, launcher, Told()
    finally:
        await launcher.close(0.0)
        assert aws.live() == []
        assert aws.closed == 1


def nodes(n: int, first: int = 1) -> list[str]:
    return [f"batch-{number}" for number in range(first, first + n)]


def environment(submission: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in submission["containerOverrides"]["environment"]}


# --- what is submitted -------------------------------------------------------------------------------------------------------


async def test_several_nodes_are_one_array_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiocluster")
    async with opened(env={"MODEL": "small"}, memory=2048, gpus=1, tags={"team": "a"}) as (aws, launcher, told):
        await launcher.start(told.request(*nodes(4, first=5)))
        (asked,) = aws.arguments("submit_job")
        assert (asked["jobQueue"], asked["jobDefinition"]) == ("workers", DEFINITION)
        assert asked["arrayProperties"] == {"size": 4}
        assert asked["containerOverrides"]["command"] == ["aiocluster", "agent"]
        requirements = {one["type"]: one["value"] for one in asked["containerOverrides"]["resourceRequirements"]}
        assert requirements == {"VCPU": "1", "MEMORY": "2048", "GPU": "1"}
        variables = environment(asked)
        assert variables["AIOCLUSTER_NODE"] == "batch-*"
        assert variables["AIOCLUSTER_NODE_FIRST"] == "5"
        assert variables["AIOCLUSTER_MANAGER"] == "tcp://10.0.0.1:7000"
        assert variables["AIOCLUSTER_TOKEN"] == told.token.reveal().hex()
        assert variables["MODEL"] == "small"
        assert asked["retryStrategy"] == {"attempts": 1}
        assert set(asked["tags"]) == {"team", CLUSTER, MANAGER, CREATED}
        assert asked["tags"][CLUSTER] == "c-fake"
        assert "spawned array job ID job-1 (n=4)" in caplog.messages


async def test_one_node_is_a_plain_job() -> None:
    async with opened(share_identifier="mine", job_timeout=90.0) as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        (asked,) = aws.arguments("submit_job")
        assert "arrayProperties" not in asked
        assert asked["shareIdentifier"] == "mine"
        assert asked["timeout"] == {"attemptDurationSeconds": 90}


async def test_no_nodes_ask_nothing_of_aws() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request())
        assert aws.asked == []


def test_arrays_are_as_large_as_aws_allows() -> None:
    assert [len(part) for part in parts(nodes(10_000))] == [10_000]
    assert [len(part) for part in parts(nodes(10_001))] == [10_000, 1]
    assert [part[0] for part in parts(nodes(25_000))] == ["batch-1", "batch-10001", "batch-20001"]


async def test_more_than_ten_thousand_nodes_are_several_jobs() -> None:
    async with opened(vcpus=0.25) as (aws, launcher, told):
        aws.environments[0]["computeResources"]["maxvCpus"] = 9000
        await launcher.start(told.request(*nodes(10_001)))
        first, second = aws.arguments("submit_job")
        assert first["arrayProperties"] == {"size": 10_000}
        assert "arrayProperties" not in second
        assert environment(second)["AIOCLUSTER_NODE_FIRST"] == "10001"
        assert first["jobName"] != second["jobName"]


@pytest.mark.parametrize("minimum", [10_000, 10_001])
async def test_of_several_jobs_one_that_cannot_be_submitted_leaves_the_others_if_they_are_enough(minimum: int) -> None:
    async with opened(vcpus=0.25) as (aws, launcher, told):
        aws.environments[0]["computeResources"]["maxvCpus"] = 9000
        submit = aws.call

        async def refuse_the_plain_one(service: str, operation: str, **arguments: Any) -> dict[str, Any]:
            if operation == "submit_job" and "arrayProperties" not in arguments:
                raise REFUSED
            return await submit(service, operation, **arguments)

        aws.call = refuse_the_plain_one  # type: ignore[method-assign]
        request = told.request(*nodes(10_001), minimum=minimum)
        if minimum == 10_001:
            with pytest.raises(LaunchError, match="makes no sense"):
                await launcher.start(request)
        else:
            await launcher.start(request)
            assert told.of("exited") == [("batch-10001", "its job could not be submitted: what it was asked makes no sense")]


async def test_overrides_that_aws_would_refuse_are_an_error_that_names_the_largest() -> None:
    async with opened(env={"SMALL": "x", "LARGE": "x" * 9000}) as (aws, launcher, told):
        with pytest.raises(LaunchError, match=r"AWS Batch allows 8192; the largest variables: LARGE \(9000 bytes\)"):
            await launcher.start(told.request("batch-1"))
        assert aws.count("submit_job") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a b"}, "name must have letters"),
        ({"name": "-a"}, "name must begin with"),
        ({"memory": 0}, "memory must be at least 4"),
        ({"vcpus": 0}, "vcpus must be at least 0.25"),
        ({"gpus": -1}, "gpus must be at least 0"),
        ({"job_timeout": 59}, "job_timeout must be at least 60"),
        ({"workers_per_node": 0}, "workers_per_node must be at least 1"),
        ({"retry": 10}, "retry must be between 0 and 9"),
        ({"command": "aiocluster agent"}, "command must be a list"),
        ({"env": {"AWS_BATCH_X": "1"}}, "reserved by AWS"),
        ({"secret_store": "vault"}, "secret_store must be one of"),
        ({"env": {"A=B": "1"}}, "'A=B'"),
        ({"env": {"": "1"}}, "env cannot have a variable ''"),
        ({"env": {"A": "\0"}}, "NUL"),
        ({"network": "ten"}, "network must be a CIDR"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch(**arguments)


@pytest.mark.parametrize("env", [{"A": 1}, {1: "a"}, {"A": None}])
def test_variables_that_are_no_strings_are_refused(env: dict[Any, Any]) -> None:
    with pytest.raises(TypeError, match="env must have strings"):
        Batch(env=env)


def test_variables_are_those_of_the_moment_they_were_given() -> None:
    env = {"A": "1"}
    launcher = Batch(env=env)
    env["AWS_BATCH_X"] = "2"
    assert launcher._shape.env == {"A": "1"}


# --- queue and definition ----------------------------------------------------------------------------------------------------


async def test_queue_and_definition_are_those_of_the_managers_own_job() -> None:
    environ = {"AWS_BATCH_JOB_ID": "manager-1", "AWS_BATCH_JQ_NAME": "managers"}
    async with opened(queue=None, definition=None, environ=environ) as (aws, launcher, told):
        aws.jobs["manager-1"] = {
            "jobId": "manager-1", "jobName": "m", "status": "SUCCEEDED", "jobQueue": QUEUE, "jobDefinition": DEFINITION,
        }  # fmt: skip
        await launcher.start(told.request("batch-1"))
        (asked,) = aws.arguments("submit_job")
        assert (asked["jobQueue"], asked["jobDefinition"]) == ("managers", DEFINITION)


async def test_the_queue_of_the_environment_goes_before_the_managers_own() -> None:
    environ = {"WORKER_JOB_QUEUE": "workers-2", "AWS_BATCH_JOB_ID": "manager-1", "AWS_BATCH_JQ_NAME": "managers"}
    async with opened(queue=None, environ=environ) as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        assert aws.arguments("submit_job")[0]["jobQueue"] == "workers-2"


async def test_outside_of_aws_queue_and_definition_must_be_given() -> None:
    async with opened(queue=None, definition=None) as (aws, launcher, told):
        with pytest.raises(LaunchError, match=r"queue= and definition= must be given.*WORKER_JOB_QUEUE"):
            await launcher.start(told.request("batch-1"))
        assert aws.asked == []


async def test_an_own_job_that_aws_does_not_know_is_an_error() -> None:
    async with opened(definition=None, environ={"AWS_BATCH_JOB_ID": "gone"}) as (_aws, launcher, told):
        with pytest.raises(LaunchError, match=r"AWS Batch does not know gone.*region"):
            await launcher.start(told.request("batch-1"))


# --- room --------------------------------------------------------------------------------------------------------------------


async def test_more_nodes_than_the_queue_can_ever_run_are_refused_before_anything_is_submitted() -> None:
    async with opened(vcpus=4) as (aws, launcher, told):
        with pytest.raises(LaunchError, match="5 workers are needed, and only 4 can ever run: queue workers has 16 vCPUs"):
            await launcher.start(told.request(*nodes(5)))
        assert aws.count("submit_job") == 0


async def test_a_queue_without_room_says_what_is_wrong_with_it() -> None:
    async with opened(vcpus=4) as (aws, launcher, told):
        for environment in aws.environments:
            environment["state"] = "DISABLED"
        with pytest.raises(
            LaunchError, match="compute environment one is DISABLED; compute environment two is DISABLED"
        ) as caught:
            await launcher.start(told.request(*nodes(1)))
        assert "maxvCpus" not in str(caught.value)


async def test_a_maximum_that_does_not_fit_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(vcpus=4) as (aws, launcher, told):
        await launcher.start(told.request(*nodes(5), minimum=4))
        assert aws.count("submit_job") == 1
        assert any(message.startswith("only 4 of 5 workers can run at once") for message in caplog.messages)


async def test_workers_that_share_nodes_need_room_for_the_nodes_only() -> None:
    async with opened(vcpus=8) as (_aws, launcher, told):
        await launcher.start(told.request(*nodes(2), workers=10))


async def test_nodes_that_run_already_take_room() -> None:
    async with opened(vcpus=8) as (_aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        with pytest.raises(LaunchError, match="beside 8 that this cluster takes already"):
            await launcher.start(told.request("batch-2", "batch-3"))
        await launcher.stop("batch-1")
        await launcher.start(told.request("batch-4", "batch-5"))


MANAGER_JOB = {"jobId": "manager-1", "jobName": "m", "status": "SUCCEEDED", "jobDefinition": DEFINITION}
MANAGERS = QUEUE.replace("workers", "managers")


@pytest.mark.parametrize(
    ("queue", "own_queue", "of_workers", "of_managers", "counts"),
    [
        ("workers", QUEUE, ["one"], ["one"], True),
        (QUEUE, QUEUE, ["one"], ["one"], True),
        ("workers", MANAGERS, ["one"], ["one"], True),
        ("workers", MANAGERS, ["one"], ["two"], False),
        ("workers", MANAGERS, ["one"], ["one", "two"], False),  # it may run on either
        ("workers", MANAGERS, ["one"], [], False),
    ],
)
async def test_the_manager_takes_room_where_it_runs_on_what_nodes_run_on(
    queue: str, own_queue: str, of_workers: list[str], of_managers: list[str], counts: bool
) -> None:
    environ = {"AWS_BATCH_JOB_ID": "manager-1", "AWS_BATCH_JQ_NAME": "x"}
    async with opened(queue=queue, vcpus=4, environ=environ) as (aws, launcher, told):
        aws.order = {MANAGERS: of_managers, "workers": of_workers, QUEUE: of_workers}
        requirements = [{"type": "VCPU", "value": "2"}]
        aws.jobs["manager-1"] = {**MANAGER_JOB, "jobQueue": own_queue, "container": {"resourceRequirements": requirements}}
        if counts:
            with pytest.raises(LaunchError, match=r"only 1 can ever run: .* 8 vCPUs at most beside 2 that this cluster takes"):
                await launcher.start(told.request(*nodes(2)))
            assert aws.count("submit_job") == 0
        else:
            await launcher.start(told.request(*nodes(2)))


async def test_a_manager_of_which_nothing_is_known_takes_no_room() -> None:
    async with opened(environ={"AWS_BATCH_JOB_ID": "elsewhere"}, vcpus=8) as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        assert aws.arguments("describe_jobs")[0] == {"jobs": ["elsewhere"]}


async def test_environments_without_a_limit_have_room() -> None:
    async with opened() as (aws, launcher, told):
        aws.environments = [{"computeEnvironmentName": "unmanaged", "state": "ENABLED"}]
        await launcher.start(told.request(*nodes(500)))


async def test_a_queue_that_is_not_there_is_an_error() -> None:
    async with opened() as (aws, launcher, told):
        aws.queue = {}
        with pytest.raises(LaunchError, match="there is no job queue workers"):
            await launcher.start(told.request("batch-1"))


async def test_who_may_not_look_at_queues_may_submit_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("describe_job_queues", DENIED)
        await launcher.start(told.request(*nodes(2)))
        assert aws.count("submit_job") == 1
        assert any("is not checked: access denied" in message for message in caplog.messages)


async def test_an_environment_that_is_invalid_is_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (aws, launcher, told):
        aws.environments[0].update(status="INVALID", statusReason="CLIENT_ERROR - no such subnet")
        await launcher.start(told.request("batch-1"))
        assert "compute environment one is INVALID: CLIENT_ERROR - no such subnet" in caplog.messages


# --- requests that fail ------------------------------------------------------------------------------------------------------


async def test_a_lost_answer_does_not_leave_a_second_array_behind() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("submit_job", LOST, done=True)
        await launcher.start(told.request(*nodes(3)))
        assert aws.count("submit_job") == 1
        assert aws.live() == ["job-1"]
        aws.become("job-1:2", "RUNNABLE")
        await told.until(lambda: ("batch-3", "RUNNABLE", "") in told.of("observed"))


async def test_a_request_that_was_lost_on_its_way_is_made_again() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("submit_job", LOST)
        await launcher.start(told.request(*nodes(3)))
        assert aws.count("submit_job") == 2
        assert aws.live() == ["job-1"]


async def test_throttled_requests_are_made_again_and_no_job_is_looked_for() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("submit_job", THROTTLED, THROTTLED)
        await launcher.start(told.request(*nodes(3)))
        assert aws.count("submit_job") == 3
        assert aws.count("list_jobs") == 0


class Late(FakeAws):
    """The first request to submit is lost on its way, and comes to be just before the second one."""

    def _submit_job(self, **asked: Any) -> dict[str, Any]:
        super()._submit_job(**asked)
        return super()._submit_job(**asked)


async def test_a_double_that_shows_up_late_is_terminated() -> None:
    async with opened(Late()) as (aws, launcher, told):
        aws.fail("submit_job", LOST)
        await launcher.start(told.request(*nodes(3)))
        assert sorted(aws.jobs)[::4] == ["job-1", "job-2"]
        assert aws.live() == ["job-2"]


async def test_a_refusal_is_not_tried_again() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("submit_job", REFUSED)
        with pytest.raises(LaunchError, match="what it was asked makes no sense"):
            await launcher.start(told.request(*nodes(3)))
        assert aws.count("submit_job") == 1


async def test_expired_credentials_are_told_at_once() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("submit_job", EXPIRED)
        with pytest.raises(LaunchError, match="the AWS credentials have expired"):
            await launcher.start(told.request(*nodes(3)))
        assert aws.count("submit_job") == 1


async def test_an_answer_that_never_comes_is_an_error_and_what_came_of_it_is_terminated() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("submit_job", LOST, done=True)
        aws.fail("list_jobs", LOST)
        with pytest.raises(LaunchError, match="the answer was lost"):
            await launcher.start(told.request(*nodes(3)))
        assert aws.live() == ["job-1"]
        await asyncio.gather(*[launcher.stop(node) for node in nodes(3)])
        assert aws.live() == []
        assert aws.count("terminate_job") == 1


async def test_start_cancelled_while_aws_is_asked_leaves_nothing() -> None:
    async with opened() as (aws, launcher, told):
        aws.hold = asyncio.Event()
        starting = asyncio.ensure_future(launcher.start(told.request(*nodes(3))))
        await aws.until(lambda: aws.live())
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        closing = asyncio.ensure_future(launcher.close(0.0))
        await asyncio.sleep(0)
        aws.hold.set()
        await closing
        assert aws.live() == []
        aws.closed = 0  # it is closed once more at the end


async def test_start_cancelled_while_the_answer_is_lost_does_not_submit_again() -> None:
    async with opened() as (aws, launcher, told):
        aws.hold = asyncio.Event()
        aws.fail("submit_job", LOST, done=True)
        starting = asyncio.ensure_future(launcher.start(told.request(*nodes(3))))
        await aws.until(lambda: aws.live())
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        aws.hold.set()
        await asyncio.gather(*[launcher.stop(node) for node in nodes(3)])
        assert aws.count("submit_job") == 1
        assert aws.live() == []


# --- what AWS says -----------------------------------------------------------------------------------------------------------


async def test_states_are_told_with_their_reasons_and_a_hint() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        aws.become("job-1:0", "RUNNABLE", statusReason="CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - none")
        aws.become("job-1:1", "RUNNING")
        await told.until(lambda: len([news for news in told.of("observed") if news[1] != "SUBMITTED"]) == 2)
        (runnable,) = [news for news in told.of("observed") if news[1] == "RUNNABLE"]
        assert runnable[0] == "batch-1"
        assert runnable[2].startswith("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - none (AWS has no such instance now")
        assert ("batch-2", "RUNNING", "") in told.of("observed")
        await launcher.stop("batch-2")


async def test_a_failed_node_is_told_with_its_reason_after_its_last_lines_are_there() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        aws.lines["stream-0"] = ["no module named model", "bye"]
        container = {"exitCode": 137, "reason": "OutOfMemoryError: Container killed", "logStreamName": "stream-0"}
        aws.become("job-1:0", "FAILED", statusReason="Essential container in task exited", container=container)
        await told.until(lambda: told.of("exited"))
        why = "Essential container in task exited; OutOfMemoryError: Container killed; exit code 137 (memory= gives more)"
        assert told.of("exited") == [("batch-1", f"its job has FAILED: {why}")]
        assert launcher.last_lines("batch-1") == ("no module named model", "bye")
        assert launcher.last_lines("batch-2") == ()


async def test_lines_that_come_late_are_waited_for() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        aws.become("job-1", "FAILED", container={"exitCode": 1, "logStreamName": "stream"})
        await aws.until(lambda: aws.count("get_log_events") == 1)
        aws.lines["stream"] = ["late"]
        await told.until(lambda: told.of("exited"))
        assert launcher.last_lines("batch-1") == ("late",)


async def test_a_node_whose_lines_cannot_be_had_is_told_all_the_same() -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("get_log_events", DENIED, DENIED, DENIED)
        await launcher.start(told.request("batch-1"))
        aws.become("job-1", "SUCCEEDED", container={"exitCode": 0, "logStreamName": "stream"})
        await told.until(lambda: told.of("exited"))
        assert told.of("exited") == [("batch-1", "its job is SUCCEEDED: exit code 0")]
        assert launcher.last_lines("batch-1") == ("(the log cannot be read: access denied)",)


async def test_a_node_whose_lines_make_no_sense_is_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(retry=1) as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        aws.lines["stream"] = cast(list[str], None)
        aws.become("job-1", "RUNNABLE", attempts=[RECLAIMED], container={"logStreamName": "stream"})
        await told.until(lambda: told.of("exited"))
        aws.become("job-1", "FAILED", attempts=[], container={"exitCode": 1, "logStreamName": "stream"})
        await told.until(lambda: len(told.of("exited")) == 2)
        assert [node for node, _reason in told.of("exited")] == ["batch-1", "batch-1.2"]
        assert "TypeError" in caplog.text


async def test_watching_outlives_errors_of_the_api(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (aws, launcher, told):
        aws.fail("describe_jobs", THROTTLED, EXPIRED, EXPIRED)
        await launcher.start(told.request("batch-1"))
        aws.become("job-1", "RUNNING")
        await told.until(lambda: ("batch-1", "RUNNING", "") in told.of("observed"))
        assert len([message for message in caplog.messages if "have expired" in message]) == 1
        await launcher.stop("batch-1")


async def test_a_launch_that_has_failed_says_what_is_wrong_with_the_environment() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        aws.become("job-1", "RUNNABLE")
        await told.until(lambda: ("batch-1", "RUNNABLE", "") in told.of("observed"))
        await launcher.look(["batch-1", "unknown-1"])
        assert told.of("observed")[-1][2].startswith("no instance has taken it: AWS may have no capacity")
        aws.environments[1].update(status="INVALID", statusReason="CLIENT_ERROR - subnet")
        await launcher.look(["batch-1"])
        assert told.of("observed")[-1] == ("batch-1", "RUNNABLE", "compute environment two is INVALID: CLIENT_ERROR - subnet")


# --- retries -----------------------------------------------------------------------------------------------------------------

RECLAIMED = {"stoppedAt": 5, "statusReason": "Host EC2 (instance i-1) terminated.", "container": {}}


async def test_retry_asks_aws_to_start_again_what_has_lost_its_instance_only() -> None:
    async with opened(retry=2) as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        assert aws.arguments("submit_job")[0]["retryStrategy"] == {
            "attempts": 3,
            "evaluateOnExit": [
                {"onStatusReason": "Host EC2*", "action": "RETRY"},
                {"onExitCode": "75", "action": "RETRY"},
                {"onReason": "*", "action": "EXIT"},
            ],
        }
        assert environment(aws.arguments("submit_job")[0])["AIOCLUSTER_RECLAIMED_CODE"] == "75"


async def test_another_attempt_is_another_node_in_the_place_of_the_first() -> None:
    async with opened(retry=2) as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        aws.become("job-1:0", "RUNNING")
        await told.until(lambda: ("batch-1", "RUNNING", "") in told.of("observed"))
        aws.become("job-1:0", "RUNNABLE", attempts=[RECLAIMED])
        await told.until(lambda: told.of("exited"))
        assert told.of("expect") == [("batch-1.2", "batch-1")]
        assert told.of("exited") == [("batch-1", "Host EC2 (instance i-1) terminated.; AWS Batch starts it again")]
        assert told.news.index(("expect", "batch-1.2", "batch-1")) < told.news.index(("exited", *told.of("exited")[0]))
        assert ("batch-1.2", "RUNNABLE", "") in told.of("observed")
        await launcher.stop("batch-1")  # that is over
        assert aws.count("terminate_job") == 0
        aws.become("job-1:0", "FAILED", attempts=[RECLAIMED, RECLAIMED], statusReason="enough")
        await told.until(lambda: len(told.of("exited")) == 2)
        assert told.of("exited")[1] == ("batch-1.2", "its job has FAILED: enough")


async def test_another_attempt_of_a_node_that_is_being_ended_is_no_node() -> None:
    async with opened(retry=2) as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        aws.become("job-1", "RUNNING")
        await told.until(lambda: ("batch-1", "RUNNING", "") in told.of("observed"))
        node = launcher._fleet.nodes["batch-1"]
        node.submission.kept.discard(node)  # as while the request that ends it is under way
        aws.become("job-1", "RUNNABLE", attempts=[RECLAIMED])
        asked = aws.count("describe_jobs")
        await aws.until(lambda: aws.count("describe_jobs") > asked + 2)
        assert told.of("expect") == []


@pytest.mark.parametrize("lag", [1, 2])
async def test_a_job_that_is_not_listed_yet_when_its_lost_start_is_cancelled_is_ended(lag: int) -> None:
    async with opened() as (aws, launcher, told):
        aws.hold = asyncio.Event()
        aws.lag = lag
        aws.fail("submit_job", LOST, done=True)
        starting = asyncio.ensure_future(launcher.start(told.request(*nodes(3))))
        await aws.until(lambda: aws.live())
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        aws.hold.set()
        await launcher.close(0.0)
        assert aws.live() == []
        aws.closed = 0  # it is closed once more at the end


async def test_a_later_attempt_that_dials_first_is_adopted_in_the_place_of_the_one_before() -> None:
    async with opened(retry=2) as (_aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        assert launcher.adopt("batch-1") == "batch-1"
        assert launcher.adopt("batch-2.3") == "batch-2.3"
        assert told.of("expect") == [("batch-2.3", "batch-2")]
        assert launcher.adopt("batch-2.3") == "batch-2.3"
        await told.until(lambda: told.of("exited"))
        assert [node for node, _ in told.of("exited")] == ["batch-2"]
        for stranger in ("batch-1.4", "batch-1.1", "batch-1.x", "batch-9.2", "local-1"):
            assert launcher.adopt(stranger) is None


async def test_a_lost_node_whose_job_is_tried_again_is_left_to_that() -> None:
    async with opened(retry=1) as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        aws.become("job-1:0", "RUNNING")
        await told.until(lambda: ("batch-1", "RUNNING", "") in told.of("observed"))
        stopping = asyncio.ensure_future(launcher.stop("batch-1", lost=True))
        await asyncio.sleep(0)
        aws.become("job-1:0", "RUNNABLE", attempts=[RECLAIMED])
        await stopping
        assert aws.count("terminate_job") == 0
        assert aws.jobs["job-1:0"]["status"] == "RUNNABLE"


async def test_a_lost_node_that_never_ends_is_terminated_though_it_might_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "LOST_WAIT_S", 0.01)
    async with opened(retry=1) as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        await launcher.stop("batch-1", lost=True)
        assert [asked["jobId"] for asked in aws.arguments("terminate_job")] == ["job-1:0"]


async def test_a_lost_node_that_is_not_tried_again_is_terminated() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        await launcher.stop("batch-1", lost=True)
        assert [asked["jobId"] for asked in aws.arguments("terminate_job")] == ["job-1:0"]


def job(status: str, *attempts: dict[str, Any], **told: Any) -> dict[str, Any]:
    return {"jobId": "j", "status": status, "attempts": list(attempts), **told}


@pytest.mark.parametrize(
    ("described", "attempt"),
    [
        (job("SUBMITTED"), 1),
        (job("RUNNING"), 1),
        (job("RUNNING", {"startedAt": 1}), 1),
        (job("RUNNING", RECLAIMED), 1),  # it may just be ending
        (job("RUNNABLE", RECLAIMED), 2),
        (job("RUNNING", RECLAIMED, {"startedAt": 6}), 2),
        (job("FAILED", RECLAIMED), 1),
        (job("FAILED", RECLAIMED, RECLAIMED), 2),
        (job("FAILED"), 1),
    ],
)
def test_the_number_of_the_attempt_is_read_from_those_that_are_over(described: dict[str, Any], attempt: int) -> None:
    assert JobState.of(described).attempt == attempt


def test_the_log_group_is_that_of_the_jobs_configuration() -> None:
    options = {"awslogs-group": "/mine"}
    container = {"logStreamName": "s", "logConfiguration": {"logDriver": "awslogs", "options": options}}
    state = JobState.of(job("RUNNING", container=container))
    assert (state.log_group, state.log_stream) == ("/mine", "s")


# --- ending ------------------------------------------------------------------------------------------------------------------


async def test_one_node_of_an_array_is_ended_alone() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(3)))
        await launcher.stop("batch-2")
        await launcher.stop("batch-2")
        await launcher.stop("batch-2.2")
        assert [asked["jobId"] for asked in aws.arguments("terminate_job")] == ["job-1:1"]
        assert aws.live() == ["job-1"]
        assert told.of("exited") == []


async def test_all_nodes_of_an_array_are_ended_by_one_request() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(3)))
        await asyncio.gather(*[launcher.stop(node) for node in nodes(3)])
        assert [asked["jobId"] for asked in aws.arguments("terminate_job")] == ["job-1"]
        assert told.of("exited") == []


async def test_close_leaves_nodes_that_run_the_time_to_end_by_themselves() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(2)))
        for index in range(2):
            aws.become(f"job-1:{index}", "RUNNING")
        await told.until(lambda: len([news for news in told.of("observed") if news[1] == "RUNNING"]) == 2)
        closing = asyncio.ensure_future(launcher.close(60.0))
        asked = aws.count("describe_jobs")
        await aws.until(lambda: aws.count("describe_jobs") > asked)
        for id in ("job-1", "job-1:0", "job-1:1"):
            aws.become(id, "SUCCEEDED")
        await closing
        assert aws.count("terminate_job") == 0
        assert told.of("exited") == []
        aws.closed = 0


async def test_nodes_that_have_not_begun_are_ended_after_those_that_run_have_ended_by_themselves() -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request(*nodes(3)))
        aws.become("job-1:0", "RUNNING")
        aws.become("job-1:1", "RUNNABLE")
        await told.until(lambda: ("batch-1", "RUNNING", "") in told.of("observed"))
        closing = asyncio.ensure_future(launcher.close(60.0))
        asked = aws.count("describe_jobs")
        await aws.until(lambda: aws.count("describe_jobs") > asked)
        assert aws.count("terminate_job") == 0
        aws.become("job-1:0", "SUCCEEDED")
        await closing
        assert [asked["jobId"] for asked in aws.arguments("terminate_job")] == ["job-1"]
        assert {aws.jobs[f"job-1:{index}"]["status"] for index in (1, 2)} == {"FAILED"}
        aws.closed = 0


async def test_close_ends_what_it_can_and_says_what_it_could_not() -> None:
    aws, told = FakeAws(), Told()
    launcher = batch_of(aws)
    await launcher.start(told.request("batch-1"))
    await launcher.start(told.request("batch-2"))
    aws.fail("terminate_job", DENIED, DENIED, DENIED)
    with pytest.raises(LaunchError, match="jobs that could not be terminated: job-1: access denied"):
        await launcher.close(0.0)
    assert aws.live() == ["job-1"]
    assert aws.closed == 1


class Thrice(FakeAws):
    """Each request comes to be three times, and one job cannot be terminated."""

    stubborn = "job-2"

    def _submit_job(self, **asked: Any) -> dict[str, Any]:
        for _ in range(2):
            super()._submit_job(**asked)
        return super()._submit_job(**asked)

    def _terminate_job(self, jobId: str, reason: str) -> dict[str, Any]:  # noqa: N803  # the API's word
        if jobId == self.stubborn:
            raise DENIED
        return super()._terminate_job(jobId, reason)


async def test_a_double_that_cannot_be_ended_keeps_no_other_from_it() -> None:
    aws, told = Thrice(), Told()
    launcher = batch_of(aws)
    for node in nodes(2):
        aws.fail("submit_job", LOST, done=True)
        aws.fail("list_jobs", LOST)
        with pytest.raises(LaunchError):
            await launcher.start(told.request(node))
    assert len(aws.live()) == 6
    with pytest.raises(LaunchError, match="access denied"):
        await launcher.close(0.0)
    assert aws.live() == ["job-2"]


async def test_a_launcher_that_never_started_anything_closes() -> None:
    async with opened() as (aws, launcher, _told):
        await launcher.close(0.0)
        assert aws.asked == []
        aws.closed = 0


# --- the token -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("ssm", "/aiocluster/c-fake/token"), ("secretsmanager", "aiocluster/c-fake/token")])
async def test_only_the_name_of_the_token_travels_where_there_is_a_store(kind: str, name: str) -> None:
    async with opened(secret_store=kind) as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        await launcher.start(told.request("batch-2"))
        for asked in aws.arguments("submit_job"):
            assert environment(asked)["AIOCLUSTER_TOKEN_FROM"] == f"{kind}:{name}"
            assert told.token.reveal().hex() not in str(asked)
        assert list(aws.secrets) == [name]
        await launcher.close(0.0)
        assert aws.secrets == {}
        aws.closed = 0


# --- what others have left -------------------------------------------------------------------------------------------------


async def test_leftovers_are_the_jobs_of_clusters_that_have_not_ended() -> None:
    aws, told = FakeAws(), Told()
    launcher = batch_of(aws, environ={"AWS_BATCH_JOB_ID": "x"})
    await launcher.start(told.request(*nodes(2)))
    await launcher.start(told.request("batch-3"))
    aws._submit_job(jobName="somebody-elses")
    aws.jobs["job-1"]["tags"][MANAGER] = "batch:gone"
    aws.jobs["gone"] = {"jobId": "gone", "jobName": "m", "status": "FAILED", "tags": {}}
    found = {one.id: one for one in await leftovers(api=aws)}
    assert set(found) == {"job-1", "job-2"}
    assert (found["job-1"].alive, found["job-2"].alive) == (False, True)
    assert found["job-1"].cluster == "c-fake"
    assert found["job-1"].kind == "batch job"
    await end(found["job-1"], api=aws)
    assert "job-1" not in aws.live()
    await launcher.close(0.0)


@pytest.mark.parametrize("kind", ["ssm", "secretsmanager"])
async def test_a_token_that_a_killed_manager_has_left_is_found_by_its_marks_and_deleted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws, told = FakeAws(), Told()
    monkeypatch.setenv("AWS_BATCH_JOB_ID", "manager-1")
    aws.jobs["manager-1"] = {"jobId": "manager-1", "jobName": "m", "status": "RUNNING", "tags": {}}
    launcher = batch_of(aws, secret_store=kind)
    await launcher.start(told.request("batch-1"))
    await SecretStore("ssm", aws).put(ClusterId("c-other"), told.token)
    aws.secrets["somebody-elses"] = {"Type": "SecureString"}
    monkeypatch.delenv("AWS_BATCH_JOB_ID")
    for status, alive in (("RUNNING", True), ("FAILED", False)):  # it is killed, and nothing of it is closed
        aws.become("manager-1", status)
        found = {(one.kind, one.cluster): one for one in await leftovers(api=aws)}
        assert set(found) == {("batch job", "c-fake"), ("batch token", "c-fake"), ("batch token", "c-other")}
        token = found["batch token", "c-fake"]
        assert token.alive is found["batch job", "c-fake"].alive is alive
        assert token.manager == "batch:manager-1"
        assert token.created is not None
        assert region_of_arn(token.where) == "eu-west-1"
    assert told.token.reveal().hex() not in str(found)
    await end(token, api=aws)
    assert set(aws.secrets) == {"/aiocluster/c-other/token", "somebody-elses"}
    await end(token, api=aws)  # it is gone
    await launcher.close(0.0)


async def test_jobs_are_found_where_tokens_may_not_be_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (aws, launcher, told):
        await launcher.start(told.request("batch-1"))
        aws.fail("get_resources", DENIED)
        assert [one.kind for one in await leftovers(api=aws)] == ["batch job"]
        assert any("are not looked for: access denied" in message for message in caplog.messages)
        aws.closed = 0
