"""What every event store promises: one suite over all of them."""

from __future__ import annotations

from agentguard.testing.conformance._accounts import AccountsContract
from agentguard.testing.conformance._acts import ActsContract
from agentguard.testing.conformance._appending import AppendingContract
from agentguard.testing.conformance._reading import ReadingContract


class EventStoreContract(ReadingContract, AppendingContract, ActsContract, AccountsContract):
    """The contract of `agentguard.protocols.EventStore`, as tests.

    Example:
        In a test file of yours, which pytest collects::

            class TestMyStore(EventStoreContract):
                @pytest.fixture
                def store(self, tmp_path):
                    store = MyStore(tmp_path)
                    yield store
                    store.close()
    """
