"""The end of a nested run in the log of the run around it, which charges what it has used."""

from __future__ import annotations

from agentguard.budget.account import Amounts
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import NestedRunClosed, NestedRunOpened, data_of
from agentguard.events.model import Record
from agentguard.protocols import RunRow
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runs.summary import state_of
from agentguard.steps.live import LiveRun


def closing(parent: LiveRun, opened: Record, state: RunState | str, usage: Amounts) -> Record:
    """Return the event that says how a nested run ended, and charges what it has used."""
    said = data_of(opened, NestedRunOpened)
    data: NestedRunClosed = {"run": said["run"], "state": str(state)}
    if scope := said.get("scope"):
        data["scope"] = scope
    used = {resource: amount for resource, amount in usage.items() if amount}
    return Record(
        0,
        ev.SCOPE_CLOSED,
        parent.clock.wall(),
        opened.key,
        opened.pos,
        opened.name,
        usage=used,
        spent=parent.fold.spent_after(used),
        data=data,
    )


def close_ended_nested_runs(parent: LiveRun) -> None:
    """Charge a run with the nested runs that ended without its log saying so.

    Their process died between the two logs, as it could in earlier versions.
    """
    open_calls: dict[str | None, Record] = {}
    for stored in parent.store.read(parent.run_id):
        record = codec.decode(stored.body)
        if record.type == ev.SCOPE_OPENED and "run" in data_of(record, NestedRunOpened):
            open_calls[record.key] = record
        elif record.type == ev.SCOPE_CLOSED:
            open_calls.pop(record.key, None)
    for opened in open_calls.values():
        row = parent.store.row(data_of(opened, NestedRunOpened)["run"])
        if row is not None and state_of(row).final and row.parent_id == parent.run_id:
            _close(parent, opened, row)


def _close(parent: LiveRun, opened: Record, row: RunRow) -> None:
    spent = _spent(parent, row)
    parent.log.decide(lambda: parent.log.act([closing(parent, opened, row.state, spent)]))


def _spent(parent: LiveRun, row: RunRow) -> Amounts:
    """Return what an ended run has used, by its log: steps may have settled after its end."""
    fold = RunFold(row.run_id)
    for stored in parent.store.read(row.run_id):
        fold.apply_stored(stored)
    return fold.account.spent
