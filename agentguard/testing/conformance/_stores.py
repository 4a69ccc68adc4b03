"""What the suites of stores share: where the store comes from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentguard.protocols import EventStore


class StoreSuite:
    """A suite that asks its subclass for a store."""

    @pytest.fixture
    def store(self) -> Iterator[EventStore]:
        """The store under test, new and empty."""
        raise NotImplementedError(
            "override the fixture `store`: yield an empty store of yours, then close it"
        )
