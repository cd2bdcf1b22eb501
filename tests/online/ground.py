"""What tests of AWS stand on: queues, definitions and a cluster, of the emulators or of a CloudFormation stack of the caller.

Which of them it is makes no difference to a test: it takes names and an environment from here, and knows no more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import botocore.session

from tests.online.emulators import ACCOUNT, REGION
from tests.online.engine import Engine

QUEUE = "aiocluster-workers"
MANAGER_QUEUE = "aiocluster-managers"
SMALL_QUEUE = "aiocluster-small"
SMALL_VCPUS = 2
VCPUS = 256
DEFINITION = "aiocluster-test"
CLUSTER = "aiocluster-test"
TASK_DEFINITION = "aiocluster-test"
CONTAINER = "aiocluster"
LOG_GROUP = "/aiocluster/test"
SUBNET = "subnet-aiocluster"
MEMORY_MIB = 512


@dataclass(frozen=True)
class Aws:
    """An account, or what stands for one.

    Args:
        environ: What a process on this machine needs to reach it: addresses, credentials, region. Empty for a real account.
        image: What jobs and tasks run: the package of this checkout.
        emulated: By servers of these tests.
    """

    environ: Mapping[str, str]
    image: str
    emulated: bool

    @contextlib.contextmanager
    def client(self, service: str) -> Iterator[Any]:
        """A client of botocore, which waits: to look at what aiocluster has done, from beside it."""
        session = botocore.session.Session()
        values = self.environ
        client = session.create_client(
            service,
            region_name=values.get("AWS_DEFAULT_REGION"),
            endpoint_url=values.get(f"AWS_ENDPOINT_URL_{service.upper()}") or values.get("AWS_ENDPOINT_URL"),
            aws_access_key_id=values.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=values.get("AWS_SECRET_ACCESS_KEY"),
        )
        try:
            yield client
        finally:
            client.close()

    def log_lines(self, group: str, stream: str) -> list[str]:
        """All lines of a stream of CloudWatch Logs that are there by now: none before the first, which makes the stream."""
        with self.client("logs") as logs:
            try:
                answer = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)
            except logs.exceptions.ResourceNotFoundException:
                return []
            return [event["message"] for event in answer["events"]]


@dataclass(frozen=True)
class Batch(Aws):
    """AWS Batch, with queues of their names or ARNs.

    Args:
        queue: Where workers go; it has room.
        manager_queue: Where managers go.
        small_queue: A queue with `SMALL_VCPUS` vCPUs, of the emulator only.
        definition: A job definition, whose container runs `image`.
        job_environ: What a job needs in its definition's environment where no role gives it credentials.
    """

    queue: str
    manager_queue: str
    small_queue: str | None
    definition: str
    job_environ: Mapping[str, str]


@dataclass(frozen=True)
class Ecs(Aws):
    """ECS.

    Args:
        cluster: Its name or ARN.
        task_definition: A task definition, whose one container runs `image`.
        container: The name of that container.
        log_group: Where the container's output goes.
        log_prefix: The first part of the names of its streams.
        launch_type: EC2 or FARGATE.
        subnets: For tasks with a network of their own; none for those on the network of the host.
    """

    cluster: str
    task_definition: str
    container: str
    log_group: str
    log_prefix: str
    launch_type: str = "EC2"
    subnets: tuple[str, ...] = ()

    @property
    def place(self) -> dict[str, Any]:
        """What RunTask has to be told of where, and of what."""
        told = {"cluster": self.cluster, "taskDefinition": self.task_definition, "launchType": self.launch_type}
        network = {"awsvpcConfiguration": {"subnets": list(self.subnets)}}
        return {**told, "networkConfiguration": network} if self.subnets else told


def emulated_environ(url: str) -> dict[str, str]:
    """Reaches an emulator, and never an account of whoever runs the tests."""
    address = url.rpartition("/")[2].partition(":")[0]
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCOUNT,
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": address,
    }


def named(values: Mapping[str, str]) -> list[dict[str, str]]:
    """An environment as AWS writes it."""
    return [{"name": name, "value": value} for name, value in values.items()]


def emulated_batch(url: str, engine: Engine) -> Batch:
    """Queues and a definition are made on an emulator that has none of them yet."""
    environ = emulated_environ(url)
    made = Batch(
        environ=environ,
        image=engine.image,
        emulated=True,
        queue=QUEUE,
        manager_queue=MANAGER_QUEUE,
        small_queue=SMALL_QUEUE,
        definition=DEFINITION,
        job_environ=environ,
    )
    with made.client("ec2") as ec2:
        network = {
            "subnets": [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]],
            "securityGroupIds": [group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]],
        }
    with made.client("iam") as iam:
        service = iam.create_role(RoleName="aiocluster-batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        profile = iam.create_instance_profile(InstanceProfileName="aiocluster-instance")["InstanceProfile"]["Arn"]
    with made.client("batch") as batch:
        for name, vcpus in ((QUEUE, VCPUS), (MANAGER_QUEUE, VCPUS), (SMALL_QUEUE, SMALL_VCPUS)):
            resources = {"type": "EC2", "minvCpus": 0, "maxvCpus": vcpus, "instanceTypes": ["optimal"], "instanceRole": profile}
            environment = batch.create_compute_environment(
                computeEnvironmentName=name,
                type="MANAGED",
                state="ENABLED",
                serviceRole=service,
                computeResources={**resources, **network},
            )["computeEnvironmentArn"]
            order = [{"order": 1, "computeEnvironment": environment}]
            batch.create_job_queue(jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order)
        batch.register_job_definition(
            jobDefinitionName=DEFINITION, type="container", containerProperties=job_container(made.image, environ)
        )
    return made


def job_container(image: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The properties of a job's container, which runs the image's own command; for definitions of a test's own, too."""
    requirements = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": str(MEMORY_MIB)}]
    return {"image": image, "command": [], "environment": named(environ), "resourceRequirements": requirements}


