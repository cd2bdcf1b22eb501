"""The last lines of a container, from CloudWatch Logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiocluster.launch.aws import Api, AwsError, Fault

__all__ = ["last_lines", "lines_of_ended"]

logger = logging.getLogger("aiocluster")

LAST_LINES = 50
TRIES = 3
WAIT_S = 1.0
"""A container's last lines are there a moment after its end."""


async def last_lines(api: Api, group: str, stream: str) -> tuple[str, ...]:
    """The last lines of a stream; none if they cannot be had, for whatever reason: who asks has an end to tell."""
    if not group or not stream:
        return ()
    try:
        answer = await api.call(
            "logs",
            "get_log_events",
            patient=False,
            logGroupName=group,
            logStreamName=stream,
            limit=LAST_LINES,
            startFromHead=False,
        )
        return tuple(str(event["message"]).rstrip("\n") for event in answer.get("events", ()))
    except AwsError as error:
        if error.fault is Fault.DENIED:  # told in the place of the lines, where whoever misses them looks
            return (f"(the log cannot be read: {error.reason})",)
        logger.debug("no log lines of %s: %s", stream, error.reason)
    except Exception:
        logger.exception("the log lines of %s cannot be had, for a reason that is not known", stream)
    return ()


async def lines_of_ended(
    api: Api, group: str, stream: str, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> tuple[str, ...]:
    """As `last_lines`, of a container that has just ended: asked for again where there are none yet."""
    for number in range(TRIES if group and stream else 0):
        if number:
            await pause(WAIT_S)
        if lines := await last_lines(api, group, stream):
            return lines
    return ()
