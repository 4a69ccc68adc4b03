"""The conversation that an agent serves: its calls are charged to the account of LangGraph's thread."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from langgraph.config import get_config

from agentguard import Budget, Run

NO_BLOCK: AbstractContextManager[Any] = nullcontext()


def thread_block(run: Run | None, budget: Budget) -> AbstractContextManager[Any]:
    """Return a block inside which steps are charged to the account of the thread that runs here.

    A sub-agent inside a tool is charged to the thread around it, whatever it calls its own.

    Raises:
        ValueError: the agent was called without a thread id, or in a run of another account.
    """
    if run is None:
        return NO_BLOCK
    account, here = f"thread:{_thread_id()}", run.here()
    if here.account is not None and (here.account.name == account or here.step is not None):
        return NO_BLOCK
    return run.account(account, budget)


def _thread_id() -> str:
    try:
        configurable = get_config().get("configurable") or {}
    except RuntimeError:  # called by hand, outside a graph
        configurable = {}
    thread = configurable.get("thread_id")
    if thread is None or thread == "":
        raise ValueError(
            "thread_budget limits a thread, and the agent was called without one: pass "
            "config={'configurable': {'thread_id': ...}}"
        )
    return str(thread)
