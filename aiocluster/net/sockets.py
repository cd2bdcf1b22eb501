"""Sockets with the options that links need: opened, bound and connected, before any asyncio transport is put on them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from typing import Any

from aiocluster.net.address import Address, TcpAddress, UnixAddress

__all__ = ["connect", "listening_sockets", "peer_text", "remove_all_left_sockets", "remove_left_socket", "tune"]

FOLDER_PREFIX = "aiocluster-"
"""How the name of a folder begins that a manager makes for its socket."""
SOCKET_NAME = "manager.sock"
WINDOW_NAME = "window.sock"
"""Beside it; for those who look at the cluster."""

BACKLOG = 1024
UNIX_BUFFER_BYTES = 2 * 2**20
"""A Unix socket's buffers do not grow by themselves, and 208 KiB of them cost a switch of processes for each."""
KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_COUNT = 3
USER_TIMEOUT_MS = 10_000
"""Keepalive looks only at idle connections: without this, lost packets are noticed after a quarter of an hour."""


def remove_left_socket(address: Address) -> None:
    """Remove the socket of a manager that was killed, and the folder made for it; one where somebody listens stays."""
    if not isinstance(address, UnixAddress):
        return
    folder = os.path.dirname(address.path)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(address.path) == errno.ECONNREFUSED:
            os.unlink(address.path)
            if os.path.basename(folder).startswith(FOLDER_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{folder}/{WINDOW_NAME}")
                os.rmdir(folder)


def remove_all_left_sockets(folder: str, now: float) -> None:
    """Remove what managers that were killed together with their nodes have left in a folder for temporary files.

    Args:
        folder: where managers make theirs.
        now: the time of day; what is younger than a minute may be about to listen, and stays.
    """
    bound = _bound_paths()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            path = f"{entry.path}/{SOCKET_NAME}"
            if not entry.name.startswith(FOLDER_PREFIX) or path in bound:
                continue
            with contextlib.suppress(OSError, ValueError):
                about = os.lstat(path)
                if stat.S_ISSOCK(about.st_mode) and about.st_uid == os.getuid() and now - about.st_mtime > 60.0:
                    remove_left_socket(UnixAddress(path))


def _bound_paths() -> frozenset[str]:
    """Where somebody has a Unix socket. Who is not seen here may be there all the same: in another network namespace, for one.

    Source: /proc/net/unix in proc_net(5). To be connected to, only to be looked at, is a stranger's visit for its owner.
    """
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
            return frozenset(fields[7] for line in table if len(fields := line.rstrip("\n").split(maxsplit=7)) == 8)
    except OSError:
        return frozenset()


def tune(sock: socket.socket) -> None:
    """Set what links need: no delay of small writes, a dead peer noticed within about 10 s, large buffers on Unix sockets."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):  # the system's own maximum may be smaller; it then is what we get
                sock.setsockopt(socket.SOL_SOCKET, option, UNIX_BUFFER_BYTES)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ):
        if hasattr(socket, name):  # macOS lacks some of them; heartbeats find what they would have found
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def connect(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    """A connected, tuned socket.

    Raises:
        OSError: as the system says; ConnectionRefusedError or FileNotFoundError if nobody listens there. Of a host with more
            than one address it is the error of the last one.
    """
    if isinstance(address, UnixAddress):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            tune(sock)
            # Never pending: it connects at once or fails. With a full backlog it says EAGAIN, which `sock_connect` of
            # asyncio would take for a connection under way.
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    failure: OSError | None = None
    for family, kind, protocol, _, target in await _resolve(loop, address.host, address.port):
        sock = socket.socket(family, kind, protocol)
        try:
            tune(sock)
            await loop.sock_connect(sock, target)
            if sock.getsockname() == sock.getpeername():  # a socket can connect to itself on a free local port
                raise ConnectionRefusedError(f"nobody listens at {address}")
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or ConnectionRefusedError(f"{address.host} has no address")


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[tuple[Any, ...]]:
    try:  # a number needs no resolver, and no thread to ask it in
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        return list(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))


async def listening_sockets(loop: asyncio.AbstractEventLoop, address: Address) -> list[socket.socket]:
    """Bound and listening sockets for one address: one, or one for each address of a host by name, on the same port.

    A Unix socket is open to its owner only. The file of a socket that nobody listens on any more is replaced.

    Raises:
        OSError: the address is in use or not ours.
    """
    if isinstance(address, UnixAddress):
        return [_listening_unix(address.path)]
    found: list[socket.socket] = []
    port = address.port
    try:
        for family, kind, protocol, _, target in await _resolve(loop, address.host, address.port):
            sock = socket.socket(family, kind, protocol)
            found.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((target[0], port, *target[2:]))
            port = sock.getsockname()[1]
            sock.listen(BACKLOG)
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def _listening_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # On the listening socket already: what connects has its share of the buffers before it is accepted.
        tune(sock)
        _remove_dead(path)
        sock.bind(path)
        os.chmod(path, 0o600)  # before listen: nobody can have connected
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: str) -> None:
    """Remove the socket file of a process that is gone; whatever else is there stays, and `bind` says so."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            return


def listening_address(sock: socket.socket, *, tls: bool = True) -> Address:
    """Where a listening socket can be reached, with the port that it really has."""
    if sock.family == socket.AF_UNIX:
        return UnixAddress(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return TcpAddress(host, port, tls)


def peer_text(sock: socket.socket) -> str:
    """Who is at the other end, for people: an address, or the process behind a Unix socket."""
    try:
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"process {pid} of user {uid}"
        host, port = sock.getpeername()[:2]
    except (OSError, AttributeError):  # it has gone already, or the system does not tell
        return "an unknown peer"
    return str(TcpAddress(host, port)).removeprefix("tcp://")
