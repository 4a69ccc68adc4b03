"""Steps in flight whose run has ended and whose process is dead: nobody settles what they reserved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from agentguard._process import is_alive
from agentguard.errors import AgentGuardError
from agentguard.protocols import RunRow
from agentguard.replay import resolving
from agentguard.runs.state import RunState
from agentguard.sessions.loading import load_live_run
from agentguard.steps.components import Components

_ALL = 2**31
_SAID = "abandoned: its process died after its run had ended"


class AbandonedStep(NamedTuple):
    """A step without an outcome, of a run that has ended.

    `proven` says whether its owner's process is provably dead; else the owner lived on another host, in
    another container or before a restart, and an ended run gives no sign of life to go by.
    """

    run_id: str
    key: str
    proven: bool


def find_abandoned(components: Components) -> Iterator[AbandonedStep]:
    """Find the steps whose reservations nobody is known to hold; this reads the logs of ended runs."""
    for row in components.store.rows(limit=_ALL):
        if not RunState(row.state).final:
            continue
        alive = is_alive(row.owner) if row.owner else False
        if alive:
            continue
        for key in _open_keys(components, row):
            yield AbandonedStep(row.run_id, key, alive is False)


def charge_abandoned(components: Components, actor: str) -> list[AbandonedStep]:
    """Charge what such steps had reserved, where their owner is provably dead; return those that were.

    They may have happened, so the account of their tenant is charged, as that of a step that fails is.
    """
    charged = []
    for step in list(find_abandoned(components)):
        row = components.store.row(step.run_id)
        if step.proven and row is not None:
            live_run = load_live_run(components, row)
            with contextlib.suppress(AgentGuardError):  # somebody else settled it just now
                resolving.resolve(live_run, step.key, resolving.FAILED, result=_SAID, actor=actor)
                charged.append(step)
    return charged


def _open_keys(components: Components, row: RunRow) -> list[str]:
    """Return the keys of a run's steps without an outcome; of a log that was altered `verify` has to tell."""
    with contextlib.suppress(AgentGuardError):
        return list(load_live_run(components, row).fold.open)
    return []
