"""An account that somebody edited: every store tells, for then a budget could be spent again."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentguard import Budget, Guard, StoreUnavailableError, Usage, guarded_step
from agentguard.audit.verify import AccountFault
from agentguard.budget.account import Account
from agentguard.cli.__main__ import main
from agentguard.protocols import EventStore
from agentguard.stores.memory import MemoryEventStore
from agentguard.stores.sqlite import SQLiteEventStore
from tests.kit import wait_until

#: What an edit makes of the stored data: other data, a text that is no data, or nothing where the row is deleted.
Edit = Callable[[dict[str, Any]], "dict[str, Any] | str | None"]

NAMED = {"account": "thread:42", "account_budget": Budget(usd=5)}


@guarded_step(usage=Usage(usd="0.30"), reserve=Usage(usd="0.40"))
def ask() -> str:
    return "an answer"


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def guard(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch, within_a_day: None
) -> Iterator[Guard]:
    """A guard on each store, with a tenant that has two budgets."""
    url = {"memory": "memory://", "sqlite": f"sqlite:///{home / 'events.db'}"}.get(request.param)
    if url is None:
        url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("AGENTGUARD_STORE", url)
    with Guard.open(url, telemetry=False) as opened:
        opened.set_tenant_budget("acme", Budget(usd=9))
        opened.set_tenant_budget("acme", Budget(usd=9), per="day")
        yield opened


def edit(guard: Guard, account: str, change: Edit) -> None:
    """Do to an account what somebody with the rights to write could do; memory keeps no text."""
    store: EventStore = guard.components.store
    if isinstance(store, MemoryEventStore):
        changed = change(store.accounts([account])[account].to_data())
        if isinstance(changed, str):
            pytest.skip("memory keeps no text")
        if changed is None:
            del store._accounts[account]
        else:
            store._accounts[account] = Account.from_data(changed)
        return
    if isinstance(store, SQLiteEventStore):
        with closing(sqlite3.connect(store.path, timeout=30)) as connection, connection:
            _edit(connection, "account", "?", account, change)
    else:
        with psycopg.connect(os.environ["AGENTGUARD_STORE"]) as link:
            _edit(link, "agentguard.account", "%s", account, change)


def _edit(connection: Any, table: str, mark: str, account: str, change: Edit) -> None:
    found = connection.execute(f"SELECT data FROM {table} WHERE id = {mark}", (account,)).fetchone()
    changed = change(json.loads(found[0]))
    if changed is None:
        connection.execute(f"DELETE FROM {table} WHERE id = {mark}", (account,))
        return
    text = changed if isinstance(changed, str) else json.dumps(changed)
    connection.execute(f"UPDATE {table} SET data = {mark} WHERE id = {mark}", (text, account))


def having(**amounts: Any) -> Edit:
    return lambda data: data | amounts


@pytest.fixture
def recorded(guard: Guard) -> Guard:
    """A run with a scope and with runs in it, one of them not ended, and a step of that in flight."""
    inside, over = threading.Event(), threading.Event()

    @guarded_step(usage=Usage(usd="0.10"))
    def slow() -> None:
        inside.set()
        over.wait()

    with ExitStack() as left:
        run = left.enter_context(guard.run("r", run_id="r1", tenant="acme", budget=Budget(usd=6), **NAMED))
        ask()
        left.enter_context(run.scope("plan", budget=Budget(usd=3, calls={"ask": 20})))
        ask()
        with guard.run("closed", run_id="n1"):
            ask()
        nested = left.enter_context(guard.run("open", run_id="n2"))
        ask()
        thread = threading.Thread(target=nested.bind(slow))
        thread.start()
        wait_until(inside.is_set)
        left.callback(thread.join)
        left.callback(over.set)
        assert guard.verify(), str(guard.verify())
        yield guard
    assert not guard.components.store.accounts(["run:r1"])["run:r1"].reserved.get("nano_usd")


def accounts_in(guard: Guard) -> Iterable[str]:
    listing = guard.components.abilities.accounts
    assert listing is not None
    return listing.account_ids()


def accounts_of(guard: Guard) -> list[str]:
    """The account of each kind, by name: a tenant's, that of a window, a named one, a run's, a scope's."""
    names = sorted(accounts_in(guard))
    assert [name.partition(":")[0] for name in names] == ["account", "run", "run", "tenant", "tenant"]
    return names


