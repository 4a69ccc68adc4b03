"""`if_exists="recover"`: which options are those of the program that carries a run on, and which stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, Guard, KillSwitchTriggeredError, Run, RunStopped, Usage, guarded_step
from agentguard.sessions.options import RunKeywords

RUN = "job-1"
#: What the run is created with, and what the program that carries it on asks for instead.
KEPT: dict[str, tuple[Any, Any]] = {
    "budget": (Budget(usd=1, steps=9), Budget(usd=50)),
    "tenant": ("acme", "other"),
    "inputs": ({"order": 17}, {"order": 18}),
    "metadata": ({"team": "red"}, {"team": "blue"}),
    "account": ("thread:1", "thread:2"),
    "account_budget": (Budget(usd=2), Budget(usd=60)),
}
#: Options of the program that carries it on.
TAKEN = {"on_warning", "interrupt_threads"}
#: Options that say which run is meant.
NAMING = {"run_id", "if_exists", "detached"}


@guarded_step(usage=Usage(usd="0.10"), effect="read")
def look(n: int) -> int:
    return n


@guarded_step(effect="read")
def busy(began: threading.Event) -> None:
    """Python code that does not end by itself in the time of a test."""
    began.set()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pass
    raise AssertionError("nobody interrupted it")


def let_go(guard: Guard, **options: Any) -> None:
    """A run whose process has let go of it after a step."""
    with suppress(RunStopped), guard.run("job", run_id=RUN, **options) as run:
        look(1)
        run.drain()
    assert guard.summary(RUN).state == "RUNNING"


def carried_on(guard: Guard, **options: Any) -> Run:
    return guard.run("another name", run_id=RUN, if_exists="recover", **options)


@pytest.fixture(params=["recovered", "new"])
def opened(guard: Guard, request: pytest.FixtureRequest) -> Callable[..., Run]:
    """Open the run with options, where it exists and where it does not."""

    def opened(**options: Any) -> Run:
        if request.param == "recovered":
            let_go(guard, budget=Budget(steps=4, warn_at=0.5))
        return carried_on(guard, **options)

    return opened


def test_every_option_is_decided_here() -> None:
    assert KEPT.keys() | TAKEN | NAMING == RunKeywords.__annotations__.keys()


def test_what_the_run_was_created_with_stays(guard: Guard) -> None:
    let_go(guard, **{name: first for name, (first, _) in KEPT.items()})
    with carried_on(guard, **{name: other for name, (_, other) in KEPT.items()}) as run:
        look(1)
        assert run.inputs == {"order": 17}
        assert (run.name, run.tenant) == ("job", "acme")
    summary = guard.summary(RUN)
    assert summary.budget == Budget(usd=1, steps=9)
    assert summary.metadata == {"team": "red"}
    account = guard.account("thread:1", tenant="acme")
    assert account is not None
    assert account.budget == Budget(usd=2)
    assert account.spent.usd == summary.usage.usd == Decimal("0.10")


def test_warnings_are_told_to_the_program_that_carries_the_run_on(opened: Callable[..., Run]) -> None:
    told: list[dict[str, Any]] = []
    with opened(budget=Budget(steps=4, warn_at=0.5), on_warning=told.append):
        look(1)
        assert told == []
        look(2)
    assert [warning["resource"] for warning in told] == ["steps"]


def test_a_warning_before_the_crash_is_told_again(guard: Guard) -> None:
    """The program is run from its beginning, and hears what it heard then."""
    first: list[Any] = []
    second: list[Any] = []
    let_go(guard, budget=Budget(steps=2, warn_at=0.5), on_warning=first.append)
    with carried_on(guard, on_warning=second.append):
        look(1)
    assert len(first) == 1
    assert second == first


def test_bodies_in_flight_are_interrupted(opened: Callable[..., Run]) -> None:
    began = threading.Event()
    with pytest.raises(KillSwitchTriggeredError), opened(interrupt_threads=True) as run:

        def kill() -> None:
            assert began.wait(60)
            run.kill("enough")

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            look(1)
            busy(began)
        finally:
            thread.join(60)
    assert run.summary().open_steps == ()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("on_warning", "no function", "on_warning must be callable"),
        ("interrupt_threads", "yes", "interrupt_threads must be True or False"),
        ("budget", 5, "budget must be a Budget"),
        ("account", "thread:1", "account_budget"),
    ],
)
def test_a_wrong_option_is_refused_whether_or_not_the_run_exists(
    opened: Callable[..., Run], option: str, value: Any, says: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        opened(**{option: value})
