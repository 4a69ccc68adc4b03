"""Whether a log is what was written: the chain, the payloads, the run's row, and anchors.

A chain alone shows an edit, a deletion, an insertion and a reordering.  That the end was cut off, that
all was rewritten, or that a run is gone shows only against an anchor: a head kept somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple

import msgspec

from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.model import CONTROL_RUN_ID, PAYLOAD_ERASED, Head, Record
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.fold import RunFold
from agentguard.runs.summary import from_data


class Fault(NamedTuple):
    """Where a log is not what was written: the first event that does not fit, and why."""

    run_id: str
    seq: int
    problem: str


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found; true when intact.

    `anchored` says whether every run was held against an anchor; without one, that the end of a log
    was cut off is not excluded, and `str(report)` says so.
    """

    faults: tuple[Fault, ...]
    anchored: bool
    events: int
    runs: int

    def __bool__(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        if self.faults:
            first = self.faults[0]
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            return f"NOT intact: run {first.run_id}, event {first.seq}: {first.problem}{more}"
        limits = "" if self.anchored else "; no anchor given: truncation not excluded"
        return f"intact: {self.events} events of {self.runs} runs{limits}"


class _Chain:
    """Verifies one log, event by event."""

    def __init__(self, run_id: str, salt: bytes | None, anchors: Mapping[int, str]) -> None:
        self.run_id = run_id
        self.salt = salt
        self.anchors = dict(anchors)
        self.head = codec.genesis(run_id)
        self.seq = 0
        self.heads: dict[int, bytes] = {}

    def check(self, log: Iterable[Stored]) -> Iterator[Fault]:
        """The first fault, if there is one; what follows a broken link cannot be judged."""
        salt, head, seq = self.salt, self.head, 0
        for position, body, digest, payload, _ in log:
            seq += 1
            problem = None
            if position != seq:
                problem = f"expected event {seq}, found {position}: one is missing or out of place"
            elif sha256(head + body).digest() != digest:
                problem = "its hash does not fit: it, or its order, was changed"
            elif not body.startswith(b'{"seq":%d,' % seq):
                problem = "its body says another sequence"
            elif payload is not None:
                problem = _payload_problem(payload, salt, body)
            if problem is not None:
                yield Fault(self.run_id, seq, problem)
                return
            head = digest
            if seq in self.anchors and self.anchors.pop(seq) != digest.hex():
                yield Fault(self.run_id, seq, "it is not the event that the anchor names")
                return
        self.seq, self.head = seq, head
        for missing in sorted(self.anchors):
            yield Fault(self.run_id, seq + 1, f"the log ends before event {missing}, which an anchor names")
            return


def _payload_problem(payload: bytes, salt: bytes | None, body: bytes) -> str | None:
    if salt is None:
        return "it has a payload though the run's payloads were erased"
    if sha256(salt + payload).hexdigest().encode() not in body:
        return "its payload is not the one that was recorded"
    return None


def verify(
    store: EventStore,
    rows: Iterable[RunRow],
    anchors: Mapping[str, Head],
    control: Callable[[], Iterable[Stored]] | None = None,
) -> VerifyReport:
    """Verify the logs of `rows`, each with its row in one snapshot, and the control log if it is given."""
    faults: list[Fault] = []
    events = runs = 0
    anchored = True
    left = dict(anchors)
    for listed in rows:
        anchor = left.pop(listed.run_id, None)
        found, seen = _verify_run(store, listed.run_id, anchor)
        if seen is None:
            continue  # pruned since it was listed
        runs += 1
        events += seen
        faults += found
        anchored = anchored and anchor is not None
    if control is not None:
        anchor = left.pop(CONTROL_RUN_ID, None)
        found, seen = _verify_control(control(), anchor)
        events += seen
        faults += found
        anchored = anchored and (runs > 0 or anchor is not None)
        faults += [] if found else _gone(left, control())
    else:
        anchored = anchored and runs > 0
        faults += _gone(left, ())
    faults += [Fault(*fault) for fault in getattr(store, "damage", ())]
    return VerifyReport(faults=tuple(faults), anchored=anchored, events=events, runs=runs)


def _verify_run(store: EventStore, run_id: str, anchor: Head | None) -> tuple[list[Fault], int | None]:
    """The faults of a run, and how many events of it are intact; None if the run is not there."""
    with store.snapshot():
        row = store.row(run_id)
        if row is None:
            return [], None
        chain = _chain_of(row, anchor)
        try:
            found = list(chain.check(store.read(run_id)))
            return found or _row_faults(store, row, chain.seq), chain.seq
        except LogIntegrityError as error:
            return [Fault(run_id, error.seq or chain.seq + 1, error.problem)], chain.seq


def _verify_control(log: Iterable[Stored], anchor: Head | None) -> tuple[list[Fault], int]:
    chain = _Chain(CONTROL_RUN_ID, None, {} if anchor is None else {anchor.seq: anchor.hash})
    try:
        return list(chain.check(log)), chain.seq
    except LogIntegrityError as error:
        return [Fault(CONTROL_RUN_ID, error.seq, error.problem)], chain.seq


def _gone(anchors: Mapping[str, Head], control: Iterable[Stored]) -> Iterator[Fault]:
    """The runs that anchors name and that are not there, but for those pruned on record."""
    heads = pruned_heads(control) if anchors else {}
    for run_id, anchor in anchors.items():
        head = heads.get(run_id)
        if head is None:
            yield Fault(run_id, 0, "an anchor names this run, and it is gone")
        elif anchor.seq > head.seq or (anchor.seq == head.seq and anchor.hash != head.hash):
            yield Fault(run_id, 0, "it was pruned, with another log than the anchor names")


def pruned_heads(control: Iterable[Stored]) -> dict[str, Head]:
    """What the control log says of the runs that were pruned: their heads."""
    heads: dict[str, Head] = {}
    for stored in control:
        if b'"type":"%s"' % PAYLOAD_ERASED.encode() in stored.body[:64]:
            pruned = (codec.decode(stored.body).data or {}).get("pruned", ())
            heads.update({run["run"]: Head(run["seq"], run["hash"]) for run in pruned})
    return heads


def _chain_of(row: RunRow, anchor: Head | None) -> _Chain:
    anchors: dict[int, str] = {}
    if row.ended_ns is not None:  # the row's own head is no anchor, but must fit all the same
        head = row.summary["head"]
        anchors[head["seq"]] = head["hash"]
    if anchor is not None:
        anchors[anchor.seq] = anchor.hash
    return _Chain(row.run_id, row.salt, anchors)


def _row_faults(store: EventStore, row: RunRow, seq: int) -> list[Fault]:
    """The columns beside the log must say what the log says."""
    problem = None
    if seq == 0:
        problem = "the run has no events"
    elif row.summary["run_id"] != row.run_id:
        problem = "the row's summary belongs to another run"
    else:
        first = next(iter(store.read(row.run_id)))
        record = codec.decode(first.body)
        data = record.data or {}
        said = (row.name, row.tenant, row.parent_id)
        if said != (record.name, data.get("tenant"), data.get("parent")):
            problem = "the run's row has another name, tenant or parent than the log"
        else:
            problem = _end_problem(store, row)
    return [Fault(row.run_id, seq, problem)] if problem else []


def _end_problem(store: EventStore, row: RunRow) -> str | None:
    """Whether state, end and erasure are what the log says: folded from its run events alone."""
    fold = RunFold(row.run_id)
    for record in _run_events(store.read(row.run_id)):
        fold.apply(record, b"")
    if (row.state, row.ended_ns) != (str(fold.state), fold.ended_ns):
        return f"the run's row says {row.state}, the log does not"
    if row.salt is None and not fold.erased:
        return "the salt of its payloads is gone, and no erasure is on record"
    return None


def _run_events(log: Iterable[Stored]) -> Iterator[Record]:
    for stored in log:
        head = stored.body[:48]
        if b'"type":"run_' in head or b'"type":"payload_erased"' in head:
            yield codec.decode(stored.body)


def reconstruct(store: EventStore, row: RunRow) -> RunFold:
    """Fold a run's log from its first event.

    Raises:
        LogIntegrityError: the chain is broken.
    """
    fold = RunFold(row.run_id)
    for stored in store.read(row.run_id):
        if codec.chain(fold.hash, stored.body) != stored.hash:
            raise LogIntegrityError(row.run_id, stored.seq, "its hash does not fit")
        fold.apply(codec.decode(stored.body), stored.hash)
    return fold


def stored_summary(row: RunRow) -> object:
    """The summary that the row holds, as of the last state change."""
    return from_data(row.summary)
