"""What `runs`, `show`, `summary`, `tail`, `pause` and `resume` do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from rich.text import Text

from agentguard import config
from agentguard.audit.verify import watched
from agentguard.cli import exits, listing, lookup, output
from agentguard.cli import tail as tailing
from agentguard.cli.timeline import Entry, Timeline, event_data
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.guard import Guard
from agentguard.killswitch.page import PageKillSwitch
from agentguard.runs.summary import RunSummary, from_row


def runs(tenant: str | None, state: str | None, limit: int, *, as_json: bool) -> None:
    """List the newest runs."""
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    found: list[RunSummary] = []
    damaged: list[LogIntegrityError] = []
    if lookup.store_is_there():
        with lookup.looking() as guard:
            found, damaged = _summaries(guard, tenant, state, limit)
    if as_json:
        output.print_json([run.to_data() for run in found])
    else:
        _print_runs(found, filtered=bool(tenant or state))
    for error in damaged:
        output.complain(f"{error}; shown as of its last change of state, `agentguard verify` says more")
    if damaged:
        raise typer.Exit(exits.FAULT)


def _summaries(
    guard: Guard, tenant: str | None, state: str | None, limit: int
) -> tuple[list[RunSummary], list[LogIntegrityError]]:
    """The runs; one whose log is damaged must not hide the others."""
    found, damaged = [], []
    for row in guard.parts.store.rows(tenant=tenant, state=state, limit=limit):
        try:
            found.append(guard.summary(row.run_id))
        except LogIntegrityError as error:
            damaged.append(error)
            with contextlib.suppress(LogIntegrityError):
                found.append(from_row(row))
    return found, damaged


def _print_runs(found: list[RunSummary], *, filtered: bool) -> None:
    console = output.console()
    if found:
        console.print(listing.runs_table(found, console))
    else:
        console.print(f"no runs{' like this' if filtered else ''} in {lookup.store_url()}")


def show(typed: str, *, payloads: bool, as_json: bool) -> None:
    """Show one log."""
    if typed == CONTROL_RUN_ID and not lookup.store_url().startswith("file:"):
        _show_control(as_json=as_json)
        return
    with lookup.looking() as guard:
        run_id = lookup.find_log(guard, typed)
        if run_id != CONTROL_RUN_ID:
            lookup.bury(guard, run_id)
        altered: list[LogIntegrityError] = []
        log = entries(run_id, watched(run_id, guard.parts.store.read(run_id), altered.append))
        if as_json:
            events = [event_data(entry, payloads=payloads) for entry in log]
            output.print_json({"run": _summary_data(guard, run_id, altered), "events": events})
        else:
            print_lines(Text(f"run {run_id}", style="bold"))
            print_lines(*Timeline(payloads=payloads).lines(log))
    complain_of(altered)


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


def complain_of(altered: list[LogIntegrityError]) -> None:
    """Say that what was shown or written is not what was recorded, and end with that exit code."""
    for error in altered:
        output.complain(f"{error}; this is not what was recorded, `agentguard verify` says more")
    if altered:
        raise typer.Exit(exits.FAULT)


def _show_control(*, as_json: bool) -> None:
    switch = PageKillSwitch(config.home())
    try:
        log = entries(CONTROL_RUN_ID, switch.read())
        if as_json:
            output.print_json({"run": None, "events": [event_data(entry) for entry in log]})
            return
        print_lines(Text(f"control log of {switch.home}", style="bold"))
        print_lines(*Timeline().lines(log))
    finally:
        switch.close()


def entries(run_id: str, log: Iterable[Stored]) -> Iterator[Entry]:
    """The events of a log with what lies beside them."""
    head = codec.genesis(run_id)
    for stored in log:
        yield Entry(codec.to_event(run_id, stored, head), stored.payload)
        head = stored.hash


def print_lines(*lines: Text) -> None:
    """Print lines that nothing wraps."""
    console = output.console()
    for line in lines:
        console.print(line, soft_wrap=True)


def summary(typed: str, *, as_json: bool) -> None:
    """Say what a run came to."""
    with lookup.looking() as guard:
        found = guard.summary(lookup.find_run(guard, typed))
    if as_json:
        output.print_json(found.to_data())
    else:
        listing.print_summary(output.console(), found)


def tail(typed: str | None, tenant: str | None, lines: int, *, follow: bool, as_json: bool) -> None:
    """Show the newest events, and those that follow."""
    with lookup.reading() as guard:
        run_id = None if typed is None else lookup.find_run(guard, typed)
        if tenant is not None and run_id is not None:
            raise exits.UsageError("--tenant chooses among all runs; leave it out where a run is named")
        if tenant is not None:
            lookup.checked_id(tenant, "--tenant")
        show_one = tailing.json_printer() if as_json else tailing.text_printer(one_run=run_id is not None)
        try:
            for numbered in tailing.stream(guard.parts.store, run_id, tenant, lines, follow=follow):
                show_one(numbered)
        except KeyboardInterrupt:
            raise typer.Exit(exits.INTERRUPTED) from None


def pause(typed: str, reason: str, *, as_json: bool) -> None:
    """Pause a run."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        guard.pause(run_id, reason=output.printable(reason))
        _say_state(guard, run_id, "paused; steps in flight finish, no other begins", as_json=as_json)


def resume(typed: str, *, as_json: bool) -> None:
    """Lift a run's pause."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        guard.resume(run_id)
        _say_state(guard, run_id, "resumed", as_json=as_json)


def _say_state(guard: Guard, run_id: str, said: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"run_id": run_id, "state": str(guard.summary(run_id).state)})
    else:
        print_lines(Text(f"run {run_id} {said}"))
