"""A limit on calls that is set while steps are in flight counts from then on, and never one too few."""

from __future__ import annotations

import pytest

from agentguard import Budget, BudgetExceededError, Guard, Usage
from agentguard.budget.account import Account, Request

STEP = {"steps": 1}


def test_a_step_that_began_before_takes_off_no_call() -> None:
    account = Account("run", Budget())
    before, after = Request(STEP, "ask", "step"), Request(STEP, "ask", "step")
    account.reserve(before)
    account.limit_by(Budget(calls={"ask": 1}))
    account.reserve(after)
    account.release(before)
    assert account.calls == {"ask": 1}
    assert account.refusal(after) is not None
    account.release(after)
    assert account.calls == {"ask": 0}
    assert account.refusal(after) is None


def test_once_none_of_them_is_in_flight_every_call_is_given_back() -> None:
    account = Account("run", Budget())
    request = Request(STEP, "ask", "step")
    account.reserve(request)
    account.limit_by(Budget(calls={"ask": 1}, repeats=9))
    account.settle(STEP, STEP)
    for _ in range(2):
        account.reserve(request)
        account.release(request)
        assert account.calls == {"ask": 0}
    assert Account.from_data(account.to_data()).to_data() == account.to_data()


def test_calls_are_never_below_zero_and_a_limit_holds(guard: Guard) -> None:
    """The run's own account, and one that runs share."""
    for shared in (False, True):
        with pytest.raises(BudgetExceededError), guard.run("r") as run:
            if shared:
                with guard.run("nested"):
                    pass
            block = run.step("ask", usage=Usage(coins=1))
            block.start()
            run.set_budget(Budget(calls={"ask": 1}))
            block.revoke(RuntimeError("it did not run"))
            run.call("ask", int)
            run.call("ask", int)
        fold = run.live_run.fold
        assert fold.account.calls == {"ask": 1}
        assert guard.reconstruct(run.id) == guard.summary(run.id)
        stored = guard.components.store.accounts([f"run:{run.id}"])
        assert [account.calls for account in stored.values()] == [{"ask": 1}] * shared
    assert guard.verify()
