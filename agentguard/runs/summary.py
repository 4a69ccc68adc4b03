"""What a run came to, as a value: folded from its log or read from its row, the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from agentguard import _typed
from agentguard.budget.model import Budget, Usage
from agentguard.errors import LogIntegrityError
from agentguard.events.model import Head
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a few lines.

    `termination` says what ended it: its `type` ("completed", or an error's class name), the
    error's `message` and its facts; None while it runs.  `duration` is running time in seconds,
    pauses left out.  `head` is the last sequence and its hash: keep it somewhere else as an anchor
    for `verify`.  `bounded` is False where a step accepted overshoot (`reserve=None`).
    `needs_branch_names` is True where another thread or process called steps under `guard.attach`
    without `branch=`: such a run cannot be replayed.
    `open_steps` are the keys of the steps in flight; in a run that has ended, of those whose outcome is
    not on record.
    `account` is the account that it shares with other runs by name, as `thread:42`.
    `forked_from` is the id of the run that it was forked from.
    `unreplayable` is how many results of steps and recorded values cannot be handed out again, so that a
    replay ends there; None in a summary that was stored before they were counted.
    `damaged` is the fault in the log of a live run, in a list: the rest is as of its last change of state.
    """

    run_id: str
    name: str
    tenant: str
    state: RunState
    steps: int
    usage: Usage
    budget: Budget
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None
    termination: dict[str, Any] | None
    head: Head
    metadata: dict[str, Any]
    warnings: tuple[dict[str, Any], ...] = ()
    parent_id: str | None = None
    bounded: bool = True
    needs_branch_names: bool = False
    open_steps: tuple[str, ...] = ()
    account: str | None = None
    forked_from: str | None = None
    unreplayable: int | None = None
    damaged: str | None = None

    @property
    def uncharged(self) -> tuple[str, ...]:
        """The limits that nothing charged during the run, as `usd`, `emails` or `calls:search`.

        Those of a scope have its path in front: `research/emails`.
        """
        told = [warning for warning in self.warnings if warning.get("uncharged")]
        return tuple(f"{w['path']}/{w['resource']}" if w["level"] else w["resource"] for w in told)

    def to_data(self) -> dict[str, Any]:
        """Return plain data for `--json` and for a row."""
        return {
            "run_id": self.run_id,
            "name": self.name,
            "tenant": self.tenant,
            "state": str(self.state),
            "steps": self.steps,
            "usage": usage_data(self.usage),
            "budget": self.budget.to_fields(),
            "started_at": self.started_at and self.started_at.isoformat(),
            "ended_at": self.ended_at and self.ended_at.isoformat(),
            "duration": self.duration,
            "termination": self.termination,
            "head": {"seq": self.head.seq, "hash": self.head.hash},
            "metadata": self.metadata,
            "warnings": list(self.warnings),
            "parent_id": self.parent_id,
            "bounded": self.bounded,
            "needs_branch_names": self.needs_branch_names,
            "open_steps": list(self.open_steps),
            "account": self.account,
            "forked_from": self.forked_from,
            "unreplayable": self.unreplayable,
        }

    def __str__(self) -> str:
        spent = ", ".join(f"{name} {self.usage[name]}" for name in self.usage if name != "steps")
        ended = self.termination or {}
        message = str(ended.get("message") or "").removesuffix(f" (run {self.run_id})")  # which comes below
        reason = f": {message}" if message else ""
        took = f" in {self.duration:.3f} s" if self.duration is not None else ""
        limits = "" if not self.budget.unlimited else ", no limits"
        marks = "" if self.bounded else ", not bounded"
        marks += ", replay needs branch names" if self.needs_branch_names else ""
        marks += f", nothing charged {', '.join(self.uncharged)}" if self.uncharged else ""
        marks += ", damaged" if self.damaged else ""
        return (
            f"{self.name} {self.state}{reason} — {self.steps} step{'' if self.steps == 1 else 's'}{took}"
            f"{', ' + spent if spent else ''}{limits}{marks} (run {self.run_id})"
        )


def usage_data(usage: Usage) -> dict[str, int | str]:
    """Return a usage as plain data, money as text."""
    return {name: str(usage[name]) if name == "usd" else usage[name] for name in usage}


