"""The thread that looks after the runs of a process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agentguard import heartbeat
from agentguard.heartbeat import Heartbeat
from tests.kit import wait_until

if TYPE_CHECKING:
    import pytest


def test_a_fault_at_one_sign_of_life_is_logged_and_ends_none_of_the_later_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    calls: list[str] = []

    def act(name: str) -> bool:
        calls.append(name)
        if calls.count(name) == 1:
            raise OSError("a fault of one run's")
        return True

    beating = Heartbeat(lambda: act("check"), lambda: act("beat"))
    with caplog.at_level(logging.ERROR):
        beating.start(1)
        wait_until(lambda: calls.count("check") > 1 and calls.count("beat") > 1)
    beating.stop()
    said = [record.getMessage() for record in caplog.records if record.name == heartbeat.__name__]
    assert said == ["the heartbeat failed; it goes on"] * 2
