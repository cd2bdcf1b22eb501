"""`aiocluster job`: what is printed, which code it ends with, and what is said to those who interrupt it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiocluster.cli import job_commands
from aiocluster.cli.job_commands import Asked, Left, cancel, logs, submit
from aiocluster.cli.patience import Patience
from aiocluster.cloud.jobs import JOB, MANAGER_JOB, SUBMITTER
from aiocluster.cloud.logs import Readers
from aiocluster.errors import LaunchError
from aiocluster.launch.aws import Api, AwsError, Fault
from tests.unit.cloud.fake_account import ME, FakeAccount
from tests.unit.cloud.test_logs import Time

MINE = {JOB: MANAGER_JOB, SUBMITTER: ME}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> FakeAccount:
    made = FakeAccount()

    @asynccontextmanager
    async def opened(_region: str | None) -> AsyncIterator[Api]:
        yield made

    monkeypatch.setattr(job_commands, "opened_aws", opened)
    monkeypatch.setattr(job_commands, "POLL_S", 0.0)
    time = Time()
    monkeypatch.setattr(job_commands, "Readers", partial(Readers, clock=time, pause=time.pause))
    return made


def asked(**more: Any) -> Asked:
    told: dict[str, Any] = {
        "script": "run.py", "arguments": (), "workers": None, "queue": "managers", "definition": "manager", "name": None,
        "env": {}, "timeout_s": None, "stack": None, "region": None, "build": False, "push": False, "register": False,
        "base": None, "requirements": None, "registry": None,
    }  # fmt: skip
    return Asked(**told | more)


async def interrupted(work: Any, account: FakeAccount, ready: Any) -> None:
    running = asyncio.ensure_future(work)
    await account.until(ready)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_who_interrupts_before_a_job_is_there_is_told_so(account: FakeAccount) -> None:
    left = Left("")
    account.hold = asyncio.Event()
    work = submit(asked(), wait=False, follow=False, results=None, as_json=False, left=left)
    await interrupted(work, account, lambda: account.jobs)
    assert left.text.startswith("a job that AWS had taken by then has been told to end")
    assert account.live() == []


async def test_who_interrupts_the_waiting_is_told_how_to_go_on(account: FakeAccount) -> None:
    left = Left("")
    work = submit(asked(), wait=True, follow=False, results=None, as_json=False, left=left)
    await interrupted(work, account, lambda: account.count("describe_jobs") > 2)
    (id,) = account.live()
    assert left.text == f"the job goes on. `aiocluster job logs -f {id}` follows it, `aiocluster job cancel {id}` ends it."


async def test_who_interrupts_a_cancel_is_told_whether_anything_was_ended(account: FakeAccount) -> None:
    left = Left("nothing was ended.")
    job = account.add("m", tags=MINE)
    account.fail("terminate_job", AwsError("not yours", Fault.DENIED))
    with pytest.raises(AwsError):
        await cancel(job, None, force=False, left=left)
    assert left.text == "nothing was ended."
    await interrupted(cancel(job, None, force=False, left=left), account, lambda: "above" in left.text)
    assert left.text == "what is named above has been told to end. The same command again sees to the rest."


async def test_waiting_goes_on_where_aws_does_not_answer(
    account: FakeAccount, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        (id,) = account.live()
        account.become(id, "FAILED", container={"exitCode": 3}, statusReason="it has failed")

    monkeypatch.setattr(job_commands, "Patience", lambda tell: Patience(tell, pause))
    account.fail("describe_jobs", AwsError("no answer", Fault.UNREACHABLE))
    assert await submit(asked(), wait=True, follow=False, results=None, as_json=False, left=Left("")) == 3
    said = capsys.readouterr().err
    assert "no answer for the moment, and the job goes on meanwhile: no answer\nAWS answers again\n" in said
    assert "FAILED: it has failed" in said
    assert paused


async def test_a_reason_steers_no_terminal(account: FakeAccount, capsys: pytest.CaptureFixture[str]) -> None:
    account.add("m", tags=MINE, status="FAILED", statusReason="\x1b]0;owned\x07", container={"exitCode": 5})
    assert await logs("m", None, None, follow=True, workers=False, folder=None) == 5
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "owned" in said


async def test_lines_are_written_to_files_or_the_trouble_with_them_is_told(account: FakeAccount, tmp_path: Path) -> None:
    account.add("m", tags=MINE, status="SUCCEEDED", container={"logStreamName": "s"})
    account.events["s"] = [(1, "one"), (2, "two \udcff")]
    await logs("m", None, None, follow=False, workers=False, folder=str(tmp_path / "out"))
    assert (tmp_path / "out" / "manager.log").read_text() == "one\ntwo \\udcff\n"
    with pytest.raises(LaunchError, match=r"manager\.log cannot be written"):
        await logs("m", None, None, follow=False, workers=False, folder=str(tmp_path / "out" / "manager.log"))


async def test_following_ends_with_the_jobs_code_when_all_is_told(
    account: FakeAccount, capsys: pytest.CaptureFixture[str]
) -> None:
    account.add("m", tags=MINE, status="FAILED", container={"logStreamName": "s", "exitCode": 5})
    account.events["s"] = [(n, f"line {n}") for n in range(10)]
    assert await logs("m", None, None, follow=True, workers=True, folder=None) == 5
    assert capsys.readouterr().out.splitlines() == [f"[manager] line {n}" for n in range(10)]


async def test_a_reader_that_goes_away_ends_it(account: FakeAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    account.add("m", tags=MINE, status="SUCCEEDED", container={"logStreamName": "s"})
    account.events["s"] = [(1, "one")]
    monkeypatch.setattr(job_commands, "write_text", lambda _stream, _text: False)
    with pytest.raises(BrokenPipeError):
        await logs("m", None, None, follow=False, workers=False, folder=None)
