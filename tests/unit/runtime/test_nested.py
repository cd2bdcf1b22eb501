"""What a worker sends when its calls make calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from aiocluster.core.calls import CallOptions
from aiocluster.runtime import nested
from aiocluster.runtime.executor import Executor
from aiocluster.runtime.nested import NestedBackend
from aiocluster.wire.messages import Message, Submit


class NoRunners:
    def uninterrupted(self, step: Callable[[], Any]) -> Any:
        return step()


async def test_calls_of_one_moment_share_frames_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "PAYLOADS_AT_ONCE_BYTES", 3000)
    sent: list[Submit] = []

    def send(message: Message, _buffers: Sequence[Any]) -> None:
        if isinstance(message, Submit):
            sent.append(message)

    backend = NestedBackend(asyncio.get_running_loop(), cast(Executor, NoRunners()), send, "c-1")
    futures = [backend.submit(len, (bytes(1000),), {}, CallOptions()) for _ in range(10)]
    await asyncio.sleep(0)
    assert [len(message.ids) for message in sent] == [3, 3, 3, 1]
    assert [id for message in sent for id in message.ids] == list(range(1, 11))
    for future in futures:
        future.cancel()
