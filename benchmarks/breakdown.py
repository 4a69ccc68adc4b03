"""Where the time of a step goes: its phases, each over many steps at once, and single parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from agentguard import Budget, Guard
from agentguard._encoding import encode_call
from agentguard.events import model as ev
from agentguard.events.codec import Stored, encode
from agentguard.events.model import Record
from agentguard.steps import outcome, phases
from agentguard.steps.current import CURRENT
from agentguard.steps.flow import admit, open_step, prepare
from agentguard.steps.options import step_spec
from benchmarks import _measure as m
from benchmarks._rows import Row

_STEPS = 300
_ARGS: tuple[Any, ...] = (1,)
_KWARGS = {"b": 2, "c": 3}


def measure(*, quick: bool) -> list[Row]:
    """No limits here: what the rows on overhead are made of."""
    rounds = 10 if quick else 40
    with Guard.in_memory(telemetry=False) as guard:
        phases = _least_phases(guard, rounds)
    parts = m.least({name: _timed(part) for name, part in _parts().items()}, rounds)
    u = min(m.unit() for _ in range(rounds))
    rows = [_row(f"phase: {name}", taken, u) for name, taken in phases.items()]
    return rows + [_row(f"part: {name}", taken, u) for name, taken in parts.items()]


def _row(what: str, taken: float, u: float) -> Row:
    return Row(name="breakdown", what=what, value=taken / u, unit="U", facts={"ns": taken})


def _least_phases(guard: Guard, rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for _ in range(rounds):
        for name, taken in _phases(guard).items():
            found[name] = min(taken, found.get(name, taken))
    return found


def _phases(guard: Guard) -> dict[str, float]:
    """The functions that `steps.sync.call` calls, one after the other, each for all steps."""
    spec = step_spec("work", m.work, {})
    with guard.run("phases", budget=Budget(steps=10**9)) as run:
        place = run.here()
        found: dict[str, float] = {}
        steps: list[Any] = []

        def phase(name: str, each: Callable[[Any], Any]) -> list[Any]:
            started = time.thread_time_ns()
            results = [each(step) for step in steps]
            found[name] = (time.thread_time_ns() - started) / _STEPS
            return results

        steps = [None] * _STEPS
        steps = phase("open: key and step", lambda _: open_step(spec, place, _ARGS, _KWARGS))
        phase("prepare: arguments, digest", lambda step: prepare(step, _ARGS, _KWARGS))
        phase("admit: check, reserve, step_started", admit)
        phase("check before the body", phases.check_before_body)
        phase("body in its place", _body)
        steps = phase("result, digest", lambda step: (step, phases.settled(step, 1, _ARGS, _KWARGS)))
        phase("leave: settle, step_completed", lambda pair: outcome.leave(*pair))
    return found


def _body(step: Any) -> None:
    token = CURRENT.set(step)
    m.work(*_ARGS, **_KWARGS)
    CURRENT.reset(token)


def _parts() -> dict[str, Callable[[], Any]]:
    key, digest = "main/work#1000", "0" * 64
    data = {"args": digest}
    facts = (1000, ev.STEP_STARTED, time.time_ns(), key, 1000, "work", "tool", 1)
    record = Record(*facts, data=data)
    body = encode(record)
    previous = bytes(32)
    payload = encode_call(_ARGS, _KWARGS)
    new = tuple.__new__
    return {
        "two clock readings": lambda: (time.time_ns(), time.monotonic_ns()),
        "encode arguments": lambda: encode_call(_ARGS, _KWARGS),
        "salted digest of a payload": lambda: sha256(previous + payload).hexdigest(),
        "make a Record": lambda: Record(*facts, None, None, None, data),
        "encode a Record": lambda: encode(record),
        "hash in the chain": lambda: sha256(previous + body).digest(),
        "make a Stored": lambda: new(Stored, (1000, body, previous, payload, 0)),
        "empty part": lambda: None,
    }


def _timed(part: Callable[[], Any]) -> m.Case:
    def case() -> float:
        started = time.thread_time_ns()
        for _ in range(2000):
            part()
        return (time.thread_time_ns() - started) / 2000

    return case
