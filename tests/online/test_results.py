"""Results in S3, from processes of their own: large files travel in parts, and a save that is killed half way changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from aiocluster import AioclusterError, results
from aiocluster.cloud.store import PART_BYTES
from tests.online.ground import Batch

pytestmark = pytest.mark.online("batch")

SIZE = 50_000_000
SAVE = """
import asyncio, pathlib, sys, aiocluster

async def main():
    await aiocluster.results.save("numbers", {"mean": 2.5})
    print((await aiocluster.results.save("deep/large.bin", pathlib.Path(sys.argv[1]))).sha256)

asyncio.run(main())
"""
KILLED = """
import asyncio, os, pathlib, signal, sys
from aiocluster import AioclusterError, results
from aiocluster.launch.aws import Aws
call = Aws.call
async def dying(self, service, operation, **arguments):
    if arguments.get("PartNumber") == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, service, operation, **arguments)
Aws.call = dying
asyncio.run(results.save("deep/large.bin", pathlib.Path(sys.argv[1])))
"""


async def ran(*command: str, **environ: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environ}
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


@pytest.fixture
def prefix(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in a new bucket, which is that of this process and of those that it starts."""
    if not batch.emulated:
        pytest.skip("makes a bucket of its own")
    bucket = f"aiocluster-{uuid.uuid4().hex}"
    with batch.client("s3") as s3:
        s3.create_bucket(Bucket=bucket)
    place = f"s3://{bucket}/results/test"
    monkeypatch.setenv("AIOCLUSTER_RESULTS", place)
    return place


def large_file(folder: Path, seed: int) -> tuple[Path, bytes]:
    content = random.Random(seed).randbytes(SIZE)
    path = folder / f"{seed}.bin"
    path.write_bytes(content)
    return path, content


def asked(batch: Batch, operation: str, prefix: str, **arguments: Any) -> Any:
    with batch.client("s3") as s3:
        return getattr(s3, operation)(Bucket=prefix.split("/")[2], **arguments)


async def test_what_one_process_saves_others_load_and_download(batch: Batch, prefix: str, tmp_path: Path) -> None:
    path, content = large_file(tmp_path, 1)
    code, sha256 = await ran("-c", SAVE, str(path))
    assert code == 0
    assert await results.names() == ["deep/large.bin", "numbers"]
    assert await results.load("numbers") == {"mean": 2.5}
    assert await results.load("deep/large.bin") == content
    head = asked(batch, "head_object", prefix, Key=f"results/test/data/{sha256[:12]}/deep/large.bin")
    assert head["ETag"].strip('"').endswith(f"-{-(-SIZE // PART_BYTES)}")  # so many parts
    command = ("-m", "aiocluster.cli.main", "job", "results", prefix)
    code, printed = await ran(*command, "--json")
    assert code == 0
    assert {row["name"]: row["size"] for row in json.loads(printed)}["deep/large.bin"] == SIZE
    code, printed = await ran(*command, "--download", str(tmp_path / "down"))
    assert code == 0
    assert (tmp_path / "down" / "deep" / "large.bin").read_bytes() == content


async def test_a_save_that_is_killed_between_its_parts_leaves_the_old_content(batch: Batch, prefix: str, tmp_path: Path) -> None:
    path, content = large_file(tmp_path, 2)
    await results.save("deep/large.bin", path)
    code, _ = await ran("-c", KILLED, str(large_file(tmp_path, 3)[0]))
    assert code == -signal.SIGKILL
    assert len(asked(batch, "list_multipart_uploads", prefix)["Uploads"]) == 1  # for the bucket's rule to end
    assert await results.load("deep/large.bin") == content


async def test_a_save_that_is_cancelled_between_its_parts_leaves_no_upload(batch: Batch, prefix: str, tmp_path: Path) -> None:
    path, _ = large_file(tmp_path, 4)
    saving = asyncio.create_task(results.save("large.bin", path))
    while not asked(batch, "list_multipart_uploads", prefix).get("Uploads"):
        await asyncio.wait((saving,), timeout=0.01)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert "Uploads" not in asked(batch, "list_multipart_uploads", prefix)
    assert await results.names() == []


async def test_a_bucket_that_is_not_there_is_named(prefix: str) -> None:
    with pytest.raises(AioclusterError, match="bucket"):
        await results.save("n", 1, place="s3://aiocluster-no-such-bucket/x")
