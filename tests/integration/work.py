"""Functions that tests call on workers. Signals between a call and its test travel through files and fifos, not through time."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import aiocluster
from aiocluster import get_cluster, get_worker


def square(x: int) -> int:
    return x * x


def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


async def async_square(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


def echo(value: Any) -> Any:
    return value


def own_id() -> int:
    return get_worker().id


def own_node() -> str:
    return get_worker().node


def own_pid() -> int:
    return os.getpid()


def announce(path: str, text: str = "begun\n") -> None:
    """Tell the test, which reads the fifo, that this point has been reached."""
    with open(path, "w") as fifo:
        fifo.write(text)


def append(path: str, text: str) -> None:
    """Append a line to a file, whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def read_lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def announce_and_sleep(path: str, seconds: float = 3600) -> None:
    announce(path)
    time.sleep(seconds)


def announce_and_spin(path: str) -> None:
    announce(path)
    while True:
        pass


def announce_and_note_cancel(path: str, log: str) -> None:
    try:
        announce(path)
        time.sleep(3600)
    except asyncio.CancelledError:
        append(log, "cancelled")
        raise


async def async_announce_and_note_cancel(path: str, log: str) -> None:
    try:
        await asyncio.to_thread(announce, path)
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        append(log, "cancelled")
        raise


def announce_and_wait(begun: str, go_on: str) -> int:
    """Announce, then wait until the test opens the other fifo for writing."""
    announce(begun)
    with open(go_on) as fifo:
        fifo.read()
    return get_worker().id


def log_call(path: str, number: int) -> int:
    append(path, str(number))
    return number


def log_and_exit(path: str) -> None:
    append(path, str(os.getpid()))
    os._exit(3)


def hold_the_interpreter(path: str, seconds: int) -> int:
    """Sleep in C without releasing the GIL."""
    announce(path)
    library = ctypes.PyDLL(None)
    library.sleep(seconds)
    return get_worker().id


def segfault() -> None:
    ctypes.string_at(0)


class Grumpy(Exception):
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not in the mood")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Picky(Exception):
    """Pickles, but does not load again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


def fail(make: Callable[[], BaseException]) -> None:
    raise make()


def fail_grumpy() -> None:
    raise Grumpy("no")


def fail_unspeakable() -> None:
    raise Unspeakable


def fail_picky() -> None:
    raise Picky(1, 2)


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def exit_politely() -> None:
    sys.exit(7)


async def nested_sum(depth: int) -> int:
    if depth == 0:
        return 1
    one = get_cluster().submit(nested_sum, depth - 1)
    two = get_cluster().submit(nested_sum, depth - 1)
    return await one + await two


def sync_nested_sum(depth: int) -> int:
    if depth == 0:
        return 1
    one = get_cluster().submit(sync_nested_sum, depth - 1)
    two = get_cluster().submit(sync_nested_sum, depth - 1)
    return one.result() + two.result()


async def nested_sleep(depth: int) -> None:
    if depth:
        await get_cluster().submit(nested_sleep, depth - 1)
    else:
        await asyncio.sleep(3600)


def nested_map(count: int) -> list[int]:
    return list(get_cluster().map(square, range(count)))


async def async_nested_map(count: int) -> list[int]:
    return await get_cluster().map(square, range(count))


async def parent_of(begun: str, log: str) -> None:
    await get_cluster().submit(async_announce_and_note_cancel, begun, log)


def sync_parent_of(begun: str, log: str) -> None:
    get_cluster().submit(announce_and_note_cancel, begun, log).result()


def print_lines(*lines: str, stderr: bool = False) -> None:
    for line in lines:
        print(line, file=sys.stderr if stderr else sys.stdout)


def print_from_c(text: str) -> None:
    libc = ctypes.CDLL(None)
    libc.puts(text.encode())
    libc.fflush(None)


async def print_slowly(name: str, count: int) -> None:
    for number in range(count):
        print(f"{name} {number}")
        await asyncio.sleep(0)


class Counter:
    """State on a worker, kept in its module."""

    value = 0


def count_up(by: int = 1) -> int:
    Counter.value += by
    return Counter.value


def read_count() -> int:
    return Counter.value


@aiocluster.remote
def remote_square(x: int) -> int:
    return x * x


@aiocluster.remote(timeout=60, name="patient")
async def remote_cube(x: int) -> int:
    return x * x * x


def identify(_item: Any) -> int:
    return get_worker().id


class Memory:
    """What a worker was told to remember."""

    value: Any = None


def remember(value: Any) -> None:
    Memory.value = value


def recall() -> Any:
    return Memory.value


def die_at_first(log: str, times: int) -> str:
    """Kill the own process so many times, by SIGKILL; then survive."""
    append(log, str(os.getpid()))
    with open(log) as file:
        lines = file.read().split()
    if len(lines) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


class Crowd:
    """How many calls are on this worker's loop at a time."""

    now = 0
    most = 0


