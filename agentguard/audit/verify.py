"""Whether a log is what was written: the chain, the payloads, the run's row, and anchors.

A chain alone shows an edit, a deletion, an insertion and a reordering.  That the end was cut off, that
all was rewritten, or that a run is gone shows only against an anchor: a head kept somewhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from agentguard.audit._log import LogVerifier
from agentguard.audit.accounts import Books
from agentguard.errors import ControlLogDeniedError, EventsEvictedError, LogIntegrityError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.data import PayloadErased, data_of
from agentguard.events.model import CONTROL_RUN_ID, PAYLOAD_ERASED, Head, Record
from agentguard.protocols import EventStore, RunRow, abilities_of
from agentguard.runs.fold import RunFold
from agentguard.runs.summary import from_row

_ANCHOR = re.compile(r"(?:(?P<run>.+)=)?(?P<seq>[1-9][0-9]{0,15}):(?P<hash>[0-9a-f]{64})")


def parse_anchor(text: str) -> tuple[str | None, Head]:
    """Return the run that an anchor names, if it names one, and its head.

    Raises:
        ValueError: it is no anchor.

    Example:
        >>> parse_anchor("r1=12:" + "ab" * 32)[0]
        'r1'
    """
    match = _ANCHOR.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not RUN=SEQ:HASH; RUN is an id, SEQ a number from 1, HASH 64 hex digits, as "
            "`agentguard summary` prints the head"
        )
    return match["run"], Head(int(match["seq"]), match["hash"])


class Fault(NamedTuple):
    """Where a log is not what was written: the first event that does not fit, and why.

    What is wrong with no log in particular, as with an account, has `?` for the run and 0 for the event.
    """

    run_id: str
    seq: int
    problem: str

    def __str__(self) -> str:
        where = "" if (self.run_id, self.seq) == ("?", 0) else f"run {self.run_id}, event {self.seq}: "
        return where + self.problem


class AccountFault(Fault):
    """A shared account that says less than the logs prove: with it, a budget could be spent again."""

    __slots__ = ()


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found; true when intact.

    `anchored` says whether every run was held against an anchor; without one, that the end of a log
    was cut off is not excluded, and `str(report)` says so.  `evicted` counts runs whose events
    `memory://` has let go of: nothing is said of them.  `pruned` counts runs that an anchor names, and
    that were dropped by `prune` with just that head, as the control log says.  `left_out` names logs that
    this login has no right to: the control log, for one of a single tenant.
    """

    faults: tuple[Fault, ...]
    anchored: bool
    events: int
    runs: int
    evicted: int = 0
    pruned: int = 0
    left_out: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        if self.faults:
            first = self.faults[0]
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            return f"NOT intact: {first}{more}"
        return f"intact: {self.events} events of {self.runs} runs{self.limits}"

    @property
    def limits(self) -> str:
        """What is not said by `intact`, as it is put behind it."""
        text = "" if self.anchored else "; no anchor given: truncation not excluded"
        text += f"; {self.evicted} runs were evicted from memory" if self.evicted else ""
        text += f"; {self.pruned} anchored runs are gone, pruned on record" if self.pruned else ""
        text += "; the control log was left out: this login has no right to it" if self.left_out else ""
        return text


def verify_all(
    store: EventStore,
    anchors: Mapping[str, Head],
    control: Callable[[], Iterable[Stored]],
    announced: int = 0,
) -> VerifyReport:
    """Verify every run of a store, and the control log; see `verify`."""
    abilities = abilities_of(store)
    books = Books(store)
    denied = CONTROL_RUN_ID not in anchors and _is_denied(control)
    rows = store.rows(limit=2**62)
    report = verify(store, rows, anchors, None if denied else control, announced, books)
    if denied:
        report = msgspec.structs.replace(report, left_out=(CONTROL_RUN_ID,))
    accounts = abilities.accounts.account_ids() if books.kept and abilities.accounts is not None else ()
    named = {fault.run_id for fault in report.faults}
    misfiled = () if abilities.indexed is None else abilities.indexed.misfiled()
    lost = [Fault(run_id, 0, problem) for run_id, problem in misfiled if run_id not in named]
    rowless = abilities.rowless
    orphans = () if rowless is None else rowless.orphans()
    problem = "events of run number {} are here, and the run's row is gone"
    lost += [Fault("?", seq, problem.format(number)) for number, seq in orphans]
    lost += _account_faults(books, accounts)
    return msgspec.structs.replace(report, faults=(*report.faults, *lost)) if lost else report


def _is_denied(control: Callable[[], Iterable[Stored]]) -> bool:
    """Whether this login has no right to the control log, as one of a single tenant."""
    try:
        next(iter(control()), None)
    except ControlLogDeniedError:
        return True
    except LogIntegrityError:
        return False  # which `verify` says more of
    return False


def verify_one(store: EventStore, row: RunRow, anchors: Mapping[str, Head]) -> VerifyReport:
    """Verify the log of a run, and what it alone proves of the accounts that it charges."""
    books = Books(store)
    report = verify(store, [row], anchors, books=books)
    lost = _account_faults(books, ())
    return msgspec.structs.replace(report, faults=(*report.faults, *lost)) if lost else report


def _account_faults(books: Books, listed: Iterable[str]) -> list[Fault]:
    return [AccountFault("?", 0, problem) for problem in books.problems(listed)] if books.kept else []


