"""The token in a store: put there once, fetched by agents, deleted at the end."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from aiocluster.ids import ClusterId, Token
from aiocluster.launch.aws import AwsError
from aiocluster.launch.marks import CLUSTER
from aiocluster.launch.secret_store import SecretStore, StoreKind, fetch_token, token_from
from aiocluster.runtime.agent_settings import AgentSettings
from tests.unit.launch.fake_batch import DENIED, LOST, FakeAws

CLUSTER_ID = ClusterId("c-1")
NAMES = {"ssm": "/aiocluster/c-1/token", "secretsmanager": "aiocluster/c-1/token"}
kinds = pytest.mark.parametrize("kind", list(NAMES))


@kinds
async def test_an_agent_fetches_what_the_launcher_put_there(kind: str) -> None:
    aws, token = FakeAws(), Token.generate()
    store = SecretStore(cast(StoreKind, kind), aws)
    variables = await store.put(CLUSTER_ID, token)
    assert variables == {"AIOCLUSTER_TOKEN_FROM": f"{kind}:{NAMES[kind]}"}
    assert await fetch_token(variables["AIOCLUSTER_TOKEN_FROM"], aws) == token
    (secret,) = aws.secrets.values()
    assert {"Key": CLUSTER, "Value": "c-1"} in secret["Tags"]
    if kind == "ssm":
        assert secret["Type"] == "SecureString"
    await store.close()
    assert aws.secrets == {}
    await store.close()


async def test_it_is_put_there_once() -> None:
    aws, token = FakeAws(), Token.generate()
    store = SecretStore("ssm", aws)
    await asyncio.gather(store.put(CLUSTER_ID, token), store.put(CLUSTER_ID, token))
    assert aws.count("put_parameter") == 1


@kinds
async def test_a_lost_answer_is_no_matter_when_it_is_put_again(kind: str) -> None:
    aws, token = FakeAws(), Token.generate()
    store = SecretStore(cast(StoreKind, kind), aws)
    for operation in ("put_parameter", "create_secret"):
        aws.fail(operation, LOST, done=True)
    with pytest.raises(AwsError, match="the answer was lost"):
        await store.put(CLUSTER_ID, token)
    variables = await store.put(CLUSTER_ID, token)
    assert await fetch_token(variables["AIOCLUSTER_TOKEN_FROM"], aws) == token
    await store.close()
    assert aws.secrets == {}


async def test_what_was_put_by_a_lost_request_is_deleted() -> None:
    aws = FakeAws()
    store = SecretStore("ssm", aws)
    aws.fail("put_parameter", LOST, done=True)
    with pytest.raises(AwsError):
        await store.put(CLUSTER_ID, Token.generate())
    await store.close()
    assert aws.secrets == {}


@kinds
async def test_one_that_is_gone_already_is_no_matter(kind: str) -> None:
    aws = FakeAws()
    store = SecretStore(cast(StoreKind, kind), aws)
    await store.put(CLUSTER_ID, Token.generate())
    aws.secrets.clear()
    await store.close()


async def test_one_that_cannot_be_deleted_is_named() -> None:
    aws = FakeAws()
    store = SecretStore("ssm", aws)
    await store.put(CLUSTER_ID, Token.generate())
    aws.fail("delete_parameter", DENIED)
    with pytest.raises(AwsError, match="the token ssm:/aiocluster/c-1/token could not be deleted: access denied"):
        await store.close()
    await store.close()
    assert aws.secrets == {}


@pytest.mark.parametrize("reference", ["", "ssm", "ssm:", "vault:/a", "/aiocluster/c-1/token"])
async def test_a_reference_that_makes_no_sense_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="neither ssm:NAME nor secretsmanager:NAME"):
        await fetch_token(reference, FakeAws())


async def test_what_is_no_token_is_refused_and_not_shown() -> None:
    aws = FakeAws()
    aws.secrets["/x"] = {"Value": "hunter2"}
    with pytest.raises(ValueError, match="64 hexadecimal digits") as caught:
        await fetch_token("ssm:/x", aws)
    assert "hunter2" not in str(caught.value)


def test_an_agent_that_cannot_fetch_its_token_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with pytest.raises(ValueError, match="AIOCLUSTER_TOKEN_FROM=ssm:/x: no region"):
        token_from("ssm:/x", {})
    environ = {
        "AIOCLUSTER_MANAGER": "tcp://10.0.0.1:1",
        "AIOCLUSTER_CLUSTER": "c-1",
        "AIOCLUSTER_NODE": "batch-1",
        "AIOCLUSTER_TOKEN_FROM": "ssm:/x",
    }
    with pytest.raises(ValueError, match="AIOCLUSTER_TOKEN_FROM=ssm:/x: no region"):
        AgentSettings(environ)
