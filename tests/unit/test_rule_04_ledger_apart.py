"""Rule 4: the accounts of tenants in a ledger apart from the log; the log is the truth."""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    RunState,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from agentguard import errors as e
from agentguard._process import identity
from agentguard.budget.account import Account
from agentguard.budget.reservation import Reservation
from agentguard.errors import DuplicateKeyError, RunOwnedError
from agentguard.steps import apart
from agentguard.testing import MemoryLedger

TENANT = "tenant:default"


@guarded_step(reserve=Usage(coins=3), usage=lambda used: Usage(coins=used))
def spend(used: int) -> int:
    return used


class Line(MemoryLedger):
    """A ledger whose line can be cut: before an act arrives, or before its answer does."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: set[str] = set()
        self.deaf: set[str] = set()

    def _cut(self, act: str, where: set[str]) -> None:
        if act in where:
            raise StoreUnavailableError(f"no line to {self.url} for {act}")

    def generation(self) -> int:
        self._cut("generation", self.deaf)
        return super().generation()

    def reserve(self, *args: Any) -> Any:
        self._cut("reserve", self.deaf)
        done = super().reserve(*args)
        self._cut("reserve", self.silent)
        return done

    def settle(self, *args: Any, **options: Any) -> Any:
        self._cut("settle", self.deaf)
        done = super().settle(*args, **options)
        self._cut("settle", self.silent)
        return done


@pytest.fixture
def ledger() -> Line:
    return Line()


@pytest.fixture
def guard(ledger: Line) -> Iterator[Guard]:
    with Guard.in_memory(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        yield guard


def amounts(ledger: MemoryLedger, name: str = TENANT) -> tuple[int, int]:
    account = ledger.accounts([name])[name]
    return account.spent.get("coins", 0), account.reserved.get("coins", 0)


def test_rule_04_a_step_is_reserved_at_the_ledger_and_settled_there(guard, ledger):
    seen = []

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
    def look() -> None:
        seen.append(amounts(ledger))

    with guard.run("r") as run:
        look()
        look()
    assert seen == [(0, 3), (2, 3)]
    assert amounts(ledger) == (4, 0)
    assert guard.tenants()[0].spent["coins"] == 4
    started = [event for event in guard.history(run.id) if event.type == "step_started"]
    assert [event.data["windows"] for event in started] == [[TENANT]] * 2, "the start names what it holds"
    assert guard.parts.store.accounts([TENANT]) == {}
    assert guard.verify()


def test_rule_04_the_limit_stops_the_run_and_nothing_stays_reserved(guard, ledger):
    with pytest.raises(BudgetExceededError) as stop, guard.run("r") as run:
        for _ in range(20):
            spend(3)
    assert (stop.value.resource, stop.value.spent, stop.value.requested, stop.value.limit) == (
        "coins",
        9,
        3,
        10,
    )
    assert stop.value.scope == "tenant:default"
    assert run.state is RunState.FAILED
    assert amounts(ledger) == (9, 0)
    assert [event.type for event in guard.history(run.id)][-2:] == ["step_refused", "run_failed"]


def test_rule_04_many_runs_on_many_threads_never_pass_the_limit(guard, ledger):
    guard.set_tenant_budget("default", Budget(coins=100))
    ran = []

    @guarded_step(usage=Usage(coins=1))
    def one() -> None:
        ran.append(1)

    def agent(_: int) -> None:
        with pytest.raises(BudgetExceededError), guard.run("r"):
            while True:
                one()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(agent, range(16)))
    assert len(ran) == 100
    assert amounts(ledger) == (100, 0)


async def _tasks(guard: Guard, ran: list[int]) -> None:
    @guarded_step(usage=Usage(coins=1))
    async def one() -> None:
        ran.append(1)
        await asyncio.sleep(0)

    async with guard.run("r") as run:
        await run.gather(*(one() for _ in range(30)), return_exceptions=True)


def test_rule_04_async_steps_are_held_there_too(guard, ledger):
    ran: list[int] = []
    with pytest.raises(BudgetExceededError):
        asyncio.run(_tasks(guard, ran))
    assert len(ran) == 10
    assert amounts(ledger) == (10, 0)


def test_rule_04_an_excess_stops_the_run_and_a_near_limit_warns(guard, ledger):
    warned: list[dict[str, Any]] = []
    with pytest.raises(BudgetExceededError), guard.run("r", on_warning=warned.append):
        spend(6)
        spend(5)
    assert [(told["level"], told["resource"], told["used"]) for told in warned] == [(TENANT, "coins", "9")]
    assert amounts(ledger) == (11, 0)


def test_rule_04_a_step_refused_by_its_own_run_leaves_nothing_at_the_ledger(guard, ledger):
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(coins=4)):
        spend(3)
        spend(3)
    assert amounts(ledger) == (3, 0)


def test_rule_04_a_body_that_never_ran_gives_everything_back(guard, ledger):
    with pytest.raises(e.RunStopped), guard.run("r") as run:

        @guarded_step(reserve=Usage(coins=3), approval=True)
        def wait() -> None:
            raise AssertionError

        threading.Thread(target=run.bind(lambda: run.kill("enough"))).start()
        wait()
    assert amounts_or_nothing(ledger) == (0, 0)


def amounts_or_nothing(ledger: MemoryLedger) -> tuple[int, int]:
    return amounts(ledger) if ledger.accounts([TENANT]) else (0, 0)


# --- the line breaks -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deaf", "silent"])
def test_rule_04_a_ledger_that_cannot_be_asked_refuses_the_step(guard, ledger, how):
    """Also when it did reserve, and only its answer was lost: that is given back, once it can be told."""
    with guard.run("r"):
        getattr(ledger, how).update({"reserve", "settle"})
        with pytest.raises(StoreUnavailableError):
            spend(1)
        ledger.deaf.clear()
        ledger.silent.clear()
        spend(1)
    assert amounts(ledger) == (1, 0)


@pytest.mark.parametrize("how", ["deaf", "silent"])
def test_rule_04_an_outcome_on_record_is_told_later_and_charged_once(guard, ledger, how):
    with guard.run("r") as run:
        getattr(ledger, how).add("settle")
        assert spend(2) == 2, "the agent is not harmed"
        assert amounts(ledger) == ((0, 3) if how == "deaf" else (2, 0))
        getattr(ledger, how).clear()
        guard.parts.apart.beat()
        assert amounts(ledger) == (2, 0)
        spend(1)
    assert amounts(ledger) == (3, 0)
    assert run.spent["coins"] == 3


def test_rule_04_a_ledger_that_is_gone_is_asked_once_for_each_step(guard, ledger, monkeypatch):
    """Whatever it is still to be told: each try may take as long as the server's timeout."""
    with guard.run("r"):

        @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=1))
        def around() -> None:
            inside()

        @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
        def inside() -> None:
            ledger.deaf = {"settle", "reserve"}

        around()
        tries: list[str] = []
        cut = ledger._cut
        monkeypatch.setattr(ledger, "_cut", lambda act, where: (tries.append(act), cut(act, where)))
        with pytest.raises(StoreUnavailableError):
            spend(1)
        assert tries == ["settle"]
        ledger.deaf.clear()
        spend(1)
    assert amounts(ledger) == (4, 0)


