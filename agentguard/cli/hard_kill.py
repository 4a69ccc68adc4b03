"""`agentguard kill --hard`: for bodies that no stop can reach.

The kill is recorded as usual and the runs get a grace time to stop by themselves.  Then the processes that
are still in a body of a killed run are terminated, and killed if that does not help; which ones is put on
record in the control log before each signal.

A process is known by the row of a run that it owns, or, in a global kill, by its place in the kill page;
which runs a process has merely attached to is on record nowhere.  It is signalled only as long as its pid
and start time are what was recorded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from agentguard._home import store_url
from agentguard._process import is_alive
from agentguard.audit.verify import reconstruct
from agentguard.cli.kill_target import printable
from agentguard.errors import AgentGuardError
from agentguard.events.model import PROCESSES_SIGNALLED
from agentguard.guard import Guard
from agentguard.killswitch.model import RUN, Kill
from agentguard.killswitch.processes import Process, current
from agentguard.runs.state import RunState
from agentguard.runs.summary import state_of
from agentguard.sessions.dead import close_dead_runs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from agentguard.killswitch.page import PageKillSwitch
    from agentguard.protocols import RunRow

_PAUSE = 0.01
_LIVE = (RunState.CREATED, RunState.RUNNING, RunState.PAUSED)
#: Of the killed runs, so many of the newest are looked at: a body may be in flight after its run's end.
_NEWEST = 1000
#: How many other runs are named before.
_MOST_LINES = 20

#: Processes, and the ids of the runs for which each is meant.
Holders = dict[Process, list[str]]


class Other(NamedTuple):
    """A live run that is not meant, and ends with the process that it shares with one that is."""

    run_id: str
    name: str
    pid: int

    def __str__(self) -> str:
        return f"run {self.run_id} {self.name}, pid {self.pid}"


class Hard(NamedTuple):
    """What a hard kill came to; `others` are the runs that it ended without being meant for them."""

    signalled: dict[str, list[Process]]
    left: list[Process]
    others: list[Other]


class HardKill:
    """One hard kill: who is meant, whether they have stopped, and the signals."""

    def __init__(self, switch: PageKillSwitch, data: dict[str, Any], home: Path) -> None:
        self._switch = switch
        self._data = data
        self._meant = Kill(data["scope"], data["target"], data["reason"], data["actor"], 0, 0)
        self._guard = Guard.open(store_url(home), kill_switch=switch, telemetry=False)
        self._me = current()
        #: What could not be asked, in words.
        self.problems: list[str] = []

    def holding(self, generation: int | None = None) -> Holders:
        """The live processes in which a run that is meant goes on.

        With a `generation`, in a global kill also those that have not acted on it.
        """
        held: Holders = {}
        with self._noting("the store"):
            for row in self._rows():
                process = _owner_of(row)
                if process is not None and process != self._me and self._goes_on(row):
                    held.setdefault(process, []).append(row.run_id)
        if self._meant.scope == "global":
            with self._noting("the kill page"):
                switch = self._switch
                late = switch.participants() if generation is None else switch.unacknowledged(generation)
                for process in late:
                    if process != self._me:
                        held.setdefault(process, [])
        return held

    def enforce(self, generation: int, grace: float) -> Hard:
        """Wait for the runs to stop; then SIGTERM, and wait; then SIGKILL, and wait."""
        signalled: dict[str, list[Process]] = {}
        others: dict[str, Other] = {}
        _until(lambda: not self.holding(generation), grace)
        for name in ("SIGTERM", "SIGKILL"):
            held = self.holding(generation)
            if not held:
                break
            others |= {run.run_id: run for run in self.others(held)}
            self._record(generation, name, held)
            signalled[name] = [process for process in sorted(held) if _send(process, signal.Signals[name])]
            _until(lambda held=held: not any(process.alive for process in held), grace)  # type: ignore[misc]
        with self._noting("the store"):
            close_dead_runs(self._guard.components)
        left = sorted(self.holding(generation))
        reached = {process.pid for sent in signalled.values() for process in sent}
        reached -= {process.pid for process in left}
        return Hard(signalled, left, [run for run in others.values() if run.pid in reached])

    def others(self, held: Holders) -> list[Other]:
        """Return the live runs of these processes that are not meant: they end with their process."""
        found: list[Other] = []
        if held:
            with self._noting("the store"):
                meant = {row.run_id for row in self._rows()}
                for state in _LIVE:
                    for row in self._guard.components.store.rows(state=str(state), limit=2**31):
                        process = None if row.run_id in meant else _owner_of(row)
                        if process is not None and process in held:
                            found.append(Other(row.run_id, row.name, process.pid))
        return found

    def _rows(self) -> Iterator[RunRow]:
        store = self._guard.components.store
        if self._meant.scope == RUN:
            row = store.row(self._meant.target)
            yield from () if row is None else self._with_nested(row)
            return
        for state in _LIVE:
            yield from filter(self._covers, store.rows(state=str(state), limit=2**31))
        yield from filter(self._covers, store.rows(state=str(RunState.KILLED), limit=_NEWEST))

    def _with_nested(self, row: RunRow) -> Iterator[RunRow]:
        yield row
        for child in self._guard.components.store.children(row.run_id):
            yield from self._with_nested(child)

    def _covers(self, row: RunRow) -> bool:
        return self._meant.covers(row.tenant, row.run_id)

    def _goes_on(self, row: RunRow) -> bool:
        """Whether the run has not ended, or a body is still in flight."""
        return not state_of(row).final or bool(reconstruct(self._guard.components.store, row).open)

    def _record(self, generation: int, name: str, held: Holders) -> None:
        processes = [{"pid": p.pid, "start": p.start, "runs": runs} for p, runs in sorted(held.items())]
        facts = {"kill": generation, "signal": name, "processes": processes, "actor": self._data["actor"]}
        with self._noting("the control log"):
            self._switch.record(PROCESSES_SIGNALLED, facts)

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """A block that a fault of one source ends, so that the others still count."""
        try:
            yield
        except (AgentGuardError, OSError) as error:
            if (problem := f"{what}: {error}") not in self.problems:
                self.problems.append(problem)

    def close(self) -> None:
        """Give back what was opened, the switch too."""
        self._guard.close()


def confirmed(kill: HardKill, options: argparse.Namespace, ask: Callable[[str], str]) -> bool:
    """Say what else ends, and ask on a terminal; elsewhere only `--yes` will do."""
    held = kill.holding()
    _warn(kill.others(held))
    if options.yes:
        return True
    if not sys.stdin.isatty():
        print("agentguard kill: --hard ends processes; say --yes where nobody can be asked", file=sys.stderr)
        return False
    pids = ", ".join(str(process.pid) for process in sorted(held)) or "none at present"
    print(
        f"This ends the processes that do not stop within {options.grace:g} s: pid {pids}.", file=sys.stderr
    )
    return ask("Type 'kill hard' to go on: ") == "kill hard"


def _warn(others: list[Other]) -> None:
    if not others:
        return
    print("agentguard kill: --hard also ends what else runs in these processes:", file=sys.stderr)
    for run in others[:_MOST_LINES]:
        print(f"  {printable(str(run))}", file=sys.stderr)
    if len(others) > _MOST_LINES:
        print(f"  and {len(others) - _MOST_LINES} more", file=sys.stderr)


def describe(hard: Hard) -> str:
    """The outcome in words."""
    if not hard.signalled:
        return "all stopped by themselves" if not hard.left else _still(hard.left)
    said = [f"{name} to pid {_pids(processes)}" for name, processes in hard.signalled.items()]
    return "; ".join(said + ([_still(hard.left)] if hard.left else []))


def _still(left: Iterable[Process]) -> str:
    return f"still there: pid {_pids(left)}"


def _pids(processes: Iterable[Process]) -> str:
    return ", ".join(str(process.pid) for process in processes)


def _owner_of(row: RunRow) -> Process | None:
    """The process that owns a run, if it is one of this host, alive, and no other."""
    owner = row.owner
    if not owner.get("start") or is_alive(owner) is not True:
        return None
    return Process(int(owner["pid"]), int(owner["start"]))


def _send(process: Process, number: signal.Signals) -> bool:
    """Signal this process and no other that has got its pid; gives whether it was there."""
    if not process.start:
        return False
    try:
        if not hasattr(os, "pidfd_open"):
            if process.alive:
                os.kill(process.pid, number)
                return True
            return False
        descriptor = os.pidfd_open(process.pid)
        try:
            if not process.alive:  # asked while the descriptor holds whoever has the pid
                return False
            signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_PAUSE)
