"""Where results are kept: a folder, or a prefix in S3. Both hold bytes under keys, and each of them whole or not at all.

What is in memory at a time is bounded: `AT_ONCE` parts of `PART_BYTES`, or where S3 has no room for as many of those as it would
take, beyond 78 GiB, of a `MOST_PARTS`th of the content.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiocluster.errors import ResultsError
from aiocluster.launch.aws import Api, AwsError, Fault

__all__ = ["AT_ONCE", "PART_BYTES", "FolderStore", "Missing", "S3Store", "Source", "Store", "in_thread", "open_file"]

T = TypeVar("T")

PART_BYTES = 8 << 20
"""S3 takes parts of 5 MiB or more; those of 8 MiB fill a fast line with a few at once."""
MOST_PARTS = 10_000
"""Of one multipart upload. Source: "Amazon S3 multipart upload limits"."""
AT_ONCE = 4
SMALL_BYTES = 64 << 10
"""What `get` reads at most: entries have some hundred."""
READ_ATTEMPTS = 5
"""Of one part, whose body may break off after S3 has begun to answer, where the SDK does not try again."""
INCOMING = "incoming"
"""The folder of a folder's store for what is not whole yet."""


class Missing(Exception):
    """There is nothing under that key."""


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """What the function returns, from a thread; cancelling sets the event that it was given, and waits for its end."""
    stop = threading.Event()
    running = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # nobody else asks for it
        raise


