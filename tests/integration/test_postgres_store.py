"""What the store in PostgreSQL promises beyond the contract of all stores."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import psycopg
import pytest

from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.stores import _postgres_link
from agentguard.stores._postgres_commits import Commits
from agentguard.stores._postgres_pace import Pace
from agentguard.stores._postgres_schema import migrate
from agentguard.stores.postgres import PostgresEventStore
from agentguard.testing.conformance._given import a_row, log_of, opening, steps, unplaced, wait_until
from tests.postgres import Postgres, execute, migrated, store_at, waiting, with_month


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresEventStore]:
    store = PostgresEventStore(postgres_url, store_timeout=10)
    yield store
    store.close()


# --- one order of all runs -----------------------------------------------------------------------


def test_nothing_appears_behind_what_a_reader_of_the_tail_has_passed(
    store: PostgresEventStore, postgres_url: str
) -> None:
    """A transaction that began first and commits last keeps what came after it back, and then precedes it."""
    slow = store.create(a_row("slow"), log_of("slow", 1))
    quick = store.create(a_row("quick"), log_of("quick", 1))
    passed = store.tail()[-1][1].position
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.exclusive("slow"):
            store.append(slow, log_of("slow", 2)[1:])
            held.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    store.append(quick, log_of("quick", 2)[1:])
    assert [event.seq for event in store.read("quick")] == [1, 2], "it is committed"
    assert store.tail(passed) == [], "and what is older may still come"
    leave.set()
    holder.join()
    assert [run_id for run_id, _ in store.tail(passed)] == ["slow", "quick"]


def test_a_transaction_that_writes_no_events_holds_up_no_tail(
    store: PostgresEventStore, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as other:
        other.execute("CREATE TABLE public.theirs (a int)")
        number = store.create(a_row("r1"), log_of("r1", 1))
        store.append(number, log_of("r1", 2)[1:])
        assert [event.seq for _, event in store.tail()] == [1, 2]


def test_readers_of_the_tail_miss_nothing_while_many_write(store: PostgresEventStore) -> None:
    runs = [f"r{index}" for index in range(8)]
    numbers = {run_id: store.create(a_row(run_id), []) for run_id in runs}
    done = threading.Event()

    def write(run_id: str) -> None:
        for event in log_of(run_id, 30):
            store.append(numbers[run_id], [event])

    def follow() -> list[tuple[str, Stored]]:
        found: list[tuple[str, Stored]] = []
        while True:
            last = done.is_set()
            news = store.tail(found[-1][1].position if found else 0, limit=7)
            found += news
            if last and not news:
                return found

    with ThreadPoolExecutor(9) as pool:
        following = pool.submit(follow)
        list(pool.map(write, runs))
        done.set()
        found = following.result(60)
    assert len(found) == len(set(found)) == 240
    for run_id in runs:
        assert [event.seq for name, event in found if name == run_id] == list(range(1, 31))


def test_a_database_restored_into_another_server_goes_on_after_a_migration(
    store: PostgresEventStore, postgres_url: str
) -> None:
    number = store.create(a_row("r1"), log_of("r1", 1))
    # As a dump of a server that has seen many more transactions than this one.
    execute(
        postgres_url,
        "ALTER TABLE agentguard.event DISABLE TRIGGER USER; "
        "UPDATE agentguard.event SET position = position + (1::bigint << 40); "
        "ALTER TABLE agentguard.event ENABLE TRIGGER USER",
    )
    store.close()
    again = PostgresEventStore(postgres_url, store_timeout=2)
    with pytest.raises(StoreUnavailableError, match="agentguard migrate"):
        again.row("r1")
    assert migrated(postgres_url) == ["positions go on after those that were restored"]
    again.append(number, log_of("r1", 2)[1:])
    assert [event.seq for _, event in again.tail()] == [1, 2]
    again.close()


def test_a_listener_hears_of_what_another_process_appends(
    store: PostgresEventStore, postgres_url: str
) -> None:
    number = store.create(a_row("r1"), log_of("r1", 1))
    other = PostgresEventStore(postgres_url)
    other.wait_for_news(0)  # it listens from here on
    heard = threading.Thread(target=lambda: other.wait_for_news(60))
    heard.start()
    store.append(number, log_of("r1", 2)[1:])
    heard.join(30)
    assert not heard.is_alive()
    other.close()


def test_a_listener_whose_connection_was_cut_listens_again(
    store: PostgresEventStore, postgres_url: str
) -> None:
    number = store.create(a_row("r1"), log_of("r1", 1))
    other = PostgresEventStore(postgres_url)
    other.wait_for_news(0)
    ended = execute(
        postgres_url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE query ~ '^LISTEN' "
        "AND datname = current_database()",
    )
    assert ended == [(True,)]
    other.wait_for_news(60)  # returns at once, for what it has not heard
    other.wait_for_news(60)  # it listens again
    heard = threading.Thread(target=lambda: other.wait_for_news(60))
    heard.start()
    store.append(number, log_of("r1", 2)[1:])
    heard.join(30)
    assert not heard.is_alive()
    other.close()


# --- appends that share a commit -----------------------------------------------------------------


def accept(
    store: PostgresEventStore, number: int, log: Sequence[Stored], *movements: Movement, after: Any = None
) -> Any:
    """Have the last event of a log appended."""
    previous = log[-2].hash if len(log) > 1 else b""
    return store.accept(number, log[-1], previous, movements, after)


def test_what_fails_is_told_to_its_own_step_and_undoes_nothing_of_the_others(
    store: PostgresEventStore,
) -> None:
    logs = {run_id: log_of(run_id, 4) for run_id in ("a", "b", "c", "d")}
    opens = [Movement("tenant:acme", opening=opening(1))]
    numbers = {
        run_id: store.create(a_row(run_id), log[:1], opens if run_id == "a" else [])
        for run_id, log in logs.items()
    }
    reserve = Movement("tenant:acme", steps(1))
    granted = accept(store, numbers["a"], logs["a"][:2], reserve)
    refused = accept(store, numbers["b"], logs["b"][:2], reserve)
    behind = accept(store, numbers["b"], logs["b"][:3], after=refused)
    late = accept(store, numbers["c"], log_of("c", 1, tag="-rival"))
    plain = accept(store, numbers["d"], logs["d"][:2])
    follows = accept(store, numbers["d"], logs["d"][:3], after=plain)
    assert store.wait_for(follows) == {}
    assert store.wait_for(plain) == {}
    assert store.wait_for(granted)["tenant:acme"].reserved == {"steps": 1}
    with pytest.raises(LedgerRefusedError):
        store.wait_for(refused)
    for lost in (behind, late):
        with pytest.raises(HeadMovedError):
            store.wait_for(lost)
    assert [unplaced(store.read(run_id)) for run_id in "abcd"] == [
        logs["a"][:2],
        logs["b"][:1],
        logs["c"][:1],
        logs["d"][:3],
    ]
    assert store.accounts(["tenant:acme"])["tenant:acme"].reserved == {"steps": 1}


def test_an_act_is_told_what_became_of_it_at_the_last_try(
    store: PostgresEventStore, postgres_url: str
) -> None:
    """Refused at first, it is carried out after the connection broke, since its account has room by then."""
    numbers = {run_id: store.create(a_row(run_id), log_of(run_id, 1)) for run_id in "ab"}
    reserve, other = (
        Movement(name, steps(1), opening=opening(1)) for name in ("tenant:acme", "tenant:other")
    )
    store.append(numbers["a"], (), movements=(reserve,))
    execute(
        postgres_url,
        """
        CREATE SEQUENCE public.tries;
        CREATE FUNCTION public.break() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            IF nextval('public.tries') = 1 THEN
                PERFORM pg_advisory_xact_lock(1);
                PERFORM pg_terminate_backend(pg_backend_pid());
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER break AFTER INSERT ON agentguard.event FOR EACH ROW EXECUTE FUNCTION public.break();
        """,
    )
    with psycopg.connect(postgres_url) as holder, ThreadPoolExecutor() as threads:
        holder.execute("SELECT pg_advisory_lock(1)")
        with store._commits._writing:  # both in one commit
            refused = accept(store, numbers["a"], log_of("a", 2), reserve)
            accept(store, numbers["b"], log_of("b", 2), other)
        told = threads.submit(store.wait_for, refused)
        wait_until(lambda: waiting(postgres_url, "advisory") == 1)
        freed = threads.submit(
            execute, postgres_url, "DELETE FROM agentguard.account WHERE id = 'tenant:acme' RETURNING id"
        )
        wait_until(lambda: waiting(postgres_url, "transactionid") == 1)
        holder.execute("SELECT pg_advisory_unlock(1)")
        assert freed.result() == [("tenant:acme",)]
        refusal = told.exception()
    assert (unplaced(store.read("a")), refusal) == (log_of("a", 2), None)


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_who_was_late_is_told_so_whatever_the_isolation_level_of_the_login_is(
    store: PostgresEventStore, postgres_url: str, level: str
) -> None:
    """A transaction that began before another writer's ended may not see what that one has appended."""
    number = store.create(a_row("r"), log_of("r", 1))
    [rival] = log_of("r", 2, tag="-rival")[1:]
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    with psycopg.connect(postgres_url) as other, ThreadPoolExecutor() as threads:
        other.execute("LOCK TABLE ONLY agentguard.event IN SHARE ROW EXCLUSIVE MODE")
        late = threads.submit(store.wait_for, accept(store, number, log_of("r", 2)))
        wait_until(lambda: waiting(postgres_url, "relation") == 1)
        other.execute(
            "INSERT INTO agentguard.event (number, seq, position, body, hash, tenant) VALUES (%s, 2, 0, %s, %s, '')",
            (number, rival.body, rival.hash),
        )
        other.commit()
        assert isinstance(late.exception(60), HeadMovedError)
    assert unplaced(store.read("r")) == [*log_of("r", 1), rival]


