"""A multi-node parallel job on this machine: the test's process is its main node, real agents are the others."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import IO, Any

import psutil

from aiocluster.launch.base import LaunchRequest
from aiocluster.launch.batch_nodes import BatchNodes
from aiocluster.launch.multinode import agreed_in
from aiocluster.launch.own_job import own_job
from aiocluster.launch.poller import Figures

AGENT = (sys.executable, "-m", "aiocluster.runtime.agent")
OTHERS = 2
END_S = 30.0


class Members:
    """The nodes beside the main one, and what AWS says of them."""

    def __init__(self, environ: Mapping[str, str], command: Sequence[str]) -> None:
        self._environ = environ
        self._command = command
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}

    def start(self) -> None:
        job = self._environ["AWS_BATCH_JOB_ID"].partition("#")[0]
        for index in range(1, OTHERS + 1):
            written = tempfile.TemporaryFile()  # noqa: SIM115  # open until the node has ended
            environ = {
                **os.environ,
                **self._environ,
                "AWS_BATCH_JOB_NODE_INDEX": str(index),
                "AWS_BATCH_JOB_ID": f"{job}#{index}",
            }
            environ["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = "127.0.0.1"
            process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=written, stderr=written, env=environ)
            self._running[f"{job}#{index}"] = (process, written)

    def end(self) -> None:
        """As AWS does when the main node has ended."""
        for process, _written in self._running.values():
            process.terminate()
        for process, written in self._running.values():
            process.wait(END_S)
            written.close()
        self._running.clear()

    # --- as an API of AWS ----------------------------------------------------------------------------------------------------

    async def region(self) -> str:
        return "us-east-1"

    async def call(self, service: str, operation: str, *, patient: bool = True, **asked: Any) -> dict[str, Any]:
        if (service, operation) == ("logs", "get_log_events"):
            written = self._running[asked["logStreamName"]][1]
            written.seek(0)
            return {"events": [{"message": line} for line in written.read().decode().splitlines()]}
        assert (service, operation) == ("batch", "describe_jobs")
        return {"jobs": [self._state(id) for id in asked["jobs"]]}

    def _state(self, id: str) -> dict[str, Any]:
        if id not in self._running:
            return {"jobId": id, "status": "STARTING"}
        code = self._running[id][0].poll()
        if code is None:
            return {"jobId": id, "status": "RUNNING"}
        container = {"exitCode": code, "logStreamName": id}
        return {"jobId": id, "status": "FAILED" if code else "SUCCEEDED", "container": container}

    async def close(self) -> None:
        """The launcher is done with asking."""


class OnThisMachine(BatchNodes):
    """The launcher of such a job. Its nodes begin when it has begun to wait for them, and end at the latest with it."""

    def __init__(
        self, *, env: Mapping[str, str] | None = None, workers_per_node: int = 1, command: Sequence[str] = AGENT
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        told = {
            "AWS_BATCH_JOB_ID": f"{uuid.uuid4()}#0",
            "AWS_BATCH_JQ_NAME": "queue",
            "AWS_BATCH_JOB_ATTEMPT": "1",
            "AWS_BATCH_JOB_NODE_INDEX": "0",
            "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
            "AWS_BATCH_JOB_NUM_NODES": str(1 + OTHERS),
            "AIOCLUSTER_PORT": str(port),
        }
        self._members = Members(told, command)
        super().__init__(
            api=self._members,
            environ=told,
            host="127.0.0.1",
            advertise="127.0.0.1",
            workers_per_node=workers_per_node,
            env=env,
            figures=Figures(quick_s=0.05, slow_s=0.2),
        )

    async def start(self, request: LaunchRequest) -> None:
        await super().start(request)
        self._members.start()

    async def close(self, grace_s: float) -> None:
        await super().close(grace_s)
        await asyncio.to_thread(self._members.end)


async def nodes_left(cluster_id: str) -> Collection[str]:
    """The agents of the cluster that run, whoever's children they are."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ() if "aiocluster.runtime.agent" in process.cmdline() else {}
            job = own_job(environ)
            if job is None or job.node_index is None or agreed_in(job, environ).cluster_id != cluster_id:
                continue
            parent = process.parent()
            if parent is None or "aiocluster.runtime.agent" not in parent.cmdline():  # its fork server has its command
                found.append(f"process {process.pid}")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
