"""Our ledgers under the suite that other people's ledgers run too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from agentguard.ledgers.redis import RedisLedger
from agentguard.protocols import Ledger
from agentguard.testing import MemoryLedger
from agentguard.testing.conformance import LedgerContract
from tests.servers import Valkey


class TestMemoryLedger(LedgerContract):
    @pytest.fixture
    def ledger(self) -> Ledger:
        return MemoryLedger()


class TestRedisLedger(LedgerContract):
    @pytest.fixture
    def ledger(self, redis_url: str) -> Iterator[Ledger]:
        with closing(RedisLedger(redis_url)) as ledger:
            yield ledger


class TestRedisLedgerOverASocketOfTheHost(LedgerContract):
    @pytest.fixture
    def ledger(self, own_redis: Valkey) -> Iterator[Ledger]:
        with closing(RedisLedger(own_redis.socket)) as ledger:
            yield ledger