def test_rule_04_what_was_given_back_late_is_not_taken_from_the_next_try(guard, ledger):
    """A reservation whose answer was lost: giving it back must not free the room of the same step's next try."""
    with guard.run("r") as run:
        ledger.silent.add("reserve")
        ledger.deaf.add("settle")
        with pytest.raises(StoreUnavailableError):
            run.call("pay", spend.__wrapped__, 1, key="pay", reserve=Usage(coins=3))
        ledger.silent.clear()
        with pytest.raises(StoreUnavailableError, match="no line"):
            run.call("pay", spend.__wrapped__, 1, key="pay", reserve=Usage(coins=3))
        ledger.deaf.clear()
        run.call("pay", spend.__wrapped__, 1, key="pay", reserve=Usage(coins=3))
        assert amounts(ledger) == (3, 0)


# --- lost books ----------------------------------------------------------------------------------


def test_rule_04_a_ledger_that_lost_its_books_grants_nothing_until_it_is_rebuilt(guard, ledger):
    with guard.run("r"):
        spend(2)
        spend(3)
        ledger.lose()
        with pytest.raises(StoreUnavailableError, match=r"has lost its books.*rebuild_ledger"):
            spend(1)
        assert guard.rebuild_ledger() == 0
        assert amounts(ledger) == (5, 0)
        spend(3)
    assert amounts(ledger) == (8, 0)