def test_what_was_committed_as_a_signal_handler_raised_is_not_told_as_a_failure(
    store: PostgresEventStore,
) -> None:
    numbers = {run_id: store.create(a_row(run_id), log_of(run_id, 1)) for run_id in "ab"}
    acts = [accept(store, numbers[run_id], log_of(run_id, 2)) for run_id in "ab"]
    left = [Commits._resolve.__code__]

    def raise_at_it(frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code in left:
            left.clear()
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(raise_at_it)
    try:
        with pytest.raises(KeyboardInterrupt):
            store.wait_for(acts[0])
    finally:
        sys.settrace(before)
    assert [store.wait_for(act) for act in acts] == [{}, {}]
    assert [unplaced(store.read(run_id)) for run_id in "ab"] == [log_of(run_id, 2) for run_id in "ab"]


def test_what_was_decided_after_a_failure_fails_also_where_its_place_was_filled_meanwhile(
    store: PostgresEventStore,
) -> None:
    """Its sequence would fit, but not its chain."""
    events = log_of("r1", 3)
    number = store.create(a_row("r1"), events[:1])
    store.append(number, events[1:2])
    first = accept(store, number, log_of("r1", 2, tag="-lost"))
    with pytest.raises(HeadMovedError):
        store.wait_for(first)
    second = accept(store, number, log_of("r1", 3, tag="-lost"), after=first)
    with pytest.raises(HeadMovedError):
        store.wait_for(second)
    assert unplaced(store.read("r1")) == events[:2]


def test_what_tasks_append_is_committed_with_what_those_append_who_come_back_soon(
    store: PostgresEventStore,
) -> None:
    """They are waited for while the clock of the pace has not moved on."""
    logs = {run_id: log_of(run_id, 2) for run_id in ("a", "b", "c")}
    numbers = {run_id: store.create(a_row(run_id), log[:1]) for run_id, log in logs.items()}
    store._commits._pace = pace = Pace(lambda: 1.0)
    pace.committed(2, 1, 0.1)
    acts = []
    for run_id, log in logs.items():
        acts.append(accept(store, numbers[run_id], log))
        store.commit_soon()
        if run_id != "c":
            wait_until(store._commits._writing.locked)
            assert not acts[0].future.done()
    wait_until(lambda: all(act.future.done() for act in acts))
    assert [act.future.result() for act in acts] == 3 * [{}]
    positions = [event.position for run_id in logs for event in store.read(run_id, after=1)]
    assert len({position >> 20 for position in positions}) == 1


def test_a_run_that_another_writer_holds_does_not_hold_up_the_others(store: PostgresEventStore) -> None:
    numbers = {run_id: store.create(a_row(run_id), log_of(run_id, 1)) for run_id in ("held", "free")}
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.exclusive("held"):
            held.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    waiting = accept(store, numbers["held"], log_of("held", 2))
    free = accept(store, numbers["free"], log_of("free", 2))
    assert store.wait_for(free) == {}
    with pytest.raises(StoreBusyError):
        store.wait_for(waiting)
    leave.set()
    holder.join()


def with_account(name: str) -> list[Any]:
    """What an event is appended with that moves such an account."""
    return [Movement(name, opening=opening(1))]


#: What one event has that cannot be appended, and what it is appended with.
BAD: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "a NUL in a text": ({}, with_account("a\0b")),
    "a lone surrogate in a text": ({}, with_account("a\udc80b")),
    "more than goes to the server at once": ({"payload": bytes(5_000)}, []),
    "the same in a transaction": ({"payload": bytes(5_000)}, with_account("big")),
    "no bytes": ({"body": "text"}, []),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("together", [True, False], ids=["appended", "transacted"])
def test_what_one_act_cannot_append_is_told_to_its_step_alone(
    store: PostgresEventStore, fault: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_link, "_MOST_BYTES", 4_000)
    changed, bad_moves = BAD[fault]
    moves = [] if together else with_account("a")
    numbers = {run_id: store.create(a_row(run_id), log_of(run_id, 1)) for run_id in ("first", "bad", "last")}
    first = accept(store, numbers["first"], log_of("first", 2), *moves)
    before = accept(store, numbers["bad"], log_of("bad", 2), *moves)
    event = log_of("bad", 3)[-1]._replace(**changed)
    bad = accept(store, numbers["bad"], [*log_of("bad", 2), event], *bad_moves, after=before)
    behind = accept(store, numbers["bad"], log_of("bad", 4), after=bad)
    last = accept(store, numbers["last"], log_of("last", 2), *moves)
    store.commit_soon()
    outcomes = [act.future for act in (first, before, bad, behind, last)]
    wait_until(lambda: all(outcome.done() for outcome in outcomes))
    assert [type(outcome._error) for outcome in outcomes] == [
        *(type(None), type(None), StoreUnavailableError, HeadMovedError, type(None)),
    ]
    assert [unplaced(store.read(run_id)) for run_id in numbers] == [log_of(run_id, 2) for run_id in numbers]
    accept(store, numbers["last"], log_of("last", 3), after=last)
    store.commit_soon()
    wait_until(lambda: len(list(store.read("last"))) == 3)


def test_acts_that_are_too_large_together_are_committed_apart(
    store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_link, "_MOST_BYTES", 4_000)
    numbers = {run_id: store.create(a_row(run_id), log_of(run_id, 1)) for run_id in "ab"}
    acts: list[Any] = []
    for run_id, number in numbers.items():
        log = log_of(run_id, 4, payload=bytes(3_000))
        acts += [accept(store, number, log[:upto]) for upto in (2, 3, 4)]
    assert [store.wait_for(act) for act in acts] == [{}] * 6
    assert [len(list(store.read(run_id))) for run_id in numbers] == [4, 4]


# --- nothing of a log changes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE agentguard.event SET body = 'x'",
        "UPDATE agentguard.event SET payload = 'x'",
        "UPDATE agentguard.event SET seq = seq + 1",
        "DELETE FROM agentguard.event",
        "TRUNCATE agentguard.event",
        "UPDATE agentguard.run SET run_id = 'x'",
        "UPDATE agentguard.run SET salt = 'x'",
        "UPDATE agentguard.run SET pruning = true",
        "DELETE FROM agentguard.run",
        "TRUNCATE agentguard.run",
    ],
)
def test_not_even_the_owner_changes_a_log_by_hand(
    store: PostgresEventStore, postgres_url: str, statement: str
) -> None:
    store.create(a_row("r1"), log_of("r1", 2, payload=b"p"))
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="agentguard:"):
        execute(postgres_url, statement)
    assert len(list(store.read("r1"))) == 2


