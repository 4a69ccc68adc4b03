"""`agentguard tenants`: budgets of tenants, and what was spent of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from agentguard import config
from agentguard._home import store_url
from agentguard._optional import require
from agentguard.budget.model import Budget
from agentguard.cli import exit_codes, lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.limits import CounterOption, StepsOption, TokensOption, UsdOption, limits_of
from agentguard.cli.options import (
    ActorOption,
    HomeOption,
    JsonOption,
    StoreOption,
)
from agentguard.guard import Guard
from agentguard.queries import TenantAccount
from agentguard.runs.summary import usage_data
from agentguard.tenancy import check_id

Period = Literal["day", "month"]


@app.command(epilog="--json: an array of {tenant, per, budget, spent}.")
def tenants(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="This tenant alone.", show_default=False)
    ] = None,
    *,
    usd: UsdOption = None,
    tokens: TokensOption = None,
    steps: StepsOption = None,
    counter: CounterOption = None,
    per: Annotated[
        Period | None, typer.Option("--per", metavar="day|month", help="Begin anew each UTC day or month.")
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Lift the tenant's limits of this window.")] = False,
    login: Annotated[
        str | None,
        typer.Option("--login", metavar="ROLE", help="Let this PostgreSQL login read that tenant alone."),
    ] = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tenants' limits and what was spent of them in the present window, or set the limits of one."""
    lookup.use(store, home)
    limits = limits_of(usd, tokens, steps, None, counter or ())
    if tenant is None and (limits or lift or login):
        raise exit_codes.UsageError("name the tenant whose limits are to be set: agentguard tenants acme ...")
    if limits and lift:
        raise exit_codes.UsageError("--lift takes limits away; leave it out where limits are given")
    if tenant is not None and login is not None:
        _bind(login, tenant)
    if tenant is not None and (limits or lift):
        _set(tenant, Budget(**limits), per, actor)
    _list_tenants(tenant, as_json=as_json)


def _set(tenant: str, budget: Budget, per: Period | None, actor: str | None) -> None:
    with lookup.acting() as guard:
        try:
            guard.set_tenant_budget(tenant, budget, per, actor=actor)
        except ValueError as error:
            raise exit_codes.UsageError(str(error)) from error


def _bind(login: str, tenant: str) -> None:
    url = store_url()
    if not url.startswith("postgresql:"):
        raise exit_codes.UsageError("--login is for PostgreSQL, whose server keeps tenants apart")
    require("psycopg", extra="postgres", feature="an event store in PostgreSQL")
    from agentguard.stores._postgres_schema import bind_login

    bind_login(config.postgres_options(url)[0], login, check_id(tenant, "tenant"))


def _list_tenants(tenant: str | None, *, as_json: bool) -> None:
    """List the tenants with a budget, or one of them."""
    found: list[TenantAccount] = []
    if lookup.store_is_there():
        with (
            lookup.reading() as plain,
            Guard.open(kill_switch=lookup.control_log(plain), telemetry=False) as guard,
        ):
            found = [account for account in guard.tenants() if tenant in (None, account.tenant)]
    if as_json:
        output.print_json([_tenant_data(account) for account in found])
        return
    console = output.console()
    if not found:
        console.print("no tenant has a budget; `agentguard tenants NAME --usd 5 --per day` gives it one")
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
