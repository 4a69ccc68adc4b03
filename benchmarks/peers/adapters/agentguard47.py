"""agentguard47: `budget.check()` before a call and `budget.consume(...)` after it, as its README shows."""

from contextlib import contextmanager

from agentguard import BudgetExceeded, BudgetGuard

REQUIRES = "agentguard47==2.0.0"
STOPS = (BudgetExceeded,)
SAYS = dict.fromkeys(("kill to check", "kill to body"), "not by the SDK; hosted")


@contextmanager
def session(limit, cost):
    yield BudgetGuard(max_cost_usd=limit), cost


def call(run, body):
    budget, cost = run
    budget.check()
    result = body()
    budget.consume(calls=1, cost_usd=cost)
    return result


async def acall(run, body):
    budget, cost = run
    budget.check()
    result = await body()
    budget.consume(calls=1, cost_usd=cost)
    return result
