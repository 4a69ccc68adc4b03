"""`agentguard relay`: the relay of this host for kills over the network."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from agentguard import config
from agentguard.cli import lookup
from agentguard.cli.app import app
from agentguard.cli.exit_codes import UsageError
from agentguard.cli.options import HomeOption, StoreOption


@app.command(epilog="It runs until SIGTERM or Ctrl-C.")
def relay(
    *,
    switch: Annotated[
        str | None,
        typer.Option(
            "--kill-switch",
            metavar="URL",
            help="The server that has the kills, as redis://host:6379/0 or postgresql://... "
            "[AGENTGUARD_KILL_SWITCH, or AGENTGUARD_STORE where it is PostgreSQL].",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What `agentguard kill` calls this host; by default its name."),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
) -> None:
    """Relay kills from a server to the page of this host."""
    from agentguard.killswitch.network import folder_of, split_url
    from agentguard.killswitch.relay import serve

    lookup.use(store, home)
    url = switch or os.environ.get("AGENTGUARD_KILL_SWITCH") or os.environ.get(lookup.STORE_VARIABLE) or ""
    try:
        server, _ = split_url(url)
    except ValueError as error:
        raise UsageError(f"{error}; say --kill-switch URL") from error
    if not serve(folder_of(server, config.home()), server, stay=True, name=name):
        raise UsageError(f"{config.home()} has a relay already; it ends with the last process that needs it")
