"""What a program leaves behind when its cluster is gone: results by name, in S3 or in a folder.

`await aiocluster.results.save("mean", value)` and `await aiocluster.results.load("mean")`. `AIOCLUSTER_RESULTS` says where:
`s3://bucket/prefix`, which `aiocluster job submit` sets for each job, or a folder; else it is the folder `results` in the working
directory. The layout is the same in both: the content at `data/<first 12 of its SHA-256>/<name>`, and an entry that describes it
at `manifest/<name>.json`. The entry is written last, in one piece, so that a name always stands for one whole content, the
old one or the new. Content that a newer one has replaced stays, since somebody may be reading it; it goes with the prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

from aiocluster.cloud.results import VARIABLE, place_of
from aiocluster.cloud.store import PART_BYTES, FolderStore, Missing, S3Store, Source, Store, in_thread, open_file
from aiocluster.errors import ResultsError
from aiocluster.launch.aws import Api, Aws

__all__ = ["Entry", "Progress", "default_place", "download", "entries", "load", "names", "save"]

logger = logging.getLogger("aiocluster.results")

PICKLE_PROTOCOL = 5
DEFAULT = "results"
LONGEST_NAME = 800
"""Bytes of UTF-8: a key of S3 has at most 1024, with the prefix."""
LONGEST_PART = 250
"""Bytes of UTF-8 between slashes: file systems take 255, and the manifest appends ".json"."""
LARGEST = 1 << 63
"""No file has so many bytes."""
ENTRIES_AT_ONCE = 16
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")

Where = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]
"""Called with a name, the bytes that have arrived, and the bytes in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the manifest says of one result."""

    name: str
    key: str
    """Where its content is, below the prefix or folder."""
    size: int
    """In bytes."""
    sha256: str
    format: Literal["pickle", "file"]
    created: str
    """When it was saved: UTC, by the clock of the machine that saved it, in ISO 8601."""


def default_place(environ: Mapping[str, str] | None = None) -> str:
    """Where results go by default: what `AIOCLUSTER_RESULTS` says, else the folder "results"."""
    return (os.environ if environ is None else environ).get(VARIABLE) or DEFAULT


async def save(name: str, content: Any, *, place: Where | None = None, api: Api | None = None) -> Entry:
    """The content is there under this name, whole: `load` gives what was there before until then, and this from then on.

    Args:
        name: such as "mean" or "run 3/model.npz": relative, without "..".
        content: a `Path` (or another `os.PathLike`) stands for the file there, which is read part by part; anything else is
            pickled, before this function waits for the first time. A type that the script itself defines can be loaded by that
            script only.
        place: a folder or `s3://bucket/prefix`; default: see `default_place`.
        api: for requests to S3; default: one of its own.

    Returns: its entry in the manifest.

    Raises:
        ValueError: the name, or `place`, makes no sense.
        ResultsError: the file cannot be read, changed meanwhile, or is a folder; or the content cannot be written.
        AwsError: AWS refuses, or does not answer.

    Cancelling leaves what was there under the name before; parts that have arrived at S3 are given up.
    """
    check_name(name)
    pickled = None if isinstance(content, os.PathLike) else pickle.dumps(content, PICKLE_PROTOCOL)
    async with _store(place, api) as store:
        if pickled is not None:
            return await _put(store, name, "pickle", await in_thread(lambda _stop: Source.of_bytes(pickled, name)))
        path = Path(content)
        with _opened(path) as descriptor:
            try:
                source = await in_thread(lambda stop: Source.of_file(descriptor, str(path), stop))
            except OSError as error:
                raise ResultsError(f"{path} cannot be read: {error}") from error
            return await _put(store, name, "file", source)


@overload
async def load(name: str, *, place: Where | None = None, api: Api | None = None) -> Any: ...
@overload
async def load(name: str, to: Where, *, place: Where | None = None, api: Api | None = None) -> Path: ...
async def load(name: str, to: Where | None = None, *, place: Where | None = None, api: Api | None = None) -> Any:
    """What was saved under this name last, and nothing else: size and SHA-256 are compared with the manifest before it is used.

    **A pickle runs code when it is loaded**: whoever may write to the folder or prefix can run code here. With `to` nothing is
    unpickled.

    Args:
        name: as it was saved.
        to: a file to write the content to, part by part, instead; it appears when it is whole.
        place: a folder or `s3://bucket/prefix`; default: see `default_place`.
        api: for requests to S3; default: one of its own.

    Returns: the object that was pickled, or the bytes of the file that was saved; with `to`, its path.

    Raises:
        ValueError: the name, or `place`, makes no sense.
        ResultsError: there is no such result, or it is damaged.
        AwsError: AWS refuses, or does not answer.

    Cancelling leaves no part of a file.
    """
    check_name(name)
    async with _store(place, api) as store:
        if to is not None:
            target = Path(to)
            await _latest(store, name, lambda entry: _write(store, entry, target))
            return target
        entry, content = await _latest(store, name, lambda entry: _read(store, entry))
    if entry.format == "file":
        return content
    return pickle.loads(content)


async def names(*, place: Where | None = None, api: Api | None = None) -> list[str]:
    """The names that `load` knows, sorted."""
    async with _store(place, api) as store:
        return await _names(store)


async def entries(*, place: Where | None = None, api: Api | None = None) -> list[Entry]:
    """What the manifest says of each result, by name. Raises as `load` does."""
    async with _store(place, api) as store:
        return await _entries(store, await _names(store))


async def download(
    folder: Where,
    only: Sequence[str] | None = None,
    *,
    place: Where | None = None,
    progress: Progress | None = None,
    api: Api | None = None,
) -> list[Entry]:
    """Each result is a file of its name in the folder, as it was stored: pickles are not loaded.

    Args:
        folder: is made if it is not there. Files that are there already, and are the same, are left alone.
        only: the names; default: all.
        place: a folder or `s3://bucket/prefix`; default: see `default_place`.
        progress: is called as content arrives.
        api: for requests to S3; default: one of its own.

    Returns: the entries of what is there now.

    Raises: as `load` does. One that is damaged, or whose file cannot be written (of "a" and "a/b" one alone can be), does not
        keep the others from being downloaded before.

    Cancelling leaves the files that are whole; another call goes on from there.
    """
    for name in only or ():
        check_name(name)
    done: list[Entry] = []
    failed: list[ResultsError] = []
    async with _store(place, api) as store:
        wanted = await _names(store) if only is None else only
        for name in wanted:
            try:
                entry, _ = await _latest(store, name, partial(_write, store, target=Path(folder) / name, progress=progress))
            except ResultsError as error:
                failed.append(error)
            else:
                done.append(entry)
    if len(failed) > 1:
        raise ResultsError(f"{len(failed)} of {len(wanted)} results could not be downloaded:\n" + "\n".join(map(str, failed)))
    if failed:
        raise failed[0]
    return done


# --- names, entries and where they are ---------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Raises `ValueError` for a name that is no relative path in its simplest form, or that no S3 key or file could have."""
    if not isinstance(name, str):
        raise ValueError(f"a result's name is a string, not {name!r}")
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} is no name of a result: it must be relative, without empty parts, '.' or '..'")
    if "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} is no name of a result: it has characters that file names must not have")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"{name[:40]!r}… is no name of a result: it has more than {LONGEST_NAME} bytes")
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        raise ValueError(f"{name[:40]!r}… is no name of a result: a part of it has more than {LONGEST_PART} bytes")


