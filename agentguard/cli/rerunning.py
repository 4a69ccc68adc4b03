"""What `replay`, `recover` and `fork` do: a program run again on a log, or on from one."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.text import Text

from agentguard.audit.export import family
from agentguard.budget.model import Budget
from agentguard.cli import exits, listing, lookup, output, progress, views
from agentguard.cli.differing import print_divergence
from agentguard.cli.program import Program
from agentguard.cli.timeline import Timeline
from agentguard.errors import (
    AgentGuardError,
    LogIntegrityError,
    ReplayDivergenceError,
    StepOutcomeUnknownError,
)
from agentguard.guard import Guard
from agentguard.recovery import CarryingOn
from agentguard.run import Run
from agentguard.runs.state import RunState


@dataclass
class _Ending:
    """How a program left its run's block."""

    result: Any = None
    error: Exception | None = None

    @property
    def of_ours(self) -> AgentGuardError | None:
        """An error that says that it could not be run at all, or no further."""
        ours = (ReplayDivergenceError, LogIntegrityError, StepOutcomeUnknownError, exits.UsageError)
        return self.error if isinstance(self.error, ours) else None


def replay(typed: str | None, target: str | None, export: Path | None, *, as_json: bool) -> int:
    """Replay a run, or without a program check its log and show it; gives the exit code."""
    if export is not None:
        lookup.use(f"file://{export.absolute()}", None)
    program = None if target is None else Program(target)
    with lookup.reading() as guard:
        run_id = _only_run(guard) if typed is None else lookup.find_run(guard, typed)
        if program is None:
            return _check(guard, run_id, as_json=as_json)
        run = guard.replay(run_id)
        ending = _carried_out(guard, program, run, as_json=as_json)
        return _say_replayed(guard, run, ending, as_json=as_json)


def _only_run(guard: Guard) -> str:
    """The run that an export was made of: the first in it, where all others belong to it."""
    store = guard.parts.store
    ids = [row.run_id for row in store.rows(limit=2**62)]
    if not ids or not store.url.startswith("file:") or {*family(store, ids[-1])} != {*ids}:
        raise exits.UsageError(f"name a RUN; there are {len(ids)}")
    return ids[-1]


# --- replay --------------------------------------------------------------------------------------


def _check(guard: Guard, run_id: str, *, as_json: bool) -> int:
    """Fold the log, hold it against its chain, and show it."""
    report = guard.verify(run_id)
    if as_json:
        _print_replayed(guard, run_id, report=listing.report_data(report))
        return exits.OK if report else exits.FAULT
    if report:
        log = views.entries(run_id, guard.parts.store.read(run_id))
        views.print_lines(Text(f"run {run_id}", style="bold"))
        views.print_lines(*Timeline().lines(log))
        summary = guard.reconstruct(run_id)
        used = output.amounts(summary.usage, steps=True) or "nothing"
        views.print_lines(Text(f"adds up to {summary.state}, used {used}"))
    views.print_lines(*listing.report_lines(report))
    return exits.OK if report else exits.FAULT


def _carried_out(guard: Guard, program: Program, run: Run, *, as_json: bool) -> _Ending:
    """Run a program, what it prints kept out of the JSON."""
    last = guard.parts.store.last(run.id)
    with _printing_aside() if as_json else progress.of_run(run, 0 if last is None else last.seq):
        try:
            return _Ending(program.run_in(run))
        except Exception as error:  # noqa: BLE001 - a program may raise anything
            return _Ending(error=error)


@contextlib.contextmanager
def _printing_aside() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _say_replayed(guard: Guard, run: Run, ending: _Ending, *, as_json: bool) -> int:
    error = ending.of_ours
    if error is not None and not isinstance(error, ReplayDivergenceError):
        raise error
    ended = RunState(guard.reconstruct(run.id).state)
    if as_json:
        _print_replayed(guard, run.id, run=run, ending=ending)
    elif isinstance(error, ReplayDivergenceError):
        print_divergence(guard, run.id, error)
    else:
        steps = run.summary().steps
        said = (
            f"replayed run {run.id}: {steps:,} {'step' if steps == 1 else 'steps'} from the log, no body ran"
        )
        views.print_lines(Text(said, style="green"), Text(f"  ended as recorded: {ended}{_because(ending)}"))
    if error is None and not ended.final:  # the log of a crashed run, or of one that is live
        output.complain("the log has no end: the run is live, or has crashed (agentguard recover)")
        return exits.FAULT if ending.error is not None else exits.OK
    return exits.OK if error is None else exits.FAULT


def _because(ending: _Ending) -> str:
    if ending.error is not None:
        return output.one_line(f", {type(ending.error).__name__}: {ending.error}")
    return "" if ending.result is None else output.one_line(f", gave {ending.result!r}")[:2000]


