"""The Guard: holds the parts, opens runs, answers questions about them."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from msgspec import structs

from agentguard import config
from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard._ids import new_run_id
from agentguard.audit import checkpoint, erasure
from agentguard.audit import verify as audit
from agentguard.audit.compare import RunDiff, diff
from agentguard.audit.export import Exported, Sink, export
from agentguard.audit.whatif import WhatIf, what_if
from agentguard.budget.account import Account
from agentguard.budget.model import Budget, Usage
from agentguard.budget.tenant import PERIODS, account_id
from agentguard.errors import AgentGuardError, InvalidStateTransitionError, LogIntegrityError, RunNotFoundError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.model import Event, Head, Record
from agentguard.killswitch import orders
from agentguard.killswitch.model import Acknowledgements, Kill
from agentguard.ownership import Heartbeat, bury, bury_all
from agentguard.lifecycle import Joining, Opening, load_journal
from agentguard.protocols import KillSwitch, RunRow
from agentguard.recovery import Forking, ForkOptions, Recovering, nested, refuse_altered
from agentguard.replay import resolving
from agentguard.replay.origin import origin_log
from agentguard.replay.session import Replaying
from agentguard.run import Run
from agentguard.runs.state import RunState, check_move
from agentguard.runs.summary import RunSummary, from_data, summarize
from agentguard.steps import approvals
from agentguard.steps.journal import Journal
from agentguard.steps.parts import Parts
from agentguard.steps.redaction import BUILT_IN, redactor
from agentguard.tenancy import check_id


class TenantAccount(NamedTuple):
    """A tenant's budget, and what was spent of it in the present window."""

    tenant: str
    per: str | None
    budget: Budget
    spent: Usage


class Approval(NamedTuple):
    """A step that waits for an operator."""

    run_id: str
    key: str
    name: str


