"""Steps that charge shared accounts with room to spare: the server decides by what the client said of its decision."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentguard.budget.account import Account
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.budget.model import Budget
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import Commit, HeadMovedError, StoreBusyError
from agentguard.stores.postgres import PostgresEventStore
from agentguard.testing.conformance._given import a_row, log_of, opening, steps, wait_until
from tests.postgres import execute

ACME = "tenant:acme"


@pytest.fixture
def stores(postgres_url: str) -> Iterator[tuple[PostgresEventStore, PostgresEventStore]]:
    """Two of one database, which counts the calls of its functions."""
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    execute(postgres_url, f"ALTER DATABASE {database} SET track_functions = 'pl'")
    one, other = (PostgresEventStore(postgres_url, store_timeout=10) for _ in range(2))
    yield one, other
    one.close()
    other.close()


class Run:
    """A run of a store, whose next event is appended with movements."""

    def __init__(self, store: PostgresEventStore, run_id: str, *opens: Movement) -> None:
        self.store = store
        self.log = log_of(run_id, 60)
        self.number = store.create(a_row(run_id), self.log[:1], opens)
        self.seq = 1

    def accept(self, *movements: Movement, size: int = 0) -> Commit:
        event = self.log[self.seq]._replace(payload=b"x" * size)
        return self.store.accept(self.number, event, self.log[self.seq - 1].hash, movements, None)

    def append(self, *movements: Movement) -> dict[str, Account]:
        accounts = self.store.wait_for(self.accept(*movements))
        self.seq += 1
        return accounts


def charge(account: str = ACME, *, count: int = 1, limit: int = 1000) -> Movement:
    return Movement(account, steps(count), opening=opening(limit))


def calls(url: str, function: str) -> int:
    """How often a function was called by connections that are over."""
    found = execute(
        url,
        f"SELECT sum(calls)::int FROM pg_stat_user_functions WHERE funcname = '{function}' GROUP BY funcname",
    )
    return int(found[0][0]) if found else 0


def held(store: PostgresEventStore, account: str = ACME) -> int:
    return store.accounts([account])[account].reserved.get("steps", 0)


def test_with_room_to_spare_nobody_holds_the_account_while_a_client_decides(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str
) -> None:
    runs = [Run(store, f"r{nth}") for nth, store in enumerate(stores)]
    for run in runs:
        run.append(charge())  # what the account holds is not known yet
    told = [run.append(charge())[ACME].reserved["steps"] for _ in range(10) for run in runs]
    settle = Movement(ACME, settle=({"steps": 1}, {"steps": 1, "tokens": 7}))
    account = runs[0].append(settle)[ACME]
    assert (told, account.reserved, account.spent) == (
        [*range(3, 23)],
        {"steps": 21},
        {"steps": 1, "tokens": 7},
    )
    for store in stores:
        store.close()
    wait_until(lambda: calls(postgres_url, "charge") == 21)
    assert calls(postgres_url, "hold") == 4  # each run was created, and saw the account


def test_however_much_others_have_spent_meanwhile_the_limit_is_exact(
    stores: tuple[PostgresEventStore, PostgresEventStore],
) -> None:
    one, other = (Run(store, run_id) for store, run_id in zip(stores, "ab", strict=True))
    for run in (one, other):
        run.append(charge(limit=20))
    for _ in range(13):
        other.append(charge(limit=20))
    assert one.append(charge(count=4, limit=20))[ACME].reserved == {"steps": 19}
    with pytest.raises(LedgerRefusedError) as refused:
        one.append(charge(count=2, limit=20))
    assert refused.value.refusal is not None
    assert refused.value.refusal.reserved == 19
    other.append(charge(limit=20))
    with pytest.raises(LedgerRefusedError):
        one.append(charge(limit=20))
    one.append(Movement(ACME, settle=({"steps": 4}, {"steps": 5})))
    account = stores[0].accounts([ACME])[ACME]
    assert (account.spent, account.reserved, account.excess) == ({"steps": 5}, {"steps": 16}, {"steps": 1})


def test_what_others_have_filled_meanwhile_has_no_room_though_the_client_saw_some(
    stores: tuple[PostgresEventStore, PostgresEventStore],
) -> None:
    one, other = (Run(store, run_id) for store, run_id in zip(stores, "ab", strict=True))
    for run in (one, other):
        run.append(charge(limit=20))
    for _ in range(18):
        other.append(charge(limit=20))
    with pytest.raises(LedgerRefusedError):
        one.append(charge(limit=20))
    assert held(stores[0]) == 20


def test_an_account_that_was_closed_or_given_another_budget_meanwhile_is_charged_by_that(
    stores: tuple[PostgresEventStore, PostgresEventStore],
) -> None:
    one, other = (Run(store, run_id) for store, run_id in zip(stores, "ab", strict=True))
    reserve = Movement(ACME, steps(1))
    for run in (one, other):
        run.append(charge(limit=20))
        run.append(reserve)
    other.append(Movement(ACME, opening=opening(4)))
    with pytest.raises(LedgerRefusedError):
        one.append(reserve)
    other.append(Movement(ACME, opening=opening(20)))
    one.append(reserve)
    other.append(Movement(ACME, close=True))
    with pytest.raises(LedgerRefusedError) as refused:
        one.append(reserve)
    assert refused.value.refusal is None
    assert held(stores[0]) == 5


def test_a_window_that_is_over_is_not_charged_though_it_has_room(
    stores: tuple[PostgresEventStore, PostgresEventStore],
) -> None:
    run, name = Run(stores[0], "r"), f"{ACME}:2026-01-31"
    past = opening(1000)
    past.reserve(steps(3))
    run.append(Movement(name, opening=past))
    with pytest.raises(HeadMovedError):
        run.append(charge(name))
    run.append(Movement(name, settle=({"steps": 1}, {"steps": 1})))
    assert held(stores[0], name) == 2


def test_runs_that_are_charged_together_succeed_and_fail_each_by_itself(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str
) -> None:
    store, other = stores
    runs = {name: Run(store, name) for name in ("good", "busy", "moved", "full", "plain")}
    for account, limit in ((ACME, 1000), ("tenant:small", 4)):
        runs["good"].append(charge(account, limit=limit))
    Run(other, "elsewhere").append(charge("tenant:small", count=3, limit=4))
    other.append(runs["moved"].number, log_of("moved", 2, tag="-rival")[1:])
    leave, begun = threading.Event(), threading.Event()

    def hold() -> None:
        with other.exclusive("busy"):
            begun.set()
            leave.wait(30)

    with ThreadPoolExecutor() as threads:
        holder = threads.submit(hold)
        assert begun.wait(30)
        with store._commits._writing:
            acts = {name: run.accept(charge()) for name, run in runs.items() if name not in {"full", "plain"}}
            acts["full"] = runs["full"].accept(charge("tenant:small", limit=4), charge())
            acts["plain"] = runs["plain"].accept()
        assert store.wait_for(acts["good"])[ACME].reserved == {"steps": 2}
        for name, error in (
            ("busy", StoreBusyError),
            ("moved", HeadMovedError),
            ("full", LedgerRefusedError),
        ):
            with pytest.raises(error):
                store.wait_for(acts[name])
        assert store.wait_for(acts["plain"]) == {}
        leave.set()
        holder.result(30)
    assert (held(store), held(store, "tenant:small")) == (2, 4)
    lengths = {name: len(list(store.read(name))) for name in runs}
    assert lengths == {"good": 4, "busy": 1, "moved": 2, "full": 1, "plain": 2}
    assert [event.position for _, event in store.tail()] == sorted({e.position for _, e in store.tail()})


@pytest.mark.parametrize(("size", "charged"), [(10, 2), (40_000, 0)])
def test_only_what_goes_to_the_server_at_once_is_charged_for_several_runs(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str, size: int, charged: int
) -> None:
    store = stores[0]
    runs = [Run(store, name) for name in "ab"]
    runs[0].append(charge())
    with store._commits._writing:  # both in one commit
        acts = [run.accept(charge(), size=size) for run in runs]
    assert [store.wait_for(act)[ACME].reserved for act in acts]
    assert held(store) == 3
    store.close()
    wait_until(lambda: calls(postgres_url, "put") >= 3)  # what creates the runs, and the first step
    assert calls(postgres_url, "charge") == charged


@pytest.mark.parametrize(
    "edited",
    [
        "UPDATE agentguard.account SET data = 'x'",
        "UPDATE agentguard.account SET data = '[]'",
        "UPDATE agentguard.account SET data = repeat('[', 20000)",
        "UPDATE agentguard.account SET data = data::jsonb - 'spent'",
        "UPDATE agentguard.account SET data = data::jsonb - 'excess'",
        """UPDATE agentguard.account SET data = data::jsonb || '{"reserved": {"steps": "1"}}'""",
        """UPDATE agentguard.account SET data = data::jsonb || '{"spent": {"steps": -9}}'""",
        """UPDATE agentguard.account SET data = data::jsonb || '{"spent": {"tokens": -9}}'""",
        """UPDATE agentguard.account SET data = data::jsonb || '{"spent": {"tokens": 0.5}}'""",
        """UPDATE agentguard.account SET data = data::jsonb || '{"spent": {"tokens": []}}'""",
        """UPDATE agentguard.account SET data = data::jsonb || '{"excess": {"tokens": "1"}}'""",
    ],
)
def test_an_account_that_was_edited_to_what_it_cannot_hold_is_charged_nothing(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str, edited: str
) -> None:
    run = Run(stores[0], "r")
    run.append(charge())
    run.append(charge())
    execute(postgres_url, edited)
    before = execute(postgres_url, "SELECT data FROM agentguard.account")
    with pytest.raises(StoreUnavailableError):
        run.append(Movement(ACME, steps(1)))
    assert len(list(stores[0].read("r"))) == 3
    assert execute(postgres_url, "SELECT data FROM agentguard.account") == before


def test_an_account_whose_held_steps_were_edited_away_gives_back_no_more_than_it_holds(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str
) -> None:
    run = Run(stores[0], "r")
    run.append(charge(count=3))
    run.append(charge())
    execute(
        postgres_url,
        """UPDATE agentguard.account SET data = data::jsonb || '{"reserved": {"steps": 1}}'""",
    )
    account = run.append(Movement(ACME, settle=({"steps": 3}, {"steps": 3})))[ACME]
    assert (account.spent, account.reserved) == ({"steps": 3}, {"steps": 0})


def test_what_an_account_is_written_as_stays_what_the_library_reads(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str
) -> None:
    """With limits of every kind, names of every kind, and large numbers."""
    name, budget = 'tenant:Zoë "☃"\\', Budget(usd="9e9", warn_at=0.123456789, calls={"Zoë": 5}, enforce=False)
    run = Run(stores[0], "r")
    reserve = Movement(name, steps(1), opening=Account(name, budget))
    settle = Movement(name, settle=({"steps": 1}, {"steps": 1, "nano_usd": 4 * 10**18}))
    for _ in range(2):
        run.append(reserve)
        run.append(settle)
    account = stores[0].accounts([name])[name]
    assert account.to_data() == run.append(Movement(name, settle=({}, {})))[name].to_data()
    assert (account.spent, account.budget) == ({"steps": 2, "nano_usd": 8 * 10**18}, budget)
    assert account.reserved == {"steps": 0}
    [[data]] = execute(postgres_url, "SELECT data FROM agentguard.account")
    assert json.loads(data) == account.to_data()
    stores[0].close()
    wait_until(lambda: calls(postgres_url, "charge") >= 3)


def test_writers_that_charge_the_same_accounts_in_any_order_never_wait_for_each_other(
    stores: tuple[PostgresEventStore, PostgresEventStore], postgres_url: str
) -> None:
    names = ["tenant:a", "tenant:B", "tenant:_c", "run:d"]
    runs = [[Run(store, f"{nth}-{place}") for place in range(4)] for nth, store in enumerate(stores)]
    runs[0][0].append(*(charge(name) for name in names))

    def some(mine: Sequence[Run], turn: int) -> None:
        order = names if turn else names[::-1]
        for begin in range(15):
            acts: list[Any] = []
            for place, run in enumerate(mine):
                chosen = {order[(begin + place) % 4], order[(begin + 2 * place + 1) % 4]}
                acts.append(run.accept(*(charge(name) for name in order if name in chosen)))
                run.seq += 1
            for run, act in zip(mine, acts, strict=True):
                run.store.wait_for(act)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(some, mine, turn) for turn, mine in enumerate(runs)]:
            done.result(60)
    total = sum(held(stores[0], name) for name in names)
    events = sum(run.seq - 1 for mine in runs for run in mine)
    assert events <= total <= 2 * events + 4
    for store in stores:
        store.close()
    wait_until(lambda: calls(postgres_url, "charge") >= 60)
    assert execute(
        postgres_url, "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"
    ) == [(0,)]