#: How an account was edited, and what is said of it.
EDITS: dict[str, tuple[Edit, str]] = {
    "spent again": (lambda data: data | {"spent": data["spent"] | {"nano_usd": 1}}, "says usd=1E-9 spent"),
    "nothing spent": (having(spent={}), "spent, and logs prove"),
    "no room taken": (having(reserved={}), "reserved, and logs prove"),
    "less reserved": (
        lambda data: data | {"reserved": data["reserved"] | {"nano_usd": 99_999_999}},
        "says usd=0.099999999 reserved, and logs prove usd=0.1",
    ),
    "negative room": (lambda data: data | {"reserved": {"nano_usd": -5}}, "account {name} "),
    "negative spending": (lambda data: data | {"spent": {"nano_usd": -5}}, "account {name} "),
    "gone": (lambda data: None, "the account {name} is gone, and logs charge it "),
    "no data": (lambda data: "x", "the account {name} cannot be read"),
    "other types": (lambda data: data | {"spent": {"nano_usd": "much"}}, "the account {name} cannot be read"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_account_that_says_less_than_its_logs_is_a_fault(recorded: Guard, case: str) -> None:
    if case == "other types" and isinstance(recorded.components.store, MemoryEventStore):
        pytest.skip("memory keeps no text")
    for name in accounts_of(recorded):
        says_less(recorded, name, *EDITS[case])


def says_less(recorded: Guard, name: str, change: Edit, problem: str) -> None:
    before = recorded.components.store.accounts([name])[name].to_data()
    edit(recorded, name, change)
    try:
        report = recorded.verify()
        assert not report
        (fault,) = report.faults
        assert isinstance(fault, AccountFault)
        assert f"account {name} " in fault.problem
        assert problem.format(name=name) in fault.problem
        assert fault.problem in str(report)
        alone = [recorded.verify(run_id) for run_id in ("r1", "n2")]
        assert not all(alone), "of one run the same is proven"
    finally:
        put_back(recorded, name, before)
    assert recorded.verify()


def put_back(guard: Guard, name: str, data: dict[str, Any]) -> None:
    store = guard.components.store
    if isinstance(store, MemoryEventStore):
        store._accounts[name] = Account.from_data(data)
        return
    text = json.dumps(data)
    if isinstance(store, SQLiteEventStore):
        with closing(sqlite3.connect(store.path, timeout=30)) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO account VALUES (?, ?)", (name, text))
        return
    with psycopg.connect(os.environ["AGENTGUARD_STORE"]) as link:
        link.execute(
            "INSERT INTO agentguard.account (id, tenant, data) VALUES (%s, 'acme', %s) "
            "ON CONFLICT (id) DO UPDATE SET data = excluded.data",
            (name, text),
        )


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("run:r1", having(budget={"usd": "600"}), "has the limits Budget(usd='600')"),
        ("run:r1/main/plan#1", having(calls={}), "says 0 calls of ask, and logs prove 1"),
    ],
)
def test_limits_and_calls_of_a_runs_account_are_those_of_its_log(
    recorded: Guard, name: str, change: Edit, problem: str
) -> None:
    before = recorded.components.store.accounts([name])[name].to_data()
    edit(recorded, name, change)
    (fault,) = recorded.verify().faults
    assert fault[:2] == ("r1", 0)
    assert problem in fault.problem
    put_back(recorded, name, before)


def test_an_account_that_says_more_is_none_for_pruned_runs_have_charged_it(guard: Guard) -> None:
    for _ in range(2):
        with guard.run("r", tenant="acme", **NAMED):
            ask()
    assert len(guard.prune("0s")) == 2
    assert guard.verify()
    with guard.run("r", tenant="acme", **NAMED):
        ask()
    assert guard.verify()
    assert guard.components.store.accounts(["tenant:acme"])["tenant:acme"].spent["nano_usd"] == 900_000_000


def test_an_account_below_zero_is_a_fault_also_where_no_log_is_left(guard: Guard) -> None:
    with guard.run("r", tenant="acme"):
        ask()
    guard.prune("0s")
    edit(guard, "tenant:acme", having(reserved={"nano_usd": -9_000_000_000}))
    (fault,) = guard.verify().faults
    assert "account tenant:acme " in str(fault)


@pytest.mark.parametrize("change", [having(spent={"nano_usd": -1}), lambda data: "x", lambda data: None])
def test_nothing_is_charged_to_an_account_that_cannot_be_read(guard: Guard, change: Edit) -> None:
    if isinstance(guard.components.store, MemoryEventStore):
        pytest.skip("memory keeps no text")
    with guard.run("r", run_id="r1", tenant="acme") as run:
        with guard.run("n"):
            ask()
        edit(guard, "run:r1", change)
        with pytest.raises(StoreUnavailableError, match=r"the account run:r1 .* `agentguard verify`"):
            ask_in(guard)
        with guard.run("other", tenant="other", detached=True):
            ask()
        assert run.spent.usd == Usage(usd="0.30").usd
        put_back(guard, "run:r1", run.live_run.fold.account.to_data())


def ask_in(guard: Guard) -> None:
    with guard.run("n2"):
        ask()


def test_a_reservation_that_an_edit_made_smaller_is_given_back_and_never_more(guard: Guard) -> None:
    inside, over = threading.Event(), threading.Event()

    @guarded_step(usage=Usage(usd="0.10"))
    def slow() -> None:
        inside.set()
        over.wait()

    with guard.run("r", tenant="acme") as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        wait_until(inside.is_set)
        edit(guard, "tenant:acme", having(reserved={}))
        over.set()
        thread.join()
    account = guard.components.store.accounts(["tenant:acme"])["tenant:acme"]
    assert (account.spent["nano_usd"], account.reserved["nano_usd"]) == (100_000_000, 0)
    assert guard.verify()


def test_verify_and_doctor_name_the_account_and_end_with_1(
    guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(guard.components.store, MemoryEventStore):
        pytest.skip("the command line reads what is shared")
    with guard.run("r", tenant="acme"):
        ask()
    edit(guard, "tenant:acme", having(spent={"nano_usd": 1}))
    assert main(["verify"]) == 1
    said = "the account tenant:acme says usd=1E-9 spent, and logs prove usd=0.3"
    assert said in capsys.readouterr().out
    assert main(["verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"][-1] == {"run_id": "?", "seq": 0, "problem": said}
    assert main(["doctor", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"check": "accounts", "status": "FAULT", "detail": said} in checks


def test_accounts_that_move_while_they_are_looked_at_are_no_fault(guard: Guard) -> None:
    def work() -> None:
        for _ in range(15):
            with guard.run("r", tenant="acme", account="thread:42", account_budget=Budget(usd=900)):
                ask()
                with guard.run("n"):
                    ask()
                ask()

    for per in (None, "day"):
        guard.set_tenant_budget("acme", Budget(usd=900), per=per)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert guard.verify(), str(guard.verify())
    for thread in threads:
        thread.join()
    assert guard.verify()
