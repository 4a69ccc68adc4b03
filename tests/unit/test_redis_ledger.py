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
