"""AWS: one client a service, requests that are tried again where that is safe, and errors that say what to do.

All requests of a launcher go through `Api.call`. It must never choose a region for anybody, never repeat by itself a request
that AWS may have carried out already and would carry out again, and never let a secret of a request or an answer into the logs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from enum import Enum
from typing import Any, Protocol

from aiocluster.errors import LaunchError
from aiocluster.launch.metadata import task_metadata

__all__ = ["Api", "Aws", "AwsError", "Fault", "items", "region_of_arn", "translate"]

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
"""AWS answers within a second or two; what takes longer was lost on its way."""
ATTEMPTS = 8
"""Of a request that is patient. Between them the SDK's standard mode waits a random part of 1, 2, 4, 8, 16, 20 and 20 s: 36 s in
all on average, 71 s at most. What it takes until an attempt has failed comes on top: nothing to speak of where AWS answers, and
the time-outs above where it does not, so that it is 271 s at the very most. Where much fails at once the SDK
gives up sooner: all requests of a client share a quota of attempts that are made again.
"""


class Fault(Enum):
    """What kind of trouble a request has met."""

    NO_REGION = "no region"
    CREDENTIALS = "credentials"
    """None, wrong or expired ones."""
    DENIED = "denied"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    """A time-out, a broken connection or an error on AWS's side: the request may have been carried out."""
    UNREACHABLE = "unreachable"
    """It never got there."""
    REJECTED = "rejected"
    """AWS says what is wrong with it."""


class AwsError(LaunchError):
    """A request to AWS failed; the reason says what to try.

    Attributes:
        fault: what kind of trouble it is.
        code: AWS's word for it, such as "ThrottlingException"; "" where AWS has said nothing.
    """

    def __init__(self, reason: str, fault: Fault, code: str = "") -> None:
        super().__init__(reason)
        self.fault = fault
        self.code = code

    @property
    def maybe_done(self) -> bool:
        """True if AWS may have carried the request out all the same."""
        return self.fault is Fault.UNAVAILABLE

    @property
    def passing(self) -> bool:
        """True if the same request may succeed later."""
        return self.fault in (Fault.THROTTLED, Fault.UNAVAILABLE, Fault.UNREACHABLE)


class Api(Protocol):
    """What launchers ask of AWS."""

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        """AWS's answer.

        Args:
            service: as the SDK calls it: "batch".
            operation: as the SDK's method is called: "submit_job".
            patient: try again what may pass: for half a minute or so, for minutes where attempts time out (see `ATTEMPTS`). For
                what would be done twice by that: False.
            arguments: of the operation.

        Raises:
            AwsError: it failed.
        """
        ...

    async def close(self) -> None:
        """Release the connections. It can be used again afterwards."""
        ...


async def items(
    api: Api, service: str, operation: str, key: str, *, page: str = "nextToken", **arguments: Any
) -> AsyncIterator[Any]:
    """All that a request lists, page by page; `key` is the list's name in each answer, `page` that of what leads to the next."""
    token: dict[str, Any] = {}
    while True:
        answer = await api.call(service, operation, **arguments, **token)
        for item in answer.get(key, ()):
            yield item
        if not answer.get(page):
            return
        token = {page: answer[page]}


