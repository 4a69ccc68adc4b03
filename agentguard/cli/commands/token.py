"""`agentguard token`: who may open the console."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from agentguard import config
from agentguard.cli import lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.exit_codes import UsageError
from agentguard.cli.options import HomeOption, JsonOption
from agentguard.console.tokens import FILE, Role, Token, Tokens

token = typer.Typer(help="Make, list and revoke the tokens that open the console.", no_args_is_help=True)
app.add_typer(token, name="token")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Whose it is; actions are recorded under it.")
]


def tokens() -> Tokens:
    """The tokens of the state directory."""
    return Tokens(config.home() / FILE)


@token.command(epilog="--json: {name, token}.")
def add(
    *,
    name: NameArgument,
    role: Annotated[str, typer.Option("--role", metavar="R", help="viewer, operator or admin.")] = "viewer",
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="T", help="Only the runs of this tenant.")
    ] = None,
    days: Annotated[float, typer.Option("--days", metavar="N", help="How many days it works.")] = 90.0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, this once."""
    lookup.use(None, home)
    try:
        secret = tokens().add(name, Role.named(role), tenant=tenant, lifetime=timedelta(days=days))
    except (OverflowError, ValueError) as error:
        raise UsageError(str(error)) from error
    if as_json:
        output.print_json({"name": name, "token": secret})
    else:
        print(secret)


@token.command("list", epilog="--json: an array of {name, role, tenant, expires, works}.")
def list_tokens(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the tokens; what they are made of is not kept."""
    lookup.use(None, home)
    now = datetime.now(UTC).timestamp()
    found = tokens().all()
    if as_json:
        output.print_json([_data(token, now) for token in found])
        return
    table = tables.table(("name", "role", "tenant", "expires", "state"))
    for each in found:
        state = "works" if each.works(now) else "revoked" if each.revoked is not None else "expired"
        tables.add(table, each.name, each.role, each.tenant or "all", _day(each.expires), state)
    output.console().print(table)


@token.command(epilog="--json: {name, works}.")
def revoke(name: NameArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let a token open nothing from now on, and end its sessions."""
    lookup.use(None, home)
    tokens().revoke(name)
    if as_json:
        output.print_json({"name": name, "works": False})
    else:
        print(output.one_line(f"revoked {name}"))


def _data(each: Token, now: float) -> dict[str, object]:
    return {
        "name": each.name,
        "role": each.role,
        "tenant": each.tenant,
        "expires": _day(each.expires) or None,
        "works": each.works(now),
    }


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
