"""Every event says what `agentguard.events.data` promises of its type, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from agentguard import (
    ApprovalDeniedError,
    Budget,
    Guard,
    InvalidStateTransitionError,
    ReplayDivergenceError,
    RunStopped,
    Usage,
    guarded_step,
)
from agentguard.events import data as d
from agentguard.events import model as ev
from agentguard.steps import spinning
from tests.kit import wait_until

DATA = Path(__file__).parents[1] / "data"

OF_TYPE: dict[str, tuple[type, ...]] = {
    ev.RUN_CREATED: (d.RunCreated,),
    ev.RUN_STARTED: (),
    ev.RUN_PAUSED: (d.RunPaused,),
    ev.RUN_RESUMED: (d.RunResumed,),
    ev.RUN_RECOVERED: (d.RunRecovered,),
    ev.RUN_COMPLETED: (d.RunEnded,),
    ev.RUN_FAILED: (d.RunEnded,),
    ev.RUN_KILLED: (d.RunEnded,),
    ev.RUN_FORKED: (d.RunForked,),
    ev.RUN_BUDGET_SET: (d.RunBudgetSet,),
    ev.STEP_STARTED: (d.StepStarted,),
    ev.STEP_COMPLETED: (d.StepEnded,),
    ev.STEP_FAILED: (d.StepEnded,),
    ev.STEP_REFUSED: (d.StepRefused, d.ScopeStopped),
    ev.STEP_RESOLVED: (d.StepResolved,),
    ev.STOP_SWALLOWED: (d.StopSwallowed,),
    ev.ALERT: (d.AlertTold,),
    ev.VALUE: (d.Value,),
    ev.BUDGET_WARNING: (d.BudgetWarning,),
    ev.APPROVAL_REQUESTED: (d.Approval,),
    ev.APPROVAL_GRANTED: (d.Approval,),
    ev.APPROVAL_DENIED: (d.Approval,),
    ev.SCOPE_OPENED: (d.ScopeOpened, d.NestedRunOpened),
    ev.SCOPE_CLOSED: (d.ScopeClosed, d.NestedRunClosed),
    ev.KILL_SET: (d.KillRequest,),
    ev.KILL_CLEARED: (d.KillRequest,),
    ev.TENANT_BUDGET_SET: (d.TenantBudgetSet,),
    ev.OPERATOR_ACTION: (d.OperatorAction,),
    ev.PROCESSES_SIGNALLED: (d.ProcessesSignalled,),
    ev.PAYLOAD_ERASED: (d.PayloadErased,),
}


def fits(data: object, of: object) -> bool:
    """Say whether JSON is of a type, all names of which are known: those of typed dicts inside it too."""
    try:
        msgspec.convert(data, of)
    except msgspec.ValidationError:
        return False
    return all(known(data, of))


def known(data: object, of: object) -> Iterator[bool]:
    if isinstance(of, type) and isinstance(data, dict) and hasattr(of, "__required_keys__"):
        hints = get_type_hints(of)
        yield data.keys() <= hints.keys()
        for name in data.keys() & hints.keys():
            yield from known(data[name], hints[name])
    elif isinstance(data, list):
        for item in data:
            for inside in get_args(of):
                yield from known(item, inside)


def check(records: list[ev.Record]) -> None:
    for record in records:
        if (data := record.data) is not None:
            assert any(fits(data, of) for of in OF_TYPE[record.type]), (record.type, data)


def of(guard: Guard, run_id: str) -> list[ev.Record]:
    return [
        msgspec.json.decode(stored.body, type=ev.Record) for stored in guard.components.store.read(run_id)
    ]


def test_every_event_type_is_described() -> None:
    types = {value for name, value in vars(ev).items() if name.isupper() and isinstance(value, str)}
    assert types - {ev.CONTROL_RUN_ID, ev.ONLY_A_DIGEST} == OF_TYPE.keys()


@pytest.mark.parametrize(
    "file", ["stored_2026_11/all.jsonl", "stored_2026_11/control.log", "schema_1/run.jsonl"]
)
def test_stored_events_are_described(file: str) -> None:
    lines = [msgspec.json.decode(line) for line in (DATA / file).read_bytes().splitlines()]
    found = [msgspec.convert(line["event"], ev.Record) for line in lines if "event" in line]
    check(found)
    assert len(found) >= 3


def test_a_name_that_is_not_described_is_noticed() -> None:
    with pytest.raises(AssertionError, match="surprise"):
        check([ev.Record(1, ev.RUN_PAUSED, 0, data={"reason": "tea", "surprise": 1})])


def test_a_value_of_another_type_is_noticed() -> None:
    with pytest.raises(AssertionError, match="epoch"):
        check([ev.Record(1, ev.RUN_RECOVERED, 0, data={"epoch": "two"})])


@guarded_step(usage=Usage(mails=1), attributes={"gen_ai.tool.name": "mail"})
def mail(to: str) -> str:
    return to


@guarded_step(key="once", effect="idempotent", reserve=Usage(usd="0.10"), usage=lambda _: Usage(usd="0.20"))
def pay() -> None:
    return None


@guarded_step(approval=True)
def delete(path: object) -> None:
    return None


@guarded_step
def lines() -> Iterator[int]:
    got = yield 1
    yield got or 2


@guarded_step
def fail() -> None:
    cause = ExceptionGroup("two", [ValueError(1), KeyError("k")])
    cause.add_note("a note")
    raise OSError(2, "no such file", "x") from cause


async def awaited() -> int:
    return 1


@guarded_step
def later() -> object:
    return awaited()


def test_new_events_are_described(guard: Guard) -> None:
    guard.set_tenant_budget("acme", Budget(mails=100), actor="ann")
    guard.kill(reason="drill", tenant="other", actor="ann")
    guard.revive(reason="over", tenant="other", actor="ann")
    budget = Budget(steps=50, mails=20, usd=5, warn_at=0.01)
    with guard.run(
        "shop", run_id="r", tenant="acme", inputs={"n": {1, 2}, "o": object()}, budget=budget
    ) as run:
        run.now()
        run.record("value", lambda: object())
        with contextlib.suppress(RunStopped), run.scope("letters", Budget(mails=1)), run.scope("inner"):
            mail("ann")
            mail("bob")
        with guard.run("inside"):
            mail("cid")
        pay()
        with contextlib.suppress(OSError):
            fail()
        items = lines()
        next(items)
        items.send(5)
        items.close()
        run.call("digest", lambda n: n, 1, capture="digest")
        asyncio.run(run_later())
        with run.account("thread:1", Budget(mails=9)):
            mail("dan")
        with contextlib.suppress(ApprovalDeniedError), answers(guard):
            delete(object())
        guard.pause("r", reason="tea", actor="ann")
        guard.resume("r", actor="ann")
        guard.record_alert("budget", "it is nearly used", run="r", facts={"share": 0.9})
        guard.record_alert("tenant_budget", "it is nearly used", subject="acme/day", facts={"share": 0.9})
        guard.set_budget("r", Budget(steps=60, mails=20, usd=5), actor="ann")
    with (
        contextlib.suppress(ReplayDivergenceError),
        guard.fork("r", run.summary().head.seq - 1, new_run_id="f"),
    ):
        mail("eve")
    with contextlib.suppress(RunStopped), guard.run("wild") as wild:
        wild.kill("swallowed")
        for _ in range(spinning.LAST):
            with contextlib.suppress(RunStopped):
                wild.check()
    guard.erase("r", actor="ann")
    for row in guard.runs():
        check(of(guard, row.run_id))
    check([msgspec.json.decode(stored.body, type=ev.Record) for stored in guard.components.switch.read()])
    seen = {event.type for row in guard.runs() for event in guard.history(row.run_id)}
    assert OF_TYPE.keys() - seen <= {
        ev.RUN_RECOVERED,
        ev.RUN_FAILED,
        ev.STEP_RESOLVED,
        ev.APPROVAL_GRANTED,
        ev.KILL_SET,
        ev.KILL_CLEARED,
        ev.TENANT_BUDGET_SET,
        ev.OPERATOR_ACTION,
        ev.PROCESSES_SIGNALLED,
    }


async def run_later() -> None:
    await later()  # type: ignore[misc]


@contextlib.contextmanager
def answers(guard: Guard) -> Iterator[None]:
    def deny() -> None:
        wait_until(guard.approvals)
        with contextlib.suppress(InvalidStateTransitionError):
            guard.deny("r", guard.approvals()[0].key, reason="no", actor="ann")

    operator = threading.Thread(target=deny)
    operator.start()
    try:
        yield
    finally:
        operator.join()
