"""What the exit codes of every command mean, and which error ends in which."""

from __future__ import annotations

from typing import Final

from agentguard.errors import (
    AgentGuardError,
    KillSwitchUnavailableError,
    ProgramError,
    RunNotFoundError,
    StepOutcomeUnknownError,
    StoreUnavailableError,
)

OK: Final = 0
FAULT: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNACKNOWLEDGED: Final = 4
UNAVAILABLE: Final = 5
WAITING: Final = 6
INTERRUPTED: Final = 130

MEANING: Final = {
    OK: "done, and nothing is wrong",
    FAULT: "failed; or a fault or a difference was found (verify, doctor, demo, replay, diff, what-if)",
    USAGE: "the command line is wrong",
    NOT_FOUND: "no such run; for kill and revive: nothing was hit",
    UNACKNOWLEDGED: "killed, but not every live process has acted in time",
    UNAVAILABLE: "the store or the kill switch cannot be used",
    WAITING: "a step may have happened, and the run waits to be told: agentguard resolve",
}


class UsageError(AgentGuardError):
    """What was asked for cannot be meant."""


def code_of(error: AgentGuardError) -> int:
    """The exit code of an error."""
    if isinstance(error, UsageError | ProgramError):
        return USAGE
    if isinstance(error, RunNotFoundError):
        return NOT_FOUND
    if isinstance(error, StoreUnavailableError | KillSwitchUnavailableError):
        return UNAVAILABLE
    if isinstance(error, StepOutcomeUnknownError):
        return WAITING
    return FAULT
