"""Hard limits, a kill switch and a replayable log for software agents."""

import typing as _typing

from agentguard._exports import exported as _exported

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
__getattr__, __dir__ = _exported(
    __name__,
    {
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
    },
)

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
