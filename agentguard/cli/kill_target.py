"""Which runs a kill means, asked of the store's file by the standard library alone.

The file helps, and is never in the way: a run may live in a store that this command does not know of, so
whatever is not found there, or cannot be read, is killed as it was typed.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from agentguard._process import counts_as_alive

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

#: What listings show of an id at least; less is not taken for the beginning of one.
_SHORTEST = 8
#: How long, in seconds, somebody who writes to the file is waited for.
_PATIENCE = 0.5


class Target(NamedTuple):
    """The run that was meant; `known` is None where nobody could be asked."""

    run_id: str
    known: bool | None


class AmbiguousError(ValueError):
    """What was typed begins the ids of several runs."""


def find(typed: str, home: Path) -> Target:
    """The run that `typed` names, or begins as no other does.

    Raises:
        AmbiguousError: several begin with it.
    """
    file = _store_file(home)
    if file is None or not file.exists():
        return Target(typed, None)
    import sqlite3  # where there is a file to ask, and not before

    try:
        found = _begin_with(file, typed)
    except sqlite3.Error:
        return Target(typed, None)
    if typed in found:
        return Target(typed, True)
    if len(found) > 1 and len(typed) >= _SHORTEST:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise AmbiguousError(f"several runs begin with {typed!r}: {some}; type more of the id")
    if len(found) == 1 and len(typed) >= _SHORTEST:
        return Target(found[0], True)
    return Target(typed, False)


class LiveRun(NamedTuple):
    """A run that a kill covers and that has not ended, as its row says."""

    run_id: str
    dead: bool


def live_runs(data: Mapping[str, Any], home: Path) -> list[LiveRun] | None:
    """The runs that an order covers and that have not ended; None where nobody could be asked."""
    file = _store_file(home)
    if file is None or not file.exists():
        return None
    import sqlite3

    query = "SELECT run_id, owner, heartbeat_ns FROM run WHERE state IN ('CREATED', 'RUNNING', 'PAUSED')"
    column = {"run": " AND run_id = ?", "tenant": " AND tenant = ?"}.get(data["scope"], "")
    try:
        with closing(_connected(file)) as connection:
            found = connection.execute(query + column, [data["target"]] if column else []).fetchall()
    except sqlite3.Error:
        return None
    return [LiveRun(run_id, _is_dead(owner, heartbeat)) for run_id, owner, heartbeat in found]


def _is_dead(owner: Any, heartbeat_ns: Any) -> bool:
    try:
        return not counts_as_alive(dict(json.loads(owner)), int(heartbeat_ns), time.time_ns())
    except (TypeError, ValueError):
        return False


def close_dead(runs: Sequence[LiveRun], home: Path) -> int:
    """Write the end of runs whose processes are dead, which cannot do it; gives how many now have one.

    What of it fails is left to whoever looks next.
    """
    dead = [run.run_id for run in runs if run.dead]
    closed = 0
    if dead:  # and only then are store and rules needed
        from agentguard.errors import AgentGuardError
        from agentguard.guard import Guard
        from agentguard.killswitch.page import PageKillSwitch
        from agentguard.runs.state import RunState
        from agentguard.sessions.dead import close_dead_run

        with suppress(AgentGuardError, OSError, ValueError):
            store = (
                None if os.environ.get("AGENTGUARD_STORE") else f"sqlite:///{quote(str(_store_file(home)))}"
            )
            with Guard.open(store, kill_switch=PageKillSwitch(home), telemetry=False) as guard:
                for run_id in dead:
                    row = guard.components.store.row(run_id)
                    if row is not None:
                        closed += RunState(close_dead_run(guard.components, row).state).final
    return closed


def _store_file(home: Path) -> Path | None:
    url = os.environ.get("AGENTGUARD_STORE")
    if not url:
        return home / "agentguard.db"
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Path(unquote(url.removeprefix("sqlite:///").partition("?")[0])).expanduser()
    return None


def _begin_with(file: Path, typed: str) -> list[str]:
    with closing(_connected(file)) as connection:
        query = (
            "SELECT run_id FROM run WHERE run_id = :typed "
            "UNION ALL SELECT run_id FROM run WHERE run_id > :typed AND substr(run_id, 1, :length) = :typed "
            "LIMIT 7"
        )
        return [row[0] for row in connection.execute(query, {"typed": typed, "length": len(typed)})]


def _connected(file: Path) -> sqlite3.Connection:
    import sqlite3

    uri = f"file:{quote(str(file.absolute()))}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE)