async def crowd() -> int:
    """The most calls that were here together, so far."""
    Crowd.now += 1
    Crowd.most = max(Crowd.most, Crowd.now)
    for _ in range(20):
        await asyncio.sleep(0)
    Crowd.now -= 1
    return Crowd.most


async def meet(count: int) -> int:
    """Return when so many calls are here at the same time: the place in which this one came."""
    Crowd.now += 1
    place = Crowd.now
    while Crowd.now < count:  # noqa: ASYNC110  # calls share nothing but their module
        await asyncio.sleep(0.001)
    return place


async def async_sleep(seconds: float = 3600) -> None:
    await asyncio.sleep(seconds)


async def async_announce_and_sleep(path: str, seconds: float = 3600) -> None:
    await asyncio.to_thread(announce, path)
    await asyncio.sleep(seconds)


async def async_log_call(path: str, number: int) -> int:
    append(path, str(number))
    await asyncio.sleep(0)
    return number


def block_the_loop(seconds: float) -> Any:
    """An `async def` that does not await: the worker's loop stands still."""

    async def block() -> int:
        time.sleep(seconds)  # noqa: ASYNC251  # the very mistake that is tested
        return get_worker().id

    return block


class _Self:
    """Where it is unpickled, it is the pid of that process."""

    def __reduce__(self) -> Any:
        return os.getpid, ()


SELF: Any = _Self()


def hold_without_a_word(seconds: int) -> int:
    ctypes.PyDLL(None).sleep(seconds)
    return get_worker().id


def announce_and_hold(path: str) -> None:
    hold_the_interpreter(path, 3600)


def announce_and_ignore_all(path: str) -> None:
    """A call that does not let itself be ended: it catches whatever is raised, and every signal that can be caught."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    announced = False
    while True:
        try:
            if not announced:
                announce(path)
                announced = True
            time.sleep(3600)
        except BaseException:  # noqa: S112  # the call that nobody should write
            continue


def announce_and_ignore_cancel(path: str) -> None:
    """Sleeps on, whatever is raised into it."""
    announce(path)
    while True:
        try:
            time.sleep(3600)
        except asyncio.CancelledError:
            continue


async def async_announce_and_ignore_cancel(path: str) -> None:
    await asyncio.to_thread(announce, path)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


def spin() -> None:
    while True:
        pass


def spin_and_square(x: int) -> int:
    for _ in range(5000):
        pass
    return x * x


async def yield_and_square(x: int) -> int:
    for _ in range(5):
        await asyncio.sleep(0)
    return x * x


def _spring() -> Any:
    raise RuntimeError("the trap")


class Trap:
    """Raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return _spring, ()


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def spin_and_note_cancel(path: str, log: str) -> None:
    try:
        announce_and_spin(path)
    except asyncio.CancelledError:
        append(log, "cancelled")
        raise


def nested_with(**options: Any) -> Any:
    """A call that makes another one, under options."""
    return get_cluster().options(**options).submit(square, 3).result()


def configure_logging_and_log() -> None:
    logging.basicConfig(level=logging.INFO, format="mine: %(message)s")
    logging.getLogger("mine").info("hello")


class Piece:
    """Bytes that travel beside their pickle."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def __len__(self) -> int:
        return len(self.data)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Piece.from_buffer, (pickle.PickleBuffer(self.data),)

    @classmethod
    def from_buffer(cls, buffer: Any) -> Piece:
        piece = cls(0)
        piece.data = buffer
        return piece


def pieces(count: int, size: int) -> list[Piece]:
    return [Piece(size) for _ in range(count)]


async def nested_pieces(calls: int, count: int, size: int) -> int:
    """Makes calls whose arguments and results have very many buffers in all."""
    mine = pieces(count, size)
    lists = await asyncio.gather(*[get_cluster().submit(echo, mine) for _ in range(calls)])
    return sum(map(len, lists))
