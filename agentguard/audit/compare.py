"""Where two live runs of a program differ: branch by branch, in call order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from agentguard._encoding import decode
from agentguard.budget.model import Usage
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.data import (
    Failure,
    RunEnded,
    ScopeOpened,
    StepStarted,
    Termination,
    Value,
    data_of,
)
from agentguard.events.model import Record
from agentguard.runs.branch import branch_of
from agentguard.runs.termination import stop_from

#: What is not on record, so that it cannot be held against another.
_UNKNOWN = "(not on record)"
_REFUSED = "refused"
_COMPARED = ("key", "arguments", "effect", "outcome")


class Difference(msgspec.Struct, frozen=True):
    """One difference; `a` and `b` are what the two runs have there.

    `kind` is "missing", "extra", "key", "arguments", "effect", "outcome" or "termination".
    """

    kind: str
    branch: str
    pos: int
    key: str | None
    a: Any
    b: Any


class Call(msgspec.Struct):
    """A call of a run, as it is compared.

    Args:
        key: its key, as `main/search#1`.
        name: what was called.
        arguments: what it was called with; None where nothing is on record.
        effect: what a repeat of it would do, or the event that it is.
        outcome: `{"completed": result}`, `{"failed": {"type", "message"}}`, "refused", or None without one.
        usage: what it was charged.
        shared: whether a fork has it from the run that it was made from.
    """

    key: str
    name: str
    arguments: Any
    effect: str
    outcome: Any
    usage: Usage
    shared: bool = False


class ComparedCall(msgspec.Struct, frozen=True):
    """The calls of two runs at one place; None where one of them made none.

    `difference` is the first one of this branch, if it is here; what comes after it is not compared.
    """

    branch: str
    pos: int
    a: Call | None
    b: Call | None
    difference: Difference | None


class RunDiff(msgspec.Struct, frozen=True):
    """What differs between two runs; true when anything does.

    `timing` holds calls that only one of two stopped runs still admitted: who came first when the stop
    met concurrent steps, which is no difference of the programs.  `calls` are all calls of both, side by
    side.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    timing: tuple[Difference, ...]
    calls: tuple[ComparedCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.differences)


def _call(record: Record, payload: bytes | None) -> Call:
    data = data_of(record, Value)
    arguments: Any = None if payload is None else _value(payload)
    effect: str = record.type
    if record.type == ev.STEP_STARTED:
        effect = data_of(record, StepStarted).get("effect", "once")
    outcome: Any = None
    if record.type == ev.STEP_REFUSED:
        effect, outcome = _UNKNOWN, _failure(data) or _REFUSED
    elif record.type == ev.VALUE:  # two runs never have the same time
        outcome = _failure(data) or (_UNKNOWN if record.name == "run.now" else arguments)
        arguments = None
    elif record.type == ev.SCOPE_OPENED:
        arguments = data_of(record, ScopeOpened).get("budget")
    if payload is None and "args" in data:
        arguments = _UNKNOWN
    return Call(record.key or "", record.name or "", arguments, effect, outcome, Usage())


class _Log:
    """A run's calls by branch and place."""

    def __init__(self, log: Iterable[Stored]) -> None:
        self.branches: dict[str, dict[int, Call]] = {}
        self.termination: Termination | None = None
        self._open: dict[str, Call] = {}
        for stored in log:
            self._take(codec.decode(stored.body), stored.payload)

    def _take(self, record: Record, payload: bytes | None) -> None:
        key = record.key or ""
        if record.type in (ev.STEP_STARTED, ev.STEP_REFUSED, ev.VALUE, ev.SCOPE_OPENED) and key:
            call = _call(record, payload)
            branch = branch_of(key, record.data)
            self.branches.setdefault(branch, {})[record.pos] = call
            self._open[key] = call
        elif record.type in (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED) and key in self._open:
            call = self._open[key]
            call.outcome = _outcome(record, payload)
            call.usage += Usage.from_amounts(record.usage or {})
        elif record.type == ev.RUN_FORKED:  # what is before it is the origin's
            for calls in self.branches.values():
                for call in calls.values():
                    call.shared = True
        elif record.type in (ev.RUN_COMPLETED, ev.RUN_FAILED, ev.RUN_KILLED):
            self.termination = data_of(record, RunEnded).get("termination")

    @property
    def stopped(self) -> bool:
        return self.termination is not None and stop_from(self.termination) is not None


def _outcome(record: Record, payload: bytes | None) -> Any:
    failure = _failure(data_of(record, Failure))
    if failure is not None:
        return failure
    return {"completed": None if payload is None else _value(payload)}


def _failure(data: Failure) -> dict[str, Any] | None:
    if "error" not in data:
        return None
    error = data["error"]
    return {"failed": {"type": error.get("type"), "message": error.get("message")}}


def _value(payload: bytes) -> Any:
    try:
        return decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a codec's bytes
        return payload


def diff(run_a: str, a: Iterable[Stored], run_b: str, b: Iterable[Stored]) -> RunDiff:
    """Compare two logs."""
    left, right = _Log(a), _Log(b)
    stopped = left.stopped and right.stopped
    differences: list[Difference] = []
    timing: list[Difference] = []
    beside: list[ComparedCall] = []
    for branch in sorted(left.branches.keys() | right.branches.keys()):
        calls_a, calls_b = left.branches.get(branch, {}), right.branches.get(branch, {})
        differs = False
        for pos in sorted(calls_a.keys() | calls_b.keys()):
            one, other = calls_a.get(pos), calls_b.get(pos)
            # What follows a difference in its branch follows from it.
            found = None if differs else _compare(branch, pos, one, other)
            if found is not None:
                differs = True
                (timing if stopped and _is_admission(found) else differences).append(found)
            beside.append(ComparedCall(branch, pos, one, other, found))
    ends = (_shown(left.termination), _shown(right.termination))
    if ends[0] != ends[1]:
        differences.append(Difference("termination", "", 0, None, *ends))
    return RunDiff(run_a, run_b, tuple(differences), tuple(timing), tuple(beside))


def _is_admission(found: Difference) -> bool:
    """Whether one run still admitted a call that the other did not come to, or refused."""
    return found.kind in ("missing", "extra") or (found.kind == "outcome" and _REFUSED in (found.a, found.b))


def _shown(termination: Termination | None) -> dict[str, Any] | None:
    if termination is None:
        return None
    own = ("run_id", "message", "at")  # what differs in every run
    return {k: v for k, v in termination.items() if k not in own}


def _compare(branch: str, pos: int, a: Call | None, b: Call | None) -> Difference | None:
    if a is None or b is None:
        there = a or b
        key = there.key if there is not None else None
        return Difference("extra" if a is None else "missing", branch, pos, key, a and a.key, b and b.key)
    for field in _COMPARED:
        one, other = getattr(a, field), getattr(b, field)
        if one != other and _UNKNOWN not in (one, other):
            return Difference(field, branch, pos, a.key, one, other)
    return None