def months(url: str) -> list[str]:
    """The partitions that events lie in."""
    return [
        name for (name,) in execute(url, "SELECT DISTINCT tableoid::regclass::text FROM agentguard.event")
    ]


@pytest.mark.parametrize(
    ("time", "month"),
    [
        ("2026-01-31 23:59:59.2Z", "agentguard.event_2026_01"),
        ("2026-01-31 23:59:59.9Z", "agentguard.event_of_other_months"),
        ("2026-02-01 00:00:00.0Z", "agentguard.event_of_other_months"),
    ],
)
def test_a_run_that_begins_as_a_month_ends_goes_on_whether_the_next_has_a_partition_or_not(
    store: PostgresEventStore, postgres_url: str, time: str, month: str
) -> None:
    with_month(postgres_url, "2026-01-01", "2026-02-01")
    with store_at(postgres_url, time) as then:
        number = then.create(a_row("r"), log_of("r", 1))
    for count in (2, 3):
        store.append(number, log_of("r", count)[-1:])
    assert months(postgres_url) == [month]
    assert unplaced(store.read("r")) == log_of("r", 3)
    ended = a_row("r", state="COMPLETED", ended_ns=5)
    store.append(number, log_of("r", 4)[-1:], row=ended)
    assert store.prune(10) == ["r"]
    assert months(postgres_url) == []