class Aws:
    """The real thing. Belongs to the loop that uses it first, until it is closed.

    Args:
        region: where to work; default: what the standard variables and files of AWS say, or where this task runs.
        environ: variables of this process.
    """

    def __init__(self, region: str | None = None, *, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._region = region
        self._session: Any = None
        self._clients: dict[tuple[str, bool], Any] = {}
        self._open = contextlib.AsyncExitStack()

    async def region(self) -> str:
        """The region in which all requests are made.

        Raises:
            AwsError: nobody has said which.
        """
        if self._region is None:
            found = self._environ.get("AWS_REGION") or self._sdk().get_config_variable("region")
            self._region = found or await _region_of_this_task(self._environ)
        if self._region is None:
            raise AwsError(
                "no region: pass region=, set AWS_REGION, or name one in the profile of ~/.aws/config", Fault.NO_REGION
            )
        return self._region

    def _sdk(self) -> Any:
        if self._session is None:
            from aiobotocore.session import get_session  # takes half a second: only those who use AWS wait for it

            self._session = get_session()
            _keep_secrets()
        return self._session

    async def _client(self, service: str, patient: bool) -> Any:
        client = self._clients.get((service, patient))
        if client is None:
            from aiobotocore.config import AioConfig

            retries = {"mode": "standard", "total_max_attempts": ATTEMPTS if patient else 1}
            config = AioConfig(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries=retries)
            made = self._sdk().create_client(service, region_name=await self.region(), config=config)
            client = await self._open.enter_async_context(made)
            _keep_secrets()  # once more: what this service needs may have been imported just now
            # Somebody else may have made one meanwhile: then both are open until the end, and that one is used.
            client = self._clients.setdefault((service, patient), client)
        return client

    async def call(self, service: str, operation: str, *, patient: bool = True, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        asking = _asking.set(True)
        try:
            client = await self._client(service, patient)
            answer: dict[str, Any] = await getattr(client, operation)(**arguments)
        except (BotoCoreError, ClientError, ResponseParserError, TimeoutError, OSError) as error:
            raise translate(error, service, operation) from error
        finally:
            _asking.reset(asking)
        return answer

    async def close(self) -> None:
        self._clients.clear()
        await self._open.aclose()


# --- what is logged ----------------------------------------------------------------------------------------------------------

_asking: ContextVar[bool] = ContextVar("aiocluster asks AWS", default=False)
"""Set in the tasks of a request, also in those that the SDK starts for it."""


def _discreet(record: logging.LogRecord) -> bool:
    """False for what the SDK tells at DEBUG of our requests: there it writes whole bodies, and the cluster's token is in some.

    What it tells of requests of others, and its warnings, are left alone.
    """
    return record.levelno > logging.DEBUG or not _asking.get()


def _keep_secrets() -> None:
    """Filters are not inherited: each logger of the SDK gets its own, once."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "aiobotocore"):
            logging.getLogger(name).addFilter(_discreet)


# --- what errors mean --------------------------------------------------------------------------------------------------------

_THROTTLED = frozenset(
    (
        "BandwidthLimitExceeded", "EC2ThrottledException", "LimitExceededException", "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled", "RequestThrottledException",
        "SlowDown", "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequestsException",
    )
)  # fmt: skip
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"))
_UNKNOWN_KEY = frozenset(
    (
        "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSignatureException",
        "MissingAuthenticationToken", "MissingAuthenticationTokenException", "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    )
)  # fmt: skip
_DENIED = frozenset(("403", "AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation"))
_PREFIXES = {"resourcegroupstaggingapi": "tag"}
_ACTIONS = {
    ("s3", "CompleteMultipartUpload"): "s3:PutObject",
    ("s3", "CreateMultipartUpload"): "s3:PutObject",
    ("s3", "DeleteObjects"): "s3:DeleteObject",
    ("s3", "HeadBucket"): "s3:ListBucket",
    ("s3", "HeadObject"): "s3:GetObject",
    ("s3", "ListObjectVersions"): "s3:ListBucketVersions",
    ("s3", "ListObjectsV2"): "s3:ListBucket",
    ("s3", "UploadPart"): "s3:PutObject",
}
"""What policies call them, where that is not their own name. Source: "Service Authorization Reference"."""
_ACTION = re.compile(r"not authorized to perform:? ?(?P<action>[a-z0-9-]+:[A-Za-z0-9]+)")
_CREDENTIALS_HINT = "set AWS_PROFILE or AWS_ACCESS_KEY_ID, log in, or give the job a job role"


def translate(error: Exception, service: str, operation: str) -> AwsError:
    """The same error, in words that say what to try.

    Source: error codes of the SDKs' retry modes and "Common errors" of the API references.
    """
    from botocore import exceptions as sdk
    from botocore.parsers import ResponseParserError

    name = "".join(word.capitalize() for word in operation.split("_"))
    action = _ACTIONS.get((service, name)) or f"{_PREFIXES.get(service, service)}:{name}"
    if isinstance(error, sdk.ClientError):
        return _refused(error, action)
    if isinstance(error, sdk.NoRegionError):
        return AwsError("no region: pass region=, set AWS_REGION, or name one in ~/.aws/config", Fault.NO_REGION)
    if isinstance(error, sdk.NoCredentialsError):
        return AwsError(f"no AWS credentials: {_CREDENTIALS_HINT}", Fault.CREDENTIALS)
    credential_errors = (
        sdk.PartialCredentialsError,
        sdk.CredentialRetrievalError,
        sdk.TokenRetrievalError,
        sdk.SSOError,
        sdk.ProfileNotFound,
        sdk.InvalidConfigError,
        sdk.MetadataRetrievalError,
    )
    if isinstance(error, credential_errors):
        return AwsError(f"AWS credentials cannot be had: {error}; {_CREDENTIALS_HINT}", Fault.CREDENTIALS)
    if isinstance(error, (sdk.EndpointConnectionError, sdk.ConnectTimeoutError, sdk.ProxyConnectionError)):
        return AwsError(
            f"{action}: {error}; is the region right, and does this machine's subnet lead to AWS (NAT or VPC endpoints)?",
            Fault.UNREACHABLE,
        )
    if isinstance(error, (sdk.HTTPClientError, ResponseParserError, TimeoutError, OSError)):
        return AwsError(f"{action}: AWS did not answer: {str(error) or type(error).__name__}", Fault.UNAVAILABLE)
    return AwsError(f"{action}: {error}", Fault.REJECTED)


def _refused(error: Any, action: str) -> AwsError:
    """AWS has answered, with an error."""
    told = error.response.get("Error", {})
    code = str(told.get("Code", ""))
    message = str(told.get("Message") or told.get("message") or code)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _THROTTLED or status == 429:
        return AwsError(f"{action}: AWS is throttling requests ({code or status}): {message}", Fault.THROTTLED, code)
    if code in _EXPIRED:
        return AwsError(f"the AWS credentials have expired ({code}): {message}; renew them", Fault.CREDENTIALS, code)
    if code in _UNKNOWN_KEY:
        return AwsError(f"AWS does not accept the credentials ({code}): {message}", Fault.CREDENTIALS, code)
    if code in _DENIED:
        match = _ACTION.search(message)
        lacking = match["action"] if match else action
        return AwsError(f"access denied: the role or user needs {lacking} in its policy (AWS: {message})", Fault.DENIED, code)
    if status >= 500 or code in ("InternalError", "InternalFailure", "ServerException", "ServiceUnavailable"):
        return AwsError(f"{action}: error on AWS's side ({code or status}): {message}", Fault.UNAVAILABLE, code)
    return AwsError(f"{action}: {message}", Fault.REJECTED, code)


# --- where this process runs -------------------------------------------------------------------------------------------------


def region_of_arn(arn: str) -> str | None:
    """The region in an ARN: "eu-west-1" of "arn:aws:batch:eu-west-1:…"; None where there is none."""
    parts = arn.split(":")
    return parts[3] or None if len(parts) > 5 and parts[0] == "arn" else None


async def _region_of_this_task(environ: Mapping[str, str]) -> str | None:
    """A container of AWS Batch or ECS on EC2 is told no region; the metadata of its task say where it runs."""
    try:
        told = await task_metadata(environ)
    except (OSError, ValueError):
        return None  # then it is an error that there is no region, and the text says what to set
    return None if told is None else region_of_arn(str(told.get("TaskARN", "")))