def test_rule_04_books_from_a_backup_grant_nothing(guard, ledger):
    backup = MemoryLedger()
    with guard.run("r"):
        spend(2)
        backup.__dict__.update(
            {name: value for name, value in ledger.__dict__.items() if name == "_generation"}
        )
        guard.rebuild_ledger()
        ledger._generation = backup._generation
        with pytest.raises(StoreUnavailableError, match="has books of generation"):
            spend(1)


def test_rule_04_steps_in_flight_are_in_the_new_books(guard, ledger):
    inside, go_on = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=1))
    def slow() -> None:
        inside.set()
        assert go_on.wait(10)

    with guard.run("r") as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        assert inside.wait(10)
        ledger.lose()
        assert guard.rebuild_ledger() == 1
        assert amounts(ledger) == (0, 3)
        go_on.set()
        thread.join()
        assert amounts(ledger) == (1, 0)


def test_rule_04_a_start_granted_by_the_old_books_is_asked_for_again(guard, ledger, monkeypatch):
    """The ledger is rebuilt between the reservation and the commit of the start: its room was in no book."""
    reserve = apart.Apart.reserve
    times = []

    def rebuilt_meanwhile(self: Any, step: Any) -> Any:
        made = reserve(self, step)
        times.append(made[0].generation)
        if len(times) == 2:
            guard.rebuild_ledger()
        return made

    with guard.run("r"):
        spend(1)
        monkeypatch.setattr(apart.Apart, "reserve", rebuilt_meanwhile)
        times.append(0)
        spend(2)
    assert len(times) == 3
    assert times[1] < times[2]
    assert amounts(ledger) == (3, 0)


def test_rule_04_another_process_that_rebuilds_the_ledger_is_noticed(home, ledger):
    with (
        Guard.open(ledger=ledger, telemetry=False) as guard,
        Guard.open(ledger=ledger, telemetry=False) as other,
    ):
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(1)
            other.rebuild_ledger()
            spend(2)
            ledger.lose()
            other.rebuild_ledger()
            guard.parts.apart.beat()
        assert amounts(ledger) == (3, 0)


