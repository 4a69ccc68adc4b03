"""What a store says of a kill: which runs it covers, and which of their bodies are still in flight.

What goes on is asked once the kill is recorded and acknowledged.  Which runs are meant is asked before, and
of a store that does not answer only for a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agentguard._clock import SYSTEM_CLOCK
from agentguard._home import store_url
from agentguard.audit.verify import reconstruct
from agentguard.cli import lookup
from agentguard.cli.kill_target import NEWEST, LiveRun, chosen, live_run
from agentguard.errors import AgentGuardError
from agentguard.events.data import StopSwallowed
from agentguard.guard import Guard
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.state import RunState
from agentguard.steps.spinning import CANCELLED, SLOWED

#: Of how many covered runs it is asked what goes on in them.
MOST = 1000
_PAUSE = 0.02
#: Seconds, in which code that swallows its stop and calls again is refused often enough to be told of.
_MOMENT = 0.05
#: How long, in seconds, a store that does not answer is waited for.
_PATIENCE = 3.0
_T = TypeVar("_T")
_LIVE = tuple(str(state) for state in RunState if not state.final)


class Covered(NamedTuple):
    """A run that was live when it was killed, and the keys of its steps that are still in flight.

    `swallowed` has where its code went on calling after the stop, and what was done about it.  `unheard_s` is
    for how many seconds its process has given no sign of life, where nobody can tell from here if it lives.
    """

    run_id: str
    name: str
    pid: int | None
    host: str
    in_flight: tuple[str, ...]
    swallowed: tuple[StopSwallowed, ...] = ()
    unheard_s: float | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing goes on, and what swallows its stop has been cancelled; or waiting is in vain."""
        if self.unheard_s is not None:
            return True
        spinning = {said["branch"] for said in self.swallowed if said["action"] == SLOWED}
        return not self.in_flight and spinning <= {
            said["branch"] for said in self.swallowed if said["action"] == CANCELLED
        }

    def to_data(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        swallowed = {"stop_swallowed": list(self.swallowed)} if self.swallowed else {}
        unheard = {} if self.unheard_s is None else {"unheard_s": round(self.unheard_s, 1)}
        facts = self._asdict() | {"in_flight": list(self.in_flight)}
        del facts["swallowed"], facts["unheard_s"]
        return facts | swallowed | unheard

    def __str__(self) -> str:
        where = f"pid {self.pid} on {self.host}" if self.pid is not None else "no process"
        keys = ", ".join(self.in_flight)
        said = f"{keys} goes on" if keys else "stopped"
        if keys and self.unheard_s is not None:
            said = (
                f"{keys} was in flight when its process was last heard of, {self.unheard_s:.0f} s ago, and "
                "nobody can tell from here whether it goes on"
            )
        actions: dict[str, list[str]] = {}
        for told in self.swallowed:
            actions.setdefault(told["branch"], []).append(told["action"])
        for branch, done in actions.items():
            said += f"; {branch} swallowed its stop, and was {' and '.join(dict.fromkeys(done))}"
        return f"run {self.run_id} {self.name}, {where}: {said}"


@contextmanager
def _store(home: Path) -> Iterator[EventStore]:
    url = store_url(home)
    if url.startswith("memory://"):
        raise ValueError(f"{url} lives in the process that uses it, and no other can look inside")
    with Guard.open(url, kill_switch="memory", telemetry=False, store_timeout=_PATIENCE) as guard:
        yield guard.components.store


class StoreRuns:
    """The runs of a store that is no SQLite file; once it has not answered, it is asked no more."""

    def __init__(self, home: Path) -> None:
        self._home = home
        #: Why it could not be asked, in words.
        self.problem: str | None = None

    def beginning(self, typed: str) -> list[str] | None:
        """Return the run of this id alone, or else those whose ids begin so."""
        return self._ask(lambda store: _beginning(store, typed))

    def covered(self, data: Mapping[str, Any]) -> list[LiveRun] | None:
        """Return the runs that an order is for, with the newest ended ones whose processes live."""
        return self._ask(lambda store: _covered(store, data))

    def _ask(self, question: Callable[[EventStore], _T]) -> _T | None:
        if self.problem is None:
            try:
                with _store(self._home) as store:
                    return question(store)
            except (AgentGuardError, ImportError, OSError, ValueError) as error:
                self.problem = str(error)
        return None


def _beginning(store: EventStore, typed: str) -> list[str]:
    if store.row(typed) is not None:
        return [typed]
    return lookup.beginning(store, typed)


def _covered(store: EventStore, data: Mapping[str, Any]) -> list[LiveRun]:
    rows: list[RunRow] = []
    if data["scope"] == "run":
        row = store.row(data["target"])
        rows.extend(() if row is None else _with_nested(store, row))
    else:
        tenant = data["target"] if data["scope"] == "tenant" else None
        for state in _LIVE:
            rows.extend(store.rows(tenant=tenant, state=state, limit=2**31))
        rows.extend(store.rows(tenant=tenant, state=str(RunState.KILLED), limit=NEWEST))
    return chosen([live_run(row.run_id, row.state, row.owner, row.heartbeat_ns) for row in rows], data)


def _with_nested(store: EventStore, row: RunRow) -> Iterator[RunRow]:
    yield row
    for child in store.children(row.run_id):
        yield from _with_nested(store, child)


def named(name: str, home: Path) -> list[RunRow]:
    """Return the runs of exactly this name that live, or were killed and have bodies that go on.

    There are none where the store cannot be asked.
    """
    with suppress(AgentGuardError, OSError, ValueError), _store(home) as store:
        live = [row for state in _LIVE for row in store.rows(state=state, limit=2**31) if row.name == name]
        killed = store.rows(state=str(RunState.KILLED), limit=NEWEST)
        return live + [row for row in killed if row.name == name and _look(store, row).in_flight]
    return []


def what_goes_on(runs: Sequence[LiveRun], home: Path, seconds: float) -> list[Covered]:
    """Return how the runs stand, once nothing goes on in them or `seconds` have passed.

    Of runs that had ended before the kill, only those are told in which a body went on.

    Raises:
        AgentGuardError: the store cannot be asked.
    """
    deadline = time.monotonic() + seconds
    ended = {run.run_id for run in runs if run.ended}
    asked = [run.run_id for run in runs if not run.ended][:MOST] + list(ended)
    with _store(home) as store:
        if len(ended) < len(runs):
            time.sleep(min(_MOMENT, seconds))
        rows = [row for run_id in asked if (row := store.row(run_id)) is not None]
        found = [run for row in rows if (run := _look(store, row)).in_flight or row.run_id not in ended]
        told = {run.run_id for run in found}
        rows = [row for row in rows if row.run_id in told]
        while not all(run.settled for run in found) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            found = [_look(store, row) for row in rows]
        return found


def _look(store: EventStore, row: RunRow) -> Covered:
    in_flight: tuple[str, ...] = ()
    swallowed: tuple[StopSwallowed, ...] = ()
    now = SYSTEM_CLOCK.wall()
    row = store.row(row.run_id) or row
    run = live_run(row.run_id, row.state, row.owner, row.heartbeat_ns)
    with suppress(AgentGuardError):  # of a damaged log, `verify` tells
        fold = reconstruct(store, row)
        swallowed = tuple(fold.swallowed)
        if not run.gone:
            in_flight = tuple(fold.open)
    return Covered(
        row.run_id,
        row.name,
        row.owner.get("pid"),
        str(row.owner.get("host", "")),
        in_flight,
        swallowed,
        (now - row.heartbeat_ns) / 1e9 if run.unheard else None,
    )
