"""A new run that shares the beginning of another one's log."""

from __future__ import annotations

from dataclasses import dataclass

from agentguard.budget.model import Budget, check_budget
from agentguard.budget.named import NamedAccount, check_account
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.protocols import RunRow
from agentguard.replay import STALL_TIMEOUT
from agentguard.replay.origin import Shared, origin_log
from agentguard.runtime import Runtime
from agentguard.sessions.live import LiveSession
from agentguard.sessions.options import RunOptions
from agentguard.sessions.resumed import ResumedSession, carry_on, refuse_altered
from agentguard.steps.live import LiveRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkOptions:
    """What `guard.fork` was told; see there."""

    at: int
    budget: Budget | None = None
    account_budget: Budget | None = None
    name: str | None = None
    run_id: str | None = None
    stall_timeout: float = STALL_TIMEOUT

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int):
            raise TypeError(f"at must be the number of an event, not {type(self.at).__name__}")
        if self.budget is not None:
            check_budget(self.budget)


class ForkSession(ResumedSession, LiveSession):
    """A fork: it begins like any new run, and then is carried on like a recovered one."""

    def __init__(self, runtime: Runtime, row: RunRow, fork: ForkOptions) -> None:
        store = runtime.components.store
        refuse_altered(store, row)
        self._shared = shared = Shared(store, row.run_id, fork.at, fork.budget)
        self._origin = row
        self._fork = fork
        self._stall_timeout = fork.stall_timeout
        options = RunOptions(
            name=fork.name or shared.whole.name,
            budget=fork.budget or shared.whole.budget,
            tenant=shared.whole.tenant,
            run_id=fork.run_id,
            inputs=shared.inputs,
            metadata=shared.whole.metadata,
            detached=True,
        )
        LiveSession.__init__(self, runtime, options)

    def _named_account(self) -> NamedAccount | None:
        account, budget = self._shared.whole.named_account, self._fork.account_budget
        if budget is None or account is None:
            check_account(None, budget)
            return account
        check_account(account.name, budget)
        return NamedAccount(name=account.name, tenant=account.tenant, budget=budget)

    def _salt(self) -> bytes:
        # The same salt, so that the arguments of the prefix can be compared by their digests.
        return self._origin.salt or super()._salt()

    def _seed(self) -> str:
        return self._shared.whole.seed

    def _value_scheme(self) -> int:
        return self._shared.whole.value_scheme

    def _prefix(self, now: int) -> list[Record]:
        shared = self._shared
        facts = shared.facts()
        return [Record(3, ev.RUN_FORKED, now, name=self.name, usage=shared.spent, data=facts)]

    def open(self) -> LiveRun:
        """Put the fork on record; the origin's prefix answers for what is in it."""
        live_run = LiveSession.open(self)
        live_run.take_stops()
        log = origin_log(self.components.store, self.run_id, live_run.fold.seq)
        carry_on(live_run, log, stall_timeout=self._stall_timeout)
        return live_run
