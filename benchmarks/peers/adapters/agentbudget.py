"""agentbudget: `session.track(result, cost=...)`, its manual mode ("the most predictable option")."""

from contextlib import contextmanager

from agentbudget import AgentBudget, BudgetExhausted

REQUIRES = "agentbudget==0.4.0"
STOPS = (BudgetExhausted,)


@contextmanager
def session(limit, cost):
    with AgentBudget(max_spend=limit).session() as opened:
        yield opened, cost


def call(run, body):
    opened, cost = run
    return opened.track(body(), cost=cost)


async def acall(run, body):
    opened, cost = run
    return opened.track(await body(), cost=cost)