class Guard:
    """Holds event store, budget ledger, kill switch and telemetry, and opens runs.

    Lazy: it touches nothing until it is used.  Safe to share between threads, and across fork.  A
    guard is a context manager and closes what it opened.

    Example:
        >>> from agentguard import Budget, Guard
        >>> with Guard.in_memory() as guard:
        ...     with guard.run("demo", budget=Budget(steps=2)) as run:
        ...         answer = run.call("add", lambda a, b: a + b, 2, 3)
        ...     state, verified = guard.summary(run.id).state, bool(guard.verify(run.id))
        >>> answer, state, verified
        (5, <RunState.COMPLETED: 'COMPLETED'>, True)
    """

    def __init__(
        self, open_parts: Callable[[], Parts], *, default_budget: Budget | None
    ) -> None:
        """Use `Guard.open` or `Guard.in_memory`."""
        self._open_parts = open_parts
        self._parts: Parts | None = None
        self._opened: dict[int, Parts] = {}
        self._participant: Any = None
        self._heartbeat = Heartbeat(self)
        self.default_budget = default_budget
        #: Gives the id of a run that is told none.
        self.new_run_id = new_run_id
        #: The runs of this process by id.
        self.live: weakref.WeakValueDictionary[str, Journal] = weakref.WeakValueDictionary()

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        kill_switch: str | KillSwitch | None = None,
        ledger: str | None = None,
        publisher: Any = None,
        durability: str | None = None,
        telemetry: Any = True,
        capture: str = "full",
        redact: Any = None,
        default_budget: Budget | None = None,
        clock: Clock = SYSTEM_CLOCK,
        ids: Callable[[], str] = new_run_id,
    ) -> Guard:
        """A guard over a store: by default SQLite and a kill page under the state directory.

        Args:
            url: `memory://`, `sqlite:///path`, or `file:///run.jsonl` (an export, read-only); by
                default `AGENTGUARD_STORE`.
            kill_switch: `"page"` (default), `"memory"`, or an object; `AGENTGUARD_KILL_SWITCH`.
            ledger: not yet: the store's own ledger is used.
            publisher: not yet.
            durability: `"process"` (default: survives kill -9), `"power"` (fsync: survives power
                loss) or `"buffered"`.
            telemetry: True for OpenTelemetry's global providers, False, or a `Telemetry`.
            capture: `"full"`, `"digest"` or `"none"`: what is kept of arguments and results.
            redact: more than the built-in rules that take secrets out of what is captured: names, or
                a callable `(name, value) -> value`; False switches all of it off.
            default_budget: for runs that name none.
            clock: where time comes from.
            ids: where the ids of runs come from.

        Raises:
            ValueError: an option is wrong.
        """
        for name, value in (("ledger", ledger), ("publisher", publisher)):
            if value is not None:
                raise ValueError(f"{name}= is not available yet; leave it out")
        _check_options(durability, capture, default_budget)
        rules = redactor(redact)

        def open_parts() -> Parts:
            store = config.open_store(url, durability, clock)
            return Parts(
                store=store,
                switch=config.open_switch(kill_switch, clock, store),
                telemetry=config.open_telemetry(telemetry),
                clock=clock,
                capture=capture,  # type: ignore[arg-type]
                redact=BUILT_IN if rules is None else rules,
            )

        guard = cls(open_parts, default_budget=default_budget)
        guard.new_run_id = ids
        return guard

    @classmethod
    def in_memory(cls, **options: Any) -> Guard:
        """A guard that touches no disk and no machine page; the options are those of `open`."""
        options.setdefault("kill_switch", "memory")
        return cls.open("memory://", **options)

    @property
    def parts(self) -> Parts:
        """The parts, opened at first use; for agentguard's own rooms."""
        if self._parts is None:
            parts = self._open_parts()
            parts.refresh()
            # Without a lock, which a fork could leave held: of several threads the first has opened it.
            self._parts = self._opened.setdefault(0, parts)
            if self._parts is not parts:
                parts.store.close()
                parts.switch.close()
        return self._parts

    def close(self) -> None:
        """Give back what was opened.  Closing twice does nothing."""
        parts, self._parts = self._parts, None
        self._opened.clear()
        participant, self._participant = self._participant, None
        self._heartbeat.stop()
        if participant is not None:
            participant.leave()
        if parts is not None:
            parts.store.close()
            parts.switch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    # --- runs ----------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        *,
        budget: Budget | None = None,
        tenant: str | None = None,
        run_id: str | None = None,
        inputs: Any = None,
        metadata: dict[str, Any] | None = None,
        on_warning: Callable[[dict[str, Any]], None] | None = None,
        detached: bool = False,
        if_exists: str = "error",
        interrupt_threads: bool = False,
    ) -> Run:
        """A run: `with guard.run("triage", budget=Budget(usd="1.00")) as run:`; `async with` too.

        A run opened inside another is its child: it is charged at every level around it and stops
        with it; `detached=True` opts out.

        Args:
            name: what the run is called.
            budget: its limits; by default the guard's `default_budget`.
            tenant: whose run it is; by default the tenant of the run around it, or "default".
            run_id: an id of your own; by default a UUID.
            inputs: what the run was given, recorded.
            metadata: plain data for the summary.
            on_warning: called with each budget warning.
            detached: no child of the run around it.
            interrupt_threads: on a stop, interrupt sync bodies in flight too, by an exception raised in
                their thread at the next line of Python; rough, and not while they are inside C code.
            if_exists: `"error"`, or `"recover"` a run of this `run_id` that has crashed.

        It is a decorator too, on a sync or async function: a fresh run for each call, its arguments
        recorded as inputs.

        Raises:
            ValueError: `if_exists` is something else, or `"recover"` without a `run_id`.
            RunExistsError: the id is taken (when the block is entered).
            KillSwitchTriggeredError: a kill covers it already (when the block is entered).
        """
        if if_exists not in ("error", "recover") or (if_exists == "recover" and run_id is None):
            raise ValueError(f"if_exists must be 'error', or 'recover' with a run_id, not {if_exists!r}")
        if if_exists == "recover" and (row := self.parts.store.row(check_id(run_id, "run_id"))) is not None:
            return Run(Recovering(self, row))
        options: dict[str, Any] = {
            "budget": budget,
            "tenant": tenant,
            "run_id": run_id,
            "inputs": inputs,
            "metadata": metadata,
            "on_warning": on_warning,
            "detached": detached,
            "interrupt_threads": interrupt_threads,
        }

        def again(inputs: dict[str, Any]) -> Run:
            return self.run(name, if_exists=if_exists, **{**options, "inputs": inputs})

        return Run(Opening(self, name, **options), again)

    def start(self, name: str, **options: Any) -> Run:
        """Open a run where no block fits (notebooks); end it with `run.close()` or `run.aclose()`."""
        return self.run(name, **options).__enter__()

    def attach(self, run_id: str, *, branch: str | None = None) -> Run:
        """Join a live run from another thread, process or host.

        Name the branch where the run is to be replayed; without, it gets one by arrival.  Leaving the
        block detaches and raises the run's stop; only the owner's block ends the run.

        Raises:
            RunNotFoundError: there is no such run.
            NoActiveRunError: it has ended (when a step is called).
        """
        return Run(Joining(self, run_id, branch))

    def take_part(self) -> None:
        """Be told of kills, also while no step runs."""
        if self._participant is None:
            guard = weakref.ref(self)

            def on_change(_generation: int) -> None:
                if (alive := guard()) is not None:
                    alive.observe()

            self._participant = self.parts.switch.join(on_change)
        self._heartbeat.start(os.getpid())

    def observe(self) -> None:
        """Hold every live run of this process against the kill switch."""
        for journal in list(self.live.values()):
            with contextlib.suppress(AgentGuardError):
                journal.look()

    def pause(self, run_id: str, *, reason: str = "") -> None:
        """Admit no further step of a run until it is resumed; durable, from any process.

        Raises:
            InvalidStateTransitionError: the run is not RUNNING.
        """
        self._move(run_id, Record(0, ev.RUN_PAUSED, 0, data={"reason": reason}))

    def resume(self, run_id: str) -> None:
        """Lift a pause, and nothing else.

        Raises:
            InvalidStateTransitionError: the run is not PAUSED.
        """
        self._move(run_id, Record(0, ev.RUN_RESUMED, 0))

    def _move(self, run_id: str, record: Record) -> None:
        journal = self.journal(run_id)
        target = RunState.PAUSED if record.type == ev.RUN_PAUSED else RunState.RUNNING
        with journal.deciding():
            if target is RunState.RUNNING and journal.fold.state is not RunState.PAUSED:
                raise InvalidStateTransitionError(run_id, journal.fold.state, target)
            check_move(run_id, journal.fold.state, target)
            data = dict(record.data or {}) | {"running_ns": journal.running_ns()}
            journal.act([structs.replace(record, at_ns=journal.clock.wall(), data=data)])

    def journal(self, run_id: str) -> Journal:
        """The run's log in this process, read from the store if it is not live here."""
        live = self.live.get(run_id)
        return live if live is not None else load_journal(self.parts, self._row(run_id))

    # --- the kill switch -----------------------------------------------------------------------

    def kill(
        self,
        *,
        reason: str,
        tenant: Any = orders.UNSET,
        run: Any = orders.UNSET,
        actor: str | None = None,
    ) -> int:
        """Stop a run, a tenant's runs, or (neither given) everything under this home.

        Gives the kill's generation, for `acknowledged`.  It is durable when this returns, and every
        process of the host sees it at its next check.

        Raises:
            ValueError: `None` or `""` for tenant or run, or no reason.
        """
        kind, data = orders.kill_data(reason, tenant=tenant, run=run, actor=actor)
        generation = self.parts.switch.record(kind, data)
        self.observe()
        bury_all(self)
        return generation

    def revive(
        self,
        *,
        tenant: Any = orders.UNSET,
        run: Any = orders.UNSET,
        reason: str = "revived",
        actor: str | None = None,
    ) -> int:
        """Let later runs start again: clears the kills of exactly this scope.

        A run that was killed stays killed.
        """
        kind, data = orders.revive_data(reason, tenant=tenant, run=run, actor=actor)
        return self.parts.switch.record(kind, data)

    def set_tenant_budget(
        self, tenant: str, budget: Budget, per: str | None = None, *, actor: str | None = None
    ) -> None:
        """Limit what all runs of a tenant may use together; on record in the control log.

        Args:
            tenant: whose runs.
            budget: the limits; one without any lifts the budget.
            per: None for ever, or a UTC `"day"` or `"month"`, which begins anew each time.
            actor: who says so; by default `user@host`.

        Raises:
            ValueError: `per` is something else, or the budget limits what a tenant cannot have.
        """
        check_id(tenant, "tenant")
        if not isinstance(budget, Budget):
            raise TypeError(f"budget must be a Budget, not {type(budget).__name__}")
        if per not in PERIODS:
            raise ValueError(f"per must be None, 'day' or 'month', not {per!r}")
        if budget["seconds"] is not None:
            raise ValueError("a tenant's budget cannot limit seconds; limit them for each run")
        data = {"tenant": tenant, "per": per, "budget": budget.to_fields()}
        data["actor"] = actor or orders.default_actor()
        self.parts.switch.record(ev.TENANT_BUDGET_SET, data)
        self.parts.refresh()
        self.observe()

    def tenants(self) -> list[TenantAccount]:
        """The tenants with a budget, and what they have spent of it in the present window."""
        parts = self.parts
        parts.refresh()
        now = parts.clock.wall()
        found = []
        for tenant in parts.tenants.tenants():
            for per, budget in parts.tenants.budgets(tenant).items():
                name = account_id(tenant, per, now)
                account = parts.store.accounts([name]).get(name) or Account(f"tenant:{tenant}", budget)
                found.append(TenantAccount(tenant, per, budget, Usage.from_amounts(account.spent)))
        return found

    def approvals(self) -> list[Approval]:
        """The steps that wait for an approval, in all runs."""
        found = []
        for row in self.parts.store.rows(state="RUNNING", limit=2**31):
            for key, asked in self.journal(row.run_id).fold.approvals.items():
                if asked["state"] == ev.APPROVAL_REQUESTED:
                    found.append(Approval(row.run_id, key, asked["name"]))
        return found

    def approve(self, run_id: str, key: str, *, reason: str | None = None, actor: str | None = None) -> None:
        """Let a waiting step run.

        Raises:
            AgentGuardError: no step of that key waits.
        """
        who = actor or orders.default_actor()
        approvals.decide(self.journal(run_id), key, granted=True, reason=reason, actor=who)

    def deny(self, run_id: str, key: str, *, reason: str | None = None, actor: str | None = None) -> None:
        """Refuse a waiting step: it raises `ApprovalDeniedError`; the run goes on.

        Raises:
            AgentGuardError: no step of that key waits.
        """
        who = actor or orders.default_actor()
        approvals.decide(self.journal(run_id), key, granted=False, reason=reason, actor=who)

    def kills(self) -> list[Kill]:
        """All kills ever ordered here, oldest first; `cleared` marks those revived since."""
        return self.parts.switch.kills()

    def acknowledged(self, generation: int, timeout: float = 1.0) -> Acknowledgements:
        """Wait, at most `timeout` seconds, until every live process has acted on a kill."""
        return self.parts.switch.acknowledgements(generation, timeout)

    # --- running again -------------------------------------------------------------------------

    def replay(self, run_id: str, *, stall_timeout: float = 30.0, telemetry: Any = None) -> Run:
        """Run an agent again on its log: `with guard.replay(run_id) as run: agent(run.inputs)`.

        No step body runs, nothing is written, nothing is spent, live kills are ignored.  Recorded
        results and exceptions come back, and stops happen where they did; the recorded stop leaves the
        block as it did live.

        Args:
            run_id: the run.
            stall_timeout: seconds without progress after which a program that does not ask for the
                next recorded outcome is taken to differ.
            telemetry: a `Telemetry` for spans of the replay; none by default.

        Raises:
            ReplayDivergenceError: the program did something else; the first difference, for good.
            LogIntegrityError: the log was altered.
            RunNotFoundError: there is no such run.
        """
        replaying = Replaying(
            self.parts,
            self._row(run_id),
            stall_timeout=stall_timeout,
            check=refuse_altered,
            telemetry=telemetry,
        )
        return Run(replaying)

    def recover(self, run_id: str, *, take_over: bool = False, stall_timeout: float = 30.0) -> Run:
        """Carry on a crashed run: `with guard.recover(run_id) as run: agent(run.inputs)`.

        What is on record is served and not run again; the rest goes live.  A step that had started and
        has no outcome may have happened: `effect="read"` runs again, `"idempotent"` too, with the same
        idempotency key, a `probe` is asked, and `"once"` pauses the run for an operator (`resolve`).

        Args:
            run_id: the run; CREATED, RUNNING or PAUSED.
            take_over: claim it even if its owner is alive, or cannot be told to be dead.
            stall_timeout: as in `replay`.

        Raises:
            RunOwnedError: its owner lives (when the block is entered).
            InvalidStateTransitionError: it has ended; `fork` it (when the block is entered).
            StepOutcomeUnknownError: a `once` step may have happened (at the step).
            ReplayDivergenceError: the program is another than the one on record.
        """
        return Run(Recovering(self, self._row(run_id), take_over=take_over, stall_timeout=stall_timeout))

    def fork(
        self,
        run_id: str,
        at: int,
        *,
        budget: Budget | None = None,
        name: str | None = None,
        new_run_id: str | None = None,
        stall_timeout: float = 30.0,
    ) -> Run:
        """A new run that shares a run's log up to event `at` and then goes live.

        The prefix's spending counts against the fork's budget, and not again against the tenant's.

        Args:
            run_id: the origin, ended or not.
            at: the last event that is shared.
            budget: of the fork; by default the origin's.
            name: of the fork; by default the origin's.
            new_run_id: the fork's id; by default a UUID.
            stall_timeout: as in `replay`.

        Raises:
            ValueError: the origin has no event `at`.
        """
        row = self._row(run_id)
        options = ForkOptions(at=at, budget=budget, name=name, run_id=new_run_id, stall_timeout=stall_timeout)
        return Run(Forking(self, row, options))

    def resolve(
        self,
        run_id: str,
        key: str,
        outcome: str,
        *,
        result: Any = None,
        actor: str | None = None,
    ) -> None:
        """Say what became of a step whose outcome is unknown, or cannot be handed out again.

        Args:
            run_id: the run.
            key: the step's.
            outcome: `"retry"` (it did not happen), `"completed"` (with `result`) or `"failed"` (with a
                message as `result`).
            result: what the step gave.
            actor: who says so; by default `user@host`.

        Raises:
            ValueError: another outcome, or a result that cannot be encoded.
            AgentGuardError: the step is not in doubt.
        """
        who = actor or orders.default_actor()
        resolving.resolve(self.journal(run_id), key, outcome, result=result, actor=who)

    def nested(self, opening: Opening) -> Any:
        """How a run inside a replayed or recovered one is opened; None: live, like any other."""
        return nested(self, opening)

    # --- questions -----------------------------------------------------------------------------

    def runs(self, tenant: str | None = None, state: str | None = None, limit: int = 50) -> list[RunSummary]:
        """The newest runs first; live ones as of their last event."""
        return [self._in_list(row) for row in self.parts.store.rows(tenant=tenant, state=state, limit=limit)]

    def _in_list(self, row: RunRow) -> RunSummary:
        """A run's summary; a live one whose log is damaged is shown by its row, and hides no other."""
        try:
            return self._summary(row)
        except LogIntegrityError:
            return from_data(row.summary)

    def summary(self, run_id: str) -> RunSummary:
        """The run in a few lines.

        Raises:
            RunNotFoundError: there is no such run.
        """
        return self._summary(self._row(run_id))

    def _summary(self, row: RunRow) -> RunSummary:
        live = self.live.get(row.run_id)
        if live is not None:
            return live.summary()
        row = bury(self, row)
        summary = from_data(row.summary)
        if row.ended_ns is not None:
            return summary
        return summarize(audit.reconstruct(self.parts.store, row))

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
        return summarize(audit.reconstruct(self.parts.store, self._row(run_id)))

    def events(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[Event]:
        """Events of all runs with a position above `after`, in commit order.

        `prev_hash` is empty here, since an event's predecessor may lie before `after`.
        """
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
        """
        heads = {name: Head(*head) for name, head in (anchors or {}).items()}
        store = self.parts.store
        control = self.parts.switch.read
        if run_id is None:
            return audit.verify(store, store.rows(limit=2**62), heads, control)
        own = {name: head for name, head in heads.items() if name == run_id}
        if run_id == ev.CONTROL_RUN_ID:
            return audit.verify(store, [], own, control)
        return audit.verify(store, [self._row(run_id)], own)

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
        who = actor or orders.default_actor()
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
        return erasure.prune(parts.store, parts.switch, before, actor or orders.default_actor())

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
        """
        return what_if(origin_log(self.parts.store, self._row(run_id).run_id), budget)

    def _row(self, run_id: str) -> RunRow:
        row = self.parts.store.row(run_id)
        if row is None:
            raise RunNotFoundError(run_id)
        return row


def _check_options(durability: str | None, capture: str, default_budget: Budget | None) -> None:
    if durability is not None and durability not in config.DURABILITIES:
        raise ValueError(f"durability must be one of {config.DURABILITIES}, not {durability!r}")
    if capture not in ("full", "digest", "none"):
        raise ValueError(f"capture must be 'full', 'digest' or 'none', not {capture!r}")
    if default_budget is not None and not isinstance(default_budget, Budget):
        raise TypeError(f"default_budget must be a Budget, not {type(default_budget).__name__}")