def test_rule_04_a_rebuild_that_died_in_the_middle_refuses_steps_until_the_next(home, ledger, monkeypatch):
    """The store knows of new books and the old ones still grant: no step may start, nor try for ever."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with (
        Guard.open(ledger=ledger, telemetry=False) as guard,
        Guard.open(ledger=ledger, telemetry=False) as other,
    ):
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(1)
            with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
                dying.setattr(ledger, "rebuild", die)
                other.rebuild_ledger()
            with pytest.raises(StoreUnavailableError, match=r"rebuild_ledger"):
                spend(2)
            assert amounts(ledger) == (1, 0)
            other.rebuild_ledger()
            spend(2)
        assert amounts(ledger) == (3, 0)


def test_rule_04_two_processes_begin_a_ledger_once(home, ledger):
    guards = [Guard.open(ledger=ledger, telemetry=False) for _ in range(4)]
    guards[0].set_tenant_budget("default", Budget(coins=100))

    def agent(guard: Guard) -> None:
        with guard, guard.run("r"):
            for _ in range(5):
                spend(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(agent, guards))
    assert amounts(ledger) == (20, 0)


def test_rule_04_of_two_that_rebuild_at_once_the_newer_books_stay(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard, guard.run("r"):
        guard.set_tenant_budget("default", Budget(coins=10))
        spend(1)
        rebuild = ledger.rebuild

        def overtaken(*args: Any) -> None:
            ledger.rebuild = rebuild
            with Guard.open(ledger=ledger, telemetry=False) as other:
                other.rebuild_ledger()
            rebuild(*args)

        ledger.rebuild = overtaken
        guard.rebuild_ledger()
        spend(2)
        assert amounts(ledger) == (3, 0)


def test_rule_04_an_outcome_told_to_the_old_books_while_new_ones_are_made_is_in_the_new(guard, ledger):
    """The log was read before the outcome, and the books put in place after it was settled."""
    inside, go_on = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=1))
    def slow() -> None:
        inside.set()
        assert go_on.wait(10)

    with guard.run("r") as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        assert inside.wait(10)
        rebuild = ledger.rebuild

        def settled_meanwhile(*args: Any) -> None:
            go_on.set()
            thread.join()
            assert amounts(ledger) == (1, 0)
            rebuild(*args)

        ledger.rebuild = settled_meanwhile
        assert guard.rebuild_ledger() == 1
        assert amounts(ledger) == (1, 0)


def test_rule_04_a_ledger_belongs_to_one_store(guard, ledger):
    with guard.run("r"):
        spend(1)
    with Guard.in_memory(ledger=ledger, telemetry=False) as other:
        other.set_tenant_budget("default", Budget(coins=10))
        with other.run("r"), pytest.raises(StoreUnavailableError, match="the books of another store"):
            spend(1)


def test_rule_04_a_store_whose_ledger_is_apart_is_not_charged_without_it(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(1)
    with (
        Guard.open(telemetry=False) as guard,
        guard.run("r"),
        pytest.raises(StoreUnavailableError, match=r"kept at the ledger memory://ledger.*AGENTGUARD_LEDGER"),
    ):
        spend(1)


def test_rule_04_what_tenants_have_spent_is_not_told_without_their_ledger(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(1)
    with (
        Guard.open(telemetry=False) as guard,
        pytest.raises(StoreUnavailableError, match="kept at the ledger memory://ledger"),
    ):
        guard.tenants()


def test_rule_04_books_that_have_moved_are_known_where_they_are(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(1)
    moved = MemoryLedger()
    moved.url = "memory://moved"
    with Guard.open(ledger=moved, telemetry=False) as guard:
        guard.rebuild_ledger()
        assert amounts(moved) == (1, 0)
    with Guard.open(telemetry=False) as guard, pytest.raises(StoreUnavailableError, match="memory://moved"):
        guard.tenants()


def test_rule_04_a_rebuild_that_cannot_reach_its_ledger_harms_no_other(home, ledger):
    gone = Line()
    gone.deaf.add("generation")
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(1)
            with (
                Guard.open(ledger=gone, telemetry=False) as other,
                pytest.raises(StoreUnavailableError),
            ):
                other.rebuild_ledger()
            spend(1)
        assert amounts(ledger) == (2, 0)


def test_rule_04_the_ledger_of_the_environment_is_not_for_an_export(home, tmp_path, monkeypatch):
    with Guard.open(telemetry=False) as guard:
        with guard.run("r", run_id="r"):
            spend(1)
        guard.export("r", tmp_path / "r.jsonl")
    monkeypatch.setenv("AGENTGUARD_LEDGER", "nothing://known")
    with Guard.open(f"file://{tmp_path}/r.jsonl", telemetry=False) as export:
        assert export.verify()


def test_rule_04_a_store_that_was_charged_itself_takes_its_books_along(home, ledger):
    with Guard.open(telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        with guard.run("r"):
            spend(4)
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        with guard.run("r"):
            spend(1)
        assert amounts(ledger) == (5, 0)


def test_rule_04_pruned_runs_stay_in_the_books(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        for _ in range(2):
            with guard.run("r"):
                spend(2)
        assert len(guard.prune(0)) == 2
        with guard.run("r"):
            spend(1)
        ledger.lose()
        guard.rebuild_ledger()
        assert amounts(ledger) == (5, 0)


@pytest.mark.parametrize("what", ["seconds", "repeats"])
def test_rule_04_a_tenant_cannot_have_what_no_ledger_counts(guard, what):
    with pytest.raises(ValueError, match=f"cannot limit {what}"):
        guard.set_tenant_budget("acme", Budget(**{what: 2}))


def test_rule_04_nothing_to_rebuild(sqlite_guard):
    with pytest.raises(ValueError, match="no ledger apart"):
        sqlite_guard.rebuild_ledger()


# --- holders die ---------------------------------------------------------------------------------

DEAD = {"host": platform.node(), "boot": "an earlier one", "pid": 1, "start": 1}
ELSEWHERE = {"host": "another", "boot": "b", "pid": 1, "start": 1}
PAY = "main/pay#1"


def a_reservation(guard: Guard, run_id: str, holder: dict[str, Any], key: str = PAY) -> Reservation:
    return Reservation(
        run_id=run_id,
        key=key,
        attempt=1,
        accounts=(TENANT,),
        reserve={"steps": 1, "coins": 3},
        name="pay",
        kind="tool",
        epoch=1,
        generation=guard.parts.apart.generation(),
        holder=holder,
    )


def hold(guard: Guard, ledger: MemoryLedger, run_id: str, holder: dict[str, Any], key: str = PAY) -> None:
    """A reservation of another process, which gives no sign of life any more."""
    held = a_reservation(guard, run_id, holder, key)
    ledger.reserve(held, held.request, {TENANT: Account(TENANT, Budget(coins=10))}, -1.0)


@pytest.fixture
def silent(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every step from here on is held by a process that is dead."""
    monkeypatch.setattr(apart, "LEASE", -1.0)
    guard.parts.apart._holder = DEAD
    return DEAD


