"""Our event stores under the suites that other people's stores run too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentguard.protocols import EventStore
from agentguard.stores.memory import MemoryEventStore
from agentguard.stores.postgres import PostgresEventStore
from agentguard.stores.sqlite import SQLiteEventStore
from agentguard.testing.conformance import EventStoreContract

OPEN: dict[str, Callable[[Path], EventStore]] = {
    "memory": lambda folder: MemoryEventStore(),
    "sqlite": lambda folder: SQLiteEventStore(folder / "events.db"),
    "sqlite-power": lambda folder: SQLiteEventStore(folder / "events.db", durability="power"),
}


class OurStores:
    @pytest.fixture(params=OPEN)
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
        store = OPEN[request.param](tmp_path)
        yield store
        store.close()


class TestPostgres(EventStoreContract):
    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[EventStore]:
        store = PostgresEventStore(postgres_url)
        yield store
        store.close()


class TestEventStore(OurStores, EventStoreContract):
    pass
