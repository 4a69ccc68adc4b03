"""Steps in flight whose run has ended and whose process is dead: nobody settles what they reserved.

The heartbeats of other processes charge them, and `agentguard doctor --repair` does at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from agentguard._process import is_alive
from agentguard.errors import AgentGuardError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import StepStarted, data_of
from agentguard.protocols import RunRow
from agentguard.replay import resolving
from agentguard.runs.summary import state_of
from agentguard.runtime import Runtime
from agentguard.sessions.loading import load_live_run
from agentguard.steps.components import Components

_ALL = 2**31
#: How many runs one sign of life looks at: the newest, and as many of the older ones, in turn.
_PART = 200
_SAID = "abandoned: its process died after its run had ended"
_ACTOR = "agentguard (sign of life of another process)"


class AbandonedStep(NamedTuple):
    """A step without an outcome, of a run that has ended.

    `proven` says whether its process is provably dead; else that lived on another host, in another container
    or before a restart, and an ended run gives no sign of life to go by.
    """

    run_id: str
    key: str
    proven: bool


def find_abandoned(components: Components, rows: Iterable[RunRow] | None = None) -> Iterator[AbandonedStep]:
    """Find the steps of ended runs whose reservations nobody is known to hold, in all runs or in some."""
    for row in components.store.rows(limit=_ALL) if rows is None else rows:
        with contextlib.suppress(AgentGuardError):  # of a row or log that was altered `verify` has to tell
            if state_of(row).final and row.summary.get("open_steps", True):
                yield from _steps_of(components, row)


def charge_abandoned(
    components: Components, actor: str, rows: Iterable[RunRow] | None = None
) -> list[AbandonedStep]:
    """Charge what such steps had reserved, where their process is provably dead; return those that were.

    They may have happened, so the account of their tenant is charged, as that of a step that fails is.
    """
    charged = []
    for step in list(find_abandoned(components, rows)):
        row = components.store.row(step.run_id)
        if step.proven and row is not None:
            live_run = load_live_run(components, row)
            with contextlib.suppress(AgentGuardError):  # somebody else settled it just now
                resolving.resolve(live_run, step.key, resolving.FAILED, result=_SAID, actor=actor)
                charged.append(step)
    return charged


def charge_some(runtime: Runtime, components: Components, part: int = _PART) -> None:
    """Do so for the newest runs of the store, and for the next ones of the older."""
    if components.abilities.private:  # whose processes have not died
        return
    store = components.store
    newest = store.rows(limit=part)
    older = newest if runtime.looked_at is None else store.rows(limit=part, before=runtime.looked_at)
    runtime.looked_at = older[-1].run_id if len(older) == part else None
    charge_abandoned(components, _ACTOR, {row.run_id: row for row in (*newest, *older)}.values())


def _steps_of(components: Components, row: RunRow) -> list[AbandonedStep]:
    started: dict[str, StepStarted] = {}
    for key in load_live_run(components, row).fold.open:
        started[key] = {}
    if started:
        for stored in components.store.read(row.run_id):
            record = codec.decode(stored.body)
            if record.type == ev.STEP_STARTED and record.key in started:
                started[record.key] = data_of(record, StepStarted)
    found = ((key, _is_alive(row, data)) for key, data in started.items())
    return [AbandonedStep(row.run_id, key, alive is False) for key, alive in found if not alive]


def _is_alive(row: RunRow, started: StepStarted) -> bool | None:
    """Say whether the process of a step lives: that of its owner, or one that had joined the run."""
    process = started.get("process", row.owner)
    return is_alive(process) if process else False
