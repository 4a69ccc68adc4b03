"""The stops in a form that the Agents SDK lets through, with the same facts.

It wraps every error of a tool or a hook that is no `AgentsException` of its own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from agents.exceptions import AgentsException

from agentguard import BudgetExceededError, KillSwitchTriggeredError, RunStopped, UnknownCostError

if TYPE_CHECKING:
    from collections.abc import Iterator


class AgentRunStopped(RunStopped, AgentsException):
    """A `RunStopped` inside the Agents SDK."""


class AgentBudgetExceededError(BudgetExceededError, AgentsException):
    """A `BudgetExceededError` inside the Agents SDK."""


class AgentKillSwitchTriggeredError(KillSwitchTriggeredError, AgentsException):
    """A `KillSwitchTriggeredError` inside the Agents SDK."""


class AgentUnknownCostError(UnknownCostError, AgentsException):
    """An `UnknownCostError` inside the Agents SDK."""


_FORMS: tuple[type[RunStopped], ...] = (
    AgentBudgetExceededError,
    AgentKillSwitchTriggeredError,
    AgentUnknownCostError,
)


def in_sdk_form(stop: RunStopped) -> RunStopped:
    """The stop as an `AgentsException` too, with the same facts."""
    if isinstance(stop, AgentsException):
        return stop
    for form in _FORMS:
        if isinstance(stop, form.__bases__[0]):
            return form(**stop.facts())
    return AgentRunStopped(str(stop))


@contextmanager
def sdk_stops() -> Iterator[None]:
    """Raise stops in the SDK's form."""
    try:
        yield
    except RunStopped as stop:
        if isinstance(stop, AgentsException):
            raise
        raise in_sdk_form(stop) from stop
