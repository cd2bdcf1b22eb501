"""A window into a running cluster, for `aiocluster top`: a Unix socket beside the manager's own, which only its user can open.

Whoever connects writes a line of JSON, and gets one back: what the cluster looks like at that moment. Nothing can be changed
through it, nothing of arguments or results is seen, and neither end ever unpickles. It costs a socket, and nothing more until
somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, cast

from aiocluster.net.address import UnixAddress
from aiocluster.net.sockets import FOLDER_PREFIX, WINDOW_NAME, listening_sockets

__all__ = ["Window", "find_windows", "look"]

ASK = {"ask": "status"}
LONGEST_REQUEST = 1024
MOST_UNREAD = 4 * 2**20
"""Bytes that wait for one who asks and does not read; then it is sent away."""
MOST_VISITORS = 16
LONGEST_ANSWER = 64 * 2**20
ANSWER_TIMEOUT_S = 5.0

Snapshot = Callable[[], Mapping[str, Any]]


class Window:
    """The manager's side.

    Args:
        path: of the socket, in a folder that only this user can enter.
        snapshot: what the cluster looks like; of what JSON knows.
    """

    def __init__(self, path: str, snapshot: Snapshot) -> None:
        self._path = path
        self._snapshot = snapshot
        self._server: asyncio.Server | None = None
        self._visitors: set[_Visitor] = set()

    async def open(self) -> None:
        """Others can look from now on. Raises OSError if the socket cannot be made."""
        loop = asyncio.get_running_loop()
        (sock,) = await listening_sockets(loop, UnixAddress(self._path))
        try:
            self._server = await loop.create_unix_server(
                lambda: _Visitor(self._visitors, self._snapshot), sock=sock, start_serving=False
            )
        except BaseException:
            sock.close()
            raise
        await self._server.start_serving()  # a second step, so that one who is cancelled in it has something to close

    def close(self) -> None:
        """Nobody looks any more, and the socket is gone."""
        if self._server is not None:
            self._server.close()
        for visitor in list(self._visitors):
            visitor.leave()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class _Visitor(asyncio.Protocol):
    """One who looks."""

    def __init__(self, visitors: set[_Visitor], snapshot: Snapshot) -> None:
        self._visitors = visitors
        self._snapshot = snapshot
        self._transport: asyncio.WriteTransport | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # that of uvloop does not derive from it
        self._visitors.add(self)
        if len(self._visitors) > MOST_VISITORS:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._visitors.discard(self)

    def leave(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        *lines, self._read = (self._read + data).split(b"\n")
        for line in lines:
            if self._transport.is_closing():
                return
            self._transport.write(json.dumps(self._answer(line)).encode() + b"\n")
            if self._transport.get_write_buffer_size() > MOST_UNREAD:
                self.leave()
        if len(self._read) > LONGEST_REQUEST:
            self.leave()

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            asked = None
        return self._snapshot() if asked == ASK else {"error": f"what can be asked is {json.dumps(ASK)}"}


# --- the side of those who look ----------------------------------------------------------------------------------------------


def find_windows() -> list[str]:
    """The paths of the windows of this user's clusters on this machine; of some of them, the cluster may be gone."""
    found: dict[str, None] = {}
    for folder in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108  # where managers make theirs
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                path = f"{entry.path}/{WINDOW_NAME}"
                with contextlib.suppress(OSError):
                    if entry.name.startswith(FOLDER_PREFIX) and _mine(path):
                        found[os.path.realpath(path)] = None
    return sorted(found)


def _mine(path: str) -> bool:
    """Whether it is a socket of this user, in a folder that nobody else could have put it into."""
    about, folder = os.lstat(path), os.lstat(os.path.dirname(path))
    return (
        stat.S_ISSOCK(about.st_mode)
        and stat.S_ISDIR(folder.st_mode)
        and about.st_uid == folder.st_uid == os.getuid()
        and not stat.S_IMODE(folder.st_mode) & 0o077
    )


async def look(path: str) -> dict[str, Any]:
    """What the cluster behind a window looks like now.

    Raises:
        ConnectionError: it is closed.
        TimeoutError: its manager is busy with something else.
    """
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=LONGEST_ANSWER)
        except FileNotFoundError as error:
            raise ConnectionRefusedError(f"nobody is at {path}") from error
        try:
            writer.write(json.dumps(ASK).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    if not line.endswith(b"\n"):
        raise ConnectionResetError(f"the cluster at {path} has closed")
    answer: dict[str, Any] = json.loads(line)
    return answer