def open_file(path: Path) -> int:
    """A descriptor to read a regular file with. Raises `OSError`, also for what is none: pipes and devices may have no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Stopped(Exception):
    """The work of a thread was cancelled; nobody sees this."""


class Source:
    """Content that is read once more, in order, to be stored: what is read has the hash that was told before.

    Args:
        read: gives the bytes at an offset, as many as there are up to a length.
        size: bytes in all.
        sha256: of all of them, in hex.
        name: for errors.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, sha256: str, name: str) -> None:
        self._read = read
        self.size = size
        self.sha256 = sha256
        self._name = name
        self._hash = hashlib.sha256()

    @classmethod
    def of_bytes(cls, content: bytes, name: str) -> Source:
        view = memoryview(content)
        return cls(
            lambda offset, length: bytes(view[offset : offset + length]), len(content), hashlib.sha256(content).hexdigest(), name
        )

    @classmethod
    def of_file(cls, descriptor: int, name: str, stop: threading.Event) -> Source:
        """The content of an open file as it is now; for a thread."""

        def read(offset: int, length: int) -> bytes:
            parts = []
            while length and (part := os.pread(descriptor, length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
            return b"".join(parts)

        digest, size = hashlib.sha256(), 0
        while part := read(size, PART_BYTES):
            digest.update(part)
            size += len(part)
            if stop.is_set():
                raise Stopped
        return cls(read, size, digest.hexdigest(), name)

    def part(self, offset: int, length: int) -> bytes:
        """The next bytes. Raises `ResultsError` if there are fewer than there were."""
        part = self._read(offset, length)
        if len(part) != min(length, self.size - offset):
            raise self._changed()
        self._hash.update(part)
        return part

    def check(self) -> None:
        """All that was read is what was there before. Raises `ResultsError` if it is not."""
        if self._hash.hexdigest() != self.sha256:
            raise self._changed()

    def _changed(self) -> ResultsError:
        return ResultsError(f"{self._name} changed while it was saved; what was there under that name before is still there")


class Store(Protocol):
    """Bytes under keys such as "manifest/mean.json"."""

    where: str
    """For people to read."""

    async def put(self, key: str, source: Source) -> None:
        """The content is there, as a whole. Where this fails or is cancelled, what was there before still is, as a whole."""
        ...

    def read(self, key: str, size: int) -> AsyncGenerator[bytes, None]:
        """The first so many bytes, in order, part by part; fewer if there are fewer. Raises `Missing`."""
        ...

    async def get(self, key: str) -> bytes:
        """The first `SMALL_BYTES` of something that has less. Raises `Missing`."""
        ...

    async def keys(self, folder: str) -> list[str]:
        """Every key below a folder such as "manifest", in no order."""
        ...


# --- a folder ----------------------------------------------------------------------------------------------------------------


class FolderStore:
    """A folder, which is made when something is put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    async def put(self, key: str, source: Source) -> None:
        def write(stop: threading.Event) -> None:
            target = self._folder / key
            incoming = self._folder / INCOMING / secrets.token_hex(8)
            try:
                incoming.parent.mkdir(parents=True, exist_ok=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                with incoming.open("xb") as file:
                    for offset in range(0, source.size, PART_BYTES):
                        if stop.is_set():
                            raise Stopped
                        file.write(source.part(offset, PART_BYTES))
                    source.check()
                    file.flush()
                    os.fsync(file.fileno())  # what the manifest will speak of must not be lost where the manifest is not
                incoming.replace(target)
            except OSError as error:
                raise ResultsError(f"{target} cannot be written: {error}") from error
            finally:
                with contextlib.suppress(OSError):  # where the folder could not be made, there is no file in it
                    incoming.unlink(missing_ok=True)

        await in_thread(write)

    async def read(self, key: str, size: int) -> AsyncGenerator[bytes, None]:
        with self._read_errors(key):
            descriptor = open_file(self._folder / key)
        try:
            for offset in range(0, size, PART_BYTES):
                length = min(PART_BYTES, size - offset)
                with self._read_errors(key):
                    part = await in_thread(lambda _stop, length=length, offset=offset: os.pread(descriptor, length, offset))  # type: ignore[misc]
                yield part
                if len(part) < length:
                    return
        finally:
            os.close(descriptor)

    async def get(self, key: str) -> bytes:
        async with aclosing(self.read(key, SMALL_BYTES)) as parts:
            return b"".join([part async for part in parts])

    @contextlib.contextmanager
    def _read_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Missing(key) from None
        except OSError as error:
            raise ResultsError(f"{self._folder / key} cannot be read: {error}") from error

    async def keys(self, folder: str) -> list[str]:
        def walk(_stop: threading.Event) -> list[str]:
            return [str(path.relative_to(self._folder)) for path in (self._folder / folder).rglob("*") if path.is_file()]

        return await in_thread(walk)


# --- S3 ----------------------------------------------------------------------------------------------------------------------


class S3Store:
    """A prefix of a bucket, "" for all of it."""

    def __init__(self, api: Api, bucket: str, prefix: str) -> None:
        self._api = api
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.where = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return await self._api.call("s3", operation, Bucket=self._bucket, **arguments)

    async def put(self, key: str, source: Source) -> None:
        key = self._prefix + key
        if source.size <= PART_BYTES:
            content = await in_thread(lambda _stop: source.part(0, PART_BYTES))
            source.check()
            await self._call("put_object", Key=key, Body=content)
            return
        upload = (await self._call("create_multipart_upload", Key=key))["UploadId"]
        try:
            parts = await self._send(key, upload, source)
            source.check()
            await self._call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(AwsError):  # the first error says more; what is left costs until the bucket's rule ends it
                await self._call("abort_multipart_upload", Key=key, UploadId=upload)
            raise

    async def _send(self, key: str, upload: str, source: Source) -> list[dict[str, Any]]:
        """All parts have arrived: their numbers and tags, in order."""
        length = max(PART_BYTES, -(-source.size // MOST_PARTS))
        room = asyncio.Semaphore(AT_ONCE)
        tags: dict[int, str] = {}

        async def send(number: int, part: bytes) -> None:
            try:
                sent = await self._call("upload_part", Key=key, UploadId=upload, PartNumber=number, Body=part)
                tags[number] = sent["ETag"]
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                for number, offset in enumerate(range(0, source.size, length), 1):
                    await room.acquire()  # before the part is read, so that no more of them are in memory
                    part = await in_thread(lambda _stop, offset=offset: source.part(offset, length))  # type: ignore[misc]
                    group.create_task(send(number, part), name=f"aiocluster results: part {number}")
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]

    async def read(self, key: str, size: int) -> AsyncGenerator[bytes, None]:
        """The next parts are fetched while one is looked at."""
        key = self._prefix + key
        offsets = iter(range(0, size, PART_BYTES))
        coming: deque[tuple[asyncio.Task[bytes], int]] = deque()
        try:
            while True:
                while len(coming) < AT_ONCE and (offset := next(offsets, None)) is not None:
                    last = min(offset + PART_BYTES, size) - 1
                    fetching = self._fetch(key, Range=f"bytes={offset}-{last}")
                    task = asyncio.create_task(fetching, name=f"aiocluster results: bytes from {offset}")
                    coming.append((task, last + 1 - offset))
                if not coming:
                    return
                task, length = coming[0]
                part = await task
                coming.popleft()
                yield part
                if len(part) < length:
                    return
        finally:
            tasks = [task for task, _ in coming]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def get(self, key: str) -> bytes:
        return await self._fetch(self._prefix + key, Range=f"bytes=0-{SMALL_BYTES - 1}")

    async def _fetch(self, key: str, **which: Any) -> bytes:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                answer = await self._call("get_object", Key=key, **which)
                async with answer["Body"] as body:
                    content: bytes = await body.read()
                return content
            except AwsError as error:
                if error.code in ("NoSuchKey", "404"):
                    raise Missing(key) from error
                if error.code == "InvalidRange":  # shorter than it was said to be: the hash tells
                    return b""
                raise
            except (BotoCoreError, ClientError, TimeoutError, OSError) as error:  # the body broke off
                if attempt == READ_ATTEMPTS:
                    raise AwsError(f"s3:GetObject: {key} broke off: {error!r}", Fault.UNAVAILABLE) from error
        raise AssertionError("unreachable")

    async def keys(self, folder: str) -> list[str]:
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            answer = await self._call("list_objects_v2", Prefix=f"{self._prefix}{folder}/", **more)
            found += [str(one["Key"]).removeprefix(self._prefix) for one in answer.get("Contents", ())]
            if not answer.get("NextContinuationToken"):
                return found
            more = {"ContinuationToken": answer["NextContinuationToken"]}
