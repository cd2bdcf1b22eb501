"""The metadata endpoint of an ECS task: what a container of ECS, Fargate or AWS Batch can learn of its own task by itself.

Source: "Amazon ECS task metadata endpoint version 4" of the ECS developer guide.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

__all__ = ["METADATA", "read_metadata", "task_metadata"]

METADATA = "ECS_CONTAINER_METADATA_URI_V4"
TIMEOUT_S = 2.0
"""It answers from the task's own machine, in milliseconds."""
LARGEST_ANSWER = 1 << 20


def read_metadata(url: str) -> Mapping[str, Any]:
    """What the endpoint answers. It blocks, and is not for a loop's thread.

    Raises:
        OSError: nobody answers there.
        ValueError: the answer makes no sense.
    """
    parts = urllib.parse.urlsplit(url)  # asked directly: a proxy of the environment does not lead to this machine
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"it answers {answer.status}")
        told = json.loads(answer.read(LARGEST_ANSWER))
    except http.client.HTTPException as error:
        raise ValueError(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if not isinstance(told, dict):
        raise ValueError("it does not answer with an object")
    return told


async def task_metadata(environ: Mapping[str, str]) -> Mapping[str, Any] | None:
    """What is told of the task that this process runs in; None outside of one. Cancelling leaves a thread, for seconds at most.

    Raises:
        OSError: nobody answers at the endpoint.
        ValueError: the answer makes no sense.
    """
    address = environ.get(METADATA)
    return await asyncio.to_thread(read_metadata, f"{address}/task") if address else None
