"""What a `Guard` works with: all rooms below it, loaded when the first guard is opened.

`import agentguard` stays light so; and since a guard has everything from its beginning, a signal handler or a
fork that meets a guard never meets half of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Unpack

from agentguard import config
from agentguard._clock import Clock
from agentguard.budget.model import Budget, check_budget
from agentguard.budget.resources import seconds_to_answer
from agentguard.durability import Durability, check_durability
from agentguard.operations import Operations
from agentguard.protocols import KillSwitch, QueueDepth
from agentguard.queries import Queries
from agentguard.run import Run
from agentguard.runtime import Runtime
from agentguard.sessions import upkeep
from agentguard.sessions.attached import AttachedSession
from agentguard.sessions.forked import ForkOptions, ForkSession
from agentguard.sessions.opening import refuse_in_replay, session_for
from agentguard.sessions.options import RunKeywords, RunOptions
from agentguard.sessions.recovered import RecoverySession
from agentguard.sessions.replayed import ReplaySession
from agentguard.steps.components import Components
from agentguard.steps.redaction import BUILT_IN, redactor
from agentguard.steps.spec import Capture
from agentguard.workers.submission import SubmittedRun, Terms, queue_of, submit


class Engine:
    """A runtime and what is done with it; `Guard` has the same methods, with their documentation."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.operations = Operations(runtime)
        self.queries = Queries(runtime)

    @classmethod
    def open(
        cls,
        url: str | None,
        *,
        kill_switch: str | KillSwitch | None,
        ledger: object,
        durability: Durability | None,
        telemetry: Any,
        capture: Capture,
        redact: Any,
        default_budget: Budget | None,
        store_timeout: float | None,
        approval_timeout: float | timedelta | None,
        clock: Clock,
        ids: Callable[[], str],
    ) -> Engine:
        """See `Guard.open`."""
        _check_options(durability, capture, default_budget)
        config.check_ledger(ledger)
        if url is not None:
            _check_url(url, durability)
        if isinstance(kill_switch, str):
            config.check_switch(kill_switch)
        if store_timeout is not None and not 0 <= store_timeout < math.inf:
            raise ValueError(f"store_timeout must be seconds from 0 up, not {store_timeout!r}")
        rules = redactor(redact)
        patience = None
        if approval_timeout is not None:
            patience = seconds_to_answer(approval_timeout, "approval_timeout")

        def open_components() -> Components:
            store = config.open_store(url, durability, clock, store_timeout)
            return Components(
                store=store,
                switch=config.open_switch(kill_switch, clock, store),
                telemetry=config.open_telemetry(telemetry),
                clock=clock,
                capture=capture,
                redact=BUILT_IN if rules is None else rules,
                approval_timeout=patience,
            )

        runtime = Runtime(
            open_components,
            default_budget=default_budget,
            new_run_id=ids,
            check=upkeep.check_bodies,
            beat=upkeep.beat,
        )
        return cls(runtime)

    def run(self, name: str, **keywords: Unpack[RunKeywords]) -> Run:
        """See `Guard.run`."""
        return self._run(RunOptions(name=name, **keywords))

    def _run(self, options: RunOptions) -> Run:
        def again(inputs: dict[str, Any]) -> Run:
            return self._run(replace(options, inputs=inputs))

        return Run(session_for(self.runtime, options), again)

    def submit(
        self,
        fn: Callable[..., Any],
        inputs: object,
        *,
        name: str | None,
        given: Mapping[str, Any],
        queue: str | None,
        priority: int,
        retries: int,
        backoff: float,
    ) -> SubmittedRun:
        """See `Guard.submit`."""
        terms = Terms(queue=queue, priority=priority, retries=retries, backoff=backoff)
        return submit(self.runtime, fn, inputs, name=name, given=dict(given), terms=terms)

    def queue(self) -> list[QueueDepth]:
        """See `Guard.queue`."""
        return queue_of(self.runtime).depth()

    def attach(self, run_id: str, branch: str | None) -> Run:
        """See `Guard.attach`."""
        refuse_in_replay(run_id, "attach")
        return Run(AttachedSession(self.runtime, run_id, branch))

    def replay(self, run_id: str, stall_timeout: float, telemetry: Any) -> Run:
        """See `Guard.replay`."""
        row = self.runtime.row(run_id)
        return Run(ReplaySession(self.runtime, row, stall_timeout=stall_timeout, telemetry=telemetry))

    def recover(self, run_id: str, stall_timeout: float, *, take_over: bool) -> Run:
        """See `Guard.recover`."""
        refuse_in_replay(run_id, "recover")
        row = self.runtime.row(run_id)
        return Run(RecoverySession(self.runtime, row, take_over=take_over, stall_timeout=stall_timeout))

    def fork(
        self,
        run_id: str,
        at: int,
        *,
        budget: Budget | None,
        account_budget: Budget | None,
        name: str | None,
        new_run_id: str | None,
        stall_timeout: float,
    ) -> Run:
        """See `Guard.fork`."""
        refuse_in_replay(run_id, "fork")
        fork = ForkOptions(
            at=at,
            budget=budget,
            account_budget=account_budget,
            name=name,
            run_id=new_run_id,
            stall_timeout=stall_timeout,
        )
        return Run(ForkSession(self.runtime, self.runtime.row(run_id), fork))


def _check_url(url: str, durability: Durability | None) -> None:
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    if not url:
        raise ValueError("url must not be empty; leave it out for the default store")
    config.check_store(url, durability)


def _check_options(durability: Durability | None, capture: str, default_budget: Budget | None) -> None:
    if durability is not None:
        check_durability(durability)
    if capture not in ("full", "digest", "none"):
        raise ValueError(f"capture must be 'full', 'digest' or 'none', not {capture!r}")
    if default_budget is not None:
        check_budget(default_budget, "default_budget")