def test_rule_04_without_a_start_on_record_a_dead_holders_room_is_given_back(guard, ledger):
    with guard.run("r") as run:
        hold(guard, ledger, run.id, DEAD)
        assert amounts(ledger) == (0, 3)
        guard.parts.apart.reconcile()
        assert amounts(ledger) == (0, 0)


@pytest.mark.parametrize("holder", [ELSEWHERE, "this process"], ids=["on another host", "alive"])
def test_rule_04_expiry_alone_frees_nothing(guard, ledger, holder):
    """The start may still be committed, as long as the holder may live and its claim on the run holds."""
    with guard.run("r") as run:
        hold(guard, ledger, run.id, identity() if holder == "this process" else holder)
        guard.parts.apart.reconcile()
        assert amounts(ledger) == (0, 3)
    guard.parts.apart.reconcile()
    assert amounts(ledger) == (0, 0), "the run has ended: nothing can start in it any more"


def test_rule_04_the_room_of_a_fenced_holder_is_given_back(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        run = guard.start("r")
        hold(guard, ledger, run.id, ELSEWHERE)
        with Guard.open(ledger=ledger, telemetry=False) as other:
            recovered = other.recover(run.id, take_over=True)
            recovered.__enter__()
            other.parts.apart.reconcile()
            assert amounts(ledger) == (0, 0)
            recovered.__exit__(None, None, None)
        with pytest.raises(RunOwnedError):
            run.close()


def test_rule_04_a_recovered_run_need_not_wait_for_the_lease_of_the_dead_process(home, ledger):
    with Guard.open(ledger=ledger, telemetry=False) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        run = guard.start("r")
        held = a_reservation(guard, run.id, ELSEWHERE, "main/spend#1")
        ledger.reserve(held, held.request, {TENANT: Account(TENANT, Budget(coins=10))}, 1000.0)
        with Guard.open(ledger=ledger, telemetry=False) as other, other.recover(run.id, take_over=True):
            spend(1)
        assert amounts(ledger) == (1, 0)
        with pytest.raises(RunOwnedError):
            run.close()


def test_rule_04_a_step_in_flight_whose_holder_died_is_charged_until_its_outcome_is_known(
    guard, ledger, silent
):
    seen: list[tuple[int, int]] = []

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=1))
    def pay() -> None:
        guard.parts.apart.reconcile()
        seen.append(amounts(ledger))
        guard.parts.apart.reconcile()

    with guard.run("r"):
        pay()
    assert seen == [(3, 0)]
    assert amounts(ledger) == (1, 0)