@contextlib.asynccontextmanager
async def _store(given: Where | None, api: Api | None) -> AsyncIterator[Store]:
    text = default_place() if given is None else os.fspath(given)
    found = place_of(text)
    if isinstance(found, Path):
        yield FolderStore(found)
        return
    mine = Aws() if api is None else api
    try:
        yield S3Store(mine, found.bucket, found.prefix)
    finally:
        if api is None:
            await mine.close()


def _entry_key(name: str) -> str:
    return f"manifest/{name}.json"


def _data_key(name: str, sha256: str) -> str:
    return f"data/{sha256[:12]}/{name}"


async def _names(store: Store) -> list[str]:
    """Those that `save` takes: whatever else is there, nobody follows it out of a folder."""
    found = []
    for key in await store.keys("manifest"):
        name = key.removeprefix("manifest/").removesuffix(".json")
        try:
            check_name(name)
        except ValueError as error:
            logger.warning("left out of %s: %s", store.where, error)
        else:
            if key == _entry_key(name):
                found.append(name)
    return sorted(found)


async def _entries(store: Store, names: Sequence[str]) -> list[Entry]:
    found: list[Entry] = []
    for first in range(0, len(names), ENTRIES_AT_ONCE):
        asked = (_entry(store, name) for name in names[first : first + ENTRIES_AT_ONCE])
        found += await _all(asked)
    return found


