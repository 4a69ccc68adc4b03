"""The live run of a run that is on record, folded from its log."""

from __future__ import annotations

from agentguard._process import identity
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.conversations import StoredMessages
from agentguard.events.data import NestedRunOpened, data_of
from agentguard.protocols import RunRow
from agentguard.runs.branch import Branch
from agentguard.runs.fold import RunFold
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
    live_run = LiveRun(components, row, fold, _enclosing_runs(components, row))
    live_run.log.messages = messages
    live_run.owner = False
    live_run.time.count(_started_monotonic(components, row, fold))
    live_run.take_stops()
    return live_run


def _enclosing_runs(components: Components, row: RunRow) -> list[EnclosingRun]:
    """Return the runs around a nested run, from their logs."""
    if row.parent_id is None or (parent_row := components.store.row(row.parent_id)) is None:
        return []
    parent = load_live_run(components, parent_row)
    for stored in components.store.read(row.parent_id):
        record = codec.decode(stored.body)
        data = data_of(record, NestedRunOpened)
        if record.type == ev.SCOPE_OPENED and data.get("run") == row.run_id:
            return parent.enclosing(data.get("scope", ""))
    return []


def _started_monotonic(components: Components, row: RunRow, fold: RunFold) -> int | None:
    """Return when the run would have started by this host's monotonic clock, had it never stopped."""
    now = components.clock.monotonic()
    owner = row.owner
    mine = identity()
    if owner.get("boot") and (owner["boot"], owner.get("host")) == (mine["boot"], mine["host"]):
        started = owner.get("monotonic_ns", now)
        if isinstance(started, int):  # else somebody edited it
            return started
    return now - max(0, components.clock.wall() - (fold.started_ns or fold.created_ns))
