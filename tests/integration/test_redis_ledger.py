"""The ledger on Redis at a real server: what it cannot count, and what it leaves there."""

from __future__ import annotations

import pytest
import redis

from agentguard import StoreUnavailableError
from agentguard.budget.account import Account
from agentguard.budget.model import Budget
from agentguard.ledgers.redis import RedisLedger
from agentguard.testing.conformance.ledger import reservation


def test_what_cannot_be_counted_is_refused(redis_url):
    """Nor is anything granted any more on an account that has used too much to count."""
    ledger = RedisLedger(redis_url)
    ledger.rebuild(7, {}, [])
    openings = {"tenant:acme": Account("tenant:acme", Budget(coins=100))}
    large = reservation(reserve={"steps": 1, "nano_usd": 2**53})
    with pytest.raises(StoreUnavailableError, match=f"counts up to {2**53 - 1}.*tenant:acme.*nano_usd"):
        ledger.reserve(large, large.request, openings, 1.0)
    held = reservation()
    ledger.reserve(held, held.request, openings, 1.0)
    with pytest.raises(StoreUnavailableError, match="counts up to"):
        ledger.settle(held, {"coins": 2**53})
    with pytest.raises(StoreUnavailableError, match="counts up to"):
        ledger.reserve(reservation("main/s#2"), held.request, openings, 1.0)
    assert ledger.accounts(["tenant:acme"])["tenant:acme"].reserved == {"steps": 1, "nano_usd": 10}
    ledger.close()


def test_what_is_settled_is_remembered_for_as_long_as_was_said(redis_url, redis_server):
    ledger = RedisLedger(f"{redis_url}&remember=77")
    ledger.rebuild(7, {}, [])
    ledger.settle(reservation(), {"steps": 1})
    prefix = redis_url.rpartition("=")[2]
    with redis.Redis.from_url(redis_server) as client:
        (mark,) = client.scan_iter(match=f"{{{prefix}}}:settled:*", count=10_000)
        assert 70 < client.ttl(mark) <= 77
        assert all(key.startswith(f"{{{prefix}}}:".encode()) for key in client.scan_iter(match=f"*{prefix}*"))
    ledger.close()