def test_rule_04_an_outcome_on_record_that_a_dead_holder_did_not_tell_is_settled(guard, ledger, silent):
    with guard.run("r"):
        ledger.deaf.add("settle")
        spend(2)
        guard.parts.apart._due.clear()  # it died with what it had still to tell
        with pytest.raises(ValueError, match="no such account"):
            fail()
        guard.parts.apart._due.clear()
    ledger.deaf.clear()
    guard.parts.apart.reconcile()
    assert amounts(ledger) == (2 + 3, 0)


@guarded_step(reserve=Usage(coins=3))
def fail() -> None:
    raise ValueError("no such account")


def test_rule_04_a_run_that_is_not_there_holds_nothing(guard, ledger):
    hold(guard, ledger, "nobody", ELSEWHERE)
    guard.parts.apart.reconcile()
    assert amounts(ledger) == (0, 0)


def test_rule_04_another_guard_of_this_process_does_not_free_what_a_step_holds(home, ledger):
    """Two steps of one key: the second is refused, and gives back nothing of the first one's."""
    with Guard.open(ledger=ledger, telemetry=False) as guard, guard.run("r") as run:
        guard.set_tenant_budget("default", Budget(coins=10))

        def pay() -> None:
            with Guard.open(ledger=ledger, telemetry=False) as other, other.attach(run.id) as attached:
                with pytest.raises(DuplicateKeyError):
                    attached.call("pay", spend.__wrapped__, 1, key="pay", reserve=Usage(coins=3))
            assert amounts(ledger) == (0, 3)

        run.call("pay", pay, key="pay", reserve=Usage(coins=3))
        assert amounts(ledger) == (3, 0)


def test_rule_04_a_step_that_another_process_is_at_is_no_second_one(guard, ledger):
    with guard.run("r") as run:
        hold(guard, ledger, run.id, ELSEWHERE, "key:pay")
        with pytest.raises(DuplicateKeyError):
            run.call("pay", spend.__wrapped__, 1, key="pay", reserve=Usage(coins=3))


def test_rule_04_a_process_that_lives_keeps_what_it_holds(guard, ledger, monkeypatch):
    inside, go_on = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=1))
    def slow() -> None:
        inside.set()
        assert go_on.wait(10)

    monkeypatch.setattr(apart, "LEASE", -1.0)
    with guard.run("r") as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        assert inside.wait(10)
        assert len(ledger.overdue()) == 1
        guard.parts.apart.reconcile()
        assert amounts(ledger) == (0, 3), "silent, but not dead"
        monkeypatch.setattr(apart, "LEASE", 30.0)
        guard.parts.apart.beat()
        assert ledger.overdue() == []
        go_on.set()
        thread.join()
    assert amounts(ledger) == (1, 0)


def test_rule_04_the_log_is_in_every_backend_what_spent_says(guard, ledger):
    with guard.run("r") as run:
        spend(2)
        spend(1)
    spent = [event.spent["coins"] for event in guard.history(run.id) if event.type == "step_completed"]
    assert spent == [2, 3]
    assert guard.reconstruct(run.id).usage["coins"] == 3
