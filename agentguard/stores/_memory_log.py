"""One run as the memory store holds it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from agentguard.budget.account import Account
from agentguard.errors import EventsEvictedError
from agentguard.events.codec import Stored
from agentguard.protocols import HeadMovedError, RunRow
from agentguard.runs.state import RunState

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RunRow).decode

#: Events that bring something to its end, which a full store still takes: there are no more of
#: them than of the events that began it.
_CLOSING = re.compile(
    rb'\{"seq":\d+,"type":"(?:run_|payload_erased|scope_closed|step_(?:completed|failed|resolved))'
)


#: The fields of a `Stored` as a plain tuple, which is made faster, and which the garbage collector
#: need not look at again and again.
Entry = tuple[int, bytes, bytes, bytes | None, int]
_to_stored: Any = partial(tuple.__new__, Stored)


class Log:
    """One run: its row and its events.

    The row is kept encoded, so that nobody can change it from outside.
    """

    __slots__ = ("_row", "events", "evicted", "number", "run_id", "tenant")

    def __init__(self, number: int, row: RunRow) -> None:
        self.number = number
        self.run_id = row.run_id
        self.tenant = row.tenant
        #: By sequence: to append is one act of the interpreter, which nothing comes into.
        self.events: dict[int, Entry] = {}
        self.evicted = False
        self.row = msgspec.structs.replace(row, number=number)

    @property
    def row(self) -> RunRow:
        """A copy of the run's row."""
        return _decode(self._row)

    @row.setter
    def row(self, row: RunRow) -> None:
        self._row = _encode(row)

    def change(self, row: RunRow) -> None:
        """Take over what may change of a run; never its salt."""
        changed = self.row
        for name in ("state", "ended_ns", "epoch", "owner", "heartbeat_ns", "summary"):
            setattr(changed, name, getattr(row, name))
        self.row = changed

    def claim(self, row: RunRow) -> bool:
        """Claim the run with the next epoch, or beat or release the claim that is held."""
        changed = self.row
        if row.epoch == changed.epoch:
            allowed = row.owner in (changed.owner, {})
        else:
            allowed = row.epoch == changed.epoch + 1
        if allowed:
            changed.epoch, changed.owner = row.epoch, row.owner
            changed.heartbeat_ns = row.heartbeat_ns
            self.row = changed
        return allowed

    def check_next(self, events: Sequence[Stored]) -> None:
        """Refuse events that are not the next ones."""
        for seq, event in enumerate(events, len(self.events) + 1):
            if event.seq != seq:
                self.refuse(event.seq)

    def refuse(self, seq: int) -> None:
        """Say why an event with this sequence cannot be appended."""
        self.check_kept()
        raise HeadMovedError(self.number, seq)

    def check_kept(self) -> None:
        """Refuse if the events are no longer here."""
        if self.evicted:
            raise EventsEvictedError(
                f"the events of run {self.run_id} were evicted from memory:// to make room; "
                "raise max_events or use sqlite://"
            )

    def after(self, seq: int, limit: int | None = None) -> Iterator[Stored]:
        """The first `limit` events above a sequence, as of now."""
        events = self.events
        end = len(events) if limit is None else min(max(seq, 0) + limit, len(events))
        return map(_to_stored, map(events.__getitem__, range(max(seq, 0) + 1, end + 1)))

    def placed_after(self, position: int, limit: int) -> Iterator[tuple[int, Log, Stored]]:
        """The first `limit` events above a position, each with its position and this log."""
        events = self.events
        start = bisect_right(range(1, len(events) + 1), position, key=lambda seq: events[seq][4])
        return ((event.position, self, event) for event in self.after(start, limit))

    def erase(self) -> int:
        """Drop payloads and salt; gives how many payloads there were."""
        events = self.events.values()
        dropped = sum(payload is not None for _, _, _, payload, _ in events)
        # New ones: readers and `exclusive` may hold the old ones.
        self.events = {seq: (seq, body, digest, None, at) for seq, body, digest, _, at in events}
        row = self.row
        row.salt = None
        self.row = row
        return dropped

    def drop(self) -> int:
        """Let go of the events; gives how many there were."""
        dropped = len(self.events)
        self.events, self.evicted = {}, True
        return dropped


def closes_something(events: Sequence[Stored]) -> bool:
    """Whether one of the events is the outcome of what has begun."""
    return any(_CLOSING.match(event.body) for event in events)


def is_final(state: str) -> bool:
    """Whether a run in this state has ended."""
    return RunState(state).final


def copy_account(account: Account) -> Account:
    """A copy that can be moved without moving the account."""
    copied = Account(account.path, account.budget)
    for name in ("spent", "reserved", "excess", "calls", "repeats", "uncounted"):
        setattr(copied, name, dict(getattr(account, name)))
    copied.closed = account.closed
    return copied