@pytest.mark.usefixtures("within_a_day")
def test_runs_of_months_that_no_migration_has_made_lie_among_those_of_others_and_are_pruned_there(
    store: PostgresEventStore, postgres_url: str
) -> None:
    is_month = "relkind = 'r' AND relname ~ '^event_[0-9]'"
    [[made]] = execute(
        postgres_url, f"SELECT string_agg('agentguard.' || relname, ', ') FROM pg_class WHERE {is_month}"
    )
    execute(postgres_url, f"DROP TABLE {made}")
    number = store.create(a_row("r", state="COMPLETED", ended_ns=5), log_of("r", 1))
    assert migrate(postgres_url) == ["12 monthly partitions"]
    store.append(number, log_of("r", 2)[-1:])
    assert months(postgres_url) == ["agentguard.event_of_other_months"]
    assert migrate(postgres_url) == []
    assert store.prune(10) == ["r"]
    assert migrate(postgres_url) == ["1 monthly partitions"]


@pytest.mark.parametrize("state", ["RUNNING", "KILLED"])
def test_a_run_that_is_created_as_its_month_ends_is_not_dropped_with_it(
    store: PostgresEventStore, postgres_url: str, state: str
) -> None:
    with_month(postgres_url, "2026-01-01", "2026-02-01")
    created, leave = threading.Event(), threading.Event()

    def create() -> None:
        with store_at(postgres_url, "2026-01-31 23:59:59.2Z") as then, then.exclusive("late"):
            then.create(
                a_row("late", state=state, ended_ns=50 if state == "KILLED" else None), log_of("late", 1)
            )
            created.set()
            leave.wait(60)

    with ThreadPoolExecutor() as threads:
        creating = threads.submit(create)
        assert created.wait(60)
        pruning = threads.submit(store.prune, 10)
        wait_until(lambda: pruning.done() or waiting(postgres_url, "relation"))
        leave.set()
        creating.result(60)
        assert pruning.result(60) == []
    assert unplaced(store.read("late")) == log_of("late", 1)


