"""Erasing the payloads of a run, and dropping old runs; both on record in the control log.

A log outlives the data in it: an erased run still verifies, event for event.  What stands in the
events themselves (names, keys, amounts, error messages, metadata) stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from agentguard.audit.verify import reconstruct
from agentguard.errors import AgentGuardError
from agentguard.events import codec
from agentguard.events.data import PayloadErased, RunForked, data_of
from agentguard.events.model import PAYLOAD_ERASED, RUN_FORKED, Record
from agentguard.protocols import EventStore, KillSwitch, RunRow
from agentguard.runs.state import RunState
from agentguard.runs.summary import from_row
from agentguard.steps.live import LiveRun

#: How many pruned runs one control record names.
_BATCH = 200
#: An age as text.
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def erase(live_run: LiveRun, switch: KillSwitch, actor: str) -> int:
    """Drop payloads and salt of an ended run; gives how many payloads there were.

    Doing it again does nothing, but finish what a crash had left undone.

    Raises:
        AgentGuardError: the run has not ended.
    """
    log, store, run_id = live_run.log, live_run.log.store, live_run.run_id

    def drop() -> int:
        state = log.fold.state
        if not state.final:
            raise AgentGuardError(
                f"run {run_id} is {state} and goes on recording; end or kill it, then erase it"
            )
        if not log.fold.erased:
            log.act([Record(0, PAYLOAD_ERASED, live_run.clock.wall(), data={"actor": actor})])
        return store.erase(run_id)

    dropped = log.decide(drop)
    store.erase(run_id)  # outside of the act, so that nothing lingers in a file beside the log
    if run_id not in _erased_runs(switch):
        switch.record(PAYLOAD_ERASED, {"run": run_id, "tenant": live_run.fold.tenant, "actor": actor})
    return dropped


def prune(
    store: EventStore,
    switch: KillSwitch,
    ended_before_ns: int,
    actor: str,
) -> list[str]:
    """Drop the runs that ended before a time, and give their ids.

    Runs that a live one may have to be recovered from stay, and runs with a step in flight: without their log
    its reservations could not be settled (`agentguard doctor --repair` does, where the process is dead).  The
    heads of the others go on record first, so that `verify` tells a pruned run from a lost one.
    """
    before = datetime.fromtimestamp(ended_before_ns / 1e9, UTC).isoformat()
    keep = _needed(store) | {
        row.run_id for row in _ended_before(store, ended_before_ns) if _holds_reservations(store, row)
    }
    ended = (row for row in _ended_before(store, ended_before_ns) if row.run_id not in keep)
    while batch := list(islice(ended, _BATCH)):
        heads = [{"run": row.run_id, **from_row(row).head._asdict()} for row in batch]
        switch.record(PAYLOAD_ERASED, {"pruned": heads, "ended_before": before, "actor": actor})
    return store.prune(ended_before_ns, keep)


def cut_off(older_than: Any, now_ns: int) -> int:
    """The wall-clock nanoseconds that an age or a time stands for.

    Raises:
        TypeError: it is no timedelta, text or datetime.
        ValueError: it is negative, a number without a unit, or a datetime without a time zone.
    """
    if isinstance(older_than, datetime):
        if older_than.tzinfo is None:
            raise ValueError(f"older_than needs a time zone, as in datetime.now(UTC), not {older_than!r}")
        return int(older_than.timestamp() * 1_000_000_000)
    if isinstance(older_than, str):
        older_than = _age(older_than)
    if isinstance(older_than, int | float) and not isinstance(older_than, bool):
        if older_than:  # days to one reader, seconds to another, and what it drops is gone for good
            raise ValueError(
                f"older_than={older_than!r} has no unit: write an age such as '90d' or a timedelta"
            )
        older_than = timedelta(0)
    if not isinstance(older_than, timedelta):
        raise TypeError(
            "older_than must be an age such as '90d', a timedelta or a datetime, "
            f"not {type(older_than).__name__}"
        )
    if older_than < timedelta(0):
        raise ValueError(f"older_than must be 0 or more, not {older_than!r}")
    return now_ns - older_than // timedelta(microseconds=1) * 1000


def _age(text: str) -> timedelta:
    match = _AGE.fullmatch(text)
    if match is None:
        raise ValueError(f"older_than must be an age such as '90d', '12h' or '30m', not {text!r}")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def _ended_before(store: EventStore, ended_before_ns: int) -> Iterator[RunRow]:
    for state in RunState:
        if state.final:
            for row in store.rows(state=str(state), limit=2**62):
                if row.ended_ns is not None and row.ended_ns < ended_before_ns:
                    yield row


def _holds_reservations(store: EventStore, row: RunRow) -> bool:
    """Return whether steps of an ended run have no outcome; the row is as of its end, the log of now."""
    return bool(from_row(row).open_steps) and bool(reconstruct(store, row).open)


def _needed(store: EventStore) -> set[str]:
    """The runs inside the live ones, the origins of live forks, and the runs inside those."""
    live = [str(state) for state in RunState if not state.final]
    needed = {row.run_id for state in live for row in store.rows(state=state, limit=2**62)}
    left = list(needed)
    while left:
        run_id = left.pop()
        found = {row.run_id for row in store.children(run_id)} | _origin(store, run_id)
        left += found - needed
        needed |= found
    return needed


def _origin(store: EventStore, run_id: str) -> set[str]:
    """The run that this one was forked from, which is told behind its first two events."""
    for stored in islice(store.read(run_id), 3):
        if RUN_FORKED.encode() in stored.body[:64]:
            return {data_of(codec.decode(stored.body), RunForked)["origin"]}
    return set()


def _erased_runs(switch: KillSwitch) -> set[str]:
    mark = b'"type":"%s"' % PAYLOAD_ERASED.encode()
    records = (codec.decode(stored.body) for stored in switch.read() if mark in stored.body[:64])
    erased = (data_of(record, PayloadErased) for record in records)
    return {run for data in erased if isinstance(run := data.get("run"), str)}
