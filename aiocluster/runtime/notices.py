"""Notices that the machine will be taken away: EC2 tells of a spot interruption in its instance metadata, two minutes ahead."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

__all__ = ["SpotNotice", "parse_notice", "watch"]

logger = logging.getLogger("aiocluster.agent")

ASK_EVERY_S: Final = 5.0
"""As AWS recommends for spot instances."""
TIMEOUT_S: Final = 2.0
TRIES: Final = 3
"""Where the metadata service has never answered there is none, or containers are kept from it: it is asked no more."""
TOKEN_FOR_S: Final = 21600
MARGIN_S: Final = 5.0
"""Kept for the last words before the machine is gone."""


class SpotNotice(NamedTuple):
    """The instance will be taken away. `grace_s`: how long calls may still run."""

    reason: str
    grace_s: float


def parse_notice(text: str, now: datetime.datetime) -> SpotNotice | None:
    """What a notice says; None for one that makes no sense.

    Args:
        text: JSON with "action" and "time", as EC2 gives it.
        now: the time of day, with its zone.
    """
    try:
        notice = json.loads(text)
        action, time = str(notice["action"]), str(notice["time"])
        left_s = (datetime.datetime.fromisoformat(time) - now).total_seconds()
    except (ValueError, KeyError, TypeError):
        return None
    return SpotNotice(f"spot interruption: EC2 will {action} the instance at {time}", max(0.0, left_s - MARGIN_S))


async def watch(
    endpoint: str,
    told: Callable[[SpotNotice], None],
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Ask until there is a notice, and tell it; returns then, or when there is nobody to ask.

    Args:
        endpoint: of the instance metadata service.
        told: called once, in the loop.
        pause: waits between two questions.

    Cancelling stops the asking.
    """
    service = _Metadata(endpoint)
    failures = 0
    answered = False
    while answered or failures < TRIES:
        try:
            text = await asyncio.to_thread(service.get, "/latest/meta-data/spot/instance-action")
        except (OSError, ValueError) as error:
            failures += 1
            logger.debug("the instance metadata service does not answer: %s", error)
        else:
            answered = True
            notice = None if text is None else parse_notice(text, datetime.datetime.now(datetime.UTC))
            if notice is not None:
                told(notice)
                return
        await pause(ASK_EVERY_S)


class _Metadata:
    """The instance metadata service, version 2: each request shows a token that was asked for before."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._token: str | None = None
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def get(self, path: str) -> str | None:
        """The text at a path, None if there is none. Blocks for seconds at most."""
        if self._token is None:
            header = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_FOR_S)}
            self._token = self._ask("PUT", "/latest/api/token", header)
        try:
            return self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:
                self._token = None  # it is too old
            raise

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        request = urllib.request.Request(self._endpoint + path, method=method, headers=dict(headers))  # noqa: S310  # http only
        with self._open(request, timeout=TIMEOUT_S) as reply:
            return str(reply.read(65536).decode())
