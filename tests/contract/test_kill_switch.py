"""Our kill switches under the suite that other people's switches run too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentguard._clock import Clock
from agentguard.killswitch.memory import MemoryKillSwitch
from agentguard.killswitch.network import NetworkKillSwitch
from agentguard.killswitch.page import PageKillSwitch
from agentguard.protocols import KillSwitch
from agentguard.testing.conformance import KillSwitchContract
from tests.relays import end_relays


class TestKillSwitch(KillSwitchContract):
    @pytest.fixture(params=["memory", "page"])
    def switch(  # type: ignore[override]  # a fixture of another shape
        self, request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
    ) -> Iterator[KillSwitch]:
        made: KillSwitch = (
            MemoryKillSwitch(clock) if request.param == "memory" else PageKillSwitch(tmp_path, clock)
        )
        yield made
        made.close()


class TestRedisKillSwitch(KillSwitchContract):
    @pytest.fixture
    def switch(self, redis_url: str, home: Path, clock: Clock) -> Iterator[KillSwitch]:
        made = NetworkKillSwitch(redis_url, home, clock)
        yield made
        made.close()
        end_relays(home)


class TestPostgresKillSwitch(KillSwitchContract):
    @pytest.fixture
    def switch(self, postgres_url: str, home: Path, clock: Clock) -> Iterator[KillSwitch]:
        made = NetworkKillSwitch(postgres_url, home, clock)
        yield made
        made.close()
        end_relays(home)