def verify(  # noqa: PLR0917 - what is verified, and against what
    store: EventStore,
    rows: Iterable[RunRow],
    anchors: Mapping[str, Head],
    control: Callable[[], Iterable[Stored]] | None = None,
    announced: int = 0,
    books: Books | None = None,
) -> VerifyReport:
    """Verify the logs of `rows`, each with its row in one snapshot, and the control log if it is given.

    `announced` is the newest control record that the kill page knew of beforehand.  `books` takes in what the
    logs prove of shared accounts.
    """
    abilities = abilities_of(store)
    read = store.read if abilities.scanning is None else abilities.scanning.scan
    faults: list[Fault] = []
    events = runs = evicted = pruned = 0
    anchored = True
    left = dict(anchors)
    for listed in rows:
        anchor = left.pop(listed.run_id, None)
        try:
            found, seen = _verify_run(store, read, listed.run_id, anchor, books)
        except EventsEvictedError:
            evicted += 1
            anchored = False
            continue
        if seen is None:
            continue  # pruned since it was listed
        runs += 1
        events += seen
        faults += found
        anchored = anchored and anchor is not None
    if control is not None:
        anchor = left.pop(CONTROL_RUN_ID, None)
        found, seen = _verify_control(control(), anchor)
        if not found and seen < announced:
            problem = f"the log ends before record {announced}, which the kill page has announced"
            found = [Fault(CONTROL_RUN_ID, seen, problem)]
        events += seen
        faults += found
        anchored = anchored and (runs > 0 or anchor is not None)
        gone = [] if found else list(_gone(left, control()))
        pruned = 0 if found else len(left) - len(gone)
        faults += gone
    else:
        anchored = anchored and runs > 0
        faults += _gone(left, ())
    report = abilities.damage
    faults += [] if report is None else [Fault(*fault) for fault in report.damage()]
    return VerifyReport(
        faults=tuple(faults), anchored=anchored, events=events, runs=runs, evicted=evicted, pruned=pruned
    )


def _verify_run(
    store: EventStore,
    read: Callable[[str], Iterable[Sequence[Any]]],
    run_id: str,
    anchor: Head | None,
    books: Books | None,
) -> tuple[list[Fault], int | None]:
    """The faults of a run, and how many events of it are intact; None if the run is not there."""
    with store.snapshot():
        try:
            row = store.row(run_id)
        except LogIntegrityError as error:
            return [Fault(error.run_id, 0, error.problem)], 0
        if row is None:
            return [], None
        head = _row_head(row)
        anchors: dict[int, str] = {}
        if row.ended_ns is not None and head.seq:
            # The row's own head is no anchor, but must fit all the same.
            anchors[head.seq] = head.hash
        if anchor is not None:
            anchors[anchor.seq] = anchor.hash
        log = LogVerifier(run_id, row.salt, anchors, head.seq)
        found = _examined(log, read(run_id))
        if not found and (problem := log.row_problem(row)) is not None:
            found = [Fault(run_id, log.seq, problem)]
        if books is not None and books.kept and not found:  # an altered log proves nothing
            books.take(row, log.charges)
            if log.has_nested:
                found += [AccountFault(run_id, 0, problem) for problem in books.problems_of_run(run_id)]
        return found, log.seq


def _row_head(row: RunRow) -> Head:
    """The head that the row names; none in a row that cannot be read, which is found out at the end."""
    try:
        return from_row(row).head
    except LogIntegrityError:
        return Head(0, "")


def _verify_control(log: Iterable[Stored], anchor: Head | None) -> tuple[list[Fault], int]:
    control = LogVerifier(CONTROL_RUN_ID, None, {} if anchor is None else {anchor.seq: anchor.hash})
    return _examined(control, log), control.seq


def _examined(log: LogVerifier, events: Iterable[Any]) -> list[Fault]:
    try:
        problem = log.problem(events)
    except LogIntegrityError as error:
        return [Fault(log.run_id, error.seq or log.seq + 1, error.problem)]
    return [] if problem is None else [Fault(log.run_id, log.seq + 1, problem)]


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
            pruned = data_of(codec.decode(stored.body), PayloadErased).get("pruned", ())
            heads.update({run["run"]: Head(run["seq"], run["hash"]) for run in pruned})
    return heads


def reconstruct(store: EventStore, row: RunRow) -> RunFold:
    """Fold a run's log from its first event.

    Raises:
        LogIntegrityError: the chain is broken.
    """
    fold = RunFold(row.run_id)
    for stored in store.read(row.run_id):
        take(fold, stored)
    return fold


def take(fold: RunFold, stored: Stored) -> Record:
    """Fold the next event of a log, as it is read.

    Raises:
        LogIntegrityError: it does not fit.
    """
    if codec.chain(fold.hash, stored.body) != stored.hash:
        raise LogIntegrityError(fold.run_id, stored.seq, "its hash does not fit")
    return fold.apply_stored(stored)


def watched(
    run_id: str, log: Iterable[Stored], say: Callable[[LogIntegrityError], object]
) -> Iterator[Stored]:
    """A log as it is; `say` is told of the first event whose place or hash does not fit."""
    head, seq = codec.genesis(run_id), 0
    fits = True
    for stored in log:
        if fits and (stored.seq != seq + 1 or codec.chain(head, stored.body) != stored.hash):
            fits = False
            problem = "its hash does not fit: it, or its order, was changed"
            if stored.seq != seq + 1:
                problem = f"expected event {seq + 1}, found {stored.seq}: one is missing or out of place"
            say(LogIntegrityError(run_id, seq + 1, problem))
        head, seq = stored.hash, stored.seq
        yield stored
