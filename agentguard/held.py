"""What a guard holds: its parts, opened at first use, and the runs of this process."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from agentguard._ids import new_run_id
from agentguard.budget.model import Budget
from agentguard.errors import (
    AgentGuardError,
    RunNotFoundError,
)
from agentguard.joining import load_journal
from agentguard.ownership import Heartbeat
from agentguard.protocols import RunRow
from agentguard.steps.journal import Journal
from agentguard.steps.parts import Parts


class Held:
    """The parts of a guard; the base of what it can do with them."""

    def __init__(self, open_parts: Callable[[], Parts], *, default_budget: Budget | None) -> None:
        """See `Guard.open`."""
        self._open_parts = open_parts
        self._parts: Parts | None = None
        self._opened: dict[int, Parts] = {}
        self._participant: Any = None
        self._heartbeat = Heartbeat(self)
        self.default_budget = default_budget
        #: Gives the id of a run that is told none.
        self.new_run_id = new_run_id
        #: The runs of this process by id.
        self.live: weakref.WeakValueDictionary[str, Journal] = weakref.WeakValueDictionary()

    @property
    def parts(self) -> Parts:
        """The parts, opened at first use; for agentguard's own rooms."""
        if self._parts is None:
            parts = self._open_parts()
            parts.refresh()
            # Without a lock, which a fork could leave held: of several threads the first has opened it.
            self._parts = self._opened.setdefault(0, parts)
            if self._parts is not parts:
                parts.close()
        return self._parts

    @property
    def opened(self) -> Parts | None:
        """The parts, if they are open."""
        return self._parts

    def close(self) -> None:
        """Give back what was opened.  Closing twice does nothing."""
        parts, self._parts = self._parts, None
        self._opened.clear()
        participant, self._participant = self._participant, None
        self._heartbeat.stop()
        if participant is not None:
            participant.leave()
        if parts is not None:
            parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def take_part(self) -> None:
        """Be told of kills, also while no step runs."""
        if self._participant is None:
            guard = weakref.ref(self)

            def on_change(_generation: int) -> None:
                if (alive := guard()) is not None:
                    alive.observe()

            self._participant = self.parts.switch.join(on_change)
        self._heartbeat.start(os.getpid())

    def observe(self) -> None:
        """Hold every live run of this process against the kill switch."""
        for ref in self.live.valuerefs():  # a list: other threads open and end runs meanwhile
            if (journal := ref()) is None:
                continue
            with contextlib.suppress(AgentGuardError):
                journal.look()

    def journal(self, run_id: str) -> Journal:
        """The run's log in this process, read from the store if it is not live here."""
        live = self.live.get(run_id)
        return live if live is not None else load_journal(self.parts, self._row(run_id))

    def _row(self, run_id: str) -> RunRow:
        row = self.parts.store.row(run_id)
        if row is None:
            raise RunNotFoundError(run_id)
        return row
