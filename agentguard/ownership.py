"""Signs of life: the heartbeat of a process that owns runs, and runs whose owner is dead."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from typing import TYPE_CHECKING

from msgspec import structs

from agentguard._process import is_alive
from agentguard.errors import AgentGuardError, StoreUnavailableError
from agentguard.joining import load_journal
from agentguard.killswitch.model import Kill
from agentguard.protocols import RunRow
from agentguard.runs.state import RunState
from agentguard.steps.flow import check

if TYPE_CHECKING:
    from agentguard.held import Held

#: Seconds between two heartbeats of a process that owns runs.
INTERVAL = 5.0
#: Seconds between two looks at bodies in flight that no step tells of a stop.
LOOK = 1.0


class Heartbeat:
    """Writes a sign of life into the rows of the runs that this process owns, while it has any.

    On one host an owner is known to be dead without it; other hosts go by the heartbeat.
    """

    def __init__(self, guard: Held) -> None:
        self._guard = weakref.ref(guard)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self, pid: int) -> None:
        """Beat from now on, in a daemon thread; once for each process."""
        if self._thread is None or self._pid != pid:
            self._pid = pid
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, name="agentguard-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Beat no more, until `start` is called again."""
        self._stop.set()
        self._thread = None

    def _run(self) -> None:
        stop = self._stop
        for tick in itertools.count(1):
            if stop.wait(min(LOOK, INTERVAL)):
                return
            guard = self._guard()
            if guard is None:
                return
            look(guard)
            if tick % max(1, round(INTERVAL / LOOK)) == 0:
                beat(guard)
            del guard


def look(guard: Held) -> None:
    """Stop bodies in flight that nobody else would stop.

    Another process may have stopped their run; and the time of a run may be up, for which async bodies
    have timers of their own, and threads that may be interrupted have not.
    """
    file = None if guard.opened is None else guard.opened.abilities.file
    if file is not None:  # once a second, and not at each step
        with contextlib.suppress(AgentGuardError):  # the next step is told
            file.check_file()
    for ref in guard.live.valuerefs():  # a list: other threads open and end runs meanwhile
        journal = ref()
        if journal is not None and journal.bodies and guard.opened is not None:
            with contextlib.suppress(AgentGuardError):
                journal.refresh()
            for body in tuple(journal.bodies):
                with contextlib.suppress(AgentGuardError):
                    check(journal, body.scope)


def beat(guard: Held) -> None:
    """One sign of life for every run that this process owns."""
    parts = guard.opened
    if parts is None:  # closed since: a sign of life must not open it again
        return
    now = parts.clock.wall()
    for ref in guard.live.valuerefs():  # a list: other threads open and end runs meanwhile
        journal = ref()
        if journal is not None and journal.owner and not journal.fold.state.final:
            row = structs.replace(journal.row, heartbeat_ns=now)
            with contextlib.suppress(AgentGuardError):
                parts.store.update_row(row)


def bury(guard: Held, row: RunRow) -> RunRow:
    """Write `run_killed` for a run that a kill covers and whose owner is dead; gives the row as it is then.

    A run without an owner is nobody's either, as after a drain.  One that no kill covers stays as it is:
    it can be recovered.  Where the store cannot
    be written, the run stays as it is too.
    """
    if RunState(row.state).final or (row.owner and is_alive(row.owner) is not False):
        return row
    parts = guard.parts
    if not _any_covers(parts.switch.kills(), row):
        return row
    journal = load_journal(parts, row)
    kill = parts.switch.find(row.tenant, row.run_id, journal.fold.generation)
    if kill is not None:
        with contextlib.suppress(StoreUnavailableError):
            journal.end(kill.error(row.run_id))
    return parts.store.row(row.run_id) or row


def _any_covers(kills: list[Kill], row: RunRow) -> bool:
    return any(kill.covers(row.tenant, row.run_id) for kill in kills)


def bury_all(guard: Held) -> None:
    """Bury every dead run that a kill covers."""
    for state in (RunState.CREATED, RunState.RUNNING, RunState.PAUSED):
        for row in guard.parts.store.rows(state=str(state), limit=2**31):
            with contextlib.suppress(AgentGuardError):
                bury(guard, row)
