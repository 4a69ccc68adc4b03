"""How long a step waits for an operator: for its approval, or for a higher limit of its run.

The time counts by this process's monotonic clock from when the step begins to wait, through pauses too, and
anew after a recovery.  Once it is over, the question is denied on record, as an operator would; whoever
answers later is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from agentguard.errors import AgentGuardError
from agentguard.events.data import Said
from agentguard.steps import approvals, limit_questions

if TYPE_CHECKING:
    from agentguard.steps.live import LiveRun
    from agentguard.steps.model import Step

#: Who denies where nobody answers.
TIMED_OUT = "agentguard"


class _Question(NamedTuple):
    """What a step waits to have answered: of its run, or of one around it."""

    live_run: LiveRun
    key: str
    #: The number of the event that asks.
    seq: int
    #: In seconds; None to wait for ever.
    timeout: float | None


class Patience:
    """How long a step that waits has waited for the answers that it needs."""

    def __init__(self, step: Step) -> None:
        self._step = step
        #: Since when each question is waited for, by the run and the number of its event.
        self._since: dict[tuple[str, int], int] = {}

    def check(self) -> None:
        """Deny what nobody has answered in time."""
        waited = self._since
        self._since = {}
        for asked in self._questions():
            now = asked.live_run.clock.monotonic()
            name = asked.live_run.run_id, asked.seq
            since = self._since[name] = waited.get(name, now)
            if asked.timeout is not None and now - since >= asked.timeout * 1e9:
                _deny(asked, asked.timeout)

    def _questions(self) -> Iterator[_Question]:
        step = self._step
        own = approvals.asked(step.live_run.log.fold, step.key)
        if own is not None:
            yield _Question(step.live_run, step.key, own["seq"], approvals.timeout_of(step))
        for live_run in (step.live_run, *(around.live_run for around in step.live_run.around)):
            limit = limit_questions.question(live_run.log.fold)
            if limit is not None:
                timeout = live_run.log.fold.budget.ask_timeout
                yield _Question(live_run, limit.key, limit.seq, timeout)


def _deny(asked: _Question, timeout: float) -> None:
    said: Said = {"actor": TIMED_OUT, "reason": f"nobody answered within {timeout:g} seconds"}
    # Somebody has answered just now; or the store is gone, and it is tried again.
    with contextlib.suppress(AgentGuardError):
        approvals.decide(asked.live_run, asked.key, granted=False, said=said, asked=asked.seq)
