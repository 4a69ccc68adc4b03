"""What every test gets: no settings from outside, a home of its own, and a deadline instead of sleeping."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from agentguard import Guard, RunStopped
from agentguard.steps.current import CURRENT
from agentguard.steps.exit_rule import raise_on_exit
from tests import postgres, servers
from tests.kit import wait_until

# How long an example takes says how loaded the machine is, and nothing about a property.
settings.register_profile("agentguard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agentguard")


def forget_settings() -> None:
    """Take all `AGENTGUARD_*` settings out of the environment."""
    for name in [name for name in os.environ if name.startswith("AGENTGUARD_")]:
        del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> None:
    """Those for the tests themselves are read as they are collected."""
    forget_settings()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of the test's own.

    A command that is called in the test's process leaves its `--store` and `--home` in the environment, which the
    fixtures of another module would find there.
    """
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("AGENTGUARD_HOME", str(folder))
    yield folder
    forget_settings()


@pytest.fixture(autouse=True)
def no_run_is_left_current() -> Iterator[None]:
    """A test that leaves its run current would make it the parent of the next test's."""
    yield
    left = CURRENT.get()
    CURRENT.set(None)
    assert left is None, f"{left.run} was left current"


@pytest.fixture(autouse=True)
def failures_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed assertion leaves a stopped run as itself.

    Otherwise it would be the cause of the stop, which most tests of stops expect, and would go unseen.
    """

    def exit_rule(stop: RunStopped | None, arrived: BaseException | None) -> None:
        if not isinstance(arrived, AssertionError | pytest.fail.Exception):
            raise_on_exit(stop, arrived)

    monkeypatch.setattr("agentguard.run.raise_on_exit", exit_rule)
    monkeypatch.setattr("agentguard.steps.scope.raise_on_exit", exit_rule)


@pytest.fixture(scope="module")
def what_is_left_is_collected() -> Iterator[None]:
    """Collect what calls that were cut short left behind; another module's test would be blamed for it."""
    yield
    gc.collect()


@pytest.fixture
def guard() -> Iterator[Guard]:
    """A guard in memory, without telemetry."""
    with Guard.in_memory(telemetry=False) as guard:
        yield guard


@pytest.fixture
def sqlite_guard(home: Path) -> Iterator[Guard]:
    """A guard on SQLite and a kill page under the test's own home, without telemetry."""
    with Guard.open(telemetry=False) as guard:
        yield guard


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds."""
    return wait_until


@pytest.fixture
def within_a_day() -> None:
    """Begin after midnight where that is near: for tests that count on one day (UTC)."""
    wait_until(lambda: time.time() % 86_400 < 86_400 - 30)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names that every worker gives alike: no addresses."""
    return f"{argname}-{type(val).__name__}" if " at 0x" in repr(val) else None


# --- servers -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis or Valkey server that all tests share."""
    if servers.REDIS_URL is not None:
        yield servers.REDIS_URL
        return
    with (
        tempfile.TemporaryDirectory(prefix="agentguard-") as folder,
        servers.valkey(Path(folder), "--appendonly", "no") as server,
    ):
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The URL of a part of the shared server of the test's own, by its `prefix`."""
    prefix = f"test-{uuid.uuid4().hex}"
    yield f"{redis_server}{'&' if '?' in redis_server else '?'}prefix={prefix}"
    if servers.REDIS_URL is not None:
        servers.remove(servers.REDIS_URL, f"{{{prefix}}}:*")


@pytest.fixture
def own_redis() -> Iterator[servers.Valkey]:
    """A server of the test's own, which it may stop; every act is on its disk."""
    with (
        tempfile.TemporaryDirectory(prefix="agentguard-") as folder,
        servers.valkey(Path(folder), "--appendonly", "yes", "--appendfsync", "always") as server,
    ):
        yield server


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that all workers share, as its superuser."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with postgres.shared(folder) as url:
        yield url


@pytest.fixture
def empty_postgres(postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")
    with postgres.database(postgres_server) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database of the test's own, with our schema in it.

    A guard on it keeps its kills in the page, which needs no relay, unless the test says otherwise.
    """
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")
    template = postgres.template(postgres_server)
    with postgres.database(postgres_server, template) as url:
        yield url


@pytest.fixture
def own_postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[postgres.Postgres]:
    """A server of the test's own, which it may stop; every commit is on its disk."""
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")
    with postgres.postgres(*postgres.DURABLE) as server:
        yield server


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was left out for want of a server."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    wants = [text.partition(servers.MISSING)[2].rstrip("')") for text in skipped if servers.MISSING in text]
    for want in sorted(set(wants)):
        terminalreporter.write_line(f"{wants.count(want)} tests left out, no server: {want}", yellow=True)
