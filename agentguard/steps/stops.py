"""What stops a run in this process: the stop on record, the stops of scopes, and the kill signal.

Written under the log's lock, but for the signal's own generation, and read without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from agentguard.errors import AgentGuardError, RunStopped
from agentguard.killswitch.model import GENERATION
from agentguard.runs.termination import stop_from

if TYPE_CHECKING:
    from agentguard.protocols import KillSwitch
    from agentguard.steps.in_flight import InFlight
    from agentguard.steps.log import RunLog


class Refusals(NamedTuple):
    """How often a branch was refused in a row, and where: its last call, and the head of the log."""

    number: int
    pos: int
    seq: int


class Draining:
    """One drain of a run, and of the runs nested in it in this process; its rules are in `draining`."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        #: What the agent is told; it is put on no record.
        self.stop = RunStopped(
            f"this process has drained run {run_id}: it takes no further step here and has not ended; "
            f"guard.recover({run_id!r}) carries it on"
        )
        self.stop.run_id = run_id
        #: Whether the run is given up: nothing more is written to it.  Set under the log's lock.
        self.released = False
        #: Set when the drain is over, also where the run ended instead.
        self.over = threading.Event()
        #: Steps that were cut off, by run and key.
        self.cut_off: set[tuple[str, str]] = set()
        #: What stayed in flight, once the drain is over.
        self.left: frozenset[tuple[str, str]] = frozenset()


class Stops:
    """The stops of one run, and whom they cancel."""

    def __init__(self, log: RunLog, in_flight: InFlight, switch: KillSwitch) -> None:
        self._log = log
        self._in_flight = in_flight
        self._switch = switch
        #: The stop on record; once set it stays.
        self.stop: RunStopped | None = None
        #: The stops of scopes, by their keys.
        self.scopes: dict[str, RunStopped] = {}
        #: How often in a row each branch was refused with a stop, by the branches' paths.
        self.refusals: dict[str, Refusals] = {}
        #: The branches that went on calling after their stop, and what was done about it: what is on record.
        self.swallowed: set[tuple[str, str]] = set()
        #: How this process is letting go of the run, or has, without ending it.
        self.draining: Draining | None = None
        #: Whether a kill covers the run, be it what stopped it or not.
        self.killed = False
        self.signal = switch.signal
        #: The generation up to which kills were applied; -1 makes every check apply them.
        self.seen = -1

    def set(self, stop: RunStopped) -> None:
        """Make a stop stick in this process and in the runs inside, and cancel what is in flight."""
        if self.stop is None:
            self.stop = stop
            self.cancel(stop, "")

    def take_scope(self, data: Mapping[str, object]) -> None:
        """Make a scope's stop stick, as its `step_refused` tells it."""
        key = data.get("stops")
        if isinstance(key, str) and key not in self.scopes:
            stop = stop_from(data["termination"])  # type: ignore[arg-type]
            if stop is not None:
                self.scopes[key] = stop

    def cancel(self, stop: RunStopped, scope: str) -> None:
        """Stop what is in flight inside a scope, nested runs too; the empty one is the whole run."""
        self._in_flight.stop(stop, self._log.fold.inside(scope))

    def take_kill(self, end: Callable[[RunStopped], None]) -> None:
        """Stop the run if a kill covers it; nothing is waited for.  `end` ends the run with the kill.

        Raises:
            KillSwitchUnavailableError: nobody can tell.
        """
        fold = self._log.fold
        kill = self._switch.find(fold.tenant, fold.run_id, fold.generation)
        self.killed = kill is not None
        if kill is not None and self.stop is None and not fold.state.final:
            end(kill.error(fold.run_id))
        elif kill is not None and self.stop is not None and not self.stop.cancels:
            self.cancel(kill.error(fold.run_id), "")  # what the refusal has let go on

    def apply_kill(self, end: Callable[[RunStopped], None], refresh: Callable[[], None]) -> None:
        """Do `take_kill`, and take in what else is new; called when the switch signals a change.

        `refresh` takes in the tenants' budgets, which the control log has too.

        Raises:
            KillSwitchUnavailableError: nobody can tell.
        """
        generation = self.signal[GENERATION]
        try:
            # A kill that is known stops the run also where the page is damaged: it is asked for first.
            self.take_kill(end)
            self.signal = self._switch.signal
            if self.stop is None:
                refresh()
        except AgentGuardError:
            self.seen = -1
            raise
        self.seen = generation if self.draining is None else -1

    def drain_with(self, draining: Draining | None) -> None:
        """Take part in a drain: every check asks it from now on."""
        self.draining = draining
        self.seen = -1
