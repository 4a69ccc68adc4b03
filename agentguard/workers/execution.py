"""What a worker does with one submitted run, and what then becomes of its job.

The run's log decides: a run that has ended is taken out of the queue, and any other comes again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from agentguard.errors import (
    KillSwitchUnavailableError,
    ProgramError,
    ReplayDivergenceError,
    RunOwnedError,
    RunStopped,
    StoreUnavailableError,
    WorkersDiedError,
)
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.program import Program, check_own, load, name_of
from agentguard.protocols import RunQueue, RunRow
from agentguard.run import Run
from agentguard.runs.state import RunState
from agentguard.runs.summary import state_of
from agentguard.runtime import Runtime
from agentguard.sessions.base import live_run_of
from agentguard.sessions.live import LiveSession
from agentguard.sessions.options import RunOptions
from agentguard.steps.limit_questions import question
from agentguard.workers.job import ComesAgain, RunJob, backoff
from agentguard.workers.session import Claim, WorkerSession

_log = logging.getLogger("agentguard.workers")
#: How often a run comes again whose function no worker has found, or whose log tells of another program.
_MOST_OBSTACLES: Final = 8
#: Seconds between two looks at a run that is paused.
_PAUSED: Final = 5.0
_SOON: Final = 1.0
#: What may be gone in a moment.
_PASSING = (StoreUnavailableError, KillSwitchUnavailableError, RunOwnedError)
#: How the stored form of a claim begins; a long log is not decoded for its few claims.
_CLAIM: Final = f'"type":"{ev.RUN_RECOVERED}"'.encode()
_OBSTACLES = (ProgramError, ReplayDivergenceError)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One job of one worker."""

    runtime: Runtime
    queue: RunQueue
    job: RunJob
    job_id: int
    worker: int
    #: Modules whose functions may be called, with those inside them; all where it is empty.
    allowed: tuple[str, ...]
    #: How many workers may die in a run before it is ended.
    most_deaths: int
    #: Told of the run before it is entered.
    on_open: Callable[[Run], None]

    def carry_out(self) -> None:
        """Claim the run, call its function, and end it.

        Raises:
            ComesAgain: the run has not ended.
        """
        try:
            self._carry_out()
        except ComesAgain:
            raise
        except _PASSING as error:
            raise self._after_outage(error, 1) from error
        except Exception as error:
            _log.exception("run %s could not be carried out", self.job.run_id)
            raise self._after_obstacle(error) from error

    def _carry_out(self) -> None:
        row = self._row()  # first: if somebody else claims the run later, ours is refused
        if row is None or not self.queue.holds(self.job_id, self.worker):
            return
        if state_of(row) is RunState.PAUSED and not self._asks():
            raise ComesAgain("it is paused", _PAUSED)
        if self._deaths(row) >= self.most_deaths:
            self._end(row, WorkersDiedError(row.run_id, self.most_deaths))
            return
        claim = Claim(self.worker, may_try_again=self.job.failures < self.job.retries)
        error: BaseException | None = None
        try:
            self._call(row, claim)
        except BaseException as raised:  # noqa: BLE001 - how it ended is on record, or it comes again
            error = raised
        row = self._row()
        if row is not None:
            self._come_again(row, claim, error)

    def _asks(self) -> bool:
        """Return whether a paused run asks at its limit: only a process that has it counts the time."""
        return question(live_run_of(self.runtime, self.job.run_id).fold) is not None

    def _row(self) -> RunRow | None:
        """Return the row of the run; None where it has ended."""
        row = self.runtime.components.store.row(self.job.run_id)
        return None if row is None or state_of(row).final else row

    def _deaths(self, row: RunRow) -> int:
        """Return how many owners of a run have died, the last one included.

        One that could not let the run go, since the store was away, has not died.
        """
        log = self.runtime.components.store.read(row.run_id)
        claims = (codec.decode(stored.body) for stored in log if _CLAIM in stored.body[:64])
        taken = sum("from" in (claim.data or {}) for claim in claims)
        return taken + bool(row.owner) - self.job.outages

    def _call(self, row: RunRow, claim: Claim) -> None:
        program = self._program()
        run = Run(WorkerSession(self.runtime, row, _options(program, row), claim))
        self.on_open(run)
        program.run_in(run)

    def _program(self) -> Program:
        target = self.job.function
        module = target.partition(":")[0]
        # Before anything is loaded: to load a file is to run it.
        if not all(part.isidentifier() for part in module.split(".")):
            raise ProgramError(target, "workers call functions of modules, and this is none")
        check_own(target)
        if self.allowed and not any(f"{module}.".startswith(f"{name}.") for name in self.allowed):
            raise ProgramError(
                target, f"this worker calls functions of {', '.join(self.allowed)} alone (--allow)"
            )
        found, loaded = load(target)
        if name_of(found) != target:  # a name that the module has imported from elsewhere
            raise ProgramError(target, "it is defined in another module; name it there")
        return Program(target, found, loaded)

    # --- runs that have not ended --------------------------------------------------------------

    def _come_again(self, row: RunRow, claim: Claim, error: BaseException | None) -> None:
        """Say when the run comes again, or end it where no worker gets on with it."""
        if claim.failed:
            failures = self.job.failures + 1
            _log.warning("run %s failed, and is tried again: %r", row.run_id, error)
            raise ComesAgain("it failed", backoff(self.job.backoff, failures), failures=failures) from error
        if state_of(row) is RunState.PAUSED:
            raise ComesAgain("it is paused", _PAUSED) from error
        if isinstance(error, _PASSING):
            raise self._after_outage(error, bool(row.owner)) from error
        if isinstance(error, RunStopped):  # drained
            raise ComesAgain("this worker lets it go") from error
        again = self._after_obstacle(error)
        _log.error("run %s cannot be carried out here: %s", row.run_id, error)
        if again.note["obstacles"] < _MOST_OBSTACLES or not isinstance(error, _OBSTACLES):
            raise again from error
        self._end(row, error)

    def _after_outage(self, error: BaseException, left_owned: int) -> ComesAgain:
        return ComesAgain(str(error), _SOON, outages=self.job.outages + left_owned)

    def _after_obstacle(self, error: BaseException | None) -> ComesAgain:
        obstacles = self.job.obstacles + 1
        return ComesAgain(str(error), backoff(1.0, obstacles), obstacles=obstacles)

    def _end(self, row: RunRow, error: Exception) -> None:
        """Claim the run and end it with an error that is not of its function."""
        claim = Claim(self.worker, may_try_again=False)
        with _recorded(error), Run(WorkerSession(self.runtime, row, RunOptions(name=row.name), claim)):
            raise error


@contextlib.contextmanager
def _recorded(error: Exception) -> Iterator[None]:
    try:
        yield
    except Exception as left:
        if left is not error:
            raise


def _options(program: Program, row: RunRow) -> RunOptions:
    """Return what the program's own run says that is on no record: its callbacks."""
    session = None if program.decorated is None else program.decorated.session
    if not isinstance(session, LiveSession):
        return RunOptions(name=row.name)
    options = session.options
    return RunOptions(
        name=row.name, on_warning=options.on_warning, interrupt_threads=options.interrupt_threads
    )
