"""The ledger on Redis before it meets a server: its URL, and what it says."""

from __future__ import annotations

import sys

import pytest

from agentguard import Guard, StoreUnavailableError
from agentguard._optional import MissingExtraError
from agentguard.budget.account import Account
from agentguard.budget.model import Budget
from agentguard.ledgers.redis import RedisLedger
from agentguard.testing.conformance.ledger import reservation


def test_a_url_is_shown_without_what_is_nobodys_business():
    ledger = RedisLedger(
        "rediss://ann:hunter2@db.internal:6380/1?password=hunter3&prefix=prod&socket_timeout=1"
    )
    assert ledger.url == "rediss://db.internal:6380/1?prefix=prod"
    assert RedisLedger("unix:///run/redis.sock").url == "unix:///run/redis.sock"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("prefix=", "prefix must be"),
        ("prefix={a}", "prefix must be"),
        ("remember=soon", "remember must be whole seconds"),
        ("remember=0", "remember must be whole seconds"),
        ("decode_responses=false", "not yours to set"),
        ("timeout_of_sockets=1", "timeout_of_sockets"),
        ("socket_timeout=soon", "socket_timeout"),
    ],
)
def test_a_wrong_option_is_told_at_once_and_without_the_password(options, said):
    with pytest.raises(ValueError, match=said) as wrong:
        RedisLedger(f"redis://:hunter2@127.0.0.1:1/0?{options}")
    assert "hunter2" not in str(wrong.value)


def test_a_scheme_that_is_no_ledger_is_told_without_the_password():
    with pytest.raises(ValueError, match=r"no ledger for 'valkey://db/0'; known are redis://") as wrong:
        Guard.in_memory(ledger="valkey://:hunter2@db/0")
    assert "hunter2" not in str(wrong.value)


def test_nothing_is_opened_before_it_is_used():
    with Guard.in_memory(ledger="redis://127.0.0.1:1/0", telemetry=False) as guard, guard.run("r") as run:
        assert run.call("step", lambda: 1) == 1, "no tenant has a budget"


def test_a_server_that_is_not_there_is_named_without_the_password():
    ledger = RedisLedger("redis://:hunter2@127.0.0.1:1/0")
    with pytest.raises(
        StoreUnavailableError, match=r"the ledger redis://127\.0\.0\.1:1/0: .*refused"
    ) as gone:
        ledger.generation()
    assert "hunter2" not in str(gone.value)


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'agentguard\[redis\]'"):
        RedisLedger("redis://127.0.0.1:1/0")


def test_repeats_are_not_silently_left_out():
    held = reservation()
    with pytest.raises(ValueError, match="counts no repeats"):
        RedisLedger("redis://127.0.0.1:1/0").reserve(
            held, held.request, {"tenant:acme": Account("tenant:acme", Budget(repeats=2))}, 1.0
        )


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
    import redis

    ledger = RedisLedger(f"{redis_url}&remember=77")
    ledger.rebuild(7, {}, [])
    ledger.settle(reservation(), {"steps": 1})
    prefix = redis_url.rpartition("=")[2]
    with redis.Redis.from_url(redis_server) as client:
        (mark,) = client.scan_iter(match=f"{{{prefix}}}:settled:*", count=10_000)
        assert 70 < client.ttl(mark) <= 77
        assert all(key.startswith(f"{{{prefix}}}:".encode()) for key in client.scan_iter(match=f"*{prefix}*"))
    ledger.close()
