"""How a run begins: its place in the run around it, and its first events."""

from __future__ import annotations

import itertools
import os
import platform
from hashlib import sha256
from typing import Any
from uuid import UUID

from agentguard._encoding import VALUE_SCHEME
from agentguard.budget.model import Budget
from agentguard.budget.named import NamedAccount, joined
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored, payload_digest
from agentguard.events.data import NestedRunOpened, RunCreated
from agentguard.events.model import Record
from agentguard.killswitch.model import GENERATION
from agentguard.protocols import RunRow
from agentguard.runs.branch import branch_of, key_segment
from agentguard.runs.fold import RunFold
from agentguard.runtime import Runtime
from agentguard.sessions import drain
from agentguard.sessions.options import RunOptions
from agentguard.sessions.owned import OwnedSession
from agentguard.steps.current import current_position
from agentguard.steps.flow import check
from agentguard.steps.inputs import NO_INPUTS, RecordedInputs, record_inputs
from agentguard.steps.live import EnclosingRun, LiveRun
from agentguard.steps.log import row_of
from agentguard.steps.model import InRun
from agentguard.steps.spinning import check_place
from agentguard.tenancy import DEFAULT_TENANT

#: How branches and keys are made; recorded, so that a replay knows.
KEY_SCHEME = 1


