"""What the tests of faults share."""

from __future__ import annotations

from agentguard import Guard, Usage, current_step, guarded_step
from agentguard.runs.summary import from_data


@guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
def tool(began: list[str]) -> str:
    """A step that tells which of it began."""
    began.append(current_step().key)
    return began[-1]


def agree(guard: Guard, run_id: str, steps: int) -> None:
    """The log verifies, has so many completed steps, and says what the stored row says."""
    assert guard.verify()
    completed = [event for event in guard.history(run_id) if event.type == "step_completed"]
    assert len(completed) == steps
    row = guard.components.store.row(run_id)
    assert guard.reconstruct(run_id) == from_data(row.summary)
    assert guard.reconstruct(run_id).usage.steps == steps
