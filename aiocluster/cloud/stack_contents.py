"""What the buckets and repositories of a stack hold: AWS deletes none that is not empty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, AwsError, items

__all__ = ["Held", "contents", "empty_all"]

BUCKET = "AWS::S3::Bucket"
REPOSITORY = "AWS::ECR::Repository"
GONE = ("NoSuchBucket", "RepositoryNotFoundException")
SHOWN = 2


class Held(NamedTuple):
    """A bucket or a repository that has something in it."""

    kind: str
    name: str
    some: tuple[str, ...]
    """The names of a few of the things."""

    def __str__(self) -> str:
        what = "results in the bucket" if self.kind == BUCKET else "images in the repository"
        return f"{what} {self.name} ({', '.join(self.some[:SHOWN])}{', …' if len(self.some) > SHOWN else ''})"


async def contents(api: Api, stack: str) -> list[Held]:
    """The buckets and repositories of a stack that are not empty.

    Raises:
        AwsError: AWS does not tell.
    """
    resources = [
        (str(one["ResourceType"]), str(one.get("PhysicalResourceId") or ""))
        async for one in items(
            api, "cloudformation", "list_stack_resources", "StackResourceSummaries", page="NextToken", StackName=stack
        )
        if one["ResourceType"] in (BUCKET, REPOSITORY) and one.get("ResourceStatus") != "DELETE_COMPLETE"
    ]
    held = [Held(kind, name, await _some(api, kind, name)) for kind, name in resources if name]
    return [one for one in held if one.some]


async def _some(api: Api, kind: str, name: str) -> tuple[str, ...]:
    try:
        if kind == BUCKET:
            answer = await api.call("s3", "list_object_versions", Bucket=name, MaxKeys=SHOWN + 1)
            return tuple(str(one["Key"]) for one in _versions(answer))
        answer = await api.call("ecr", "list_images", repositoryName=name, maxResults=SHOWN + 1)
        return tuple(str(one.get("imageTag") or one.get("imageDigest")) for one in answer.get("imageIds", ()))
    except AwsError as error:
        if error.code in GONE:
            return ()
        raise


def _versions(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Where a bucket keeps versions, what was deleted still holds it."""
    return [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]


async def empty_all(api: Api, held: Iterable[Held]) -> None:
    """What these hold is deleted. Cancelling leaves the rest of it.

    Raises:
        LaunchError: something cannot be deleted.
        AwsError: AWS was not reached or did not take the request.
    """
    for one in held:
        if one.kind == BUCKET:
            await _empty_bucket(api, one.name)
        else:  # with all that is in it, in one request; the stack does not miss it
            await api.call("ecr", "delete_repository", repositoryName=one.name, force=True)


async def _empty_bucket(api: Api, name: str) -> None:
    while True:  # the first page, as long as there is one
        objects = _versions(await api.call("s3", "list_object_versions", Bucket=name))
        if not objects:
            return
        wanted = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in objects]
        answer = await api.call("s3", "delete_objects", Bucket=name, Delete={"Objects": wanted, "Quiet": True})
        for error in answer.get("Errors", ()):
            raise LaunchError(f"{error.get('Key')} in the bucket {name} cannot be deleted: {error.get('Message')}")
