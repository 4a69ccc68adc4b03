"""What a guard answers: lists and summaries, histories, whether a log is intact, exports, erasure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import structs

from agentguard._process import is_alive
from agentguard.audit import checkpoint, erasure
from agentguard.audit import verify as audit
from agentguard.audit.compare import RunDiff, diff
from agentguard.audit.export import Exported, Sink, export
from agentguard.audit.whatif import WhatIf, what_if
from agentguard.budget.model import Budget, check_budget
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.model import Event, Head
from agentguard.held import Held
from agentguard.killswitch import kill_requests
from agentguard.ownership import bury
from agentguard.protocols import RunRow
from agentguard.replay.origin import origin_log
from agentguard.runs.summary import RunSummary, from_row, summarize


class Questions(Held):
    """The reading side of a guard, and what is done to logs that have ended."""

    def runs(self, tenant: str | None = None, state: str | None = None, limit: int = 50) -> list[RunSummary]:
        """The newest runs first; live ones as of their last event.

        A live run whose log was altered hides no other: it is there as of its last change of state, with
        the fault in `damaged`; `verify` says more.

        Raises:
            LogIntegrityError: the row of one was altered, so that nothing can be told of it.
        """
        _check_count(limit, "limit")
        return [self._listed(row) for row in self.parts.store.rows(tenant=tenant, state=state, limit=limit)]

    def _listed(self, row: RunRow) -> RunSummary:
        try:
            return self._summary(row)
        except LogIntegrityError as error:
            return structs.replace(from_row(row), damaged=str(error))

    def summary(self, run_id: str) -> RunSummary:
        """The run in a few lines.

        Raises:
            RunNotFoundError: there is no such run.
            LogIntegrityError: its row or its log was altered, so that it cannot be told.
        """
        return self._summary(self._row(run_id))

    def _summary(self, row: RunRow) -> RunSummary:
        live = self.live.get(row.run_id)
        if live is not None and live.owner:
            return live.summary()
        from_row(row)
        row = bury(self, row)
        summary = from_row(row)
        if row.ended_ns is not None:
            return summary
        fold = audit.reconstruct(self.parts.store, row)
        # Its owner's own clock is not at hand: now, if it lives, or the last that was heard of it.
        alive = is_alive(row.owner)
        seen = self.parts.clock.wall() if alive else 0 if alive is False else row.heartbeat_ns
        return summarize(fold, fold.running_until(seen))

    def history(self, run_id: str) -> list[Event]:
        """The run's events in order; `"control"` gives kills, revives and tenant budgets.

        Raises:
            RunNotFoundError: there is no such run.
        """
        return list(self._events(run_id))

    def _events(self, run_id: str) -> Iterator[Event]:
        if run_id == ev.CONTROL_RUN_ID:
            log = self.parts.switch.read()
        else:
            log = self.parts.store.read(self._row(run_id).run_id)
        head = codec.genesis(run_id)
        for stored in log:
            yield codec.to_event(run_id, stored, head)
            head = stored.hash

    def reconstruct(self, run_id: str) -> RunSummary:
        """The summary folded from the run's events alone; equals the stored one.

        Raises:
            LogIntegrityError: the chain is broken.
        """
        fold = audit.reconstruct(self.parts.store, self._row(run_id))
        return summarize(fold, fold.running_until_last_event())

    def events(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[Event]:
        """Events of all runs with a position above `after`, in commit order.

        `prev_hash` is empty here, since an event's predecessor may lie before `after`.
        """
        _check_count(limit, "limit")
        _check_count(after, "after")
        return [
            codec.to_event(run_id, stored, b"")
            for run_id, stored in self.parts.store.tail(after, tenant, limit)
        ]

    def verify(
        self,
        run_id: str | None = None,
        *,
        anchors: Mapping[str, Head | tuple[int, str]] | None = None,
    ) -> audit.VerifyReport:
        """Whether the log of a run, or of every run and the control log, is what was written.

        Args:
            run_id: the run; by default all.
            anchors: heads kept elsewhere, by run id: `{run.id: run.summary().head}`.

        Raises:
            RunNotFoundError: there is no such run.
            StoreUnavailableError: `memory://` has let go of the run's events.
            TypeError: `anchors` are no heads by run id.
        """
        heads = _heads({} if anchors is None else anchors)
        store = self.parts.store
        control = self.parts.switch.read
        announced = int(getattr(self.parts.switch, "announced", 0))
        if run_id is None:
            return audit.verify_all(store, heads, control, announced)
        own = {name: head for name, head in heads.items() if name == run_id}
        if run_id == ev.CONTROL_RUN_ID:
            return audit.verify(store, [], own, control, announced)
        row = self._row(run_id)
        store.last(run_id)  # raises if its events were evicted, of which a whole store says how many
        return audit.verify(store, [row], own)

    # --- payloads and files --------------------------------------------------------------------

    def export(self, run_id: str | None, path: str | os.PathLike[str] | Sink) -> Exported:
        """Write a log as JSON Lines that a stranger can verify: docs/export-format.md.

        Args:
            run_id: a run, `"control"`, or None for everything.
            path: a file, which is replaced once the export is complete, and which only its user may
                read; or a binary file that is open.

        Raises:
            RunNotFoundError: there is no such run.
        """
        parts = self.parts
        return export(parts.store, parts.switch.read, run_id, path, parts.clock.wall())

    def checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        key: Any,
        run_id: str | None = None,
        tenant: str | None = None,
    ) -> dict[str, Head]:
        """Write a signed file with the heads of logs, and give them; needs the extra `crypto`.

        Kept where nobody can rewrite both, it shows later that a log was cut off, rewritten or lost:
        `guard.verify(anchors=read_checkpoint(path, public_key))`.

        Args:
            path: the file.
            key: the private key, from `agentguard.audit.checkpoint.new_key`: a path, or the key itself.
            run_id: one run alone, or `"control"`.
            tenant: the runs of one tenant alone; by default all runs and the control log.

        Raises:
            RunNotFoundError: there is no such run.
            MissingExtraError: the package `cryptography` is not installed.
        """
        parts = self.parts
        heads = checkpoint.heads(parts.store, parts.switch, run_id=run_id, tenant=tenant)
        checkpoint.write_checkpoint(path, heads, key=key, at_ns=parts.clock.wall())
        return heads

    def erase(self, run_id: str, *, actor: str | None = None) -> int:
        """Drop the captured arguments and results of an ended run; gives how many there were.

        The log still verifies, since events hold salted digests alone, and the salt goes too.  What
        stands in the events themselves (names, keys, error messages, metadata) stays.  On record in
        the run's log and in the control log.

        Raises:
            RunNotFoundError: there is no such run.
            AgentGuardError: it has not ended.
        """
        who = actor or kill_requests.default_actor()
        return erasure.erase(self.journal(run_id), self.parts.switch, who)

    def prune(self, older_than: Any, *, actor: str | None = None) -> list[str]:
        """Drop runs that ended before then, whole, and give their ids.

        Their heads stay on record in the control log, so that `verify` tells them from lost runs.  Runs
        nested in a live run, and the origin of a live fork, stay: it may have to be recovered.

        Args:
            older_than: an age (a timedelta, or seconds) or a time (a datetime with a time zone).
            actor: who says so; by default `user@host`.
        """
        parts = self.parts
        before = erasure.cut_off(older_than, parts.clock.wall())
        return erasure.prune(parts.store, parts.switch, before, actor or kill_requests.default_actor())

    def diff(self, run_a: str, run_b: str) -> RunDiff:
        """Where two runs differ, branch by branch in call order; true when they do.

        Keys, arguments, effects, outcomes and the end are compared; order over branches, times and
        spending are not.

        Raises:
            RunNotFoundError: one of them is not there.
        """
        store = self.parts.store
        a, b = self._row(run_a), self._row(run_b)
        return diff(a.run_id, origin_log(store, a.run_id), b.run_id, origin_log(store, b.run_id))

    def what_if(self, run_id: str, budget: Budget) -> WhatIf:
        """Whether and where another budget would have stopped a run; nothing is run.

        Raises:
            RunNotFoundError: there is no such run.
            TypeError: it is no Budget.
        """
        check_budget(budget)
        return what_if(origin_log(self.parts.store, self._row(run_id).run_id), budget)


def _check_count(value: object, field: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an int, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{field} must be 0 or more, not {value}")


def _heads(anchors: object) -> dict[str, Head]:
    if not isinstance(anchors, Mapping):
        raise TypeError(f"anchors must be heads by run id, not {type(anchors).__name__}")
    return {run_id: _head(run_id, head) for run_id, head in anchors.items()}


def _head(run_id: str, head: object) -> Head:
    match head:
        case (int(seq), str(digest)) if not isinstance(seq, bool):
            return Head(seq, digest)
    raise TypeError(f"anchors: that of run {run_id} must be a head (seq, hash), not {head!r}")
