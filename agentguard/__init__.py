"""Hard limits, a kill switch and a replayable log for software agents."""

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