def summarize(fold: RunFold, running_ns: int | None = None) -> RunSummary:
    """Return the summary of a log."""
    running = fold.running_ns if running_ns is None else running_ns
    return RunSummary(
        run_id=fold.run_id,
        name=fold.name,
        tenant=fold.tenant,
        state=fold.state,
        steps=fold.steps,
        usage=Usage.from_amounts(fold.account.spent),
        budget=fold.budget,
        started_at=moment(fold.started_ns),
        ended_at=moment(fold.ended_ns),
        duration=None if fold.started_ns is None else running / 1e9,
        termination=fold.termination,
        head=Head(fold.seq, fold.hash.hex()),
        metadata=fold.metadata,
        warnings=tuple(fold.warnings),
        parent_id=fold.parent_id,
        bounded=fold.bounded,
        needs_branch_names=fold.needs_branch_names,
        open_steps=tuple(fold.open),
        account=None if fold.named_account is None else fold.named_account.name,
        forked_from=fold.forked_from,
        unreplayable=fold.unreplayable,
    )


def moment(ns: int | None) -> datetime | None:
    """Return wall-clock nanoseconds as a UTC datetime."""
    return None if ns is None else datetime.fromtimestamp(ns / 1e9, UTC)


def from_data(data: Mapping[str, object]) -> RunSummary:
    """Return the summary that `to_data` gave.

    Raises:
        LookupError, TypeError, ValueError: it gave something else.
    """
    told = _typed.convert(data, _Shape)
    return RunSummary(
        run_id=told.run_id,
        name=told.name,
        tenant=told.tenant,
        state=told.state,
        steps=told.steps,
        usage=_usage(told.usage),
        budget=Budget.from_fields(told.budget),
        started_at=_parse(told.started_at),
        ended_at=_parse(told.ended_at),
        duration=told.duration,
        termination=told.termination,
        head=Head(told.head.seq, told.head.hash),
        metadata=told.metadata,
        warnings=tuple(told.warnings),
        parent_id=told.parent_id,
        bounded=told.bounded,
        needs_branch_names=told.needs_branch_names,
        open_steps=tuple(told.open_steps),
        account=told.account,
        forked_from=told.forked_from,
        unreplayable=told.unreplayable,
    )


class SummaryRow(Protocol):
    """What of a run's row holds its summary."""

    @property
    def run_id(self) -> str:
        """The run's id."""
        ...

    @property
    def state(self) -> str:
        """The name of its state."""
        ...

    @property
    def summary(self) -> Mapping[str, object]:
        """What `RunSummary.to_data` gave."""
        ...


def from_row(row: SummaryRow) -> RunSummary:
    """Return the summary in a run's row.

    Raises:
        LogIntegrityError: it is none: the row was changed by hand.
    """
    state_of(row)
    try:
        return from_data(row.summary)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unreadable(row, error) from error


def state_of(row: SummaryRow) -> RunState:
    """Return the state in a run's row.

    Raises:
        LogIntegrityError: it is none: the row was changed by hand.
    """
    try:
        return RunState(row.state)
    except ValueError as error:
        raise _unreadable(row, error) from error


def _unreadable(row: SummaryRow, error: Exception) -> LogIntegrityError:
    problem = f"its row in the store cannot be read ({error!r}); `agentguard verify` says more"
    return LogIntegrityError(row.run_id, 0, problem)


class _HeadShape(msgspec.Struct):
    seq: int
    hash: str


class _Shape(msgspec.Struct):
    """Which types `to_data` gives."""

    run_id: str
    name: str
    tenant: str
    state: RunState
    steps: int
    usage: dict[str, int | str]
    budget: dict[str, object]
    started_at: str | None
    ended_at: str | None
    duration: float | None
    termination: dict[str, object] | None
    head: _HeadShape
    metadata: dict[str, object]
    warnings: list[dict[str, object]]
    parent_id: str | None
    bounded: bool
    needs_branch_names: bool = False
    open_steps: list[str] = []
    account: str | None = None
    forked_from: str | None = None
    unreplayable: int | None = None


def _usage(data: dict[str, int | str]) -> Usage:
    amounts: dict[str, int] = {}
    for name, amount in data.items():
        if name == "usd":
            amounts["nano_usd"] = Usage(usd=amount).amounts().get("nano_usd", 0)
        else:
            amounts[name] = int(amount)
    return Usage.from_amounts(amounts)


def _parse(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
