"""Runs whose process is dead: another process puts the kill that covers one on record."""

from __future__ import annotations

import contextlib

from agentguard._process import counts_as_alive
from agentguard.errors import AgentGuardError, KillSwitchUnavailableError, StoreUnavailableError
from agentguard.killswitch.model import Kill
from agentguard.protocols import RunRow
from agentguard.runs.state import RunState
from agentguard.runs.summary import state_of
from agentguard.sessions.loading import load_live_run
from agentguard.sessions.nested_ends import close_ended_nested_runs
from agentguard.steps.components import Components

_ALIVE = (RunState.CREATED, RunState.RUNNING, RunState.PAUSED)
_ALL = 2**31


def close_dead_run(components: Components, row: RunRow) -> RunRow:
    """Write `run_killed` for a run that a kill covers and whose owner is dead; return its row as it is then.

    A run without an owner is treated alike, as after a drain.  One that no kill covers stays as it is: it
    can be recovered.  Where the store cannot be written, the run stays as it is too.
    """
    now = components.clock.wall()
    if state_of(row).final or (row.owner and counts_as_alive(row.owner, row.heartbeat_ns, now)):
        return row
    if not _any_covers(components.switch.kills(), row):
        return row
    for child in components.store.children(row.run_id):
        close_dead_run(components, child)
    live_run = load_live_run(components, row)
    kill = components.switch.find(row.tenant, row.run_id, live_run.fold.generation)
    if kill is not None:
        with contextlib.suppress(StoreUnavailableError):
            close_ended_nested_runs(live_run)
            live_run.end(kill.error(row.run_id))
    return components.store.row(row.run_id) or row


def close_dead_runs(components: Components) -> None:
    """Do so for every run.

    Where an earlier kill could not be recorded, nobody knows which kills there are, and every run stays as it
    is until the next kill or sign of life.
    """
    try:
        kills = components.switch.kills()
    except KillSwitchUnavailableError:
        return
    if not kills:
        return
    for state in _ALIVE:
        for row in components.store.rows(state=str(state), limit=_ALL):
            with contextlib.suppress(AgentGuardError):
                close_dead_run(components, row)


def _any_covers(kills: list[Kill], row: RunRow) -> bool:
    return any(kill.covers(row.tenant, row.run_id) for kill in kills)
