"""`agentguard approvals`: the steps that wait for an operator."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from agentguard import _encoding
from agentguard.audit.reading import asked_arguments
from agentguard.cli import lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
)
from agentguard.guard import Guard
from agentguard.monitoring import Approval


@app.command(epilog="--json: an array of {run_id, key, name, limit, seq, asked_ns, timeout, arguments}.")
def approvals(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the steps that wait for an approval, or for a higher limit."""
    lookup.use(store, home)
    _list_waiting(as_json=as_json)


class Waiting(NamedTuple):
    """A step that waits, and what it was called with, if that was captured."""

    approval: Approval
    arguments: Any


def _list_waiting(*, as_json: bool) -> None:
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
        console.print("no step waits for an approval or a higher limit")
        return
    table = tables.table(("run", "key", "event", "step"))
    for asked, arguments in waiting:
        wants = f"({_said(arguments)})" if asked.limit is None else f": {asked.limit['message']}"
        until = "" if asked.timeout is None else f"; denied after {asked.timeout:g} s without an answer"
        tables.add(table, asked.run_id, asked.key, str(asked.seq), f"{asked.name}{wants}{until}")
    console.print(table)


def _arguments(guard: Guard, asked: Approval) -> Any:
    """What the newest request of a step was made with, as `[[...], {...}]`."""
    payload = asked_arguments(guard.components.store, asked.run_id, asked.key)
    return None if payload is None else _encoding.decode(payload)


def _said(arguments: Any) -> str:
    if arguments is None:
        return "..."
    positional, named = arguments
    said = [json.dumps(value, ensure_ascii=False) for value in positional]
    return ", ".join(
        said + [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in named.items()]
    )
