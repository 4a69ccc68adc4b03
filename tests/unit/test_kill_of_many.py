"""A kill of many runs of a process, one of which cannot be stopped as it should."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import pytest

from agentguard import Guard, RunState
from agentguard.errors import KillSwitchTriggeredError
from agentguard.sessions.base import live_run_of


def fail(*_: object) -> Any:
    raise OSError("a fault of one run's")


@pytest.mark.parametrize("part", ["stops.take_kill", "stops.apply_kill", "log.decide"])
def test_a_kill_is_put_on_the_record_of_every_run_whatever_one_of_them_raises(
    guard: Guard, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        runs = []
        for name in "abc":
            stack.enter_context(suppress(KillSwitchTriggeredError, OSError))
            runs.append(stack.enter_context(guard.run(name, detached=True)))
        owner, attribute = part.split(".")
        with monkeypatch.context() as patch:
            patch.setattr(getattr(live_run_of(guard.runtime, runs[1].id), owner), attribute, fail)
            with suppress(OSError):  # the kill is on record
                guard.kill(reason="over")
        states = [guard.summary(run.id).state for run in runs]
    one = RunState.KILLED if part == "stops.apply_kill" else RunState.RUNNING
    assert states == [RunState.KILLED, one, RunState.KILLED]
    assert [guard.summary(run.id).state for run in runs] == [RunState.KILLED] * 3
