"""`agentguard tenants`: budgets of tenants, and what was spent of them."""

from __future__ import annotations

from typing import Any

from agentguard.cli import lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
)
from agentguard.guard import Guard
from agentguard.queries import TenantAccount
from agentguard.runs.summary import usage_data


@app.command(epilog="--json: an array of {tenant, per, budget, spent}.")
def tenants(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the tenants with a budget, and what they have spent of it in the present window."""
    lookup.use(store, home)
    _list_tenants(as_json=as_json)


def _list_tenants(*, as_json: bool) -> None:
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
    table = tables.table(("tenant", "window", "limits", "spent"))
    for account in found:
        window = {"day": "this day (UTC)", "month": "this month (UTC)"}.get(account.per or "", "all time")
        spent = output.amounts(account.spent, steps=True) or "nothing"
        tables.add(table, account.tenant, window, output.limits(account.budget), spent)
    console.print(table)


def _tenant_data(account: TenantAccount) -> dict[str, Any]:
    return {
        "tenant": account.tenant,
        "per": account.per,
        "budget": account.budget.to_fields(),
        "spent": usage_data(account.spent),
    }
