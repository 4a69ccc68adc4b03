"""`agentguard show`: the log of a run as a timeline, or the run as of one of its events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer
from rich.text import Text

from agentguard._home import store_url
from agentguard.audit.verify import take, watched
from agentguard.budget.model import Usage
from agentguard.cli import exit_codes, lookup, output, timeline
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
    UtcOption,
)
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.conversations import whole
from agentguard.events.model import CONTROL_RUN_ID, Event
from agentguard.guard import Guard
from agentguard.runs.fold import RunFold, ScopeFold
from agentguard.runs.summary import moment, usage_data
from agentguard.steps.approvals import waiting


class AsOf(NamedTuple):
    """What a log adds up to at `event`, and the events that began what is under way there."""

    fold: RunFold
    event: Event
    begun: list[Event]


@app.command(
    epilog="--json: {run, events}; with --payloads, each event has a `payload`; with --at, {run_id, seq, "
    "type, state, termination, spent, reserved, open_steps, open_scopes, waiting}."
)
def show(
    *,
    run_id: RunArgument,
    payloads: Annotated[
        bool, typer.Option("--payloads", help="Show the captured arguments and results too.")
    ] = False,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="SEQ", min=1, help="Instead, state, spending and open steps as of that event."
        ),
    ] = None,
    utc: UtcOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the log of a run as a timeline; `control` shows kills and revives."""
    lookup.use(store, home)
    if at is not None:
        _show_at(run_id, at, as_json=as_json)
        return
    _show_log(run_id, payloads=payloads, as_json=as_json)


def _show_log(typed: str, *, payloads: bool, as_json: bool) -> None:
    """Show one log."""
    if typed == CONTROL_RUN_ID and not store_url().startswith("file:"):
        _show_control(as_json=as_json)
        return
    with lookup.looking() as guard:
        run_id = lookup.find_log(guard, typed)
        altered: list[LogIntegrityError] = []
        store = guard.components.store
        row = store.row(run_id)
        stored = watched(run_id, store.read(run_id), altered.append)
        log = timeline.entries(run_id, whole(stored, row.salt) if payloads and row is not None else stored)
        if as_json:
            events = [timeline.event_data(entry, payloads=payloads) for entry in log]
            output.print_json({"run": _summary_data(guard, run_id, altered), "events": events})
        else:
            created = "" if row is None else f", created {output.when(moment(row.created_ns))}"
            output.print_lines(Text(f"run {run_id}{created}", style="bold"))
            output.print_lines(*timeline.Timeline(payloads=payloads).lines(log))
    output.fail_if_altered(altered)


def _summary_data(guard: Guard, run_id: str, altered: list[LogIntegrityError]) -> dict[str, Any] | None:
    """A run's summary; None of the control log, and where it cannot be told."""
    if run_id == CONTROL_RUN_ID:
        return None
    try:
        return guard.summary(run_id).to_data()
    except LogIntegrityError as error:
        if not altered:
            altered.append(error)
        return None


def _show_control(*, as_json: bool) -> None:
    switch = lookup.control_log()
    log = timeline.entries(CONTROL_RUN_ID, switch.read())
    if as_json:
        output.print_json({"run": None, "events": [timeline.event_data(entry) for entry in log]})
        return
    output.print_lines(Text(f"control log, {switch.where}", style="bold"))
    output.print_lines(*timeline.Timeline(dated=True).lines(log))


def _show_at(typed: str, at: int, *, as_json: bool) -> None:
    """Show state, spending and open steps as of event `at`."""
    if typed == CONTROL_RUN_ID:
        raise exit_codes.UsageError("--at goes with a run")
    with lookup.reading() as guard:
        found = _fold_to(guard, lookup.find_run(guard, typed), at)
    if as_json:
        output.print_json(_data(found))
    else:
        output.print_lines(*_lines(found))


def _fold_to(guard: Guard, run_id: str, at: int) -> AsOf:
    """Fold the log up to an event, its chain checked on the way."""
    fold = RunFold(run_id)
    begun: dict[str, Event] = {}
    for stored in guard.components.store.read(run_id):
        head = fold.hash
        record = take(fold, stored)
        if record.type == ev.STEP_STARTED:
            begun[record.key or ""] = codec.to_event(run_id, stored, head)
        if stored.seq == at:
            under_way = [event for key, event in begun.items() if key in fold.open]
            return AsOf(fold, codec.to_event(run_id, stored, head), under_way)
    raise exit_codes.UsageError(f"run {run_id} has events 1 to {fold.seq}, not {at}")


def _scopes(fold: RunFold) -> list[ScopeFold]:
    return [scope for scope in fold.scopes.values() if scope.key and not scope.closed]


def _data(found: AsOf) -> dict[str, Any]:
    fold, event, begun = found
    return {
        "run_id": fold.run_id,
        "seq": event.seq,
        "type": event.type,
        "state": str(fold.state),
        "termination": fold.termination,
        "spent": usage_data(Usage.from_amounts(fold.account.spent)),
        "reserved": usage_data(Usage.from_amounts(fold.account.reserved)),
        "open_steps": [
            {
                "key": start.key,
                "name": start.name,
                "kind": start.kind,
                "attempt": start.attempt,
                "seq": start.seq,
            }
            for start in begun
        ],
        "open_scopes": [
            {
                "key": scope.key,
                "path": scope.path,
                "spent": usage_data(Usage.from_amounts(scope.accounts[0].spent)),
                "stopped": scope.stop,
            }
            for scope in _scopes(fold)
        ],
        "waiting": list(waiting(fold)),
    }


def _lines(found: AsOf) -> Iterator[Text]:
    fold, event, begun = found
    yield Text(f"run {fold.run_id} as of event {event.seq}", style="bold")
    yield _fact("event", timeline.describe(event))
    ended = "" if fold.termination is None else f": {fold.termination.get('message', '')}".rstrip(": ")
    yield _fact("state", f"{fold.state}{ended}")
    yield _fact("used", _amounts(fold.account.spent) or "nothing")
    if reserved := _amounts(fold.account.reserved):
        yield _fact("reserved", reserved)
    yield _fact("limits", output.limits(fold.budget))
    for scope in _scopes(fold):
        stopped = ", stopped" if scope.stop is not None else ""
        yield _fact("scope", f"{scope.path}: used {_amounts(scope.accounts[0].spent) or 'nothing'}{stopped}")
    for start in begun:
        yield _fact("open", f"{start.key}, since event {start.seq}")
    for key in waiting(fold):
        yield _fact("waiting", f"{key}, for an approval")


def _amounts(amounts: dict[str, int]) -> str:
    return output.amounts(Usage.from_amounts({k: n for k, n in amounts.items() if n}), steps=True)


def _fact(name: str, value: str) -> Text:
    return Text().append(f"{name:<9}", style="bold").append(output.one_line(value))
