"""One pass over one log: its chain, its payloads, and what it says of its run.

A million events are to be verified in seconds, so most are only hashed and looked at as bytes.  What
few logs have many of (the life of the run, scopes, values) is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from agentguard.audit.accounts import Charges
from agentguard.budget.model import Usage
from agentguard.errors import AgentGuardError, LogIntegrityError
from agentguard.events import codec, conversations
from agentguard.events import model as ev
from agentguard.events.conversations import ConversationError, Messages
from agentguard.events.data import NestedRunOpened, StepEnded, data_of
from agentguard.events.model import Head, Record
from agentguard.protocols import RunRow
from agentguard.runs.fold import RunFold
from agentguard.runs.summary import from_row, summarize

#: The first letters of the types that need no decoding.
_STARTED = b"step_star"
_COMPLETED = b"step_comp"

#: What the start of a step has that is charged to accounts outside its run.
_WINDOWS = b'"windows":'

_LIFE = ("run_", ev.BUDGET_WARNING, ev.PAYLOAD_ERASED)

#: Where an event keeps the digest of its payload, by type.
_DIGESTS = {
    ev.RUN_CREATED: "inputs",
    ev.STEP_STARTED: "args",
    ev.STEP_COMPLETED: "result",
    ev.STEP_FAILED: "result",
    ev.STEP_RESOLVED: "result",
    ev.VALUE: "value",
}
#: What of a summary only the events of every step tell.
_OF_STEPS = ("bounded", "needs_branch_names", "open_steps", "unreplayable")

_MARKS = [b'"%s":"' % name.encode() for name in sorted(set(_DIGESTS.values()))]


class LogVerifier:
    """What is found out about one log; a fault ends it, since what follows cannot be judged."""

    def __init__(
        self, run_id: str, salt: bytes | None, anchors: Mapping[int, str], row_head: int = 0
    ) -> None:
        self.run_id = run_id
        #: How many events are intact.
        self.seq = 0
        self._salt = salt
        self._messages = Messages(codec.digester(salt or b""), keep=False)
        self._anchors = dict(anchors)
        #: What its steps are charged to outside any run, and whether others are nested in it.
        self.charges = Charges()
        self.has_nested = False
        #: The run as its own events have it, without its steps.
        self._fold = RunFold(run_id)
        self._row_head = row_head
        #: At the event that the row is as of: how many steps there were, and which said what was spent.
        self._steps = 0
        self._spent: bytes | None = None

    def problem(self, log: Iterable[Any]) -> str | None:  # noqa: C901 - in one piece, as it is run so often
        """The first thing that does not fit, at the event after `seq`."""
        salted = None if self._salt is None else sha256(self._salt)
        marks = {self._row_head, *self._anchors}
        head, seq, steps = codec.genesis(self.run_id), 0, 0
        spent: bytes | None = None
        charged = False
        try:
            for position, body, digest, payload, _ in log:
                start = b'{"seq":%d,"type":"' % (seq + 1)
                if position != seq + 1:
                    return f"expected event {seq + 1}, found {position}: one is missing or out of place"
                if sha256(head + body).digest() != digest:
                    return "its hash does not fit: it, or its order, was changed"
                if not body.startswith(start):
                    return "its body says another sequence"
                if payload is None:
                    if salted is not None and _had_payload(body):
                        return "its payload is gone, and no erasure is on record"
                elif salted is None:
                    return "it has a payload though the run's payloads were erased"
                else:
                    hashed = salted.copy()
                    if payload.startswith(conversations.HEAD) and conversations.is_asking(body):
                        hashed.update(self._messages.take_in(payload))
                    else:
                        hashed.update(payload)
                    if hashed.hexdigest().encode() not in body:
                        return "its payload is not the one that was recorded"
                after = len(start)
                kind = body[after : after + 9]
                if kind == _COMPLETED:
                    spent = body
                    if charged:
                        self._charge(codec.decode(body))
                elif kind == _STARTED:
                    steps += 1
                    if _WINDOWS in body:
                        charged = True
                        self._charge(codec.decode(body))
                else:
                    record = self._take(body, digest)
                    if record.spent is not None:
                        spent = body
                    if data_of(record, StepEnded).get("body_ran") is False:
                        steps -= 1
                head = digest
                if position in marks:
                    if position == self._row_head:
                        self._steps, self._spent = steps, spent
                    if self._anchors.pop(position, digest.hex()) != digest.hex():
                        return "it is not the event that the anchor names"
                seq = position
        except ConversationError as error:
            return str(error)
        finally:
            self.seq = seq
        for missing in sorted(self._anchors):
            return f"the log ends before event {missing}, which an anchor names"
        return None

    def _take(self, body: bytes, digest: bytes) -> Record:
        record = codec.decode(body)
        if record.type.startswith(_LIFE):
            try:
                self._fold.apply(record, digest)
            except (AgentGuardError, LookupError, TypeError, ValueError) as error:
                problem = f"it cannot come after what is before it ({error})"
                raise LogIntegrityError(self.run_id, record.seq, problem) from error
        elif record.type == ev.SCOPE_OPENED:
            self.has_nested = self.has_nested or "run" in data_of(record, NestedRunOpened)
        else:
            self._charge(record)
        return record

    def _charge(self, record: Record) -> None:
        try:
            self.charges.take(record)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise LogIntegrityError(self.run_id, record.seq, f"it says no charge ({error!r})") from error

    def row_problem(self, row: RunRow) -> str | None:
        """What the row of the run says and its log does not, once the log is found intact."""
        if not self.seq:
            return "the run has no events"
        if (unreadable := _unreadable(row)) is not None:
            return unreadable
        fold, said = self._fold, row.summary
        if said["run_id"] != row.run_id:
            return "the row's summary belongs to another run"
        if (differing := _differing(row, fold)) is not None:
            return f"the run's row has another {differing} than the log"
        if (row.state, row.ended_ns) != (str(fold.state), fold.ended_ns):
            return f"the run's row says {row.state}, the log does not"
        if row.salt is None and not fold.erased:
            return "the salt of its payloads is gone, and no erasure is on record"
        if said["head"]["seq"] > self.seq:
            return f"the log ends before event {said['head']['seq']}, which the run's row names"
        known = self._summary(Head(**said["head"]))
        for name, value in _plain(said).items():
            if name in known and known[name] != value:
                return f"the run's row has another {name.replace('_', ' ')} than the log"
        return None

    def _summary(self, head: Head) -> dict[str, Any]:
        """The summary as of `head`, but for what only a fold of every step would show."""
        known = summarize(self._fold)
        record = None if self._spent is None else codec.decode(self._spent)
        if record is not None:
            known = msgspec.structs.replace(known, usage=Usage.from_amounts(record.spent or {}))
        data = msgspec.structs.replace(known, steps=self._steps, head=head).to_data()
        for name in _OF_STEPS:
            del data[name]
        return _plain(data)


def _unreadable(row: RunRow) -> str | None:
    """What was garbled in a row so that it says nothing any more."""
    try:
        from_row(row)
    except LogIntegrityError as error:
        return error.problem.partition(";")[0]
    return "the owner in the run's row cannot be read" if "unreadable" in row.owner else None


def _differing(row: RunRow, fold: RunFold) -> str | None:
    """What a row has of its own, beside its state and summary, that the log says otherwise."""
    found = {
        "name": "name",
        "tenant": "tenant",
        "parent_id": "parent",
        "created_ns": "time",
        "epoch": "epoch",
    }
    return next((said for name, said in found.items() if getattr(row, name) != getattr(fold, name)), None)


def _had_payload(body: bytes) -> bool:
    """Whether an event without a payload was written with one."""
    if not any(mark in body for mark in _MARKS):
        return False
    record = codec.decode(body)
    data = record.data or {}
    if record.type == ev.APPROVAL_REQUESTED:
        return bool(data.get("captured"))
    name = _DIGESTS.get(record.type)
    return name in data and not data.get("digest_only") and data.get("unreplayable") != ev.ONLY_A_DIGEST


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """The data as a row gives it back."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(data))
    return plain
