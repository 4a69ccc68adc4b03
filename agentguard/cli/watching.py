"""What `tenants`, `top`, `approvals`, `approve` and `deny` do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentguard import _encoding
from agentguard.audit.verify import take
from agentguard.cli import exits, listing, lookup, output
from agentguard.control import Approval, TenantAccount
from agentguard.events import codec
from agentguard.events.model import APPROVAL_REQUESTED
from agentguard.guard import Guard
from agentguard.ownership import bury_all
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary, summarize, usage_data

_LIVE = (RunState.RUNNING, RunState.PAUSED)


# --- tenants -------------------------------------------------------------------------------------


def tenants(*, as_json: bool) -> None:
    """List the tenants with a budget."""
    found: list[TenantAccount] = []
    if lookup.store_is_there():
        with (
            lookup.reading() as plain,
            Guard.open(kill_switch=lookup.control_log(plain), telemetry=False) as guard,
        ):
            found = guard.tenants()
    if as_json:
        output.print_json([_tenant_data(account) for account in found])
        return
    console = output.console()
    if not found:
        console.print("no tenant has a budget; guard.set_tenant_budget gives it one")
        return
    table = _table(("tenant", "window", "limits", "spent"))
    for account in found:
        window = {"day": "this day (UTC)", "month": "this month (UTC)"}.get(account.per or "", "all time")
        spent = output.amounts(account.spent, steps=True) or "nothing"
        _add(table, account.tenant, window, output.limits(account.budget), spent)
    console.print(table)


def _tenant_data(account: TenantAccount) -> dict[str, Any]:
    return {
        "tenant": account.tenant,
        "per": account.per,
        "budget": account.budget.to_fields(),
        "spent": usage_data(account.spent),
    }


# --- top -----------------------------------------------------------------------------------------


class Folds:
    """The live runs of a store, each log read on from where it was read before."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._store = guard.parts.store
        self._folds: dict[str, RunFold] = {}

    def summaries(self, tenant: str | None, limit: int) -> list[RunSummary]:
        """The live runs that have spent most first."""
        bury_all(self._guard)
        rows = [row for state in _LIVE for row in self._store.rows(tenant=tenant, state=state, limit=limit)]
        self._folds = {row.run_id: self._folds.get(row.run_id, RunFold(row.run_id)) for row in rows}
        found = []
        for fold in self._folds.values():
            for stored in self._store.read(fold.run_id, fold.seq):
                take(fold, stored)
            if not fold.state.final:
                found.append(summarize(fold, fold.running_until_last_event()))
        found.sort(key=lambda run: (run.usage.usd, run.usage.tokens, run.steps), reverse=True)
        return found[:limit]


def top(tenant: str | None, limit: int, interval: float, *, once: bool, as_json: bool) -> None:
    """Show the live runs, once or again and again."""
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    with lookup.looking() if lookup.store_is_there() else Guard.in_memory(telemetry=False) as guard:
        folds = Folds(guard)
        if as_json:
            output.print_json([run.to_data() for run in folds.summaries(tenant, limit)])
            return
        console = output.console()
        if once or not console.is_terminal:
            console.print(_top_table(folds.summaries(tenant, limit)))
            return
        try:
            with Live(console=console, auto_refresh=False, screen=True) as screen:
                while True:
                    screen.update(_top_table(folds.summaries(tenant, limit)), refresh=True)
                    time.sleep(interval)
        except KeyboardInterrupt:
            raise typer.Exit(exits.OK) from None


def _top_table(runs: list[RunSummary]) -> Table | Text:
    if not runs:
        return Text("no run is live")
    return listing.runs_table(runs, output.console())


# --- approvals -----------------------------------------------------------------------------------


class Waiting(NamedTuple):
    """A step that waits, and what it was called with, if that was captured."""

    approval: Approval
    arguments: Any


def approvals(*, as_json: bool) -> None:
    """List the steps that wait."""
    waiting: list[Waiting] = []
    if lookup.store_is_there():
        with lookup.reading() as guard:
            waiting = [Waiting(found, _arguments(guard, found)) for found in guard.approvals()]
    if as_json:
        output.print_json([asked.approval._asdict() | {"arguments": asked.arguments} for asked in waiting])
        return
    console = output.console()
    if not waiting:
        console.print("no step waits for an approval")
        return
    table = _table(("run", "key", "step"))
    for (run_id, key, name), arguments in waiting:
        _add(table, run_id, key, f"{name}({_said(arguments)})")
    console.print(table)


def _arguments(guard: Guard, asked: Approval) -> Any:
    """What the newest request of a step was made with, as `[[...], {...}]`."""
    payload = None
    for stored in guard.parts.store.read(asked.run_id):
        if stored.payload is not None and APPROVAL_REQUESTED.encode() in stored.body[:64]:
            record = codec.decode(stored.body)
            payload = stored.payload if record.key == asked.key else payload
    return None if payload is None else _encoding.decode(payload)


def _said(arguments: Any) -> str:
    if arguments is None:
        return "..."
    positional, named = arguments
    said = [json.dumps(value, ensure_ascii=False) for value in positional]
    return ", ".join(
        said + [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in named.items()]
    )


def decide(
    typed: str, key: str | None, reason: str | None, actor: str | None, *, granted: bool, as_json: bool
) -> None:
    """Let a waiting step run, or refuse it."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        key = key or _only_key(guard, run_id)
        act = guard.approve if granted else guard.deny
        act(run_id, key, reason=reason, actor=actor)
    if as_json:
        output.print_json({"run_id": run_id, "key": key, "decision": "granted" if granted else "denied"})
    else:
        print(output.one_line(f"{'approved' if granted else 'denied'} {key} of run {run_id}"))


def _only_key(guard: Guard, run_id: str) -> str:
    keys = [asked.key for asked in guard.approvals() if asked.run_id == run_id]
    if len(keys) != 1:
        waiting = f"; waiting are {', '.join(keys)}" if keys else ""
        raise exits.UsageError(f"{len(keys)} steps of run {run_id} wait; name one by its KEY{waiting}")
    return keys[0]


# --- tables --------------------------------------------------------------------------------------


def _table(columns: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=not sys.stdout.isatty())
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(output.one_line(cell)) for cell in cells))
