"""The cluster's token in a store of AWS: jobs are told only where it is, so that whoever may describe them does not learn it.

The launcher puts it there and deletes it at the end; agents fetch it by their job's or task's role. It carries the marks of its
cluster, by which one is found whose manager was killed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId, Token
from aiocluster.launch.aws import Api, Aws, AwsError, Fault, items
from aiocluster.launch.marks import CLUSTER, tags

__all__ = ["VARIABLE", "SecretStore", "StoreKind", "Stored", "delete_token", "fetch_token", "stored_tokens", "token_from"]

VARIABLE = "AIOCLUSTER_TOKEN_FROM"
StoreKind = Literal["ssm", "secretsmanager"]
KINDS = ("ssm", "secretsmanager")
_MISSING = ("ParameterNotFound", "ResourceNotFoundException")


class SecretStore:
    """The token of one cluster, kept in a store until `close`.

    Args:
        kind: "ssm" (Parameter Store, a SecureString) or "secretsmanager".
        api: of the launcher.
    """

    def __init__(self, kind: StoreKind, api: Api) -> None:
        if kind not in KINDS:
            raise ValueError(f"secret_store must be one of {', '.join(KINDS)}, not {kind!r}")
        self._kind = kind
        self._api = api
        self._name = ""
        self._putting: asyncio.Task[None] | None = None

    async def put(self, cluster_id: ClusterId, token: Token) -> dict[str, str]:
        """The variables that tell an agent where the token is. It is put there once, however often this is called.

        Raises:
            AwsError: it could not be stored.
        """
        name = f"/aiocluster/{cluster_id}/token" if self._kind == "ssm" else f"aiocluster/{cluster_id}/token"
        if self._putting is None:
            self._name = name  # before the request: whatever comes of it, `close` deletes it
            self._putting = asyncio.create_task(
                self._store(cluster_id, token), name=f"aiocluster: store the token of {cluster_id}"
            )
        try:
            await asyncio.shield(self._putting)
        except AwsError:
            self._putting = None
            raise
        return {VARIABLE: f"{self._kind}:{name}"}

    async def _store(self, cluster_id: ClusterId, token: Token) -> None:
        marks = [{"Key": key, "Value": value} for key, value in (await tags(cluster_id)).items()]
        secret: dict[str, Any] = {"Name": self._name, "Tags": marks}
        try:
            if self._kind == "ssm":
                await self._api.call("ssm", "put_parameter", **secret, Type="SecureString", Value=token.reveal().hex())
            else:
                await self._api.call("secretsmanager", "create_secret", **secret, SecretString=token.reveal().hex())
        except AwsError as error:
            # The name is this cluster's alone: an earlier try, whose answer was lost, has done it.
            if error.code not in ("ParameterAlreadyExists", "ResourceExistsException"):
                raise

    async def close(self) -> None:
        """The token is not there any more.

        Raises:
            AwsError: it could not be deleted; the text names it.
        """
        if self._putting is not None:
            await asyncio.wait([self._putting])
        if not self._name:
            return
        await delete_token(f"{self._kind}:{self._name}", self._api)
        self._name, self._putting = "", None


async def delete_token(reference: str, api: Api) -> None:
    """The token is not there any more; one that was not is no matter.

    Args:
        reference: such as "ssm:/aiocluster/c-1/token".

    Raises:
        AwsError: it could not be deleted; the text names it.
    """
    kind, _, name = reference.partition(":")
    try:
        if kind == "ssm":
            await api.call("ssm", "delete_parameter", Name=name)
        else:
            await api.call("secretsmanager", "delete_secret", SecretId=name, ForceDeleteWithoutRecovery=True)
    except AwsError as error:
        if error.code not in _MISSING:
            raise AwsError(f"the token {reference} could not be deleted: {error.reason}", error.fault) from error


class Stored(NamedTuple):
    """A token that is in a store."""

    reference: str
    arn: str
    tags: dict[str, str]


async def stored_tokens(api: Api) -> list[Stored]:
    """The tokens of all clusters that are in the stores of a region, by their marks. What they are is not read.

    Raises:
        AwsError: AWS does not tell.
    """
    asked = {"TagFilters": [{"Key": CLUSTER}], "ResourceTypeFilters": ["ssm:parameter", "secretsmanager:secret"]}
    service, operation, key = "resourcegroupstaggingapi", "get_resources", "ResourceTagMappingList"
    return [
        _stored(str(one["ResourceARN"]), one.get("Tags", ()))
        async for one in items(api, service, operation, key, page="PaginationToken", **asked)
    ]


def _stored(arn: str, tags: Iterable[Mapping[str, str]]) -> Stored:
    """A parameter goes by its name only, which begins with a slash; a secret by its ARN as well."""
    _, is_parameter, name = arn.partition(":parameter")
    return Stored(f"ssm:{name}" if is_parameter else f"secretsmanager:{arn}", arn, {tag["Key"]: tag["Value"] for tag in tags})


async def fetch_token(reference: str, api: Api) -> Token:
    """The token that a reference such as "ssm:/aiocluster/c-1/token" names.

    Raises:
        ValueError: it makes no sense, or what is there is no token.
        AwsError: it cannot be had.
    """
    kind, _, name = reference.partition(":")
    if kind not in KINDS or not name:
        raise ValueError(f"{VARIABLE}={reference}: neither ssm:NAME nor secretsmanager:NAME")
    if kind == "ssm":
        answer = await api.call("ssm", "get_parameter", Name=name, WithDecryption=True)
        text = answer["Parameter"]["Value"]
    else:
        text = (await api.call("secretsmanager", "get_secret_value", SecretId=name))["SecretString"]
    return Token.from_hex(text)


def token_from(reference: str, environ: Mapping[str, str] | None = None) -> Token:
    """Like `fetch_token`, for an agent that has no loop yet. What goes wrong is a `ValueError` that says so."""

    async def fetch() -> Token:
        api = Aws(environ=os.environ if environ is None else environ)
        try:
            return await fetch_token(reference, api)
        finally:
            await api.close()

    try:
        return asyncio.run(fetch())
    except LaunchError as error:
        fault = error.fault if isinstance(error, AwsError) else Fault.REJECTED
        hint = ": is the job's role allowed to read it?" if fault is Fault.DENIED else ""
        raise ValueError(f"{VARIABLE}={reference}: {error.reason}{hint}") from error
