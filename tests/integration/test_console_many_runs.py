"""The pages of 100,000 runs ask the store for no more than those of 10,000, counted in SQLite's instructions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from agentguard import Guard, Usage
from agentguard.console.app import create_app
from agentguard.console.run_list import LOOKED_THROUGH, PAGE
from agentguard.console.tokens import Role, Tokens
from tests.consoles import Client

SIZES = (10_000, 100_000)
#: The instructions of SQLite are counted by so many.
_BATCH = 100

#: Runs that differ from a real one in what pages filter and sort by.
_COPIES = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO run (run_id, name, tenant, state, created_ns, ended_ns, epoch, owner, heartbeat_ns, salt, summary, fed)
SELECT printf('run-%06d', i), printf('name-%d', i % 50), CASE i % 10 WHEN 0 THEN 'acme' ELSE 'shop' END,
    CASE i % 7 WHEN 0 THEN 'FAILED' ELSE state END, created_ns + i, ended_ns + i, epoch, owner, heartbeat_ns,
    salt, replace(summary, '"run_id":"first"', printf('"run_id":"run-%06d"', i)), 1
FROM n, run WHERE run_id = 'first'
"""


class Work:
    """How much SQLite has done in this process."""

    def __init__(self) -> None:
        self.instructions = 0

    def connect(self, *given: Any, **named: Any) -> sqlite3.Connection:
        connection = _connect(*given, **named)
        connection.set_progress_handler(self._count, _BATCH)
        return connection

    def _count(self) -> int:
        if threading.current_thread().name != "agentguard-heartbeat":  # which looks after runs meanwhile
            self.instructions += _BATCH
        return 0


_connect = sqlite3.connect


@pytest.fixture(scope="module")
def work() -> Iterator[Work]:
    found = Work()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", found.connect)
        yield found


@pytest.fixture(scope="module")
def consoles(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Client]]:
    """A console for each number of runs."""
    with ExitStack() as stack:
        found = {}
        for size in SIZES:
            folder = tmp_path_factory.mktemp("many")
            found[size] = Client(*stack.enter_context(closing(Many(folder, size))).parts)
        yield found


class Many:
    """A store with so many runs, and a console over it."""

    def __init__(self, folder: Path, size: int) -> None:
        self._guard = Guard.open(f"sqlite:///{folder / 'runs.db'}", kill_switch="memory", telemetry=False)
        with self._guard.run("first", run_id="first", tenant="acme") as run:
            run.call("ask", int, usage=Usage(usd="0.01"))
        with closing(_connect(folder / "runs.db")) as connection, connection:
            connection.execute(_COPIES, (size,))
        tokens = Tokens(folder / "tokens.json")
        secret = tokens.add("on-call", Role.OPERATOR)
        self.parts = create_app(self._guard, tokens), {"authorization": f"Bearer {secret}"}

    def close(self) -> None:
        self._guard.close()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/runs",
        "/runs?state=FAILED",
        "/runs?state=RUNNING",
        "/runs?tenant=acme",
        "/runs?tenant=acme&state=FAILED",
        "/runs?tenant=nobody",
        "/runs?name=name-7",
        "/runs?name=nobody",
        "/runs?usd=1000",
        "/runs?since=2020-01-01&until=2020-01-02",
        "/runs?since=2100-01-01",
        "/runs?sort=spent",
        "/runs?sort=longest&tenant=shop",
        "/runs?after=run-000500",
        "/runs?tenant=shop&after=run-000500",
        "/runs/first",
        "/kill?scope=tenant&target=acme",
        "/api/runs?name=nobody",
        "/api/now",
        "/metrics",
    ],
)
def test_a_page_of_many_runs_costs_what_one_of_few_costs(
    path: str, work: Work, consoles: dict[int, Client]
) -> None:
    cost = {}
    for size, client in consoles.items():
        assert client.get(path).status_code == 200
        before = work.instructions
        client.get(path)
        cost[size] = work.instructions - before
    small, large = cost[SIZES[0]], cost[SIZES[1]]
    assert large <= small + small // 4 + 20 * _BATCH


def test_every_run_of_a_filter_is_reached_by_its_pages(consoles: dict[int, Client]) -> None:
    """A filter that looks through 5,000 runs at a time goes on where it stopped."""
    client, found, after = consoles[SIZES[0]], [], ""
    pages = 0
    while True:
        page = client.get(f"/api/runs?name=name-7&after={after}").json()
        found += [run["run_id"] for run in page["runs"]]
        pages += 1
        if page["after"] is None:
            break
        after = page["after"]
    wanted = [f"run-{n:06}" for n in range(SIZES[0], 0, -1) if n % 50 == 7]
    assert found == wanted
    assert pages <= len(wanted) // PAGE + SIZES[0] // LOOKED_THROUGH + 1
