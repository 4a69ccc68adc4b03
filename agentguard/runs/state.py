"""The states of a run, and the one table that says which moves are legal."""

from __future__ import annotations

from enum import StrEnum

from agentguard.errors import InvalidStateTransitionError


class RunState(StrEnum):
    """Where a run is in its life.  COMPLETED, KILLED and FAILED are final.

    Example:
        >>> RunState.RUNNING, RunState.KILLED.final
        (<RunState.RUNNING: 'RUNNING'>, True)
    """

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    KILLED = "KILLED"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return not LEGAL_MOVES[self]


LEGAL_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.CREATED: frozenset({RunState.RUNNING, RunState.KILLED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.PAUSED, RunState.COMPLETED, RunState.KILLED, RunState.FAILED}),
    RunState.PAUSED: frozenset({RunState.RUNNING, RunState.COMPLETED, RunState.KILLED, RunState.FAILED}),
    RunState.COMPLETED: frozenset(),
    RunState.KILLED: frozenset(),
    RunState.FAILED: frozenset(),
}


def check_move(run_id: str, from_state: RunState, to_state: RunState) -> None:
    """Raise `InvalidStateTransitionError` unless the table allows the move."""
    if to_state not in LEGAL_MOVES[from_state]:
        raise InvalidStateTransitionError(run_id, from_state, to_state)
