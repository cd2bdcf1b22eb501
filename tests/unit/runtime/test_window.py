"""The window into a cluster: who may look, what comes back, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocluster.runtime.window import ANSWER_TIMEOUT_S, LONGEST_REQUEST, MOST_UNREAD, MOST_VISITORS, Window, find_windows, look

pytestmark = pytest.mark.both_loops


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a short name."""
    with tempfile.TemporaryDirectory(prefix="ac-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder).resolve()


@pytest.fixture
def path(temporary: Path) -> str:
    folder = temporary / "aiocluster-test"
    folder.mkdir(mode=0o700)
    return str(folder / "window.sock")


@pytest.fixture
async def window(path: str) -> AsyncIterator[Window]:
    window = Window(path, lambda: {"cluster": "c-1", "text": "x" * 100_000})
    await window.open()
    yield window
    window.close()


def there(path: str) -> bool:
    return Path(path).exists()


async def connected(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path, limit=2**20)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:  # by the other end already
        pass


async def test_a_look_gives_what_the_cluster_is(window: Window, path: str) -> None:
    assert (await look(path))["cluster"] == "c-1"
    assert path in find_windows()


async def test_only_the_user_can_open_it(window: Window, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_several_lines_on_one_connection_are_answered_in_order(window: Window, path: str) -> None:
    reader, writer = await connected(path)
    writer.write(b'{"ask": "status"}\n{"ask"')
    assert json.loads(await reader.readline())["cluster"] == "c-1"
    writer.write(b': "status"}\n')
    assert json.loads(await reader.readline())["cluster"] == "c-1"
    await closed(writer)


@pytest.mark.parametrize("line", [b"", b"status", b"[]", b'{"ask": "close"}', b"\xff", b"[" * 900])
async def test_nothing_else_can_be_asked(window: Window, path: str, line: bytes) -> None:
    reader, writer = await connected(path)
    writer.write(line + b"\n")
    answer: dict[str, Any] = json.loads(await reader.readline())
    assert list(answer) == ["error"]
    await closed(writer)


async def test_a_line_without_an_end_is_not_collected(window: Window, path: str) -> None:
    reader, writer = await connected(path)
    writer.write(b"x" * (LONGEST_REQUEST + 1))
    assert await ended(reader)
    await closed(writer)


async def test_one_who_asks_and_does_not_read_is_sent_away(window: Window, path: str) -> None:
    reader, writer = await connected(path)
    asked = 2 * MOST_UNREAD // 100_000
    for _ in range(asked):
        writer.write(b'{"ask": "status"}\n')
    received = 0
    try:
        while part := await reader.read(2**20):
            received += len(part)
    except ConnectionResetError:
        pass
    assert received < asked * 100_000
    await closed(writer)
    assert (await look(path))["cluster"] == "c-1"


async def test_there_is_room_for_a_few_at_a_time(window: Window, path: str) -> None:
    visitors = [await connected(path) for _ in range(MOST_VISITORS)]
    for reader, writer in visitors:
        writer.write(b'{"ask": "status"}\n')
        assert await reader.readline()
    with pytest.raises(ConnectionError):
        await look(path)
    for _, writer in visitors:
        await closed(writer)


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_closing_sends_all_away_and_removes_the_socket(window: Window, path: str) -> None:
    reader, writer = await connected(path)
    writer.write(b'{"ask": "status"}\n')
    await reader.readline()
    window.close()
    assert await ended(reader)
    assert not there(path)
    with pytest.raises(ConnectionRefusedError):
        await look(path)
    await closed(writer)


async def test_an_opening_that_is_cancelled_leaves_nothing_open(path: str) -> None:
    for turns in range(4):
        window = Window(path, dict)
        opening = asyncio.create_task(window.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        window.close()
        assert not there(path)


async def test_what_is_not_surely_ours_is_not_opened(temporary: Path) -> None:
    for name, mode in (("aiocluster-open", 0o755), ("other", 0o700)):
        folder = temporary / name
        folder.mkdir(mode=mode)
        folder.chmod(mode)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(folder / "window.sock"))
    (temporary / "aiocluster-file").mkdir(mode=0o700)
    (temporary / "aiocluster-file" / "window.sock").touch()
    assert [path for path in find_windows() if path.startswith(str(temporary))] == []


async def test_a_manager_that_does_not_answer_is_not_waited_for_long(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ANSWER_TIMEOUT_S == 5.0
    monkeypatch.setattr("aiocluster.runtime.window.ANSWER_TIMEOUT_S", 0.01)
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen()
        with pytest.raises(TimeoutError):
            await look(path)