def test_a_month_that_two_prune_at_once_is_dropped_by_one_of_them(
    store: PostgresEventStore, postgres_url: str
) -> None:
    with_month(postgres_url, "2026-01-01", "2026-02-01")
    with store_at(postgres_url, "2026-01-05 12:00Z") as then:
        then.create(a_row("old", state="COMPLETED", ended_ns=5), log_of("old", 3))
    with psycopg.connect(postgres_url) as reader, ThreadPoolExecutor() as threads:
        reader.execute("SELECT * FROM agentguard.event_2026_01")
        pruning = [threads.submit(store.prune, 10) for _ in range(2)]
        wait_until(lambda: waiting(postgres_url, "relation") or all(each.done() for each in pruning))
        reader.rollback()
        assert sorted(run_id for each in pruning for run_id in each.result(60)) == ["old"]


def test_pruning_drops_the_partition_of_a_month_whose_runs_are_all_over(
    store: PostgresEventStore, postgres_url: str
) -> None:
    with_month(postgres_url, "2026-01-01", "2026-02-01")
    with store_at(postgres_url, "2026-01-05 12:00Z") as then:
        old = a_row("old", state="COMPLETED", ended_ns=5)
        then.create(old, log_of("old", 3), [Movement("run:old", opening=opening(1))])
    store.create(a_row("live"), log_of("live", 1))
    assert len(list(store.read("old"))) == 3
    assert store.prune(10, keep=["old"]) == []
    assert store.prune(5) == []
    assert store.prune(10) == ["old"]
    assert execute(postgres_url, "SELECT to_regclass('agentguard.event_2026_01')") == [(None,)]
    assert [row.run_id for row in store.rows()] == ["live"]
    assert store.accounts(["run:old"]) == {}


