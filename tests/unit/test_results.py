"""Results: what is saved is there whole or not at all, wherever it is and whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import aiocluster
from aiocluster import ResultsError, results
from aiocluster.cloud.store import AT_ONCE, PART_BYTES, READ_ATTEMPTS
from aiocluster.launch.aws import AwsError, Fault
from tests.unit.cloud.fake_s3 import FakeS3

PREFIX = "s3://bucket/runs/one"
LARGE = bytes(range(256)) * (PART_BYTES // 256) * 5 + b"the end"
"""Six parts."""


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Where to, as arguments."""
    if request.param == "folder":
        return {"place": tmp_path / "kept"}
    return {"place": PREFIX, "api": FakeS3()}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


# --- in both places ----------------------------------------------------------------------------------------------------------


def all_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def test_an_object_comes_back_equal(place: dict[str, Any]) -> None:
    value = {"mean": 3.14, "samples": [1, 2, 3], "large": LARGE}
    entry = await results.save("run 1/mean", value, **place)
    assert await results.load("run 1/mean", **place) == value
    assert (entry.name, entry.format, entry.size) == ("run 1/mean", "pickle", len(pickle.dumps(value, 5)))
    assert entry.key == f"data/{entry.sha256[:12]}/run 1/mean"


@pytest.mark.parametrize("content", [b"", b"few", LARGE], ids=["empty", "few", "large"])
async def test_a_file_comes_back_as_bytes_or_as_a_file(place: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    entry = await results.save("model.bin", path, **place)
    assert (entry.format, entry.size) == ("file", len(content))
    assert await results.load("model.bin", **place) == content
    written = await results.load("model.bin", tmp_path / "new" / "copy.bin", **place)
    assert written == tmp_path / "new" / "copy.bin"
    assert written.read_bytes() == content
    assert os.listdir(tmp_path / "new") == ["copy.bin"]


async def test_the_last_content_that_was_saved_is_loaded(place: dict[str, Any]) -> None:
    for value in ("old", "new"):
        await results.save("text", value, **place)
    assert await results.load("text", **place) == "new"
    assert await results.names(**place) == ["text"]


async def test_names_and_entries_are_listed_in_order(place: dict[str, Any]) -> None:
    saved = [await results.save(name, name, **place) for name in ("b", "a/2", "c", "a/1", "d.json")]
    assert await results.names(**place) == ["a/1", "a/2", "b", "c", "d.json"]
    assert await results.entries(**place) == sorted(saved, key=lambda entry: entry.name)


async def test_nothing_was_saved_yet(place: dict[str, Any]) -> None:
    assert await results.names(**place) == []
    assert await results.entries(**place) == []
    with pytest.raises(ResultsError, match="nothing named 'mean' was saved to "):
        await results.load("mean", **place)


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "a//b", "../up", "a/../b", ".", "a/", "a/./b", "a\\b", "line\nbreak", "nul\0", "x" * 801, "é" * 126, 3],
)
async def test_names_that_lead_elsewhere_are_refused(place: dict[str, Any], name: Any) -> None:
    for attempt in (results.save(name, 1, **place), results.load(name, **place)):
        with pytest.raises(ValueError, match=r"name"):
            await attempt
    with pytest.raises(ValueError, match=r"name"):
        await results.download("elsewhere", [name], **place)
    assert await results.names(**place) == []


async def test_what_cannot_be_pickled_is_the_callers_error_and_changes_nothing(place: dict[str, Any]) -> None:
    await results.save("f", 1, **place)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        await results.save("f", lambda: 2, **place)
    assert await results.load("f", **place) == 1