class LiveSession(OwnedSession):
    """A new run: put on record when its block is entered."""

    #: Whether the log of the run around it has this run already: an earlier version died between the two.
    is_in_outer_log = False

    def __init__(self, runtime: Runtime, options: RunOptions) -> None:
        around = None if options.detached else _outer_position(runtime, options.name)
        key, pos = "", 0
        if around is not None:
            key, pos = around.branch.next_call(key_segment(options.name))
        self._metadata = options.plain_metadata()
        parent_tenant = around.run.tenant if around is not None else DEFAULT_TENANT
        super().__init__(
            runtime,
            options,
            run_id=options.run_id or (runtime.new_run_id() if around is None else _nested_id(around, key)),
            tenant=parent_tenant if options.tenant is None else options.tenant,
            around=around,
            key=key,
            pos=pos,
        )
        self.budget = options.budget or self._default_budget()
        self._account = self._named_account()

    def _default_budget(self) -> Budget:
        if self.around is not None:
            return Budget()
        return self.runtime.budget_for(self.options.name, self.tenant)

    def _named_account(self) -> NamedAccount | None:
        """Return the account that the run names, or that of the run around it.

        Raises:
            ValueError: it names another one than the run around it.
        """
        options = self.options
        outer: NamedAccount | None = None if self.around is None else self.around.account
        if options.account is None:
            return outer
        return joined(outer, options.account, self.tenant, options.account_budget)

    @property
    def inputs(self) -> Any:
        """What the run is given."""
        inputs = self.options.inputs
        return inputs.value() if isinstance(inputs, RecordedInputs) else inputs

    def open(self) -> LiveRun:
        """Put the run on record and return its live run.

        Raises:
            RunExistsError: the id is taken.
            KillSwitchTriggeredError: a kill covers the run already; it is on record as KILLED.
        """
        components = self.runtime.components
        if components.redact:
            self._metadata = components.redact.plain(self._metadata)
        generation = components.switch.signal[GENERATION]
        components.follow(generation)
        kill = components.switch.find(self.tenant, self.run_id, generation)
        span = None
        if components.telemetry is not None:
            span = components.telemetry.start_run(
                name=self.name, run_id=self.run_id, tenant=self.tenant, metadata=self._metadata
            )
        try:
            live_run = self._put_on_record(generation, span, started=kill is None)
        except BaseException as error:
            if span is not None:
                span.end(error=error, state="FAILED", head=None, usage={}, steps=0)
            raise
        live_run.stops.seen = generation
        self.take_part(live_run)
        if kill is not None:
            live_run.stops.seen = -1
            stop = kill.error(self.run_id)
            live_run.end(stop)
            self.leave_outer_run(live_run)
            drain.forget(self.runtime, live_run)
            self.end_span(live_run, stop)
            raise stop
        return live_run

    def _put_on_record(self, generation: int, span: Any, *, started: bool) -> LiveRun:
        """Create the run; a nested one in one act with the event that the run around it has of it.

        From there on the levels of the run around it take charges from two logs.
        """
        around = self.around
        if around is None:
            return self._create(generation, [], span, started=started)
        parent: LiveRun = around.live_run
        scope = around.scope_key
        check_place(parent, scope, branch_of(self.key), self.pos)

        def create_inside() -> LiveRun:
            check(parent, scope)
            movements, outer = parent.levels.sharing(scope, around.account), parent.enclosing(scope)
            live_run = self._create(generation, outer, span, started=started)  # first: its id may be taken
            if not self.is_in_outer_log:
                parent.log.act([self._opened(parent, around)], movements=movements)
            return live_run

        return parent.log.decide(create_inside)

    def _opened(self, parent: LiveRun, around: InRun) -> Record:
        data: NestedRunOpened = {"run": self.run_id}
        if around.scope_key:
            data["scope"] = around.scope_key
        if around.step is not None:
            data["parent"] = around.step.key
        return Record(0, ev.SCOPE_OPENED, parent.clock.wall(), self.key, self.pos, self.name, data=data)

    # --- the first events ----------------------------------------------------------------------

    def _create(self, generation: int, outer: list[EnclosingRun], span: Any, *, started: bool) -> LiveRun:
        components = self.runtime.components
        salt = self._salt()
        recorded = self._recorded_inputs()
        inputs = recorded.payload
        data = self._first_facts(generation)
        if inputs is not None:
            data["inputs"] = payload_digest(salt, inputs)
            if recorded.lost:
                data["lost_inputs"] = recorded.lost_parts()
            if components.capture == "digest":
                data["digest_only"] = True
                inputs = None
        now = components.clock.wall()
        trace_id, span_id = self._created_in(span)
        records = [
            Record(1, ev.RUN_CREATED, now, name=self.name, data=data, trace_id=trace_id, span_id=span_id)
        ]
        if started:
            records.append(Record(2, ev.RUN_STARTED, now, name=self.name))
            records += self._prefix(now)
        fold = RunFold(self.run_id)
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
            owner=self.new_owner(),
            heartbeat_ns=now,
            salt=salt,
        )
        row = row_of(row, fold)
        row.number = components.store.create(row, stored)
        live_run = LiveRun(components, row, fold, outer)
        live_run.span = span
        live_run.time.count()
        return live_run

    def _created_in(self, span: Any) -> tuple[str | None, str | None]:
        """Return the trace id and the span id that the run begins with."""
        return (None, None) if span is None else (span.trace_id, span.span_id)

    def _recorded_inputs(self) -> RecordedInputs:
        components = self.runtime.components
        if self.options.inputs is None or components.capture == "none":
            return NO_INPUTS
        return record_inputs(self.options.inputs, components.redact or None)

    def _value_scheme(self) -> int:
        """Return how values are encoded; a fork goes on as its origin began."""
        return VALUE_SCHEME

    def _first_facts(self, generation: int) -> RunCreated:
        """Return what `run_created` says, but for the inputs."""
        data: RunCreated = {
            "tenant": self.tenant,
            "budget": self.budget.to_fields(),
            "generation": generation,
            "keys": KEY_SCHEME,
            "values": self._value_scheme(),
            "python": platform.python_version(),
            "seed": self._seed(),
        }
        if self._account is not None:
            data["account"] = self._account.to_data()
        if self._metadata:
            data["metadata"] = self._metadata
        if self.around is not None:
            data["parent"] = self.around.run.id
            data["parent_key"] = self.key
        return data

    def _seed(self) -> str:
        """Return what `run.uuid` and `run.random` follow from; inside another run, from that one's."""
        if self.around is None:
            return os.urandom(16).hex()
        outer = self.around.live_run.fold.seed
        return sha256(f"{outer}/{self.key}".encode()).hexdigest()[:32]

    def _salt(self) -> bytes:
        return os.urandom(32)

    def _prefix(self, now: int) -> list[Record]:
        """Return what follows `run_started` before any step; for forks."""
        return []


def _outer_position(runtime: Runtime, name: str) -> InRun | None:
    """Return where in the run around it a new run is opened.

    Raises:
        ValueError: that run belongs to another guard.
    """
    position = current_position()
    if position is None:
        return None
    components = position.live_run.components
    replayed = components.abilities.sealed is not None
    if not replayed and components.store is not runtime.components.store:  # a replay charges nobody
        raise ValueError(
            f"run {name!r} is opened inside run {position.run.id} of another guard, whose budget "
            "it could not be charged to; use that guard, or pass detached=True"
        )
    return position.run.here()


def _nested_id(around: InRun, key: str) -> str:
    """Return the id of a nested run, which follows from its place in the run around it."""
    digest = sha256(f"{around.run.id}/{key}".encode()).digest()[:16]
    number = int.from_bytes(digest, "big") & ~(0xF << 76) | (8 << 76)
    return str(UUID(int=number & ~(0x3 << 62) | (2 << 62)))
