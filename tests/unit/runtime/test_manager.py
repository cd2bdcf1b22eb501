"""The manager's shell performs all effects, whatever becomes of one of them."""

from __future__ import annotations

import pytest

from aiocluster.config import Settings
from aiocluster.core.effects import Event, PublishEvent
from aiocluster.runtime.manager import Manager


def quiet(worker_id: int, stream: int, lines: list[str]) -> None:
    raise AssertionError("nobody writes here")


async def test_an_effect_that_raises_takes_no_other_with_it() -> None:
    manager = Manager(Settings(), quiet)
    seen: list[str] = []

    def listener(event: Event) -> None:
        if event.text == "bad":
            raise RuntimeError("a bug")
        seen.append(event.text)

    manager.listeners[listener] = None
    manager.core.effects = [PublishEvent(Event(0.0, "node_joined", "n", 0, text)) for text in ("first", "bad", "last")]
    with pytest.raises(RuntimeError, match="a bug"):
        manager.perform()
    assert seen == ["first"]
    manager.flush()
    assert seen == ["first", "last"]
    await manager.stop()


async def test_a_stopped_manager_sets_no_timer() -> None:
    manager = Manager(Settings(), quiet)
    manager.start()
    await manager.stop()
    manager.flush()
    assert manager._timer is None