def emulated_ecs(url: str, engine: Engine, *, own_network: bool = False) -> Ecs:
    """A cluster and a task definition are made on an emulator that has none of them yet.

    Args:
        own_network: tasks are of Fargate, and have addresses of their own. Else they are on the network of the host.
    """
    environ = emulated_environ(url)
    made = Ecs(
        environ=environ,
        image=engine.image,
        emulated=True,
        cluster=CLUSTER,
        task_definition=TASK_DEFINITION,
        container=CONTAINER,
        log_group=LOG_GROUP,
        log_prefix="test",
        launch_type="FARGATE" if own_network else "EC2",
        subnets=(SUBNET,) if own_network else (),
    )
    logs = {"awslogs-group": LOG_GROUP, "awslogs-region": REGION, "awslogs-stream-prefix": "test", "awslogs-create-group": "true"}
    container = {
        "name": CONTAINER,
        "image": made.image,
        "memory": MEMORY_MIB,
        "essential": True,
        "environment": named(environ),
        "logConfiguration": {"logDriver": "awslogs", "options": logs},
    }
    with made.client("ecs") as ecs:
        ecs.create_cluster(clusterName=CLUSTER)
        limits = {"cpu": "256", "memory": str(MEMORY_MIB), "requiresCompatibilities": ["FARGATE"]} if own_network else {}
        mode = "awsvpc" if own_network else "host"
        ecs.register_task_definition(family=TASK_DEFINITION, networkMode=mode, containerDefinitions=[container], **limits)
    return made


def stack_outputs(name: str) -> dict[str, str]:
    """What a stack of the caller's account says of itself."""
    session = botocore.session.Session()
    client = session.create_client("cloudformation")
    try:
        (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    finally:
        client.close()
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def stack_batch(outputs: Mapping[str, str]) -> Batch:
    """The queues and the definition of a stack.

    Raises:
        KeyError: The stack has no output of that name.
    """
    return Batch(
        environ={},
        image=stack_image(outputs),
        emulated=False,
        queue=outputs["WorkerJobQueueArn"],
        manager_queue=outputs["ManagerJobQueueArn"],
        small_queue=None,
        definition=outputs["JobDefinitionName"],
        job_environ={},
    )


def stack_ecs(outputs: Mapping[str, str]) -> Ecs:
    """The cluster and the task definition of a stack.

    Raises:
        KeyError: The stack has no output of that name.
    """
    return Ecs(
        environ={},
        image=stack_image(outputs),
        emulated=False,
        cluster=outputs["EcsClusterArn"],
        task_definition=outputs["TaskDefinitionArn"],
        container=outputs.get("TaskContainerName", CONTAINER),
        log_group=outputs["TaskLogGroup"],
        log_prefix=outputs.get("TaskLogPrefix", CONTAINER),
        launch_type=outputs.get("LaunchType", "EC2"),
        subnets=tuple(outputs["SubnetIds"].split(",")) if outputs.get("SubnetIds") else (),
    )


def stack_image(outputs: Mapping[str, str]) -> str:
    uri = outputs["EcrUri"]
    return uri if ":" in uri.rpartition("/")[2] else f"{uri}:latest"