# --- a pool in between ---------------------------------------------------------------------------


def test_it_works_through_pgbouncer_in_transaction_mode(own_postgres: Postgres) -> None:
    own_postgres.execute("CREATE DATABASE app")
    migrate(own_postgres.url("app"))
    own_postgres.execute("CREATE ROLE agents LOGIN IN ROLE agentguard_agent")
    with own_postgres.bouncer("agents", pool_size=2) as bouncer:
        store = PostgresEventStore(bouncer.url("app", "agents"), store_timeout=20)
        narrow = PostgresEventStore(bouncer.url("app", "agents"), store_timeout=20, tenant="other")
        numbers = {
            run_id: store.create(a_row(run_id), log_of(run_id, 1), [Movement("t", opening=opening(99))])
            for run_id in ("a", "b", "c")
        }

        def write(run_id: str) -> None:
            for event in log_of(run_id, 10)[1:]:
                store.append(numbers[run_id], [event], movements=[Movement("t", steps(1))])
                assert narrow.rows() == [], "a setting of one transaction is not left to the next"
                assert len(store.rows()) == 3

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(write, numbers))
        assert [len(list(store.read(run_id))) for run_id in "abc"] == [10, 10, 10]
        assert store.accounts(["t"])["t"].reserved == {"steps": 27}
        wait_until(lambda: len(store.tail()) == 30)
        store.close()
        narrow.close()


def test_an_append_that_comes_while_others_are_told_of_news_is_committed(store: PostgresEventStore) -> None:
    """Who finds the writer at work leaves its append to it, whatever the writer is at."""
    number = store.create(a_row("r1"), [])
    telling, go_on = threading.Event(), threading.Event()
    tell = store._commits._tell

    def slowly() -> None:
        telling.set()
        assert go_on.wait(30)
        tell()

    store._commits._tell = slowly  # type: ignore[method-assign]
    events = log_of("r1", 2)
    store.append(number, events[:1])
    assert telling.wait(30)
    append = threading.Thread(target=store.append, args=(number, events[1:]))
    append.start()
    append.join(0.05)
    go_on.set()
    append.join(30)
    assert not append.is_alive()
    assert unplaced(store.read("r1")) == events
