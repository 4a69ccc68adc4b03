"""The components of a guard: what every run of it uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard._process import ProcessLock
from agentguard.budget.tenant import TenantBudgets
from agentguard.errors import ControlLogDeniedError, KillSwitchUnavailableError, LogIntegrityError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import TenantBudgetSet, data_of
from agentguard.protocols import Abilities, EventStore, KillSwitch, abilities_of
from agentguard.steps.redaction import BUILT_IN, Redactor
from agentguard.steps.spans import Telemetry
from agentguard.steps.spec import Capture


@dataclass(slots=True, kw_only=True)
class Components:
    """Event store, kill switch, telemetry and the settings that steps need.

    `telemetry` is a `agentguard.telemetry.spans.Telemetry`, or None when it is off.
    """

    store: EventStore
    switch: KillSwitch
    telemetry: Telemetry | None = None
    clock: Clock = SYSTEM_CLOCK
    capture: Capture = "full"
    redact: Redactor | Literal[False] = BUILT_IN
    #: How many seconds a step waits for its approval, where it does not say; None for ever.
    approval_timeout: float | None = None
    tenants: TenantBudgets = field(default_factory=TenantBudgets)
    #: What the store can do beyond `EventStore`.
    abilities: Abilities = field(init=False)
    #: Held while budgets are learnt: a thread that is behind would put older ones in force again.
    _learning: ProcessLock = field(default_factory=ProcessLock, init=False, repr=False, compare=False)
    _learned: int = 0
    _generation: int = 0

    def __post_init__(self) -> None:
        self.abilities = abilities_of(self.store)

    def close(self) -> None:
        """Give back what was opened."""
        self.store.close()
        self.switch.close()

    def close_beside(self, kept: Components) -> None:
        """Give back what was opened, but for what others have as well: a switch that a user brought."""
        self.store.close()
        if self.switch is not kept.switch:
            self.switch.close()

    def store_time(self, *, wait: bool = True) -> int:
        """Return what time it is by the store's clock, in nanoseconds: by it the windows of tenants are cut.

        Raises:
            StoreBusyError: with `wait=False`, a server would have to be asked.
        """
        timed = self.abilities.timed
        return self.clock.wall() if timed is None else timed.now(wait=wait)

    def refresh(self) -> None:
        """Take in the tenant budgets that the control log has gained.

        A login of one tenant, which may not read it, is told of that tenant's budgets by the store.

        Raises:
            KillSwitchUnavailableError: it cannot be read.
        """
        try:
            with self._learning.here():
                self._learn()
        except ControlLogDeniedError:
            if self.abilities.own_tenant is None:
                raise
            for tenant, per, limits in self.abilities.own_tenant.own_budgets():
                self.tenants.set(tenant, per, limits)

    def follow(self, generation: int) -> None:
        """Take in the tenant budgets up to a generation of the kill switch: no live run was there to do so.

        Raises:
            KillSwitchUnavailableError: the control log cannot be read.
        """
        if generation != self._generation:
            self.refresh()
            self._generation = generation

    def _learn(self) -> None:
        for stored in self.switch.read(self._learned):
            try:
                record = codec.decode(stored.body)
                if record.type == ev.TENANT_BUDGET_SET:
                    data = data_of(record, TenantBudgetSet)
                    self.tenants.set(data["tenant"], data.get("per"), data["budget"])
            except LogIntegrityError as error:
                raise _damaged(stored.seq, error.problem) from error
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise _damaged(stored.seq, f"it sets no budget of a tenant ({error})") from error
            self._learned = record.seq


def _damaged(seq: int, problem: str) -> KillSwitchUnavailableError:
    return KillSwitchUnavailableError(
        f"the control log is damaged at event {seq}: {problem}; `agentguard doctor`"
    )
