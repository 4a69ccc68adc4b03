"""One attempt at a request of an SDK: what all of them share, and those that cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agentguard import AgentGuardError, ReplayDivergenceError, Run
from agentguard_clients.errors import ProviderStatusError, status_error
from agentguard_clients.exchange import RecordedAnswer
from agentguard_clients.guarding import Guarding
from agentguard_clients.stops import let_through


class Attempt:
    """One attempt at a request, made of the request that the SDK builds.

    Attributes:
        run: the run that it belongs to.
        send: sends it; set when the SDK does.
        refusal: the answer with an error status that came, for the SDK to judge; None in a replay.
    """

    def __init__(self, guarding: Guarding, run: Run) -> None:
        self.run = run
        self.send: Any = None
        self.refusal: Any = None
        self._guarding = guarding

    def refused_by(self, response: Any) -> ProviderStatusError:
        """Return the error of an answer with an error status, which has been read."""
        self.refusal = response
        return status_error(response)

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Raise the guard's errors in a form that the SDK does not wrap."""
        try:
            yield
        except AgentGuardError as error:
            through = self._guarding.api.lets_through
            if through is None or isinstance(error, through):
                raise
            raise let_through(error, through) from error.__cause__


class NotKept:
    """Stands on record for an answer that the guard does not keep: no replay brings it back."""


class FreeRequest(Attempt):
    """One attempt at a request that costs nothing and is no step: its answer is a value on record.

    Attributes:
        name: the name of the value.
        response: the answer that came; None in a replay.
    """

    def __init__(self, guarding: Guarding, run: Run, request: Any) -> None:
        super().__init__(guarding, run)
        self.name = f"{request.method} {request.url.path}"
        self.response: Any = None

    def answered(self, response: Any) -> Any:
        """Return what goes on record of an answer: all of it, or nothing where the guard keeps no results."""
        if response.is_error:
            raise self.refused_by(response)
        self.response = response
        return RecordedAnswer.of(response) if self.run.captures else NotKept()

    def check_stream(self) -> None:
        """Refuse to read bit by bit in a replay: that is not on record.

        Raises:
            ReplayDivergenceError: this is a replay.
        """
        if self.run.replayed:
            raise ReplayDivergenceError(
                "not_replayable",
                None,
                expected=f"{self.name}: an answer that was read bit by bit; read it in a guarded_step",
            )
