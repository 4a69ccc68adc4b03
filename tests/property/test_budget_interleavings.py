"""Any interleaving of reserve, settle, release and kill keeps the budget, and folds to a legal state."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    Usage,
)
from agentguard.audit.verify import reconstruct
from agentguard.budget import ledger
from agentguard.budget.account import Account, Request
from agentguard.runs.fold import RunFold
from tests.scale import scaled

RESOURCES = ("nano_usd", "emails", "steps")
amounts = st.integers(0, 6)
limits = st.none() | st.integers(0, 12)


def budget(usd: int | None, emails: int | None, steps: int | None, *, enforce: bool = True) -> Budget:
    """A budget in units of 1e-9 USD, so that all amounts are small whole numbers."""
    money = None if usd is None else f"{usd}e-9"
    return Budget(usd=money, emails=emails, steps=steps, enforce=enforce)


budgets = st.builds(budget, limits, limits, limits)


def usage(usd: int, emails: int) -> Usage:
    return Usage(usd=f"{usd}e-9", emails=emails)


usages = st.builds(usage, amounts, amounts)


def keeps_its_limits(account: Account) -> bool:
    """Spent + reserved <= limit + the logged excesses, for every limited resource."""
    return all(
        account.spent.get(name, 0) + account.reserved.get(name, 0) <= limit + account.excess.get(name, 0)
        for name, limit in account.limits.items()
    )


class AccountMachine(RuleBasedStateMachine):
    """One account, moved as a ledger moves it, against a plain model of what it must hold."""

    @initialize(budget=budgets, calls=st.none() | st.integers(0, 3), repeats=st.none() | st.integers(0, 3))
    def open(self, budget, calls, repeats):
        limits = budget.to_fields() | ({} if calls is None else {"calls": {"a": calls}})
        limits |= {} if repeats is None else {"repeats": repeats}
        self.accounts = {"x": Account("run", Budget(**limits))}
        self.open: list[Request] = []
        #: Calls of `a` since they are limited, but for those that were given back.
        self.counted: list[Request] = []
        self.changed = False
        self.spent: dict[str, int] = dict.fromkeys(RESOURCES, 0)

    @property
    def account(self) -> Account:
        return self.accounts["x"]

    @rule(usage=usages, name=st.sampled_from("ab"), postpaid=st.booleans(), argument=st.integers(0, 1))
    def reserve(self, usage, name, postpaid, argument):
        request = Request(usage.amounts() | {"steps": 1}, name, "tool", postpaid, f"{name}:{argument}")
        expected = self.room_for(request)
        before = self.account.to_data()
        try:
            ledger.apply([ledger.Movement("x", request)], self.accounts)
        except ledger.LedgerRefusedError:
            assert not expected
            assert self.account.to_data() == before
        else:
            assert expected
            self.open.append(request)
            if name == "a" and self.account.budget.calls:
                self.counted.append(request)

    def room_for(self, request: Request) -> bool:
        """At the limit, said another way."""
        account, budget = self.account, self.account.budget
        for name, limit in account.limits.items():
            asked = request.reserve.get(name, 0)
            held = account.spent.get(name, 0) + account.reserved.get(name, 0)
            if asked and held + asked > limit:
                return False
            if not asked and request.postpaid and held >= limit:
                return False
        if request.name in budget.calls and account.calls.get(request.name, 0) >= budget.calls[request.name]:
            return False
        again = 1 + account.repeats.get(request.repeat, 0)
        return budget.repeats is None or again < budget.repeats

    @precondition(lambda self: self.open)
    @rule(data=st.data(), usage=usages)
    def settle(self, data, usage):
        request = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        charged = usage.amounts() | {"steps": 1}
        ledger.apply([ledger.Movement("x", settle=(request.reserve, charged))], self.accounts)
        for name, amount in charged.items():
            self.spent[name] += amount

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle_exactly(self, data):
        request = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        ledger.apply([ledger.Movement("x", settle=(request.reserve, request.reserve))], self.accounts)
        for name, amount in request.reserve.items():
            self.spent[name] += amount

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data):
        request = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        ledger.apply([ledger.Movement("x", request, undo=True)], self.accounts)
        self.counted = [counted for counted in self.counted if counted is not request]

    @rule(calls=st.none() | st.integers(0, 3), repeats=st.none() | st.integers(0, 3))
    def limit_by(self, calls, repeats):
        """Calls and repeats that begin to be limited count from then on."""
        if not self.account.budget.calls:
            self.counted = []
        budget = self.account.budget.replace(calls={"a": calls}, repeats=repeats)
        opening = Account("run", budget)
        ledger.apply([ledger.Movement("x", opening=opening)], self.accounts)
        self.changed = True

    @rule()
    def store_and_load(self):
        self.accounts["x"] = Account.from_data(self.account.to_data())

    @invariant()
    def the_books_balance(self):
        if not hasattr(self, "accounts"):
            return
        account = self.account
        assert keeps_its_limits(account)
        for name in RESOURCES:
            held = sum(request.reserve.get(name, 0) for request in self.open)
            assert account.reserved.get(name, 0) == held
            assert account.spent.get(name, 0) == self.spent[name]
        assert all(count >= 0 for count in (*account.calls.values(), *account.repeats.values()))
        if account.budget.calls:
            assert len(self.counted) <= account.calls.get("a", 0)
            assert self.changed or account.calls.get("a", 0) <= account.budget.calls["a"]


class RunMachine(RuleBasedStateMachine):
    """A live run with steps, scopes and nested runs in flight, against its log read back."""

    def __init__(self) -> None:
        super().__init__()
        self.guard = Guard.in_memory(telemetry=False)
        self.runs: list = []
        self.scopes: list = []
        self.blocks: list = []
        self.all_runs: list = []

    @initialize(budget=budgets, tenant=budgets)
    def open(self, budget, tenant):
        if not tenant.unlimited:
            self.guard.set_tenant_budget("t", tenant)
        self.enter(self.guard.run("r", tenant="t", budget=budget))

    def enter(self, run) -> None:
        with suppress(RunStopped):
            self.runs.append(run.__enter__())
            self.all_runs.append(run)
            self.scopes.append([])

    @property
    def run(self):
        return self.runs[-1]

    @rule(usage=usages, name=st.sampled_from("ab"))
    def start(self, usage, name):
        block = self.run.step(name, usage=usage)
        with suppress(RunStopped):
            block.start()
            self.blocks.append(block)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), settle=st.none() | usages, fails=st.booleans())
    def finish(self, data, settle, fails):
        block = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        if settle is not None:
            block.step.settle(settle)
        block.finish(ZeroDivisionError() if fails else None)

    @rule(budget=budgets, enforce=st.booleans())
    def open_scope(self, budget, enforce):
        limits = Budget(**budget.to_fields() | {"enforce": enforce})
        with suppress(RunStopped):
            self.scopes[-1].append(self.run.scope("s", limits).__enter__())

    @precondition(lambda self: self.scopes and self.scopes[-1])
    @rule()
    def close_scope(self):
        with suppress(BudgetExceededError):
            self.scopes[-1].pop().__exit__(None, None, None)

    @rule(budget=budgets, detached=st.booleans())
    def open_nested(self, budget, detached):
        if len(self.runs) < 3:
            with suppress(RunStopped):
                self.enter(self.guard.run("n", budget=budget, detached=detached, tenant="t"))

    @precondition(lambda self: len(self.runs) > 1)
    @rule()
    def close_nested(self):
        while self.scopes[-1]:
            self.close_scope()
        self.scopes.pop()
        with suppress(RunStopped):
            self.runs.pop().close()

    @rule(which=st.integers(0, 2))
    def kill(self, which):
        if which == 0:
            self.run.kill("by the test")

    @rule()
    def pause_and_resume(self):
        if self.run.state is RunState.RUNNING:
            self.run.pause()
            self.run.resume()

    @invariant()
    def log_and_memory_agree(self):
        for run in self.all_runs:
            row = self.guard.components.store.row(run.id)
            read = reconstruct(self.guard.components.store, row)
            assert facts(read) == facts(run.live_run.fold)
            assert row.state == read.state
            for scope in read.scopes.values():
                account = scope.accounts[0]
                if (
                    scope.shared
                ):  # its books are in the ledger, where nested runs and their excesses count too
                    name = f"run:{run.id}/{scope.key}".removesuffix("/")
                    account = self.guard.components.store.accounts([name])[name]
                assert keeps_its_limits(account) or not account.budget.enforce

    @invariant()
    def the_shared_accounts_keep_their_limits(self):
        for account in self.guard.components.store.accounts(["tenant:t"]).values():
            assert keeps_its_limits(account)

    def teardown(self):
        while self.runs:
            while self.scopes[-1]:
                self.close_scope()
            self.scopes.pop()
            with suppress(RunStopped):
                self.runs.pop().close()
        for block in self.blocks:
            block.finish()
        self.log_and_memory_agree()
        for run in self.all_runs:
            assert run.state.final
            assert (run.state is RunState.COMPLETED) == (run.stop is None)
            assert (run.state is RunState.KILLED) == isinstance(run.stop, KillSwitchTriggeredError)
            assert not run.summary().open_steps
            assert self.guard.summary(run.id) == self.guard.reconstruct(run.id) == run.summary()
        for account in self.guard.components.store.accounts(
            ["tenant:t", f"run:{self.all_runs[0].id}"]
        ).values():
            assert not any(account.reserved.values())
        assert self.guard.verify()
        self.guard.close()


def facts(fold: RunFold) -> dict:
    """What a fold says, without the zeros that only one way of getting there leaves behind."""

    def plain(account: Account) -> dict:
        return {
            name: {k: n for k, n in getattr(account, name).items() if n}
            for name in ("spent", "reserved", "excess", "calls", "repeats", "uncounted")
        }

    return {
        "state": fold.state,
        "seq": fold.seq,
        "hash": fold.hash,
        "steps": fold.steps,
        "open": dict(fold.open),
        "keyed": fold.keyed,
        "termination": fold.termination,
        "warned": fold.warned,
        "bounded": fold.bounded,
        "budget": fold.budget,
        "scopes": {
            key: (plain(scope.accounts[0]), scope.path, scope.parent, scope.closed, scope.stop, scope.shared)
            for key, scope in fold.scopes.items()
        },
    }


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def test_any_interleaving_on_an_account():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        AccountMachine, settings=settings(SETTINGS, max_examples=150, stateful_step_count=40)
    )


def test_any_interleaving_in_a_run():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        RunMachine, settings=settings(SETTINGS, max_examples=60, stateful_step_count=25)
    )


@pytest.mark.long
def test_many_interleavings_in_a_run():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        RunMachine, settings=settings(SETTINGS, max_examples=scaled(500), stateful_step_count=40)
    )
