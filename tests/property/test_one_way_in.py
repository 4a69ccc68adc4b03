"""The fold that the live path builds is the fold of its log, after every event of random programs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, example, given, settings

from agentguard import Guard, RunStopped
from agentguard.audit.verify import reconstruct
from agentguard.budget.account import Account
from agentguard.protocols import abilities_of
from agentguard.runs.fold import RunFold
from agentguard.stores.memory import MemoryEventStore
from tests.property.test_program_books import carry_out, limits, programs
from tests.scale import scaled

#: What only the live path knows of a request: no later decision is made on it.
LIVE_ONLY = ("name", "kind", "postpaid", "repeat", "repeat_around")


def plain(value: Any) -> Any:
    """A fold, or a part of one, as plain data, without the zeros that one way of getting there leaves."""
    if isinstance(value, Account):
        return plain(value.to_data())
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items() if each != 0}
    names = getattr(value, "__struct_fields__", None)
    if names is None and not isinstance(value, tuple):
        names = getattr(type(value), "__slots__", None)
    if names is not None:
        known = [name for name in names if name not in LIVE_ONLY and hasattr(value, name)]
        return {name: plain(getattr(value, name)) for name in known}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def facts(fold: RunFold) -> dict[str, Any]:
    return {name: plain(value) for name, value in vars(fold).items()}


class Comparing(MemoryEventStore):
    """A store that looks, before each append, whether what was appended before was taken in alike."""

    guard: Guard
    compared = 0

    def append(self, number: int, *args: Any, **options: Any) -> Any:
        self.compare(number)
        return super().append(number, *args, **options)

    def append_one(self, number: int, *args: Any, **options: Any) -> None:
        self.compare(number)
        super().append_one(number, *args, **options)

    def compare(self, number: int) -> None:
        log = self._table.logs.get(number)
        live = None if log is None else self.guard.runtime.live.get(log.run_id)
        # An act takes its records in before it is written, and is looked at before the next one.
        if log is not None and live is not None and live.fold.seq == len(log.events):
            self.compared += 1
            assert facts(live.fold) == facts(reconstruct(self, log.row))


@settings(
    max_examples=scaled(150),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(programs, limits)
@example([("keyed", "x", True), ("keyed", "x", False), ("unbounded", 2), ("failing", 3, None, True)], None)
def test_the_live_fold_is_the_fold_of_its_log_after_every_event(program: list[Any], budget: Any) -> None:
    store = Comparing()
    with Guard.in_memory(telemetry=False) as guard:
        guard.components.store, store.guard = store, guard
        guard.components.abilities = abilities_of(store)
        try:
            with guard.run("r", budget=budget, tenant="t") as run:
                carry_out(guard, program)
        except (RunStopped, ZeroDivisionError):
            pass
        live, row = run.live_run.fold, store.row(run.id)
        assert row is not None
        assert facts(live) == facts(reconstruct(store, row))
    assert store.compared or not live.steps
    asyncio.set_event_loop(None)
