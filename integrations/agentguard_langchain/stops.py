"""Stops that LangChain and LangGraph let through.

LangGraph hands `GraphBubbleUp` on untouched, and so do ToolNode and the retry, error and fallback
middleware; any other `Exception` becomes a message for the model somewhere.  So what leaves a guarded call is
the stop that the core raised, in a class that is both: `except BudgetExceededError` matches as ever.
What eats it all the same (`with_fallbacks`, `batch(return_exceptions=True)`) gains nothing: the stop is
sticky, and leaving the run's block raises it.
"""

from __future__ import annotations

from types import TracebackType

from langgraph.errors import GraphBubbleUp

from agentguard import (
    BudgetExceededError,
    KillSwitchTriggeredError,
    RunStopped,
    UnknownCostError,
)


class GraphStop(GraphBubbleUp):
    """What all stops that pass through a graph have in common; `stop` is the core's own."""

    stop: RunStopped


class GraphRunStopped(GraphStop, RunStopped):
    """`RunStopped`, on its way through a graph."""


class GraphBudgetExceededError(GraphStop, BudgetExceededError):
    """`BudgetExceededError`, on its way through a graph."""


class GraphKillSwitchTriggeredError(GraphStop, KillSwitchTriggeredError):
    """`KillSwitchTriggeredError`, on its way through a graph."""


class GraphUnknownCostError(GraphStop, UnknownCostError):
    """`UnknownCostError`, on its way through a graph."""


_CLASSES: tuple[tuple[type[RunStopped], type[RunStopped]], ...] = (
    (BudgetExceededError, GraphBudgetExceededError),
    (KillSwitchTriggeredError, GraphKillSwitchTriggeredError),
    (UnknownCostError, GraphUnknownCostError),
)


def graph_stop(stop: RunStopped) -> RunStopped:
    """The same stop, in the class that gets through a graph.

    Example:
        >>> stop = graph_stop(BudgetExceededError("usd", 1, 0, 1, 1))
        >>> isinstance(stop, BudgetExceededError), isinstance(stop, GraphBubbleUp), stop.resource
        (True, True, 'usd')
    """
    if isinstance(stop, GraphStop):
        return stop
    for public, cls in _CLASSES:
        if isinstance(stop, public):
            return _dressed(cls(**stop.facts()), stop)
    passing = GraphRunStopped(*stop.args)
    passing.run_id = stop.run_id
    return _dressed(passing, stop)


def _dressed(passing: RunStopped, stop: RunStopped) -> RunStopped:
    passing.stop = stop  # type: ignore[attr-defined]
    return passing


def core_error(error: BaseException) -> BaseException:
    """The core's own stop, where `error` is one on its way through a graph; else `error`."""
    return getattr(error, "stop", error) if isinstance(error, GraphStop) else error


def is_control_flow(error: BaseException) -> bool:
    """Whether a graph pauses or hands over here (`interrupt()`, `Command.PARENT`): no error, no stop."""
    return isinstance(error, GraphBubbleUp) and not isinstance(error, GraphStop)


class Passing:
    """`with PASSING:` every stop that leaves the block leaves it as one that a graph lets through."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, RunStopped) and not isinstance(error, GraphStop):
            raise graph_stop(error) from None


PASSING = Passing()
