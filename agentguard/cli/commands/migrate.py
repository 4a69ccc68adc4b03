"""`agentguard migrate`: bring the schema of a PostgreSQL store up to date."""

from __future__ import annotations

from agentguard import config
from agentguard._home import store_url
from agentguard._optional import require
from agentguard._secrets.urls import public_url
from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import JsonOption, StoreOption


@app.command(epilog="--json: an array of what was done.")
def migrate(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Make or update the schema of a PostgreSQL store, as its owner; other stores do it by themselves.

    Run it before a new version of agentguard is used, now and then for the partitions of the coming months,
    and after a backup was restored into another server.
    """
    lookup.use(store, None)
    url = store_url()
    if not url.startswith("postgresql:"):
        raise exit_codes.UsageError(
            f"{public_url(url)} needs no migration; name a postgresql:// store with --store"
        )
    require("psycopg", extra="postgres", feature="an event store in PostgreSQL")
    from agentguard.stores._postgres_schema import migrate as migrate_schema

    server, _ = config.postgres_options(url)
    done = migrate_schema(server)
    if as_json:
        output.print_json(done)
    else:
        print("\n".join(done) if done else "the schema is up to date")
