"""How a run begins and ends: its first events, its place in the run around it, its last event."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agentguard._encoding import decode, encode_inputs, type_name
from agentguard._process import identity
from agentguard.budget.model import Budget, check_budget
from agentguard.errors import (
    AgentGuardError,
    RunExistsError,
    RunStopped,
)
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored, payload_digest
from agentguard.events.model import Record
from agentguard.killswitch.model import GENERATION
from agentguard.leaving import adrain, drain, finish, forget, still_open
from agentguard.protocols import RunRow
from agentguard.run import Session
from agentguard.runs.branch import MAIN, Branch, key_part
from agentguard.runs.current import CURRENT
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runs.termination import COMPLETED, termination
from agentguard.steps import sync
from agentguard.steps.flow import check
from agentguard.steps.journal import Journal, row_of
from agentguard.steps.levels import Outer
from agentguard.steps.parts import Parts
from agentguard.tenancy import DEFAULT_TENANT, check_id

if TYPE_CHECKING:
    from agentguard.guard import Guard

#: How branches and keys are made; recorded, so that a replay knows.
KEY_SCHEME = 1


class Opening:
    """What a run is opened with, and how it is opened and ended."""

    #: What arrived when the block was left.
    _left: tuple[BaseException | None] | None = None

    def __init__(
        self,
        guard: Guard,
        name: str,
        *,
        budget: Budget | None,
        tenant: str | None,
        run_id: str | None,
        inputs: Any,
        metadata: dict[str, Any] | None,
        on_warning: Callable[[dict[str, Any]], None] | None,
        detached: bool,
        interrupt_threads: bool = False,
    ) -> None:
        self.guard = guard
        self.name = check_id(name, "name")
        if budget is not None:
            check_budget(budget)
        for field, flag in (("detached", detached), ("interrupt_threads", interrupt_threads)):
            if not isinstance(flag, bool):
                raise TypeError(f"{field} must be True or False, not {flag!r}")
        if on_warning is not None and not callable(on_warning):
            raise TypeError("on_warning must be callable")
        self.metadata = _plain_data(metadata)
        self.around = None if detached else self._place_around()
        self.key, self.pos = "", 0
        if self.around is not None:
            self.key, self.pos = self.around.branch.next_call(key_part(name))
        self.run_id = self._id(run_id)
        self.budget = budget or self._default_budget()
        parent_tenant = self.around.run.tenant if self.around is not None else DEFAULT_TENANT
        self.tenant = check_id(parent_tenant if tenant is None else tenant, "tenant")
        self._inputs = inputs
        self.on_warning = on_warning
        self._interrupt = interrupt_threads
        #: How this run is opened instead, where the run around it is replayed or recovered.
        self._nested: Session | None = None

    def _place_around(self) -> Any:
        place = CURRENT.get()
        if place is None:
            return None
        store = place.run.journal.parts.store
        if not hasattr(store, "sealed") and store is not self.guard.parts.store:  # a replay charges nobody
            raise ValueError(
                f"run {self.name!r} is opened inside run {place.run.id} of another guard, whose budget "
                "it could not be charged to; use that guard, or pass detached=True"
            )
        return place.run.here()

    def _id(self, run_id: str | None) -> str:
        if run_id is not None:
            if run_id == ev.CONTROL_RUN_ID:
                raise ValueError(f"run_id {run_id!r} is reserved for the control log")
            return check_id(run_id, "run_id")
        if self.around is None:
            return self.guard.new_run_id()
        # The id of a nested run follows from its place in the run around it.
        digest = sha256(f"{self.around.run.id}/{self.key}".encode()).digest()[:16]
        number = int.from_bytes(digest, "big") & ~(0xF << 76) | (8 << 76)
        return str(UUID(int=number & ~(0x3 << 62) | (2 << 62)))

    def _default_budget(self) -> Budget:
        default = self.guard.default_budget
        return default if default is not None and self.around is None else Budget()

    @property
    def inputs(self) -> Any:
        """What the run is given."""
        return self._inputs

    # --- the beginning -------------------------------------------------------------------------

    def branch(self) -> Branch:
        """The branch that the run's own code is in."""
        return Branch(MAIN)

    def open(self, run: Any) -> Journal:
        """Put the run on record and give its journal.

        Raises:
            RunExistsError: the id is taken.
            KillSwitchTriggeredError: a kill covers the run already; it is on record as KILLED.
        """
        if self.around is not None and self.around.run.journal.player is not None:
            self._nested = self.guard.nested(self)
            if self._nested is not None:
                return self._nested.open(run)
        parts = self.guard.parts
        if parts.redact:
            self.metadata = parts.redact.plain(self.metadata)
        generation = parts.switch.signal[GENERATION]
        kill = parts.switch.find(self.tenant, self.run_id, generation)
        span = None
        if parts.telemetry is not None:
            span = parts.telemetry.start_run(
                name=self.name, run_id=self.run_id, tenant=self.tenant, metadata=self.metadata
            )
        try:
            outer = self._enter_around()
            journal = self._create(generation, outer, span, started=kill is None)
        except BaseException as error:
            if span is not None:
                span.end(error=error, state="FAILED", head=None, usage={}, steps=0)
            raise
        journal.on_warning = self.on_warning
        journal.interrupt = self._interrupt
        self.guard.live[self.run_id] = journal
        if self.around is not None:
            self.around.run.journal.children.append(journal)
        journal.seen = generation
        self._join_drain(journal)
        self.guard.take_part()
        if kill is not None:
            journal.seen = -1
            stop = kill.error(self.run_id)
            journal.end(stop)
            self._leave_around(journal)
            forget(self.guard, journal)
            self._end_span(journal, stop)
            raise stop
        return journal

    def _join_drain(self, journal: Journal) -> None:
        """A run inside a body that a drain lets finish is drained with it."""
        if self.around is not None and (draining := self.around.run.journal.draining) is not None:
            journal.drain_with(draining)

    def _enter_around(self) -> list[Outer]:
        """Record this run in the run around it, whose levels now take charges from two logs."""
        if self.around is None:
            return []
        parent: Journal = self.around.run.journal
        scope = self.around.scope_key
        check(parent, scope)
        if self.guard.parts.store.row(self.run_id) is not None:
            raise RunExistsError(self.run_id)  # before the run around it has the nested one on record
        with parent.deciding():
            check(parent, scope)
            movements, outer = parent.levels.sharing(scope)
            data: dict[str, Any] = {"run": self.run_id}
            if scope:
                data["scope"] = scope
            if self.around.step is not None:
                data["parent"] = self.around.step.key
            record = Record(0, ev.SCOPE_OPENED, parent.clock.wall(), self.key, self.pos, self.name, data=data)
            parent.act([record], movements=movements)
        return outer

    def _create(self, generation: int, outer: list[Outer], span: Any, *, started: bool) -> Journal:
        parts = self.guard.parts
        salt = self._salt()
        unwanted = self._inputs is None or parts.capture == "none"
        inputs = None if unwanted else encode_inputs(self._inputs)
        if parts.redact and inputs is not None:
            inputs = parts.redact.value(inputs)
        fold = RunFold(self.run_id)
        data: dict[str, Any] = {
            "tenant": self.tenant,
            "budget": self.budget.to_fields(),
            "generation": generation,
            "keys": KEY_SCHEME,
            "python": platform.python_version(),
            "seed": self._seed(),
        } | self._more()
        if self.metadata:
            data["metadata"] = self.metadata
        if self.around is not None:
            data["parent"] = self.around.run.id
            data["parent_key"] = self.key
        if inputs is not None:
            data["inputs"] = payload_digest(salt, inputs)
            if parts.capture == "digest":
                data["digest_only"] = True
                inputs = None
        now = parts.clock.wall()
        trace = (span.trace_id, span.span_id) if span is not None else (None, None)
        records = [
            Record(
                1,
                ev.RUN_CREATED,
                now,
                name=self.name,
                data=data,
                trace_id=trace[0],
                span_id=trace[1],
            )
        ]
        if started:
            records.append(Record(2, ev.RUN_STARTED, now, name=self.name))
            records += self._prefix(now)
        stored = []
        for record, payload in itertools.zip_longest(records, (inputs,)):
            body = codec.encode(record)
            stored.append(Stored(record.seq, body, codec.chain(fold.hash, body), payload))
            # Through the bytes, so that what metadata cannot keep shows here and not in a replay.
            fold.apply(codec.decode(body), stored[-1].hash)
        row = RunRow(
            run_id=self.run_id,
            name=self.name,
            tenant=self.tenant,
            state=str(fold.state),
            created_ns=now,
            parent_id=fold.parent_id,
            owner=owner_of(parts),
            heartbeat_ns=now,
            salt=salt,
        )
        row = row_of(row, fold)
        row.number = parts.store.create(row, stored)
        journal = Journal(parts, row, fold, outer)
        journal.span = span
        journal.time.count()
        return journal

    def _seed(self) -> str:
        """What `run.uuid` and `run.random` follow from; inside another run, from that one's."""
        if self.around is None:
            return os.urandom(16).hex()
        outer = self.around.run.journal.fold.seed
        return sha256(f"{outer}/{self.key}".encode()).hexdigest()[:32]

    def _salt(self) -> bytes:
        return os.urandom(32)

    def _more(self) -> dict[str, Any]:
        """What else `run_created` says; for forks."""
        return {}

    def _prefix(self, now: int) -> list[Record]:
        """What follows `run_started` before any step; for forks."""
        return []

    # --- the end -------------------------------------------------------------------------------

    def close(self, journal: Journal, error: BaseException | None) -> RunStopped | None:
        """End the run, and give the stop to raise, if it has one."""
        if self._nested is not None:
            return self._nested.close(journal, error)
        draining = journal.draining
        if draining is not None and (draining.unwinds(error) or not draining.lets_on()):
            finish(self.guard, journal)
            if not journal.fold.state.final:
                self._end_span(journal, None)
                return journal.stop or draining.stop
        if not journal.owner:  # a forked child leaves the block: its parent ends the run
            return journal.stop
        if self._left is not None:  # the end could not be put on record, and is tried again
            self._finish(journal, self._left[0])
        else:
            self._left = (error,)
            self._settle_generators(journal)
            try:
                self._finish(journal, error)
            finally:
                self._leave_around(journal)
                forget(self.guard, journal)
                self._end_span(journal, journal.stop or error)
        return None if journal.fold.state is RunState.COMPLETED else journal.stop

    def _finish(self, journal: Journal, error: BaseException | None) -> None:
        """Put the end on record.  That it cannot be is raised, unless something else is already."""
        if journal.stop is None and journal.signal[GENERATION] != journal.seen:
            with contextlib.suppress(AgentGuardError):
                journal.look()  # a kill that no step has met is found here
        if isinstance(error, RunStopped) and journal.stop is None:
            if error.run_id in (None, journal.run_id):
                journal.set_stop(error)
            else:  # a stranger's, or of a run inside: an error like any other, unless a kill is for us
                with contextlib.suppress(AgentGuardError):
                    journal.look()
        if journal.stop is not None and journal.fold.state.final and not journal.stale:
            return
        try:
            journal.finish(COMPLETED if error is None else self._termination(journal, error))
        except AgentGuardError as failure:
            told = journal.stop if error is None else error
            if told is None:
                raise
            told.add_note(f"agentguard could not record the end of the run: {failure}")

    def _termination(self, journal: Journal, error: BaseException) -> dict[str, Any]:
        redact = self.guard.parts.redact
        ended = termination(error, redact.text if redact and not isinstance(error, RunStopped) else None)
        if isinstance(error, RunStopped) and journal.stop is None:
            ended["type"] = type_name(type(error))  # it did not stop this run
        return ended

    def _settle_generators(self, journal: Journal) -> None:
        journal.drain()
        for generator in still_open(journal):
            abandoned = generator.abandon()
            if abandoned is not None:
                with contextlib.suppress(AgentGuardError):
                    sync.close(generator.step, abandoned)

    def _leave_around(self, journal: Journal) -> None:
        if self.around is None:
            return
        parent: Journal = self.around.run.journal
        data: dict[str, Any] = {"run": self.run_id, "state": str(journal.fold.state)}
        if self.around.scope_key:
            data["scope"] = self.around.scope_key
        usage = {k: n for k, n in journal.fold.account.spent.items() if n}
        with contextlib.suppress(AgentGuardError), parent.deciding():
            record = Record(
                0,
                ev.SCOPE_CLOSED,
                parent.clock.wall(),
                self.key,
                self.pos,
                self.name,
                usage=usage,
                spent=parent.fold.spent_after(usage),
                data=data,
            )
            parent.act([record])
        if journal in parent.children:
            parent.children.remove(journal)

    def _end_span(self, journal: Journal, error: BaseException | None) -> None:
        if journal.span is not None:
            fold = journal.fold
            journal.span.end(
                error=error,
                state=str(fold.state),
                head=(fold.seq, fold.hash.hex()),
                usage=fold.account.spent,
                steps=fold.steps,
            )

    # --- control, for the run's own methods ----------------------------------------------------

    def drain(self, journal: Journal, timeout: float | None) -> bool:
        """See `Run.drain`."""
        return drain(self.guard, journal, timeout)

    async def adrain(self, journal: Journal, timeout: float | None) -> bool:
        """See `Run.adrain`."""
        return await adrain(self.guard, journal, timeout)

    def kill(self, run_id: str, reason: str, actor: str | None) -> int:
        """See `Run.kill`."""
        return self.guard.kill(run=run_id, reason=reason, actor=actor)

    def pause(self, run_id: str, reason: str) -> None:
        """See `Run.pause`."""
        self.guard.pause(run_id, reason=reason)

    def resume(self, run_id: str) -> None:
        """See `Run.resume`."""
        self.guard.resume(run_id)


def owner_of(parts: Parts) -> dict[str, Any]:
    """What a run's row says of this process as its owner."""
    return identity() | {"monotonic_ns": parts.clock.monotonic()}


def _plain_data(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as the log will have it."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        plain: dict[str, Any] = decode(codec.encode(dict(metadata)))
    except Exception as error:
        raise TypeError(
            f"metadata must be plain data, such as text, numbers, lists and dicts: {error}"
        ) from error
    return plain