async def test_what_has_no_end_is_refused(place: dict[str, Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ResultsError, match=r"cannot be read: .*it is no file"):
            await results.save("n", path, **place)
    assert await results.names(**place) == []


async def test_a_pipe_in_the_place_of_content_or_of_an_entry_holds_nobody(tmp_path: Path) -> None:
    entry = await results.save("n", 1, place=tmp_path)
    for key in (entry.key, "manifest/n.json"):
        (tmp_path / key).unlink()
        os.mkfifo(tmp_path / key)
        with pytest.raises(ResultsError, match="it is no file"):
            await results.load("n", place=tmp_path)


async def test_a_size_that_is_a_lie_ends_where_the_content_does(place: dict[str, Any]) -> None:
    entry = await results.save("n", 1, **place)
    replace_content(place, "manifest/n.json", json.dumps(asdict(entry) | {"size": 10**15}).encode())
    with pytest.raises(ResultsError, match="'n' is damaged"):
        await results.load("n", **place)


async def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(ResultsError, match="cannot be written"):
            await results.save("n", 1, place=place)
    for path in (Path("/proc/self/mem"), Path("x" * 5000)):
        with pytest.raises(ResultsError, match="cannot be read"):
            await results.save("n", path, place=tmp_path)


async def test_an_entry_without_an_end_is_no_entry(place: dict[str, Any]) -> None:
    await results.save("n", 1, **place)
    replace_content(place, "manifest/n.json", b" " * (1 << 20) + b"{}")
    with pytest.raises(ResultsError, match=r"manifest/n.json is no entry of a manifest"):
        await results.load("n", **place)


async def test_a_file_that_is_not_there_and_a_folder_are_refused(place: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"nowhere cannot be read: .*No such file"):
        await results.save("f", tmp_path / "nowhere", **place)
    with pytest.raises(ResultsError, match=r"is a folder: save its files one by one, or an archive"):
        await results.save("f", tmp_path, **place)


def replace_content(place: dict[str, Any], key: str, content: bytes | None) -> None:
    """What is under the key is something else, or gone."""
    if "api" in place:
        objects = place["api"].objects
        objects.pop(("bucket", f"runs/one/{key}"))
        if content is not None:
            objects["bucket", f"runs/one/{key}"] = content
    elif content is None:
        (place["place"] / key).unlink()
    else:
        (place["place"] / key).write_bytes(content)


@pytest.mark.parametrize("change", [lambda old: b"?" + old[1:], lambda old: old[:-1], lambda old: b"", lambda _: None])
async def test_damaged_content_is_told_and_not_unpickled(
    place: dict[str, Any], tmp_path: Path, change: Callable[[bytes], bytes | None]
) -> None:
    entry = await results.save("n", [1, 2], **place)
    replace_content(place, entry.key, change(pickle.dumps([1, 2], 5)))
    with pytest.raises(ResultsError, match=r"'n' is damaged: .*(is not there|size or SHA-256 differs).*save it again"):
        await results.load("n", **place)
    with pytest.raises(ResultsError, match="damaged"):
        await results.load("n", tmp_path / "n", **place)
    assert "n" not in os.listdir(tmp_path)
    await results.save("n", [1, 2], **place)
    assert await results.load("n", **place) == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../../etc/passwd"},
        {"key": "data/000000000000/n"},
        {"name": "other"},
        {"size": -1},
        {"size": "9"},
        {"size": 10**400},
        {"sha256": "../../../etc/passwd"},
        {"format": "script"},
        {"created": None},
        {"created": "2026-01-01T00:00:00+00:00\x1b[2J"},
        {"more": 1},
    ],
)
async def test_an_entry_that_lies_is_not_followed(place: dict[str, Any], change: dict[str, Any]) -> None:
    await results.save("n", 1, **place)
    (entry,) = await results.entries(**place)
    lie = {
        "name": "n",
        "key": entry.key,
        "size": entry.size,
        "sha256": entry.sha256,
        "format": "pickle",
        "created": entry.created,
        **change,
    }
    replace_content(place, "manifest/n.json", json.dumps(lie).encode())
    with pytest.raises(ResultsError, match=r"manifest/n.json is no entry of a manifest"):
        await results.load("n", **place)
    with pytest.raises(ResultsError, match=r"manifest/n.json is no entry of a manifest"):
        await results.entries(**place)


