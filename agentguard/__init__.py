"""Hard limits, a kill switch and a replayable log for software agents."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from agentguard.audit.verify import VerifyReport
    from agentguard.budget.model import Budget, Usage
    from agentguard.decorators import current_run, current_step, guarded_step
    from agentguard.errors import (
        AgentGuardError,
        ApprovalDeniedError,
        BudgetExceededError,
        InvalidStateTransitionError,
        KillSwitchTriggeredError,
        KillSwitchUnavailableError,
        LogIntegrityError,
        NoActiveRunError,
        ReplayDivergenceError,
        RunExistsError,
        RunStopped,
        StepOutcomeUnknownError,
        StoreUnavailableError,
        UnknownCostError,
    )
    from agentguard.events.model import Event
    from agentguard.guard import Guard
    from agentguard.run import Run
    from agentguard.runs.state import RunState
    from agentguard.runs.summary import RunSummary
    from agentguard.steps.model import Step
    from agentguard.steps.scope import Scope

#: Where each name lies.  It is imported when it is first used, so that `agentguard kill`, and whoever
#: needs a part alone, start without the rest.
_PLACES = {
    "agentguard.audit.verify": ("VerifyReport",),
    "agentguard.budget.model": ("Budget", "Usage"),
    "agentguard.decorators": ("current_run", "current_step", "guarded_step"),
    "agentguard.errors": (
        "AgentGuardError",
        "ApprovalDeniedError",
        "BudgetExceededError",
        "InvalidStateTransitionError",
        "KillSwitchTriggeredError",
        "KillSwitchUnavailableError",
        "LogIntegrityError",
        "NoActiveRunError",
        "ReplayDivergenceError",
        "RunExistsError",
        "RunStopped",
        "StepOutcomeUnknownError",
        "StoreUnavailableError",
        "UnknownCostError",
    ),
    "agentguard.events.model": ("Event",),
    "agentguard.guard": ("Guard",),
    "agentguard.run": ("Run",),
    "agentguard.runs.state": ("RunState",),
    "agentguard.runs.summary": ("RunSummary",),
    "agentguard.steps.model": ("Step",),
    "agentguard.steps.scope": ("Scope",),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> _typing.Any:
    module = _PLACE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AgentGuardError",
    "ApprovalDeniedError",
    "Budget",
    "BudgetExceededError",
    "Event",
    "Guard",
    "InvalidStateTransitionError",
    "KillSwitchTriggeredError",
    "KillSwitchUnavailableError",
    "LogIntegrityError",
    "NoActiveRunError",
    "ReplayDivergenceError",
    "Run",
    "RunExistsError",
    "RunState",
    "RunStopped",
    "RunSummary",
    "Scope",
    "Step",
    "StepOutcomeUnknownError",
    "StoreUnavailableError",
    "UnknownCostError",
    "Usage",
    "VerifyReport",
    "current_run",
    "current_step",
    "guarded_step",
]
