"""Which runs a kill means, asked of a SQLite store's file by the standard library alone.

The store helps, and is never in the way: a run may live in one that this command does not know of, so
whatever is not found there, or cannot be read, is killed as it was typed.
"""

from __future__ import annotations

import json
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote

from agentguard._clock import SYSTEM_CLOCK
from agentguard._home import sqlite_path, store_url
from agentguard._process import counts_as_alive, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentguard.killswitch.page import PageKillSwitch

#: What listings show of an id at least; less is not taken for the beginning of one.
SHORTEST = 8
#: Of the killed runs of a tenant, or of all, so many of the newest: a body may outlive its run's end.
NEWEST = 1000
_COVERED = {
    "run": """
        WITH RECURSIVE meant(id) AS (
            SELECT :target UNION SELECT run.run_id FROM run JOIN meant ON run.parent_id = meant.id
        )
        SELECT run_id, owner, heartbeat_ns, state FROM run WHERE run_id IN meant
    """,
    "tenant": """
        SELECT run_id, owner, heartbeat_ns, state FROM run
        WHERE tenant = :target AND state IN ('CREATED', 'RUNNING', 'PAUSED')
        UNION ALL SELECT * FROM (
            SELECT run_id, owner, heartbeat_ns, state FROM run
            WHERE tenant = :target AND state = 'KILLED' ORDER BY number DESC LIMIT :newest
        )
    """,
    "global": """
        SELECT run_id, owner, heartbeat_ns, state FROM run WHERE state IN ('CREATED', 'RUNNING', 'PAUSED')
        UNION ALL SELECT * FROM (
            SELECT run_id, owner, heartbeat_ns, state FROM run
            WHERE state = 'KILLED' ORDER BY number DESC LIMIT :newest
        )
    """,
}
_LIVE = ("CREATED", "RUNNING", "PAUSED")
#: How long, in seconds, somebody who writes to the file is waited for.
_PATIENCE = 0.5


class Target(NamedTuple):
    """The run that was meant; `known` is None where nobody could be asked."""

    run_id: str
    known: bool | None


class AmbiguousError(ValueError):
    """What was typed begins the ids of several runs."""


class LiveRun(NamedTuple):
    """A run that a kill covers, as its row says: it has not ended, or a body may go on in its process.

    `dead`: its process counts as dead, or it has none; `gone`: the process provably is, and not for want of a
    sign of life alone; `waits`: it has none, as one that was submitted or let go.
    """

    run_id: str
    dead: bool
    ended: bool = False
    gone: bool = True
    waits: bool = False

    @property
    def unheard(self) -> bool:
        """Whether nobody can tell from here if its process lives."""
        return self.dead and not self.gone


class Runs(Protocol):
    """Where runs are looked up; None for an answer where nobody could be asked."""

    #: Why a store that should be there could not be asked, in words.
    problem: str | None

    def beginning(self, typed: str) -> list[str] | None:
        """Return the run of this id first, and some of those whose ids begin so."""

    def covered(self, data: Mapping[str, Any]) -> list[LiveRun] | None:
        """Return the runs that an order is for, with the newest ended ones whose processes live."""


def file_of(home: Path) -> Runs | None:
    """Return what tells of the runs of a SQLite store, of a home or of the environment; None for another."""
    with suppress(ValueError):
        return _File(sqlite_path(store_url(home)))
    return None


def find(typed: str, runs: Runs) -> Target:
    """The run that `typed` names, or begins as no other does.

    Raises:
        AmbiguousError: several begin with it.
    """
    found = runs.beginning(typed)
    if found is None:
        return Target(typed, None)
    if typed in found:
        return Target(typed, True)
    if len(found) > 1 and len(typed) >= SHORTEST:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise AmbiguousError(f"several runs begin with {typed!r}: {some}; type more of the id")
    if len(found) == 1 and len(typed) >= SHORTEST:
        return Target(found[0], True)
    return Target(typed, False)


class _File:
    """The runs of a SQLite file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.problem: str | None = None

    def beginning(self, typed: str) -> list[str] | None:
        query = (
            "SELECT run_id FROM run WHERE run_id = :typed "
            "UNION ALL SELECT run_id FROM run WHERE run_id > :typed AND run_id < :typed || char(1114111) "
            "LIMIT 7"
        )
        found = self._select(query, {"typed": typed})
        return None if found is None else [row[0] for row in found]

    def covered(self, data: Mapping[str, Any]) -> list[LiveRun] | None:
        found = self._select(_COVERED[data["scope"]], {"target": data["target"], "newest": NEWEST})
        if found is None:
            return None
        return chosen([live_run(row[0], row[3], *_owner(row[1], row[2])) for row in found], data)

    def _select(self, query: str, parameters: dict[str, Any]) -> list[Any] | None:
        if not self._file.exists():
            return None
        import sqlite3  # where there is a file to ask, and not before

        uri = f"file:{quote(str(self._file.absolute()))}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as connection:
                return connection.execute(query, parameters).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self.problem = f"{self._file}: {error}"
            return None


def live_run(run_id: str, state: str, owner: dict[str, Any] | None, heartbeat_ns: int) -> LiveRun:
    """Return what a row says of a run that a kill covers; an owner that cannot be read may be alive."""
    waits = owner == {}
    dead = waits or bool(owner and not counts_as_alive(owner, heartbeat_ns, SYSTEM_CLOCK.wall()))
    gone = bool(owner and dead and is_alive(owner) is False)
    return LiveRun(run_id, dead, state not in _LIVE, gone, waits)


def chosen(runs: Sequence[LiveRun], data: Mapping[str, Any]) -> list[LiveRun]:
    """Return the runs that are told of: of ended ones those whose process may go on.

    Of a process that is not heard of any more, only where the run was named: else each kill would tell of
    whatever had been left open on another host.
    """
    named = data["scope"] == "run"
    return [run for run in runs if not (run.ended and run.dead) or (named and run.unheard)]


def _owner(owner: Any, heartbeat_ns: Any) -> tuple[dict[str, Any] | None, int]:
    """Return a row's owner and sign of life; None, where they cannot be read."""
    try:
        return dict(json.loads(owner)), int(heartbeat_ns)
    except (TypeError, ValueError):
        return None, 0


def close_dead(runs: Sequence[LiveRun], home: Path, switch: Callable[[], PageKillSwitch]) -> list[LiveRun]:
    """Write the end of runs whose processes are dead, which cannot do it; gives those that now have one.

    What of it fails is left to whoever looks next.
    """
    dead = [run for run in runs if run.dead and not run.ended]
    closed = []
    if dead:  # and only then are store and rules needed
        from agentguard.errors import AgentGuardError
        from agentguard.guard import Guard
        from agentguard.runs.summary import state_of
        from agentguard.sessions.dead import close_dead_run

        with (
            suppress(AgentGuardError, OSError, ValueError),
            Guard.open(store_url(home), kill_switch=switch(), telemetry=False) as guard,
        ):
            for run in dead:
                row = guard.components.store.row(run.run_id)
                if row is not None and state_of(close_dead_run(guard.components, row)).final:
                    closed.append(run)
    return closed


def printable(text: str) -> str:
    """Return a line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
