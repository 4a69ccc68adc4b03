"""`agentguard costs`: where the money went, by model, step, tenant, run name, account or day."""

from __future__ import annotations

import csv
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from agentguard.audit.costs import CostLine, csv_cell
from agentguard.budget.model import Usage
from agentguard.cli import exit_codes, lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
    TenantOption,
)

_SPAN = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FIELDS = ("key", "usd", "steps", "tokens", "input_tokens", "output_tokens", "cached_tokens", "unpriced")


class By(StrEnum):
    """What the costs are summed by."""

    MODEL = "model"
    STEP = "step"
    KIND = "kind"
    TENANT = "tenant"
    NAME = "name"
    ACCOUNT = "account"
    RUN = "run"
    DAY = "day"


@app.command(epilog="--json: {by, since, total: {usd, steps}, costs: [{key, usd, steps, tokens, ...}]}.")
def costs(
    *,
    by: Annotated[By, typer.Option("--by", case_sensitive=False, help="What to sum by.")] = By.MODEL,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="From then on: 7d, 24h, 2026-11-01 (UTC), or a time."),
    ] = None,
    tenant: TenantOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the money went: what steps were charged, the dearest first."""
    lookup.use(store, home)
    if as_csv and as_json:
        raise exit_codes.UsageError("--csv and --json exclude each other")
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    moment = None if since is None else parse_since(since)
    found: list[CostLine] = []
    if lookup.store_is_there():
        with lookup.looking() as guard:
            found = guard.costs(by.value, since=moment, tenant=tenant)
    if as_csv:
        _print_csv(by, found)
    elif as_json:
        _print_json(by, since, found)
    else:
        _print_table(by, found)


def parse_since(text: str) -> datetime | timedelta:
    """Return the moment of a text: a span before now (`7d`, `24h`, `90m`), a day or a time (UTC).

    Raises:
        UsageError: it is none.
    """
    span = _SPAN.fullmatch(text.strip().lower())
    try:
        if span is not None:
            return timedelta(**{_UNITS[span[2]]: int(span[1])})
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise exit_codes.UsageError(f"--since takes 7d, 24h, 2026-11-01 or a time, not {text!r}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _print_table(by: By, found: list[CostLine]) -> None:
    console = output.console()
    if not found:
        console.print("nothing was charged here")
        return
    table = tables.table((by.value, "usd", "steps", "tokens", "unpriced"))
    for line in found:
        tables.add(table, *_cells(line))
    total = sum((line.usage for line in found), Usage())
    tables.add(table, *_cells(CostLine("total", total, sum(line.unpriced for line in found))))
    console.print(table)
    if unpriced := sum(line.unpriced for line in found):
        output.complain(f"{unpriced:,} model calls named no money: this is not all that they cost")


def _cells(line: CostLine) -> tuple[str, ...]:
    unpriced = f"{line.unpriced:,}" if line.unpriced else "-"
    tokens = f"{line.usage.tokens:,}"
    return (line.key or "-", output.money(line.usd), f"{line.steps:,}", tokens, unpriced)


def _print_csv(by: By, found: list[CostLine]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((by.value, *_FIELDS[1:]))
    for line in found:
        data = line.to_data()
        writer.writerow([csv_cell(line.key), *(data.get(name, 0) for name in _FIELDS[1:])])


def _print_json(by: By, since: str | None, found: list[CostLine]) -> None:
    total = sum((line.usage for line in found), Usage())
    output.print_json(
        {
            "by": by.value,
            "since": since,
            "total": {"usd": str(total.usd), "steps": total.steps},
            "costs": [line.to_data() for line in found],
        }
    )
