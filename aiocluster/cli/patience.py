"""Waiting for something in AWS for hours, on a line that may be gone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiocluster.launch.aws import AwsError

__all__ = ["Patience"]

T = TypeVar("T")
PAUSE_S = 5.0


class Patience:
    """What may pass is no end: it is told once each time, and asked again, for as long as it takes.

    Args:
        tell: called with what to say.
        pause: between two questions.
    """

    def __init__(self, tell: Callable[[str], None], pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._tell = tell
        self._pause = pause
        self._told = False

    async def again(self, error: AwsError) -> None:
        """Returns when it is time to ask again after this."""
        if not self._told:
            self._tell(f"no answer for the moment, and the job goes on meanwhile: {error}")
        self._told = True
        await self._pause(PAUSE_S)

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """What it gives at last.

        Raises:
            AwsError: one that does not pass, such as credentials that have expired.
        """
        while True:
            try:
                answer = await question()
            except AwsError as error:
                if not error.passing:
                    raise
                await self.again(error)
            else:
                if self._told:
                    self._tell("AWS answers again")
                self._told = False
                return answer