async def test_all_are_downloaded_and_those_that_are_there_stay(place: dict[str, Any], large: Path, tmp_path: Path) -> None:
    await results.save("large", large, **place)
    await results.save("deep/mean", 2.5, **place)
    told: list[tuple[str, int, int]] = []
    target = tmp_path / "down"
    got = await results.download(target, progress=lambda *news: told.append(news), **place)
    assert [entry.name for entry in got] == ["deep/mean", "large"]
    assert (target / "large").read_bytes() == LARGE
    assert pickle.loads((target / "deep" / "mean").read_bytes()) == 2.5
    assert told[0][0] == "deep/mean"
    of_large = [done for name, done, total in told if name == "large" and total == len(LARGE)]
    assert of_large == sorted(of_large)
    assert of_large[-1] == len(LARGE)
    (target / "deep" / "mean").unlink()
    told.clear()
    await results.download(target, progress=lambda *news: told.append(news), **place)
    assert {name for name, _, _ in told} == {"deep/mean"}
    assert [entry.name for entry in await results.download(target, ["large"], **place)] == ["large"]


@pytest.mark.parametrize("name", ["../../up", "/{tmp}/up", "a/../../up", "red\x1b[31m", ""])
async def test_a_name_that_somebody_else_has_put_there_leads_nowhere(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = name.format(tmp=tmp_path)
    api = FakeS3()
    where: dict[str, Any] = {"place": PREFIX, "api": api}
    await results.save("n", 1, **where)
    (entry,) = await results.entries(**where)
    key = f"data/{entry.sha256[:12]}/{name}"
    api.objects["bucket", f"runs/one/manifest/{name}.json"] = json.dumps(asdict(entry) | {"name": name, "key": key}).encode()
    api.objects["bucket", f"runs/one/{key}"] = api.objects["bucket", f"runs/one/{entry.key}"]
    assert [one.name for one in await results.download(tmp_path / "deep" / "down", **where)] == ["n"]
    assert await results.names(**where) == ["n"]
    assert all_below(tmp_path) == ["deep", "deep/down", "deep/down/n"]
    assert "\x1b" not in caplog.text
    assert f"left out of {PREFIX}: {name!r}" in caplog.text


async def test_a_download_goes_on_after_what_cannot_be_had(place: dict[str, Any], tmp_path: Path) -> None:
    for name in ("model", "model/weights", "z"):
        await results.save(name, name, **place)
    with pytest.raises(ResultsError, match=r"down/model/weights cannot be written"):
        await results.download(tmp_path / "down", **place)
    assert sorted(os.listdir(tmp_path / "down")) == ["model", "z"]
    replace_content(place, (await results.entries(**place))[2].key, b"other")
    (tmp_path / "down" / "z").unlink()
    with pytest.raises(ResultsError, match=r"(?s)2 of 3 results could not be downloaded:\n.*model/weights.*\n'z' is damaged"):
        await results.download(tmp_path / "down", **place)


async def test_a_download_to_where_no_folder_can_be_says_so(place: dict[str, Any], large: Path) -> None:
    await results.save("large", large, **place)
    with pytest.raises(ResultsError, match=r"large\.bin/large cannot be written"):
        await results.download(large, **place)


async def test_a_file_that_changes_while_it_is_saved_is_not_saved(
    place: dict[str, Any], large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await results.save("large", b"before", **place)
    pread, asked = os.pread, [0]

    def meddling(descriptor: int, length: int, offset: int) -> bytes:
        asked[0] += 1
        if asked[0] == 9:  # the second reading, after that for the hash has come to the end
            large.write_bytes(LARGE[::-1])
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", meddling)
    with pytest.raises(ResultsError, match=r"large\.bin changed while it was saved"):
        await results.save("large", large, **place)
    monkeypatch.undo()
    assert await results.load("large", **place) == b"before"


async def test_saving_at_once_under_one_name_leaves_one_of_both(place: dict[str, Any]) -> None:
    await asyncio.gather(*(results.save("n", [number] * 100, **place) for number in range(8)))
    assert await results.load("n", **place) in [[number] * 100 for number in range(8)]


# --- where -------------------------------------------------------------------------------------------------------------------


async def test_the_variable_says_where_else_it_is_the_folder_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIOCLUSTER_RESULTS", raising=False)
    await aiocluster.results.save("n", 1)
    assert (tmp_path / "results" / "manifest" / "n.json").exists()
    monkeypatch.setenv("AIOCLUSTER_RESULTS", str(tmp_path / "there"))
    await aiocluster.results.save("n", 2)
    assert (tmp_path / "there" / "manifest" / "n.json").exists()
    assert await aiocluster.results.load("n") == 2


@pytest.mark.parametrize(
    "place", ["s3://", "s3:///prefix", "s3://UPPER/x", "s3://bucket/a//b", "s3://bucket/../x", "gs://bucket/x"]
)
async def test_a_place_that_makes_no_sense_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="neither a folder nor s3://bucket/prefix"):
        await results.save("n", 1, place=place, api=FakeS3())


@pytest.mark.parametrize(("place", "key"), [("s3://bucket", "manifest/n.json"), ("s3://bucket/a/b/", "a/b/manifest/n.json")])
async def test_a_prefix_may_be_empty_or_end_with_a_slash(place: str, key: str) -> None:
    api = FakeS3()
    await results.save("n", 1, place=place, api=api)
    assert key in api.there()
    assert await results.load("n", place=place, api=api) == 1


def test_results_come_with_the_package_and_bring_no_sdk() -> None:
    program = "import sys, aiocluster; aiocluster.results.save; print(*{'botocore', 'aiobotocore', 'aiohttp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "\n"


# --- a folder ----------------------------------------------------------------------------------------------------------------

KILLED = """
import asyncio, os, pathlib, signal, sys
from aiocluster import results
step, number, after = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after"
home = {"fsync": os, "replace": pathlib.Path}[step]
real = getattr(home, step)
calls = 0
def dying(*arguments):
    global calls
    calls += 1
    if calls == number and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments)
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(home, step, dying)
asyncio.run(results.save("n", "new " * 1000, place=sys.argv[4]))
"""


@pytest.mark.parametrize(
    ("step", "number", "when", "left"),
    [
        ("fsync", 1, "before", "old"),
        ("fsync", 1, "after", "old"),
        ("replace", 1, "before", "old"),
        ("replace", 1, "after", "old"),
        ("fsync", 2, "before", "old"),
        ("replace", 2, "before", "old"),
        ("replace", 2, "after", "new " * 1000),
    ],
)
async def test_a_process_that_is_killed_between_steps_leaves_the_old_or_the_new(
    tmp_path: Path, step: str, number: int, when: str, left: str
) -> None:
    await results.save("n", "old", place=tmp_path)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, step, str(number), when, str(tmp_path))
    assert await process.wait() == -signal.SIGKILL
    assert await results.load("n", place=tmp_path) == left
    assert await results.names(place=tmp_path) == ["n"]
    await results.save("n", "newest", place=tmp_path)
    assert await results.load("n", place=tmp_path) == "newest"


