"""Waiting for AWS: trouble that may pass ends nothing, other trouble does."""

from __future__ import annotations

import pytest

from aiocluster.cli.patience import PAUSE_S, Patience
from aiocluster.launch.aws import AwsError, Fault


class Questions:
    """Answers come one after the other; pauses are counted."""

    def __init__(self, *answers: str | AwsError) -> None:
        self.answers = list(answers)
        self.told: list[str] = []
        self.pauses: list[float] = []

    async def ask(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, AwsError):
            raise answer
        return answer

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def trouble(fault: Fault) -> AwsError:
    return AwsError(f"it is {fault.value}", fault)


async def test_what_passes_is_waited_for_and_told_once_each_time() -> None:
    gone, slow = trouble(Fault.UNREACHABLE), trouble(Fault.THROTTLED)
    asked = Questions(gone, slow, gone, "one", "two", slow, "three")
    patience = Patience(asked.told.append, asked.pause)
    assert [await patience.ask(asked.ask) for _ in range(3)] == ["one", "two", "three"]
    assert asked.pauses == [PAUSE_S] * 4
    assert asked.told == [
        "no answer for the moment, and the job goes on meanwhile: it is unreachable",
        "AWS answers again",
        "no answer for the moment, and the job goes on meanwhile: it is throttled",
        "AWS answers again",
    ]


@pytest.mark.parametrize("fault", [Fault.CREDENTIALS, Fault.DENIED, Fault.REJECTED])
async def test_what_does_not_pass_is_an_error(fault: Fault) -> None:
    asked = Questions(trouble(fault))
    with pytest.raises(AwsError, match=fault.value):
        await Patience(asked.told.append, asked.pause).ask(asked.ask)
    assert (asked.told, asked.pauses) == ([], [])
