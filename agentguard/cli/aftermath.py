"""What goes on after a kill: which runs it covered, and which of their bodies are still in flight.

Asked of the store once the kill is recorded and acknowledged, so that nothing here delays it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from agentguard.audit.verify import reconstruct
from agentguard.cli import hard_kill
from agentguard.errors import AgentGuardError
from agentguard.guard import Guard
from agentguard.monitoring import owner_lives
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.state import RunState

#: Of how many covered runs it is asked what goes on in them.
MOST = 1000
_PAUSE = 0.02
_LIVE = tuple(str(state) for state in RunState if not state.final)


class Covered(NamedTuple):
    """A run that was live when it was killed, and the keys of its steps that are still in flight."""

    run_id: str
    name: str
    pid: int | None
    host: str
    in_flight: tuple[str, ...]

    def to_data(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return self._asdict() | {"in_flight": list(self.in_flight)}

    def __str__(self) -> str:
        where = f"pid {self.pid} on {self.host}" if self.pid is not None else "no process"
        if not self.in_flight:
            return f"run {self.run_id} {self.name}, {where}: stopped"
        keys = ", ".join(self.in_flight)
        return f"run {self.run_id} {self.name}, {where}: {keys} goes on"


@contextmanager
def _store(home: Path) -> Iterator[EventStore]:
    with Guard.open(hard_kill.store_url(home), kill_switch="memory", telemetry=False) as guard:
        yield guard.components.store


def named(name: str, home: Path) -> list[RunRow]:
    """Return the live runs of exactly this name; none where the store cannot be asked."""
    with suppress(AgentGuardError, OSError, ValueError), _store(home) as store:
        rows = [row for state in _LIVE for row in store.rows(state=state, limit=2**31)]
        return [row for row in rows if row.name == name]
    return []


def what_goes_on(run_ids: Sequence[str], home: Path, seconds: float) -> list[Covered]:
    """Return how the runs stand, once nothing goes on in them or `seconds` have passed.

    Raises:
        AgentGuardError: the store cannot be asked.
    """
    deadline = time.monotonic() + seconds
    with _store(home) as store:
        rows = [row for run_id in run_ids[:MOST] if (row := store.row(run_id)) is not None]
        while True:
            found = [_look(store, row) for row in rows]
            if not any(run.in_flight for run in found) or time.monotonic() >= deadline:
                return found
            time.sleep(_PAUSE)


def _look(store: EventStore, row: RunRow) -> Covered:
    in_flight: tuple[str, ...] = ()
    with suppress(AgentGuardError):  # of a damaged log, `verify` tells
        if owner_lives(row, time.time_ns()) is not False:
            in_flight = tuple(reconstruct(store, store.row(row.run_id) or row).open)
    return Covered(row.run_id, row.name, row.owner.get("pid"), str(row.owner.get("host", "")), in_flight)
