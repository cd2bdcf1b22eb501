"""The cluster's token in a store of AWS: jobs are told only where it is, so that whoever may describe them does not learn it.

The launcher puts it there and deletes it at the end; agents fetch it by their job's or task's role.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Literal

from aiocluster.errors import LaunchError
from aiocluster.ids import ClusterId, Token
from aiocluster.launch.aws import Api, Aws, AwsError, Fault
from aiocluster.launch.marks import tags

__all__ = ["VARIABLE", "SecretStore", "StoreKind", "fetch_token", "token_from"]

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
        try:
            if self._kind == "ssm":
                await self._api.call("ssm", "delete_parameter", Name=self._name)
            else:
                await self._api.call("secretsmanager", "delete_secret", SecretId=self._name, ForceDeleteWithoutRecovery=True)
        except AwsError as error:
            if error.code not in _MISSING:
                raise AwsError(
                    f"the token {self._kind}:{self._name} could not be deleted: {error.reason}", error.fault
                ) from error
        self._name, self._putting = "", None


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
