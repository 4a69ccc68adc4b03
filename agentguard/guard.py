"""The Guard: what a user and an operator call.  Each method delegates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from agentguard._clock import SYSTEM_CLOCK
from agentguard._ids import new_run_id
from agentguard._loading import LOADING
from agentguard.replay import STALL_TIMEOUT
from agentguard.tenancy import UNSET

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from datetime import date, datetime, timedelta
    from types import TracebackType

    from agentguard._clock import Clock
    from agentguard.audit.compare import RunDiff
    from agentguard.audit.costs import CostKey, CostLine
    from agentguard.audit.export import Exported, Sink
    from agentguard.audit.verify import VerifyReport
    from agentguard.audit.whatif import WhatIf
    from agentguard.budget.model import Budget, BudgetChange, Usage
    from agentguard.durability import Durability
    from agentguard.engine import Engine
    from agentguard.events.model import Event, Head
    from agentguard.killswitch.model import Acknowledgements, Kill
    from agentguard.monitoring import Approval
    from agentguard.protocols import KillSwitch, QueueDepth
    from agentguard.queries import SharedAccount, TenantAccount
    from agentguard.replay.resolving import Resolution
    from agentguard.run import Run
    from agentguard.runs.state import RunState
    from agentguard.runs.summary import RunSummary
    from agentguard.sessions.options import IfExists, OnWarning, RunKeywords
    from agentguard.steps.components import Components
    from agentguard.steps.spec import Capture
    from agentguard.tenancy import Id
    from agentguard.workers.submission import SubmittedRun


class Guard:
    """Holds event store, kill switch and telemetry, and opens runs.

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

    def __init__(self, engine: Engine) -> None:
        """See `Guard.open`."""
        self._engine = engine
        #: For agentguard's own rooms.
        self.runtime = engine.runtime
        self._operations = engine.operations
        self._queries = engine.queries

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        kill_switch: str | KillSwitch | None = None,
        ledger: object = None,
        durability: Durability | None = None,
        telemetry: Any = True,
        capture: Capture = "full",
        redact: Any = None,
        default_budget: Budget | None = None,
        store_timeout: float | None = None,
        approval_timeout: float | timedelta | None = None,
        clock: Clock = SYSTEM_CLOCK,
        ids: Callable[[], str] = new_run_id,
    ) -> Guard:
        """Return a guard over a store: by default SQLite and a kill page under the state directory.

        Args:
            url: `sqlite:///path`, `postgresql://...` (extra `postgres`), `memory://`, or `file:///run.jsonl`
                (an export, read-only); by default `AGENTGUARD_STORE`, else SQLite in the state directory.
            kill_switch: `"page"` (default), `"memory"`, the URL of a server (`redis://`, `postgresql://`), or
                an object; by default `AGENTGUARD_KILL_SWITCH`, else the server of a PostgreSQL store.
            ledger: refused: the budgets of tenants lie in the store, in one act with the event.
            durability: `"process"` (default: survives kill -9) or `"power"` (fsync: survives power loss).
                None stands for the default: `memory://`, which has neither, refuses one that is asked for.
            telemetry: True for OpenTelemetry's global providers, False, or a `Telemetry`.
            capture: `"full"`, `"digest"` or `"none"`: what is kept of arguments and results.
            redact: more than the built-in rules that take secrets out of what is captured: names, or
                a callable `(name, value) -> value`; False switches all of it off.
            default_budget: for runs that name none; by default what is set outside the code, by run name and
                tenant: `AGENTGUARD_BUDGET`, or a table of `agentguard.toml` or `pyproject.toml`.
            store_timeout: seconds that a call waits for other writers of a SQLite file (30), or for
                PostgreSQL, before it is refused; in a URL, `sqlite:///path?store_timeout=5`.
            approval_timeout: seconds, or a timedelta, after which a step that nobody approved counts as
                denied, where it does not say; by default it waits for ever.
            clock: where time comes from.
            ids: where the ids of runs come from.

        Raises:
            ValueError: an option is wrong.
        """
        with LOADING:
            from agentguard.engine import Engine  # noqa: PLC0415 - so that an import of Guard is light
        engine = Engine.open(
            url,
            kill_switch=kill_switch,
            ledger=ledger,
            durability=durability,
            telemetry=telemetry,
            capture=capture,
            redact=redact,
            default_budget=default_budget,
            store_timeout=store_timeout,
            approval_timeout=approval_timeout,
            clock=clock,
            ids=ids,
        )
        return cls(engine)

    @classmethod
    def in_memory(cls, **options: Any) -> Guard:
        """Return a guard that touches no disk and no machine page; the options are those of `open`."""
        options.setdefault("kill_switch", "memory")
        return cls.open("memory://", **options)

    def close(self) -> None:
        """Close what the guard opened; it cannot be used again.  Closing twice does nothing."""
        self.runtime.close()

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

    @property
    def components(self) -> Components:
        """The components, opened at first use; for agentguard's own rooms."""
        return self.runtime.components

    # --- runs ----------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        *,
        budget: Budget | None = None,
        tenant: str | None = None,
        run_id: str | None = None,
        inputs: object = None,
        metadata: Mapping[str, Any] | None = None,
        on_warning: OnWarning | None = None,
        detached: bool = False,
        if_exists: IfExists = "error",
        interrupt_threads: bool = False,
        account: str | None = None,
        account_budget: Budget | None = None,
    ) -> Run:
        """Open a run: `with guard.run("triage", budget=Budget(usd="1.00")) as run:`; `async with` too.

        A run opened inside another is its child: it is charged at every level around it and stops
        with it; `detached=True` opts out.

        Args:
            name: what the run is called.
            budget: its limits; by default the guard's `default_budget`, or what is set outside the code.
            tenant: whose run it is.  None stands for the tenant of the run around it, or `"default"` where
                there is none: a nested run of the tenant `"default"` has to ask for it.
            run_id: an id of your own; by default a UUID.
            inputs: what the run was given, recorded.
            metadata: plain data for the summary.
            on_warning: called with each budget warning.
            detached: no child of the run around it, and not on its record: a replay refuses it.
            interrupt_threads: on a stop, interrupt sync bodies in flight too, those of nested runs included,
                by an exception raised in their thread at the next line of Python; rough, not while they
                are inside C code, and never in the guard's own code that they call.  One that arrives in
                a destructor, or in another callback that Python calls by itself, is lost there: that body
                is stopped at its next check.
            account: an account that this run shares with all runs of its tenant which name it, as
                `"thread:42"`: one limit over all turns of a conversation, across processes and restarts.
            account_budget: what they may use together; this run is held to it, whatever others name.
            if_exists: `"error"`, or `"recover"` a run of this `run_id` that has crashed; it keeps the budget,
                account, tenant, inputs and metadata that it was created with.  Or `"join"` the run of this
                `run_id`, created if it is not there: nobody owns it, leaving the block does not end it
                (`guard.end` does), and a step with a `key=` is done once over all that join it.

        It is a decorator too, on a sync or async function: a fresh run for each call, its arguments
        recorded as inputs.

        Raises:
            ValueError: `if_exists` is something else, `"recover"` without a `run_id`, or of a run that
                exists outside the run around this one (pass `detached=True`); `account` without
                `account_budget`, or another one than that of the run around this one.
            RunExistsError: the id is taken (when the block is entered).
            KillSwitchTriggeredError: a kill covers it already (when the block is entered).
        """
        return self._engine.run(
            name,
            budget=budget,
            tenant=tenant,
            run_id=run_id,
            inputs=inputs,
            metadata=metadata,
            on_warning=on_warning,
            detached=detached,
            if_exists=if_exists,
            interrupt_threads=interrupt_threads,
            account=account,
            account_budget=account_budget,
        )

    def start(self, name: str, **options: Unpack[RunKeywords]) -> Run:
        """Open a run where no block fits (notebooks); end it with `run.close()` or `run.aclose()`."""
        return self.run(name, **options).__enter__()

    def submit(
        self,
        fn: Callable[..., Any],
        inputs: object = None,
        *,
        budget: Budget | None = None,
        tenant: str | None = None,
        name: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int = 0,
        retries: int = 0,
        backoff: float = 1.0,
        account: str | None = None,
        account_budget: Budget | None = None,
    ) -> SubmittedRun:
        """Create a run that a worker will carry out (`agentguard worker`), and return at once.

        The run and its place in the queue are one act: either both are on record or neither.  The store has
        to be PostgreSQL.  Inside a run, a submission is on that run's record, and is done once though the run
        is recovered or replayed; the submitted run is no child of it.

        Args:
            fn: a function at the top level of a module that workers can import.  One that
                `@guard.run(...)` decorates brings its options, and is called with `inputs` as its keywords
                (a dict) or its arguments (a list).  A plain one, sync or async, is called as `fn()`,
                `fn(inputs)`, `fn(run)` or `fn(run, inputs)`, by its parameters.
            inputs: what the run is given, recorded; plain data.
            budget: the run's limits.
            tenant: whose run it is.
            name: what the run is called; by default the name of the function.
            run_id: an id of your own, for which a second submission is refused.
            metadata: plain data for the summary.
            queue: the queue that it waits in, by default that of its tenant; see `agentguard worker --queue`.
            priority: of two runs that wait, the one with the higher number is taken first.
            retries: how often the run is carried on after `fn` has raised an error.  Completed steps are not
                repeated; a step that failed is, if its effect is `"read"` or `"idempotent"`.
            backoff: seconds before the first of those tries; each further one waits twice as long.
            account: as in `run`.
            account_budget: as in `run`.

        Raises:
            ProgramError: workers could not find `fn`.
            QueueUnavailableError: the store has no queue.
            RunExistsError: the id is taken.
            KillSwitchTriggeredError: a kill covers the run.
            TypeError, ValueError: `fn` does not take the inputs, or they would not reach it as they are.
        """
        given = {
            "budget": budget,
            "tenant": tenant,
            "run_id": run_id,
            "metadata": metadata,
            "account": account,
            "account_budget": account_budget,
        }
        return self._engine.submit(
            fn,
            inputs,
            name=name,
            given=given,
            queue=queue,
            priority=priority,
            retries=retries,
            backoff=backoff,
        )

    def queue(self) -> list[QueueDepth]:
        """Return how long each queue of submitted runs is; those that are empty are not there.

        Raises:
            QueueUnavailableError: the store has no queue.
        """
        return self._engine.queue()

    def attach(self, run_id: str, *, branch: str | None = None) -> Run:
        """Join a live run from another thread, process or host.

        Name the branch where the run is to be replayed; without, it gets one by arrival.  Leaving the
        block detaches and raises the run's stop; only the owner's block ends the run.

        Raises:
            RunNotFoundError: there is no such run.
            NoActiveRunError: it has ended (when a step is called).
        """
        return self._engine.attach(run_id, branch)

    def end(
        self,
        run_id: str,
        *,
        error: BaseException | None = None,
        reason: str = "",
        actor: str | None = None,
    ) -> RunState:
        """End a run that nobody owns, and return the state that it has then: for orchestrators.

        A run of `guard.run(..., if_exists="join")` is ended so, and one whose owner has died and that nobody
        is to carry on.  A run that has ended stays as it is.  Steps in flight are charged what they reserved;
        their outcome, if one comes yet, is not taken.

        Args:
            run_id: the run.
            error: why it FAILED; None where it is COMPLETED.
            reason: why, where an operator ends it by hand; on record in the run's log and in the control log.
            actor: who that is; on record likewise.

        Raises:
            RunNotFoundError: there is no such run.
            RunOwnedError: it has an owner who lives, and whose block ends it.
            KillSwitchUnavailableError: with `actor` or `reason`: the control log cannot be used.

        Example:
            >>> from agentguard import Guard
            >>> guard = Guard.in_memory()
            >>> for attempt in (1, 2):  # in whatever process: the body runs once
            ...     with guard.run("order", run_id="order-17", if_exists="join") as run:
            ...         paid = run.call("pay", print, "paying", key="pay")
            paying
            >>> guard.end("order-17")
            <RunState.COMPLETED: 'COMPLETED'>
        """
        return self._operations.end(run_id, error, reason=reason, actor=actor)

    # --- running again -------------------------------------------------------------------------

    def replay(self, run_id: str, *, stall_timeout: float = STALL_TIMEOUT, telemetry: Any = None) -> Run:
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
        return self._engine.replay(run_id, stall_timeout, telemetry)

    def recover(self, run_id: str, *, take_over: bool = False, stall_timeout: float = STALL_TIMEOUT) -> Run:
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
        return self._engine.recover(run_id, stall_timeout, take_over=take_over)

    def fork(
        self,
        run_id: str,
        at: int,
        *,
        budget: Budget | None = None,
        account_budget: Budget | None = None,
        name: str | None = None,
        new_run_id: str | None = None,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> Run:
        """Open a new run that shares a run's log up to event `at` and then goes live.

        The prefix's spending counts against the fork's budget, and not again against those of the tenant
        and of an account that it shares.

        Args:
            run_id: the origin, ended or not.
            at: the last event that is shared.
            budget: of the fork; by default the origin's.
            account_budget: of the account that the origin named; by default the origin's.
            name: of the fork; by default the origin's.
            new_run_id: the fork's id; by default a UUID.
            stall_timeout: as in `replay`.

        Raises:
            ValueError: the origin has no event `at`.
            TypeError: `at` is no int, or `budget` no Budget.
        """
        return self._engine.fork(
            run_id,
            at,
            budget=budget,
            account_budget=account_budget,
            name=name,
            new_run_id=new_run_id,
            stall_timeout=stall_timeout,
        )

    def resolve(
        self,
        run_id: str,
        key: str,
        outcome: Resolution,
        *,
        result: Any = None,
        usage: Usage | None = None,
        actor: str | None = None,
    ) -> None:
        """Say what became of a step whose outcome is unknown, or cannot be handed out again.

        Args:
            run_id: the run.
            key: the step's.
            outcome: `"retry"` (it did not happen), `"completed"` (with `result`) or `"failed"` (with a
                message as `result`).
            result: what the step gave.
            usage: what it used; by default what it had reserved, since it may have happened.  `Usage()` says
                that it cost nothing, as for a first try that never left the process.
            actor: who says so; by default `user@host`.

        Raises:
            ValueError: another outcome, or a result that cannot be encoded.
            AgentGuardError: the step is not in doubt.
        """
        self._operations.resolve(run_id, key, outcome, result=result, usage=usage, actor=actor)

    # --- operating -----------------------------------------------------------------------------

    def pause(self, run_id: str, *, reason: str = "", actor: str | None = None) -> None:
        """Admit no further step of a run until it is resumed; durable, from any process.

        Who ordered it and why is on record in the run's log, and in the control log.

        Args:
            run_id: the run.
            reason: why.
            actor: who orders it; by default `user@host`.

        Raises:
            InvalidStateTransitionError: the run is not RUNNING.
            KillSwitchUnavailableError: the control log cannot be used.
        """
        self._operations.pause(run_id, reason=reason, actor=actor)

    def resume(self, run_id: str, *, reason: str = "", actor: str | None = None) -> None:
        """Lift a pause, and nothing else; on record as a pause is.

        Args:
            run_id: the run.
            reason: why.
            actor: who orders it; by default `user@host`.

        Raises:
            InvalidStateTransitionError: the run is not PAUSED.
            KillSwitchUnavailableError: the control log cannot be used.
        """
        self._operations.resume(run_id, reason=reason, actor=actor)

    def kill(
        self,
        *,
        reason: str,
        tenant: Id = UNSET,
        run: Id = UNSET,
        actor: str | None = None,
    ) -> int:
        """Stop a run, a tenant's runs, or (neither given) everything under this home.

        Return the kill's generation, for `acknowledged`.  It is durable when this returns, and every
        process of the host sees it at its next check.  The runs of this process that it stopped are KILLED
        on record by then, unless the store is away.

        Raises:
            ValueError: `None` or `""` for tenant or run, or no reason.
        """
        return self._operations.kill(reason=reason, tenant=tenant, run=run, actor=actor)

    def revive(
        self,
        *,
        tenant: Id = UNSET,
        run: Id = UNSET,
        reason: str = "revived",
        actor: str | None = None,
    ) -> int:
        """Let later runs start again: clears the kills of exactly this scope.

        A run that was killed stays killed.
        """
        return self._operations.revive(reason=reason, tenant=tenant, run=run, actor=actor)

    def kills(self) -> list[Kill]:
        """Return all kills ever ordered here, oldest first; `cleared` marks those revived since."""
        return self._queries.kills()

    def acknowledged(self, generation: int, timeout: float = 1.0) -> Acknowledgements:
        """Wait, at most `timeout` seconds, until every live process has acted on a kill."""
        return self._operations.acknowledged(generation, timeout)

    def set_budget(
        self,
        run_id: str,
        budget: BudgetChange,
        *,
        asked: str | int | None = None,
        reason: str = "",
        actor: str | None = None,
    ) -> None:
        """Give a live run another budget, from any process: see `Run.set_budget`.

        A run that asks at its limit (`on_limit="ask"`) goes on, once there is room for the step that asks.
        Who ordered it and why is on record in the run's log, and in the control log.

        Args:
            run_id: the run.
            budget: its limits from now on; or those that change, by name, as `{"usd": 5}`: the others stay as
                they are when this is put on record, so that of two operators at once neither undoes what the
                other did.  None lifts a limit.
            asked: the key of the step that asks, or the `seq` of its question, as `approvals` has them; where
                that is asked no longer, because it was answered, nothing is set.
            reason: why.
            actor: who orders it; by default `user@host`.

        Raises:
            RunNotFoundError: there is no such run.
            TypeError, ValueError: it is no Budget and no limits by name.
            AgentGuardError: the run has ended, has no room for the step that asks, or asks no longer.
            KillSwitchUnavailableError: the control log cannot be used.
        """
        self._operations.set_budget(run_id, budget, asked=asked, reason=reason, actor=actor)

    def set_tenant_budget(
        self,
        tenant: str,
        budget: Budget,
        per: Literal["day", "month"] | None = None,
        *,
        actor: str | None = None,
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
        self._operations.set_tenant_budget(tenant, budget, per=per, actor=actor)

    def record_alert(
        self,
        kind: str,
        message: str,
        *,
        run: Id = UNSET,
        subject: str = "",
        firing: bool = True,
        facts: Mapping[str, object] | None = None,
    ) -> bool:
        """Put an alert on record, once: in the log of the run that it is about, else in the control log.

        `agentguard alerts watch`, `agentguard serve` and `Watch` do so by themselves.

        Args:
            kind: what makes it one alert, however often it is told: `"budget"`, say.
            message: what an operator is to be told.
            run: the id of the run that it is about.
            subject: what else it is about, where that is no run.
            firing: False where it is over.
            facts: plain data beside the message.

        Returns:
            False where it is on record already, was not firing, or the run has ended.

        Raises:
            ValueError: neither `run` nor `subject` is given, or both are.
            RunNotFoundError: there is no such run.
            StoreUnavailableError, KillSwitchUnavailableError: it cannot be put on record.

        Example:
            >>> from agentguard import Guard
            >>> with Guard.in_memory() as guard, guard.run("billing") as run:
            ...     told = guard.record_alert("queue", "it is long", run=run.id)
            ...     again = guard.record_alert("queue", "it is long", run=run.id)
            >>> told, again
            (True, False)
        """
        return self._operations.record_alert(
            kind, message, run=run, subject=subject, firing=firing, facts=facts or {}
        )

    def account(self, name: str, *, tenant: str = "default") -> SharedAccount | None:
        """Return what the runs that name an account have spent together; None before the first step.

        Args:
            name: as in `guard.run(..., account="thread:42")`.
            tenant: whose runs they are.
        """
        return self._queries.account(name, tenant)

    def tenants(self) -> list[TenantAccount]:
        """Return the tenants with a budget, and what they have spent of it in the current period.

        Raises:
            StoreUnavailableError: that was kept apart from the store, by an earlier version.
        """
        return self._queries.tenants()

    def approvals(self) -> list[Approval]:
        """Return the steps that wait for an approval or a higher limit (`on_limit="ask"`), in all runs."""
        return self._queries.approvals()

    def approve(
        self,
        run_id: str,
        key: str,
        *,
        asked: int | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Let a waiting step run; on record in the run's log, and in the control log.

        One answer counts.  Whoever comes second, or after the time is over, is told what was answered.

        Args:
            run_id: the run.
            key: the step, as `approvals` has it.
            asked: the `seq` of its question there; where the step asks another by now, nothing is decided.
            reason: why.
            actor: who decides; by default `user@host`.

        Raises:
            AgentGuardError: no step of that key waits, it waits for a higher limit, or asks another question.
            KillSwitchUnavailableError: the control log cannot be used.
        """
        self._operations.decide(run_id, key, granted=True, asked=asked, reason=reason, actor=actor)

    def deny(
        self,
        run_id: str,
        key: str,
        *,
        asked: int | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Refuse a waiting step: it raises `ApprovalDeniedError`; the run goes on.

        One that waits for a higher limit raises `BudgetExceededError`, and its run is stopped.
        On record in the run's log, and in the control log.  The arguments are those of `approve`.

        Raises:
            AgentGuardError: no step of that key waits, or it asks another question.
            KillSwitchUnavailableError: the control log cannot be used.
        """
        self._operations.decide(run_id, key, granted=False, asked=asked, reason=reason, actor=actor)

    # --- reading -------------------------------------------------------------------------------

    def runs(self, tenant: str | None = None, state: str | None = None, limit: int = 50) -> list[RunSummary]:
        """Return the newest runs first; live ones as of their last event.

        A live run whose log was altered hides no other: it is there as of its last change of state, with
        the fault in `damaged`; `verify` says more.

        Raises:
            LogIntegrityError: the row of one was altered, so that nothing can be told of it.
        """
        return self._queries.runs(tenant, state, limit)

    def summary(self, run_id: str) -> RunSummary:
        """Return the run in a few lines.

        Raises:
            RunNotFoundError: there is no such run.
            LogIntegrityError: its row or its log was altered, so that it cannot be told.
        """
        return self._queries.summary(run_id)

    def costs(
        self,
        by: CostKey = "model",
        *,
        since: datetime | date | timedelta | None = None,
        tenant: str | None = None,
    ) -> list[CostLine]:
        """Return where the money went, summed from the events of steps, the dearest first.

        Each step counts once, in the run that it is in, also where that run is nested or a fork.  Runs whose
        events are gone (pruned, evicted) are not in it.

        Args:
            by: what to sum by: `"model"`, `"step"` (its name), `"kind"`, `"tenant"`, `"name"` (of the run),
                `"account"` (that runs share by name), `"run"` or `"day"` (UTC, when the step ended).
            since: only what ended from then on: a time, a day (UTC), or a span before now.
            tenant: only what runs of this tenant were charged.

        Raises:
            ValueError: `by` is something else.
            TypeError: `since` is no time.
        """
        return self._queries.costs(by, since, tenant)

    def history(self, run_id: str) -> list[Event]:
        """Return the run's events in order; `"control"` gives kills, revives and tenant budgets.

        Raises:
            RunNotFoundError: there is no such run.
        """
        return self._queries.history(run_id)

    def reconstruct(self, run_id: str) -> RunSummary:
        """Return the summary folded from the run's events alone; equals the stored one.

        Raises:
            LogIntegrityError: the chain is broken.
        """
        return self._queries.reconstruct(run_id)

    def events(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[Event]:
        """Return the events of all runs with a position above `after`, in commit order.

        `prev_hash` is empty here, since an event's predecessor may lie before `after`.
        """
        return self._queries.events(after, tenant, limit)

    def verify(
        self,
        run_id: str | None = None,
        *,
        anchors: Mapping[str, Head | tuple[int, str]] | None = None,
    ) -> VerifyReport:
        """Say whether the log of a run, or of every run and the control log, is what was written.

        And whether the shared accounts (of tenants, of runs with runs inside, named ones) say at least what
        these logs prove to be spent and reserved.

        Args:
            run_id: the run; by default all.
            anchors: heads kept elsewhere, by run id: `{run.id: run.summary().head}`.

        Raises:
            RunNotFoundError: there is no such run.
            StoreUnavailableError: `memory://` has let go of the run's events.
            TypeError: `anchors` are no heads by run id.
        """
        return self._queries.verify(run_id, anchors)

    def diff(self, run_a: str, run_b: str) -> RunDiff:
        """Return where two runs differ, branch by branch in call order; true when they do.

        Keys, arguments, effects, outcomes and the end are compared; order over branches, times and
        spending are not.

        Raises:
            RunNotFoundError: one of them is not there.
        """
        return self._queries.diff(run_a, run_b)

    def what_if(self, run_id: str, budget: Budget) -> WhatIf:
        """Say whether and where another budget would have stopped a run; nothing is run.

        Raises:
            RunNotFoundError: there is no such run.
            TypeError: it is no Budget.
        """
        return self._queries.what_if(run_id, budget)

    # --- files and old runs --------------------------------------------------------------------

    def export(self, run_id: str | None, path: str | os.PathLike[str] | Sink) -> Exported:
        """Write a log as JSON Lines that a stranger can verify: docs/export-format.md.

        Args:
            run_id: a run, `"control"`, or None for everything.
            path: a file, which is replaced once the export is complete, and which only its user may
                read; or a binary file that is open.

        Raises:
            RunNotFoundError: there is no such run.
        """
        return self._queries.export(run_id, path)

    def checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        key: Any,
        run_id: str | None = None,
        tenant: str | None = None,
    ) -> dict[str, Head]:
        """Write a signed file with the heads of logs, and return them; needs the extra `crypto`.

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
        return self._queries.checkpoint(path, key=key, run_id=run_id, tenant=tenant)

    def erase(self, run_id: str, *, actor: str | None = None) -> int:
        """Drop the captured arguments and results of an ended run; return how many there were.

        The log still verifies, since events hold salted digests alone, and the salt goes too.  What
        stands in the events themselves (names, keys, error messages, metadata) stays.  On record in
        the run's log and in the control log.

        Raises:
            RunNotFoundError: there is no such run.
            AgentGuardError: it has not ended.
        """
        return self._operations.erase(run_id, actor=actor)

    def prune(self, older_than: Any, *, actor: str | None = None) -> list[str]:
        """Drop runs that ended before then, whole, and return their ids.

        Their heads stay on record in the control log, so that `verify` tells them from lost runs.  Runs
        nested in a live run, and the origin of a live fork, stay: it may have to be recovered.

        Args:
            older_than: an age (a timedelta, or text such as `"90d"` or `"12h"`) or a time (a datetime
                with a time zone); a number other than 0 has no unit, and is refused.
            actor: who says so; by default `user@host`.
        """
        return self._operations.prune(older_than, actor=actor)