async def test_a_cancelled_save_leaves_the_old_and_nothing_of_the_new(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await results.save("n", "old", place=tmp_path / "kept")
    loop, fsync = asyncio.get_running_loop(), os.fsync

    def cancelling(descriptor: int) -> None:
        fsync(descriptor)
        loop.call_soon_threadsafe(saving.cancel)

    monkeypatch.setattr(os, "fsync", cancelling)
    saving = asyncio.create_task(results.save("n", large, place=tmp_path / "kept"))
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert await results.load("n", place=tmp_path / "kept") == "old"
    assert os.listdir(tmp_path / "kept" / "incoming") == []


async def test_a_name_that_another_needs_as_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    await results.save("a", 1, place=tmp_path)
    with pytest.raises(ResultsError, match="cannot be written"):
        await results.save("a.json/b", 1, place=tmp_path)
    assert await results.load("a", place=tmp_path) == 1


# --- S3 ----------------------------------------------------------------------------------------------------------------------


async def test_a_large_file_travels_in_parts_a_few_at_a_time(large: Path) -> None:
    api = FakeS3()
    await results.save("large", large, place=PREFIX, api=api)
    assert api.asked.count("upload_part") == 6
    assert max(api.sizes) == PART_BYTES
    assert api.most_held <= AT_ONCE
    api.most_held = 0
    assert await results.load("large", place=PREFIX, api=api) == LARGE
    assert 1 < api.most_held <= AT_ONCE


async def test_the_entry_is_written_last(large: Path) -> None:
    api = FakeS3()
    await results.save("large", large, place=PREFIX, api=api)
    assert api.asked[-2:] == ["complete_multipart_upload", "put_object"]
    assert [key.split("/")[2] for key in api.there()] == ["data", "manifest"]


@pytest.mark.parametrize("operation", ["upload_part", "complete_multipart_upload"])
async def test_an_upload_that_fails_is_aborted_and_the_old_stays(large: Path, operation: str) -> None:
    api = FakeS3()
    await results.save("n", "old", place=PREFIX, api=api)

    async def fail(arguments: dict[str, Any]) -> None:
        if arguments.get("PartNumber", 3) == 3:
            raise AwsError("s3: access denied", Fault.DENIED, "AccessDenied")

    api.before[operation] = fail
    with pytest.raises(AwsError, match="access denied"):
        await results.save("n", large, place=PREFIX, api=api)
    assert api.uploads == {}
    assert api.asked.count("abort_multipart_upload") == 1
    assert await results.load("n", place=PREFIX, api=api) == "old"


async def test_an_upload_that_cannot_be_aborted_either_tells_the_first_error(large: Path) -> None:
    api = FakeS3()

    async def fail(arguments: dict[str, Any]) -> None:
        raise AwsError("denied" if "PartNumber" in arguments else "gone", Fault.DENIED)

    api.before["upload_part"] = api.before["abort_multipart_upload"] = fail
    with pytest.raises(AwsError, match="denied"):
        await results.save("n", large, place=PREFIX, api=api)


async def test_a_cancelled_upload_is_aborted_and_the_old_stays(large: Path) -> None:
    api = FakeS3()
    await results.save("n", "old", place=PREFIX, api=api)
    reached = asyncio.Event()

    async def hang(_: dict[str, Any]) -> None:
        reached.set()
        await asyncio.Event().wait()

    api.before["upload_part"] = hang
    saving = asyncio.create_task(results.save("n", large, place=PREFIX, api=api))
    await reached.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert api.uploads == {}
    assert await results.load("n", place=PREFIX, api=api) == "old"


async def test_a_body_that_breaks_off_is_fetched_again_and_not_for_ever() -> None:
    api = FakeS3()
    await results.save("n", 1, place=PREFIX, api=api)
    api.broken_bodies = READ_ATTEMPTS - 1
    assert await results.load("n", place=PREFIX, api=api) == 1
    api.broken_bodies = READ_ATTEMPTS
    with pytest.raises(AwsError, match=r"s3:GetObject: runs/one/manifest/n\.json broke off: .*reset") as caught:
        await results.load("n", place=PREFIX, api=api)
    assert caught.value.fault is Fault.UNAVAILABLE


async def test_refusals_of_s3_are_told_as_they_are() -> None:
    api = FakeS3()

    async def refuse(_: dict[str, Any]) -> None:
        raise AwsError("access denied: the role needs s3:GetObject", Fault.DENIED, "AccessDenied")

    api.before["get_object"] = refuse
    with pytest.raises(AwsError, match="needs s3:GetObject"):
        await results.load("n", place=PREFIX, api=api)


async def test_a_reader_whose_content_was_replaced_meanwhile_gets_the_new() -> None:
    api = FakeS3()
    await results.save("n", "old", place=PREFIX, api=api)

    async def replace(arguments: dict[str, Any]) -> None:
        if "/data/" in arguments["Key"]:
            del api.before["get_object"]
            api.objects.clear()
            await results.save("n", "new", place=PREFIX, api=api)

    api.before["get_object"] = replace
    assert await results.load("n", place=PREFIX, api=api) == "new"


async def test_a_cancelled_download_leaves_no_part_of_a_file(large: Path, tmp_path: Path) -> None:
    api = FakeS3()
    await results.save("large", large, place=PREFIX, api=api)
    arrived = asyncio.Event()
    target = tmp_path / "down"
    getting = asyncio.create_task(
        results.download(target, place=PREFIX, api=api, progress=lambda name, done, total: arrived.set())
    )
    await arrived.wait()
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert os.listdir(target) == []
