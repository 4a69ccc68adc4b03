"""What the commands say of a ledger on Redis, and what they do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, Guard, Usage, guarded_step
from agentguard.cli import main
from agentguard.ledgers.redis import RedisLedger
from tests.servers import Valkey

Doctor = Callable[..., tuple[int, dict[str, list[tuple[str, str]]]]]


@guarded_step(usage=Usage(usd="0.25"))
def pay() -> None: ...


def a_run(url: str) -> None:
    with Guard.open(ledger=url, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(usd=10))
        with guard.run("r"):
            pay()


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def call(*arguments: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
        code = main(["doctor", "--json", *arguments])
        found: dict[str, list[tuple[str, str]]] = {}
        for check in json.loads(capsys.readouterr().out)["checks"]:
            found.setdefault(check["check"], []).append((check["status"], check["detail"]))
        return code, found

    return call


def test_doctor_shows_the_ledger_and_rebuilds_it(
    home, own_redis: Valkey, doctor: Doctor, monkeypatch
) -> None:
    url = own_redis.url
    a_run(url)
    monkeypatch.setenv("AGENTGUARD_LEDGER", url.replace("redis://", "redis://default:hunter2@"))
    code, found = doctor()
    assert code == 0
    assert found["ledger"][0][0] == "ok"
    assert found["ledger"][0][1].startswith(f"{url}, generation 1")
    assert len(found["ledger"]) == 1
    assert "hunter2" not in str(found)

    own_redis.command("FLUSHALL")
    own_redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    own_redis.command("CONFIG", "SET", "appendonly", "no")
    code, found = doctor()
    assert code == 1
    lost, evicts, forgets = found["ledger"]
    assert lost[0] == "FAULT"
    assert lost[1].startswith(f"{url} has lost its books, and the log knows generation ")
    assert lost[1].endswith(": agentguard doctor --rebuild-ledger")
    assert evicts[0] == forgets[0] == "note"
    assert "maxmemory-policy is allkeys-lru" in evicts[1]
    assert "appendonly yes" in forgets[1]

    code, found = doctor("--rebuild-ledger")
    assert code == 0
    assert found["rebuild"] == [("ok", f"{url} was made anew from the log; 0 steps in flight hold something")]
    account = RedisLedger(url).accounts(["tenant:default"])["tenant:default"]
    assert account.spent == {"steps": 1, "nano_usd": 250_000_000}
    assert account.budget == Budget(usd=10)

    own_redis.stop()
    code, found = doctor()
    assert code == 1
    assert found["ledger"][0][0] == "FAULT"
    assert f"127.0.0.1:{own_redis.port}" in found["ledger"][0][1]


def test_doctor_and_prune_miss_a_ledger_that_they_are_not_told_of(
    home: Path, redis_url: str, doctor: Doctor, capsys: Any
) -> None:
    a_run(redis_url)
    code, found = doctor()
    assert code == 0
    assert found["ledger"] == [
        ("note", f"the tenants' budgets are kept at {redis_url}: set AGENTGUARD_LEDGER")
    ]
    assert main(["prune", "--older-than", "0s", "--yes"]) == 5
    assert "AGENTGUARD_LEDGER" in capsys.readouterr().err
    code, found = doctor("--rebuild-ledger")
    assert code == 1
    assert found["rebuild"][0][0] == "FAULT"


def test_doctor_tells_the_books_of_another_store(
    home: Path, redis_url: str, doctor: Doctor, monkeypatch
) -> None:
    a_run(redis_url)
    monkeypatch.setenv("AGENTGUARD_HOME", str(home / "other"))
    monkeypatch.setenv("AGENTGUARD_LEDGER", redis_url)
    with Guard.open(telemetry=False) as guard, guard.run("free"):
        pay()
    code, found = doctor()
    assert code == 1
    assert "another store" in found["ledger"][0][1]