def _print_replayed(
    guard: Guard,
    run_id: str,
    *,
    run: Run | None = None,
    ending: _Ending | None = None,
    report: dict[str, Any] | None = None,
) -> None:
    error = None if ending is None else ending.error
    intact = report is None or report["intact"]
    data = {
        "run_id": run_id,
        "intact": intact,
        "faults": [] if report is None else report["faults"],
        "state": str(guard.reconstruct(run_id).state) if intact else None,
        "replayed": run is not None,
        "steps": None if run is None else run.summary().steps,
        "result": None if ending is None else _plain(ending.result),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "divergence": error.facts() if isinstance(error, ReplayDivergenceError) else None,
    }
    output.print_json(data)


def _plain(result: Any) -> Any:
    """A result as JSON, or as its repr."""
    try:
        json.dumps(result)
    except (TypeError, ValueError):
        return repr(result)
    return result


# --- recover, fork -------------------------------------------------------------------------------


def recover(typed: str, target: str, *, take_over: bool, as_json: bool) -> int:
    """Carry on a crashed run with a program; gives the exit code."""
    program = Program(target)
    with lookup.acting() as plain:
        run_id = lookup.find_run(plain, typed)
        guard = program.guard(plain.parts.store.url) or plain
        before = guard.reconstruct(run_id).steps
        run = guard.recover(run_id, take_over=take_over)
        ending = _carried_out(guard, program, run, as_json=as_json)
        return _say_carried_on("recovered", guard, run, ending, before, as_json=as_json)


class Forked(NamedTuple):
    """What a fork is to be: `limits` are those that change."""

    at: int
    limits: dict[str, Any]
    name: str | None
    new_id: str | None


def fork(typed: str, wanted: Forked, target: str | None, *, as_json: bool) -> int:
    """Fork a run: with a program, carry it on; without, leave it for one to recover."""
    program = None if target is None else Program(target)
    with lookup.acting() as plain:
        run_id = lookup.find_run(plain, typed)
        guard = plain if program is None else program.guard(plain.parts.store.url) or plain
        budget = _changed(guard.reconstruct(run_id).budget, wanted.limits)
        try:
            run = guard.fork(run_id, wanted.at, budget=budget, name=wanted.name, new_run_id=wanted.new_id)
        except ValueError as error:
            raise exits.UsageError(str(error)) from error
        if program is not None:
            ending = _carried_out(guard, program, run, as_json=as_json)
            return _say_carried_on("forked", guard, run, ending, 0, as_json=as_json)
        session = run.session
        assert isinstance(session, CarryingOn)  # noqa: S101 - `fork` gives nothing else
        session.give_back(session.open(run))
        if as_json:
            _print_carried_on(guard, run.id, _Ending())
        else:
            print(
                output.one_line(
                    f"run {run.id} shares events 1 to {wanted.at} of run {run_id}; carry it on with"
                )
            )
            print(f"  agentguard recover {run.id} --module pkg.mod:fn")
        return exits.OK


def _changed(budget: Budget, limits: dict[str, Any]) -> Budget | None:
    """The origin's budget with some limits changed."""
    return Budget.from_fields(budget.to_fields() | Budget(**limits).to_fields()) if limits else None


def _say_carried_on(did: str, guard: Guard, run: Run, ending: _Ending, before: int, *, as_json: bool) -> int:
    error = ending.error
    if as_json:
        _print_carried_on(guard, run.id, ending)
    elif isinstance(error, ReplayDivergenceError):
        print_divergence(guard, run.id, error)
    if isinstance(error, StepOutcomeUnknownError):
        output.complain(
            f"step {error.key} of run {error.run_id} had started and has no outcome on record; say"
        )
        output.complain(f"  agentguard resolve {error.run_id} '{error.key}' retry|completed|failed")
        return exits.WAITING
    if ending.of_ours is not None or (error is not None and run.state is RunState.CREATED):
        if isinstance(error, AgentGuardError) and not isinstance(error, ReplayDivergenceError):
            raise error
        return exits.FAULT
    if not as_json:
        summary = guard.summary(run.id)
        said = f"{did} run {run.id}: {summary.state}{_because(ending)}"
        views.print_lines(Text(output.one_line(said), style="green" if error is None else "red"))
        views.print_lines(Text(f"  {summary.steps - before:,} of its {summary.steps:,} steps ran now"))
    return exits.OK if error is None else exits.FAULT


def _print_carried_on(guard: Guard, run_id: str, ending: _Ending) -> None:
    error = ending.error
    data = {
        "run": guard.summary(run_id).to_data() if guard.parts.store.row(run_id) is not None else None,
        "result": _plain(ending.result),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "divergence": error.facts() if isinstance(error, ReplayDivergenceError) else None,
    }
    output.print_json(data)
