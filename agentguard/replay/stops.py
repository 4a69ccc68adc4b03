"""The stops that a log has: each is the same object, wherever the program meets it."""

from __future__ import annotations

from agentguard.errors import RunStopped
from agentguard.events.data import RunEnded, ScopeStopped, data_of
from agentguard.replay.tape import Tape
from agentguard.runs.termination import stop_from
from agentguard.steps.live import LiveRun


class RecordedStops:
    """The recorded stops of one run, and of its scopes."""

    def __init__(self, live_run: LiveRun, tape: Tape) -> None:
        self._live_run = live_run
        self._tape = tape

    def of_run(self) -> RunStopped | None:
        """Return the stop of the run, as far as the log was read."""
        if self._live_run.stops.stop is None and (stop := self._terminal()) is not None:
            self._live_run.stops.set(stop)
        return self._live_run.stops.stop

    def at_the_end(self) -> RunStopped | None:
        """Return the stop of the run; the log is read to its end."""
        self._tape.read_until(lambda: self._tape.terminal is not None)
        return self.of_run()

    def of_scope(self, scope: str) -> RunStopped | None:
        """Return the stop of a scope that has one on record."""
        stop = stop_from(data_of(self._tape.scope_stops[scope], ScopeStopped)["termination"])
        return self._live_run.stops.scopes.setdefault(scope, stop) if stop is not None else None

    def around(self, scope: str, after: int | None) -> RunStopped | None:
        """Return the stop of a scope or of one around it.

        `after` is the first event known to be later than the call, or its denial: a stop that came later
        still is not what the call raised.
        """
        for level in self._live_run.log.fold.chain(scope):
            stopped = self._tape.scope_stops.get(level.key)
            if stopped is not None and (after is None or stopped.seq < after):
                return self.of_scope(level.key)
        return None

    def own(self, error: RunStopped) -> RunStopped:
        """Return the stop of the run or of a scope that an exception stands for; else the exception."""
        scopes = [self.of_scope(scope) for scope in list(self._tape.scope_stops)]
        for stop in (*scopes, self._of_run_by(error)):
            if stop is not None and stop.facts() == error.facts():
                return stop
        return error

    def _of_run_by(self, error: RunStopped) -> RunStopped | None:
        if self._live_run.stops.stop is None:
            self._tape.read_until(lambda: self._tape.terminal is not None)
            stop = self._terminal()
            if stop is not None and stop.facts() == error.facts():
                return self.of_run()
        return self._live_run.stops.stop

    def _terminal(self) -> RunStopped | None:
        terminal = self._tape.terminal
        return None if terminal is None else stop_from(data_of(terminal, RunEnded)["termination"])
