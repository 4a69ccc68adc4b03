"""The Guard: opens runs, live or on a log, over the parts that it holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from agentguard import config
from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard._ids import new_run_id
from agentguard.budget.model import Budget, check_budget
from agentguard.control import Control
from agentguard.joining import Joining
from agentguard.killswitch import kill_requests
from agentguard.lifecycle import Opening
from agentguard.protocols import KillSwitch
from agentguard.questions import Questions
from agentguard.recovery import Forking, ForkOptions, Recovering, nested, refuse_altered
from agentguard.replay import resolving
from agentguard.replay.session import Replaying
from agentguard.replay.stalls import STALL_TIMEOUT
from agentguard.run import Run
from agentguard.steps.parts import Parts
from agentguard.steps.redaction import BUILT_IN, redactor
from agentguard.tenancy import check_id


class Guard(Control, Questions):
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

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        kill_switch: str | KillSwitch | None = None,
        ledger: object = None,
        durability: str | None = None,
        telemetry: Any = True,
        capture: str = "full",
        redact: Any = None,
        default_budget: Budget | None = None,
        store_timeout: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
        ids: Callable[[], str] = new_run_id,
    ) -> Guard:
        """A guard over a store: by default SQLite and a kill page under the state directory.

        Args:
            url: `memory://`, `sqlite:///path`, or `file:///run.jsonl` (an export, read-only); by
                default `AGENTGUARD_STORE`.
            kill_switch: `"page"` (default), `"memory"`, or an object; `AGENTGUARD_KILL_SWITCH`.
            ledger: refused: the budgets of tenants lie in the store, in one act with the event.
            durability: `"process"` (default: survives kill -9) or `"power"` (fsync: survives power
                loss).
            telemetry: True for OpenTelemetry's global providers, False, or a `Telemetry`.
            capture: `"full"`, `"digest"` or `"none"`: what is kept of arguments and results.
            redact: more than the built-in rules that take secrets out of what is captured: names, or
                a callable `(name, value) -> value`; False switches all of it off.
            default_budget: for runs that name none.
            store_timeout: seconds that a call waits for other writers of a SQLite file (30) before it is
                refused; in a URL, `sqlite:///path?store_timeout=5`.
            clock: where time comes from.
            ids: where the ids of runs come from.

        Raises:
            ValueError: an option is wrong.
        """
        _check_options(durability, capture, default_budget)
        config.check_ledger(ledger)
        if url is not None:
            _check_url(url, durability)
        if store_timeout is not None and not 0 <= store_timeout < math.inf:
            raise ValueError(f"store_timeout must be seconds from 0 up, not {store_timeout!r}")
        rules = redactor(redact)

        def open_parts() -> Parts:
            store = config.open_store(url, durability, clock, store_timeout)
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
                One that arrives in a destructor, or in another callback that Python calls by itself, is
                lost there: that body is stopped at its next check.
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
        replaying = Replaying(
            self.parts,
            self._row(run_id),
            stall_timeout=stall_timeout,
            check=refuse_altered,
            telemetry=telemetry,
        )
        return Run(replaying)

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
        return Run(Recovering(self, self._row(run_id), take_over=take_over, stall_timeout=stall_timeout))

    def fork(
        self,
        run_id: str,
        at: int,
        *,
        budget: Budget | None = None,
        name: str | None = None,
        new_run_id: str | None = None,
        stall_timeout: float = STALL_TIMEOUT,
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
            TypeError: `at` is no int, or `budget` no Budget.
        """
        if isinstance(at, bool) or not isinstance(at, int):
            raise TypeError(f"at must be the number of an event, not {type(at).__name__}")
        if budget is not None:
            check_budget(budget)
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
        who = actor or kill_requests.default_actor()
        resolving.resolve(self.journal(run_id), key, outcome, result=result, actor=who)

    def nested(self, opening: Opening) -> Any:
        """How a run inside a replayed or recovered one is opened; None: live, like any other."""
        return nested(self, opening)


def _check_url(url: str, durability: str | None) -> None:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    if not url:
        raise ValueError("url must not be empty; leave it out for the default store")
    config.check_promise(url, durability)


def _check_options(durability: str | None, capture: str, default_budget: Budget | None) -> None:
    if durability is not None:
        config.check_durability(durability)
    if capture not in ("full", "digest", "none"):
        raise ValueError(f"capture must be 'full', 'digest' or 'none', not {capture!r}")
    if default_budget is not None:
        check_budget(default_budget, "default_budget")
