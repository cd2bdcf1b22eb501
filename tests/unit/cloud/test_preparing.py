"""From a script to a definition: what is pushed is what was built, and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from aiocluster.cloud import preparing
from aiocluster.cloud.context import Script
from aiocluster.cloud.preparing import prepare
from aiocluster.errors import LaunchError
from aiocluster.launch.engine import GONE, Engine, EngineError
from tests.unit.cloud.fake_account import FakeAccount

ID = "sha256:" + "1234567890ab" + "c" * 52
DIGEST = "sha256:" + "ef" * 32


class Images:
    """An engine, with the images that it has by name."""

    host = "unix:///fake.sock"

    def __init__(self) -> None:
        self.named: dict[str, str] = {}
        self.pushed: list[tuple[str, str, str]] = []
        """Id, repository and tag."""
        self._tags: dict[tuple[str, str], str] = {}

    async def build(self, _context: Any, tag: str, _arguments: Mapping[str, str]) -> AsyncIterator[Mapping[str, Any]]:
        self.named[tag] = "sha256:" + "9" * 64  # somebody else has built another one, a moment later
        yield {"aux": {"ID": ID}}

    async def image_id(self, name: str) -> str:
        if name not in self.named:
            raise EngineError(GONE, f"No such image: {name}")
        return self.named[name]

    async def tag(self, image: str, repository: str, tag: str) -> None:
        self._tags[repository, tag] = image

    async def push(self, repository: str, tag: str, _credentials: object) -> AsyncIterator[Mapping[str, Any]]:
        self.pushed.append((self._tags[repository, tag], repository, tag))
        yield {"aux": {"Digest": DIGEST}}


class Account(FakeAccount):
    """With a repository, too."""

    def _describe_repositories(self, **_asked: Any) -> dict[str, Any]:
        return {"repositories": [{"repositoryUri": "1.ecr/lab"}]}

    def _get_authorization_token(self) -> dict[str, Any]:
        return {"authorizationData": [{"authorizationToken": "QVdTOng=", "proxyEndpoint": "https://1.ecr"}]}

    def _register_job_definition(self, **asked: Any) -> dict[str, Any]:
        self.definitions.append({**asked, "revision": 1})
        return {"jobDefinitionName": asked["jobDefinitionName"], "revision": 1}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Images:
    images = Images()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Engine]:
        yield cast(Engine, images)

    monkeypatch.setattr(preparing, "opened_engine", opened)
    return images


@pytest.fixture
def script(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.py").touch()
    return Script(path="run.py")


def account() -> Account:
    made = Account()
    container = {"image": "old", "jobRoleArn": "arn:role"}
    made.definitions = [{"jobDefinitionName": "lab", "revision": 7, "type": "container", "containerProperties": container}]
    return made


async def test_what_was_built_is_pushed_under_a_tag_of_its_own_and_registered(engine: Images, script: Script) -> None:
    api, told = account(), list[str]()
    made = await prepare(api, script, like="lab:7", repository="lab", build=True, push=True, register=True, tell=told.append)
    assert engine.pushed == [(ID, "1.ecr/lab", "aiocluster-run-1234567890ab")]
    assert made.image == f"1.ecr/lab@{DIGEST}"
    assert made.definition == "lab-run:1"
    assert api.definitions[-1]["containerProperties"]["image"] == f"1.ecr/lab@{DIGEST}"
    assert told == ["built aiocluster-run:latest (1234567890ab)", f"pushed {made.image}", "registered lab-run:1"]


async def test_what_was_built_before_is_pushed_without_another_build(engine: Images, script: Script) -> None:
    engine.named["aiocluster-run:latest"] = ID
    made = await prepare(account(), script, like="lab", repository="lab", build=False, push=True, register=False)
    assert engine.pushed == [(ID, "1.ecr/lab", "aiocluster-run-1234567890ab")]
    assert made.definition == ""


async def test_what_was_never_built_is_told(engine: Images, script: Script) -> None:
    with pytest.raises(LaunchError, match="has no image aiocluster-run:latest: `aiocluster image build` makes one"):
        await prepare(account(), script, like="lab", repository="lab", build=False, push=True, register=True)
    assert engine.pushed == []
