"""The live run of a run that is on record, folded from its log."""

from __future__ import annotations

from agentguard._process import identity
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.conversations import StoredMessages
from agentguard.protocols import RunRow
from agentguard.runs.branch import Branch
from agentguard.runs.fold import RunFold
from agentguard.runs.termination import stop_from
from agentguard.steps.components import Components
from agentguard.steps.live import EnclosingRun, LiveRun


def load_live_run(components: Components, row: RunRow, branch: Branch | None = None) -> LiveRun:
    """Return the live run of a run that another process owns, folded from its log.

    `branch` goes on with its numbering after the steps that the log has in it.
    """
    fold, messages = RunFold(row.run_id), StoredMessages(codec.digester(row.salt or b""))
    for stored in components.store.read(row.run_id):
        record = fold.apply_stored(stored)
        messages.take_in(stored)
        if branch is not None and record.key is not None:
            branch.passed(record.key)
    live_run = LiveRun(components, row, fold, _outer_levels(components, row))
    live_run.log.messages = messages
    live_run.owner = False
    live_run.time.count(_started_monotonic(components, row, fold))
    if fold.termination is not None:
        live_run.stop = stop_from(fold.termination)
    take_scope_stops(live_run)
    return live_run


def take_scope_stops(live_run: LiveRun) -> None:
    """Let the stops of scopes that the fold has stop them in this process."""
    for key, scope in live_run.fold.scopes.items():
        if scope.stop is not None and (stop := stop_from(scope.stop)) is not None:
            live_run.scope_stops[key] = stop


def _outer_levels(components: Components, row: RunRow) -> list[EnclosingRun]:
    """Return the levels around a nested run, from the logs of the runs around it."""
    if row.parent_id is None or (parent_row := components.store.row(row.parent_id)) is None:
        return []
    parent = load_live_run(components, parent_row)
    for stored in components.store.read(row.parent_id):
        record = codec.decode(stored.body)
        data = record.data or {}
        if record.type == ev.SCOPE_OPENED and data.get("run") == row.run_id:
            return parent.nest(data.get("scope", ""))[1]
    return []


def _started_monotonic(components: Components, row: RunRow, fold: RunFold) -> int | None:
    """Return when the run would have started by this host's monotonic clock, had it never stopped."""
    now = components.clock.monotonic()
    owner = row.owner
    mine = identity()
    if owner.get("boot") and owner["boot"] == mine["boot"] and owner["host"] == mine["host"]:
        return int(owner.get("monotonic_ns", now))
    return now - max(0, components.clock.wall() - (fold.started_ns or fold.created_ns))
