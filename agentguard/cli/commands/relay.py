"""`agentguard relay`: what a deployment runs beside its agents: kills to this host, events to Kafka."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated

import typer

from agentguard import config
from agentguard.cli import lookup, output
from agentguard.cli.app import app
from agentguard.cli.exit_codes import UsageError
from agentguard.cli.options import HomeOption, JsonOption, StoreOption
from agentguard.guard import Guard
from agentguard.killswitch.network import folder_of
from agentguard.killswitch.relay import serve
from agentguard.publishing.outbox import Outbox


@app.command(epilog="It runs until SIGTERM or Ctrl-C.  --json: its log, an object a line.")
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
    publish: Annotated[
        str | None,
        typer.Option(
            "--publish",
            metavar="URL",
            help="Also publish the store's events, to kafka://host:port/topic; a topic with {tenant} in "
            "its name is one for each tenant.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What `agentguard kill` calls this host [its host name].")
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Relay kills from a server to the page of this host, and events from the store to Kafka."""
    lookup.use(store, home)
    output.log(as_json=as_json)
    server = lookup.kill_server(switch)
    if server is None and publish is None:
        raise UsageError("there is nothing to relay: say --kill-switch URL, --publish URL, or both")
    if publish is None:
        if not _relays_kills(server, name):
            known = f"{config.home()} has a relay already"
            raise UsageError(f"{known}; it ends with the last process that needs it")
        return
    with _outbox(publish) as outbox, ThreadPoolExecutor(1, "agentguard-publish") as thread:
        published = thread.submit(outbox.run)
        try:
            if not _relays_kills(server, name):  # of one host, one process does
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: outbox.stop())
                published.result()
        finally:
            outbox.stop()
        published.result()


def _relays_kills(server: str | None, name: str | None) -> bool:
    """Relay kills until SIGTERM; return False at once where no server has any, or another relay does it."""
    return server is not None and serve(folder_of(server, config.home()), server, stay=True, name=name)


@contextmanager
def _outbox(url: str) -> Iterator[Outbox]:
    from agentguard.publishing.kafka import KafkaPublisher, reader_name, tenants_of

    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        store = guard.components.store
        try:
            tenant_of = tenants_of(store)
            KafkaPublisher(url, tenant_of)  # what cannot be meant is said now, and not tried again
            yield Outbox(store, lambda: KafkaPublisher(url, tenant_of), reader_name(url))
        except ValueError as error:
            raise UsageError(str(error)) from error
