"""What a replay or a recovery has found out about its program, for all that look after it."""

from __future__ import annotations

import time

from agentguard.errors import ReplayDivergenceError, StepOutcomeUnknownError


class Findings:
    """The first difference, the step in doubt, and when the program last made a call.

    Args:
        outer: those of the run around it.
    """

    def __init__(self, outer: Findings | None = None) -> None:
        self._outer = outer
        #: The first difference; once found, every further call raises it.
        self.divergence: ReplayDivergenceError | None = None
        #: The step that may have happened, once the program has met one: an operator must resolve it.
        self.in_doubt: StepOutcomeUnknownError | None = None
        #: By `time.monotonic`.
        self.progressed_at = time.monotonic()

    @property
    def halted(self) -> bool:
        """Whether the program goes no further."""
        return self.in_doubt is not None or self.divergence is not None

    def progress(self) -> None:
        """Note that the program has made a call, also for the runs around this one."""
        self.progressed_at = time.monotonic()
        if self._outer is not None:
            self._outer.progress()

    def differs(self, error: ReplayDivergenceError) -> ReplayDivergenceError:
        """Keep the first difference and return it.

        It is one of the runs around this one too: a stop on record there must not cover it.
        """
        if self.divergence is None:
            self.divergence = error if self._outer is None else self._outer.differs(error)
        return self.divergence