async def _all(work: Any) -> list[Any]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one, name="aiocluster results: an entry") for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _entry(store: Store, name: str) -> Entry:
    try:
        text = await store.get(_entry_key(name))
    except Missing:
        raise ResultsError(f"nothing named {name!r} was saved to {store.where}") from None
    entry: Entry | None = None
    try:
        entry = Entry(**json.loads(text))
        sound = (
            entry.name == name
            and re.fullmatch(r"[0-9a-f]{64}", entry.sha256) is not None
            and entry.key == _data_key(name, entry.sha256)  # nothing else is ever read or written because of an entry
            and type(entry.size) is int
            and 0 <= entry.size < LARGEST
            and entry.format in ("pickle", "file")
            and _CREATED.fullmatch(entry.created) is not None
        )
    except (ValueError, TypeError, RecursionError):
        sound = False
    if entry is None or not sound:
        raise ResultsError(f"{store.where}/{_entry_key(name)} is no entry of a manifest of this version of aiocluster")
    return entry


# --- content -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        if path.is_dir():
            raise ResultsError(f"{path} is a folder: save its files one by one, or an archive of it (shutil.make_archive)")
        descriptor = open_file(path)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _put(store: Store, name: str, format: Literal["pickle", "file"], source: Source) -> Entry:
    entry = Entry(
        name=name,
        key=_data_key(name, source.sha256),
        size=source.size,
        sha256=source.sha256,
        format=format,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    await store.put(entry.key, source)
    await store.put(_entry_key(name), Source.of_bytes(f"{json.dumps(asdict(entry), indent=2)}\n".encode(), name))
    return entry


class _Damaged(Exception):
    """The content is not what the entry says."""


async def _latest(store: Store, name: str, get: Callable[[Entry], Any]) -> tuple[Entry, Any]:
    """What `get` makes of the entry, or of the one that has replaced it meanwhile where its content is gone."""
    entry = await _entry(store, name)
    while True:
        try:
            return entry, await get(entry)
        except (Missing, _Damaged) as error:
            before, entry = entry, await _entry(store, name)
            if entry == before:
                what = "is not there" if isinstance(error, Missing) else "is not what was saved (its size or SHA-256 differs)"
                raise ResultsError(f"{name!r} is damaged: {store.where}/{entry.key} {what}; save it again") from None


async def _checked(store: Store, entry: Entry, take: Callable[[bytes], object], progress: Progress | None) -> None:
    """All parts were handed on. Raises `_Damaged` if they are not what the entry says."""
    digest, size = hashlib.sha256(), 0

    def look(part: bytes) -> None:
        digest.update(part)
        take(part)

    async with aclosing(store.read(entry.key, entry.size)) as parts:
        async for part in parts:
            await in_thread(lambda _stop, part=part: look(part))  # type: ignore[misc]
            size += len(part)
            if progress is not None:
                progress(entry.name, size, entry.size)
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise _Damaged


async def _read(store: Store, entry: Entry) -> bytes:
    parts: list[bytes] = []
    await _checked(store, entry, parts.append, None)
    return b"".join(parts)


async def _write(store: Store, entry: Entry, target: Path, progress: Progress | None = None) -> None:
    if await in_thread(lambda stop: _is(target, entry, stop)):
        return
    incoming = target.with_name(f".aiocluster-{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with incoming.open("xb") as file:
            await _checked(store, entry, _writer(file), progress)
        incoming.replace(target)
    except OSError as error:
        raise ResultsError(f"{target} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder could not be made, there is no file in it
            incoming.unlink(missing_ok=True)


def _writer(file: BinaryIO) -> Callable[[bytes], object]:
    return file.write


def _is(path: Path, entry: Entry, stop: threading.Event) -> bool:
    """Whether the file has that content."""
    try:
        if not path.is_file() or path.stat().st_size != entry.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while (part := file.read(PART_BYTES)) and not stop.is_set():
                digest.update(part)
    except OSError:  # then it is written anew, or the error is told there
        return False
    return digest.hexdigest() == entry.sha256
