"""The socket of a manager that was killed goes with its last node; that of a living one stays."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from aiocluster.net.address import TcpAddress, UnixAddress
from aiocluster.net.sockets import SOCKET_NAME, remove_all_left_sockets, remove_left_socket


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


@pytest.mark.parametrize(("name", "folder_goes"), [("aiocluster-x1", True), ("precious", False)])
def test_a_socket_that_refuses_is_removed_and_only_its_own_folder(tmp_path: Path, name: str, folder_goes: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    listen(folder / "manager.sock").close()
    remove_left_socket(UnixAddress(str(folder / "manager.sock")))
    assert not (folder / "manager.sock").exists()
    assert folder.exists() is not folder_goes


def test_the_window_beside_it_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "aiocluster-x3"
    folder.mkdir()
    listen(folder / "manager.sock").close()
    listen(folder / "window.sock").close()
    remove_left_socket(UnixAddress(str(folder / "manager.sock")))
    assert not folder.exists()


def test_a_socket_where_somebody_listens_stays(tmp_path: Path) -> None:
    with listen(tmp_path / "manager.sock"):
        remove_left_socket(UnixAddress(str(tmp_path / "manager.sock")))
        assert (tmp_path / "manager.sock").exists()


def test_a_folder_with_anything_else_in_it_stays(tmp_path: Path) -> None:
    folder = tmp_path / "aiocluster-x2"
    folder.mkdir()
    listen(folder / "manager.sock").close()
    (folder / "other").touch()
    remove_left_socket(UnixAddress(str(folder / "manager.sock")))
    assert (folder / "other").exists()


def test_what_is_not_there_is_no_matter(tmp_path: Path) -> None:
    remove_left_socket(UnixAddress(str(tmp_path / "nothing.sock")))
    remove_left_socket(TcpAddress("127.0.0.1", 1))


def test_what_killed_managers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    left = folder("aiocluster-left")
    listen(left / SOCKET_NAME).close()
    foreign = folder("others-left")
    listen(foreign / SOCKET_NAME).close()
    file = folder("aiocluster-file")
    (file / SOCKET_NAME).write_text("no socket")
    folder("aiocluster-empty")
    living = folder("aiocluster-living")
    with listen(living / SOCKET_NAME) as listening:
        listening.setblocking(False)
        remove_all_left_sockets(str(tmp_path), time.time())
        assert left.exists(), "it may be about to listen"
        remove_all_left_sockets(str(tmp_path), time.time() + 61.0)
        if sys.platform == "linux":
            with pytest.raises(BlockingIOError):  # whoever listens is not visited for that
                listening.accept()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "aiocluster-empty",
        "aiocluster-file",
        "aiocluster-living",
        "others-left",
    ]
    remove_all_left_sockets(str(tmp_path / "nowhere"), 0.0)
