"""Where the items of a map come from: sync and async iterables, pulled no faster than there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any

__all__ = ["Puller", "async_items", "is_async_source", "length_of", "sync_items"]


def is_async_source(source: Any) -> bool:
    return isinstance(source, AsyncIterable) and not hasattr(source, "__iter__")


def length_of(iterables: tuple[Any, ...]) -> int | None:
    """How many items there will be, if every iterable that has an end says so."""
    try:
        return min(len(one) for one in iterables)
    except TypeError:
        return None


def sync_items(iterables: tuple[Any, ...]) -> Iterator[Any]:
    """The items of one iterable, or tuples of one of each."""
    return iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


async def _as_async(iterable: Any) -> AsyncIterator[Any]:
    for item in iterable:
        yield item


async def async_items(iterables: tuple[Any, ...]) -> AsyncIterator[Any]:
    """The same where at least one of the iterables is async; ends with the shortest."""
    iterators = [aiter(one) if is_async_source(one) else aiter(_as_async(one)) for one in iterables]
    while True:
        row = []
        for iterator in iterators:
            try:
                row.append(await anext(iterator))
            except StopAsyncIteration:
                return
        yield row[0] if len(row) == 1 else tuple(row)


class Puller:
    """Pulls from an async iterable in a task of its own.

    Items that come in one go share a chunk; one that comes alone is sent at once.

    Args:
        room: how many items may be pulled for the next chunk; 0 stops the pulling until `pull` is called.
        send: takes the items of a chunk.
    """

    def __init__(self, items: AsyncIterator[Any], room: Callable[[], int], send: Callable[[list[Any]], None]) -> None:
        self._items = items
        self._room = room
        self._send = send
        self._pulled: list[Any] = []
        self._resume: asyncio.Future[None] | None = None
        self.exhausted = False
        self.error: BaseException | None = None
        self._changed: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Begin; `changed` is called when the source has ended or failed."""
        self._changed = changed
        self._task = asyncio.get_running_loop().create_task(self._run(), name="aiocluster map source")

    def pull(self) -> None:
        """There may be room again."""
        if self._resume is not None and not self._resume.done() and self._room() > len(self._pulled):
            self._resume.set_result(None)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                while self._room() <= len(self._pulled):
                    self._flush()
                    if self._room() > 0:
                        continue
                    self._resume = loop.create_future()
                    await self._resume
                try:
                    item = await anext(self._items)
                except StopAsyncIteration:
                    break
                if not self._pulled:
                    loop.call_soon(self._flush)  # runs when the source makes us wait, with all that came until then
                self._pulled.append(item)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.error = error
        self._flush()
        self.exhausted = True
        self._changed()

    def _flush(self) -> None:
        if self._pulled:
            pulled, self._pulled = self._pulled, []
            self._send(pulled)
