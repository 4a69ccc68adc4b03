"""Our ledgers under the suite that other people's ledgers run too."""

from __future__ import annotations

import pytest

from agentguard.protocols import Ledger
from agentguard.testing import MemoryLedger
from agentguard.testing.conformance import LedgerContract


class TestMemoryLedger(LedgerContract):
    @pytest.fixture
    def ledger(self) -> Ledger:
        return MemoryLedger()
