"""S3 as far as results need it: objects, uploads in parts, ranges, pages; faults and pauses where a test wants them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Self

from aiocluster.launch.aws import AwsError, Fault

PAGE = 2
"""Keys in one page of a list: few, so that there is more than one."""


class Body:
    """What S3 sends after the head of its answer; it may break off."""

    def __init__(self, content: bytes, breaks: bool) -> None:
        self._content = content
        self._breaks = breaks

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._breaks:
            raise ConnectionResetError("the connection was reset")
        return self._content


class FakeS3:
    """Answers as S3 does."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        """The parts of those that are neither complete nor aborted."""
        self.asked: list[str] = []
        self.sizes: list[int] = []
        """Of what was sent."""
        self.held = 0
        self.most_held = 0
        """Parts that were being sent, or fetched, at a time."""
        self.broken_bodies = 0
        """So many bodies break off, from now on."""
        self.before: dict[str, Callable[[dict[str, Any]], Any]] = {}
        """Called, and awaited, with the arguments of an operation before it has an effect."""

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        assert service == "s3"
        self.asked.append(operation)
        self.held += 1
        self.most_held = max(self.held, self.most_held)
        try:
            await asyncio.sleep(0)
            if operation in self.before:
                await self.before[operation](arguments)
            answer: dict[str, Any] = getattr(self, f"_{operation}")(arguments)
            return answer
        finally:
            self.held -= 1

    async def close(self) -> None:
        raise AssertionError("who was handed it does not own it")

    def there(self) -> list[str]:
        """The keys of all objects."""
        return sorted(key for _, key in self.objects)

    def _put_object(self, told: dict[str, Any]) -> dict[str, Any]:
        self.sizes.append(len(told["Body"]))
        self.objects[told["Bucket"], told["Key"]] = told["Body"]
        return {}

    def _create_multipart_upload(self, told: dict[str, Any]) -> dict[str, Any]:
        id = f"{told['Bucket']}/{told['Key']}/{len(self.asked)}"
        self.uploads[id] = {}
        return {"UploadId": id}

    def _upload_part(self, told: dict[str, Any]) -> dict[str, Any]:
        part = told["Body"]
        self.sizes.append(len(part))
        self.uploads[told["UploadId"]][told["PartNumber"]] = part
        return {"ETag": _tag(part)}

    def _complete_multipart_upload(self, told: dict[str, Any]) -> dict[str, Any]:
        parts = self.uploads.pop(told["UploadId"])
        listed = [(part["PartNumber"], part["ETag"]) for part in told["MultipartUpload"]["Parts"]]
        assert listed == [(number, _tag(parts[number])) for number in sorted(parts)]
        self.objects[told["Bucket"], told["Key"]] = b"".join(parts[number] for number in sorted(parts))
        return {}

    def _abort_multipart_upload(self, told: dict[str, Any]) -> dict[str, Any]:
        del self.uploads[told["UploadId"]]
        return {}

    def _get_object(self, told: dict[str, Any]) -> dict[str, Any]:
        content = self.objects.get((told["Bucket"], told["Key"]))
        if content is None:
            raise AwsError(f"s3:GetObject: no such key: {told['Key']}", Fault.REJECTED, "NoSuchKey")
        if "Range" in told:
            first, last = map(int, told["Range"].removeprefix("bytes=").split("-"))
            if first >= len(content):
                raise AwsError("s3:GetObject: the range is not satisfiable", Fault.REJECTED, "InvalidRange")
            content = content[first : last + 1]
        self.broken_bodies -= 1
        return {"Body": Body(content, self.broken_bodies >= 0)}

    def _list_objects_v2(self, told: dict[str, Any]) -> dict[str, Any]:
        found = [key for key in self.there() if key.startswith(told["Prefix"])]
        first = int(told.get("ContinuationToken", "0"))
        answer: dict[str, Any] = {"Contents": [{"Key": key} for key in found[first : first + PAGE]]}
        if first + PAGE < len(found):
            answer["NextContinuationToken"] = str(first + PAGE)
        return answer


def _tag(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()
