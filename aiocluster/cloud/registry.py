"""Amazon ECR: images are pushed from a Docker engine, and named by their digests.

The credentials are asked for right before they are used, and go to the engine with the push alone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, AwsError
from aiocluster.launch.engine import GONE, Engine, EngineError

__all__ = ["Pushed", "push"]

Progress = Callable[[str, str, int, int], None]
"""Called with a layer, what happens to it, and how many of how many bytes are done."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """An image that a registry has."""

    reference: str
    """With its digest: it names this very image, for as long as the registry keeps it."""
    digest: str


def _untold(_layer: str, _status: str, _done: int, _size: int) -> None:
    """For those who do not want to hear."""


async def push(
    api: Api,
    engine: Engine,
    image: str,
    repository: str,
    *,
    tag: str = "latest",
    create: bool = False,
    registry: str | None = None,
    tell: Progress = _untold,
) -> Pushed:
    """The repository has the image, under this tag.

    Args:
        image: that the engine has, by name or id.
        repository: its name in ECR.
        create: make the repository if there is none.
        registry: host and port, in place of what ECR says. Only that of the account is given the account's credentials.

    Raises:
        LaunchError: the engine does not have the image, or the registry does not take it.
        AwsError: there is no such repository, or AWS refuses.

    Cancelling ends the push; layers that have arrived stay, and another push goes on from there.
    """
    host = registry or (await _uri(api, repository, create=create)).partition("/")[0]
    if registry and create:
        await _uri(api, repository, create=True)
    name = f"{host}/{repository}"
    digest = ""
    try:
        await engine.tag(image, name, tag)
        async for told in engine.push(name, tag, await _credentials(api, registry)):
            detail = told.get("progressDetail") or {}
            if "id" in told:
                tell(str(told["id"]), str(told.get("status", "")), int(detail.get("current", 0)), int(detail.get("total", 0)))
            digest = str((told.get("aux") or {}).get("Digest", digest))
    except EngineError as error:
        if error.status == GONE:
            raise LaunchError(f"the engine at {engine.host} has no image {image}: `aiocluster image build` makes one") from error
        raise LaunchError(f"the image {image} could not be pushed to {name}:{tag}: {error}") from error
    if not digest:
        raise LaunchError(f"the registry did not say that it has taken {name}:{tag}")
    return Pushed(reference=f"{name}@{digest}", digest=digest)


async def _uri(api: Api, repository: str, *, create: bool) -> str:
    try:
        answer = await api.call("ecr", "describe_repositories", repositoryNames=[repository])
        found: Mapping[str, Any] = answer["repositories"][0]
    except AwsError as error:
        if error.code != "RepositoryNotFoundException":
            raise
        if not create:
            raise LaunchError(f"there is no repository {repository} in ECR here: `aiocluster stack deploy` makes one") from error
        found = (await api.call("ecr", "create_repository", repositoryName=repository))["repository"]
    return str(found["repositoryUri"])


async def _credentials(api: Api, registry: str | None) -> dict[str, str] | None:
    """Those of ECR; None for a registry that is none of the account's: they are good for every repository in it."""
    told = (await api.call("ecr", "get_authorization_token"))["authorizationData"][0]
    if registry is not None and registry != str(told.get("proxyEndpoint", "")).rpartition("/")[2]:
        return None
    user, _, password = base64.b64decode(told["authorizationToken"]).decode().partition(":")
    return {"username": user, "password": password}
