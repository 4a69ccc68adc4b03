"""shekel: a `@tool` inside `with budget(max_usd=..., tool_prices=...)`, which is checked before each call."""

from contextlib import contextmanager

from shekel import budget, tool
from shekel.exceptions import BudgetExceededError, ToolBudgetExceededError

REQUIRES = "shekel==1.2.0"
STOPS = (BudgetExceededError, ToolBudgetExceededError)


@contextmanager
def session(limit, cost):
    with budget(max_usd=limit, tool_prices={"step": cost}):
        yield


def call(run, body):
    @tool
    def step():
        return body()

    return step()


async def acall(run, body):
    @tool
    async def step():
        return await body()

    return await step()
