"""What somebody meets who gives a branch, an age, a home or an operator's word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    Run,
    RunStopped,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from agentguard._home import default_home
from agentguard.audit.erasure import cut_off
from agentguard.steps.options import StepOptions


@guarded_step(effect="once", usage=Usage(usd="0.25"))
def charge(n: int) -> int:
    if n < 0:
        raise SystemExit
    return n


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", ""])
def test_a_branch_has_no_control_characters(guard: Guard, name: str) -> None:
    with guard.run("r") as run:
        with pytest.raises(ValueError, match="branch must"):
            run.branch(name)
        with pytest.raises(ValueError, match="branch must"):
            run.call("f", int, branch=name)
        assert run.call("f", int, branch="a/" + "b" * 300) == 0


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("90d", timedelta(days=90)),
        ("1.5h", timedelta(hours=1.5)),
        ("30m", timedelta(minutes=30)),
        ("2w", timedelta(14)),
    ],
)
def test_an_age_is_text_too(text: str, age: timedelta) -> None:
    now = 10**18
    assert cut_off(text, now) == cut_off(age, now)


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "90 days", "1y"])
def test_an_age_that_is_none_is_refused(guard: Guard, text: str) -> None:
    with pytest.raises(ValueError, match="'90d', '12h'"):
        guard.prune(text)


def test_without_a_home_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AGENTGUARD_HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(StoreUnavailableError, match="set AGENTGUARD_HOME to one of your own"):
        default_home()


def in_doubt(guard: Guard) -> str:
    """A run whose process died inside a step, as far as its log says."""
    run = guard.start("r", run_id="r-00000001", budget=Budget(usd="1"))
    place: Any = run.here()
    from agentguard.steps.flow import admit, open_step, prepare

    step = open_step(charge_spec(), place, (1,), {})
    prepare(step, (1,), {})
    admit(step)
    run.drain(0)
    with suppress(Exception):
        run.close()
    return step.key


def charge_spec() -> Any:
    from agentguard.steps.options import step_spec

    return step_spec("charge", charge.__wrapped__, {"effect": "once", "usage": Usage(usd="0.25")})


def test_an_operator_can_say_that_a_first_try_cost_nothing(guard: Guard) -> None:
    key = in_doubt(guard)
    guard.resolve("r-00000001", key, "retry", usage=Usage())
    with guard.recover("r-00000001"):
        assert charge(1) == 1
    usage = guard.summary("r-00000001").usage
    assert (usage.usd, usage.steps) == (Usage(usd="0.25").usd, 1)
    assert guard.verify()


def test_without_it_a_first_try_is_charged_what_it_had_reserved(guard: Guard) -> None:
    key = in_doubt(guard)
    with pytest.raises(TypeError, match="usage must be a Usage"):
        guard.resolve("r-00000001", key, "retry", usage=0)  # type: ignore[arg-type]
    guard.resolve("r-00000001", key, "retry")
    with guard.recover("r-00000001") as run:
        assert charge(1) == 1
        assert run.spent.steps == 2
    attempts = [e.attempt for e in guard.history("r-00000001") if e.type == "step_started"]
    assert attempts == [1, 2], "the try after an operator's word is the second"
    with guard.replay("r-00000001") as replayed:
        assert charge(1) == 1
        assert replayed.spent.steps == 2
    usage = guard.summary("r-00000001").usage
    assert (usage.usd, usage.steps) == (Usage(usd="0.50").usd, 2)


def test_a_drain_lets_a_nested_run_of_a_body_close_its_generators(sqlite_guard: Guard) -> None:
    @guarded_step(usage=Usage(usd="0.30"))
    def numbers() -> Iterator[int]:
        yield from range(5)

    @guarded_step(usage=Usage(usd="0.10"))
    def work(begun: threading.Event, draining: threading.Event) -> None:
        begun.set()
        assert draining.wait(60)
        with sqlite_guard.run("inner", run_id="inner-run"):
            items = numbers()
            next(items)
            items.close()

    sqlite_guard.set_tenant_budget("t", Budget(usd="1"))
    begun, draining = threading.Event(), threading.Event()

    def drain() -> None:
        assert begun.wait(60)
        threading.Timer(0, wait_for_drain).start()
        run.drain(10)

    def wait_for_drain() -> None:
        while run.live_run.draining is None:
            pass
        draining.set()

    with suppress(RunStopped), sqlite_guard.run("outer", run_id="outer-run", tenant="t") as run:
        thread = threading.Thread(target=drain)
        thread.start()
        work(begun, draining)
    thread.join(60)
    assert [e.type for e in sqlite_guard.history("inner-run")][-2:] == ["step_completed", "run_completed"]
    account = next(iter(sqlite_guard.components.store.accounts(["tenant:t"]).values()))
    assert not any(account.reserved.values())


# --- what a user's callable raises names its step ------------------------------------------------


def broken(*_args: Any, **_kwargs: Any) -> Any:
    raise KeyError("nope")


BROKEN_OPTIONS: dict[str, StepOptions] = {
    "reserve": {"reserve": broken, "usage": lambda _: Usage()},
    "usage": {"reserve": None, "usage": broken},
    "key": {"key": broken},
    "approval": {"approval": broken},
}


@pytest.mark.parametrize("option", BROKEN_OPTIONS)
@pytest.mark.parametrize("driver", ["sync", "async", "generator", "async generator", "call"])
def test_what_an_option_raises_names_the_step(guard: Guard, option: str, driver: str) -> None:
    async def later() -> int:
        return 1

    def items() -> Iterator[int]:
        yield 1

    async def later_items() -> AsyncIterator[int]:
        yield 1

    step = guarded_step(name="pay", **BROKEN_OPTIONS[option])

    async def drained() -> list[int]:
        return [item async for item in step(later_items)()]

    calls: dict[str, Callable[[Run], Any]] = {
        "sync": lambda _: step(lambda: 1)(),
        "async": lambda _: asyncio.run(step(later)()),
        "generator": lambda _: list(step(items)()),
        "async generator": lambda _: asyncio.run(drained()),
        "call": lambda run: run.call("pay", lambda: 1, **BROKEN_OPTIONS[option]),
    }
    with pytest.raises(KeyError) as caught, guard.run("r") as run:
        calls[driver](run)
    assert caught.value.__notes__ == [f"raised by {option}= of the guarded step 'pay'"]
    types = [event.type for event in guard.history(run.id)]
    assert types.count("step_started") == types.count("step_failed")


def test_a_redact_that_raises_names_the_step_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with Guard.in_memory(telemetry=False, redact=broken) as guard, guard.run("r"):
        guarded_step(name="pay")(lambda n: n)(1)
    assert "redact= of the guarded step 'pay' raised KeyError" in caplog.text


# --- attributes ----------------------------------------------------------------------------------

SECRET = "sk-ant-api03-" + "A" * 80


@pytest.mark.parametrize("refused", [False, True])
def test_attributes_reach_the_log_without_secrets(guard: Guard, refused: bool) -> None:
    attributes = {
        "api_key": "hunter2hunter2",
        "note": f"with {SECRET}",
        "url": "https://u:passw0rd@h/",
        "n": 1,
    }
    step = guarded_step(name="b", attributes=attributes)(lambda: 1)
    with suppress(BudgetExceededError), guard.run("r", budget=Budget(steps=0 if refused else 9)) as run:
        run.call("a", lambda: 1, attributes=attributes)
        step()
        step()
        with run.step("c", attributes=attributes):
            pass
    told = [event.data["attributes"] for event in guard.history(run.id) if "attributes" in event.data]
    assert len(told) == (1 if refused else 4)
    for each in told:
        assert each["n"] == 1
        assert not any(secret in str(each) for secret in (SECRET, "hunter2", "passw0rd"))


def test_attributes_follow_the_redaction_of_their_step(guard: Guard) -> None:
    def rule(name: str, value: Any) -> Any:
        return "gone" if name == "ssn" else value

    with guard.run("r") as run:
        run.call("a", lambda: 1, attributes={"ssn": "078-05-1120"}, redact=rule)
        run.call("b", lambda: 1, attributes={"api_key": "hunter2hunter2"}, redact=False)
    first, second = (
        event.data["attributes"] for event in guard.history(run.id) if "attributes" in event.data
    )
    assert first == {"ssn": "gone"}
    assert second == {"api_key": "hunter2hunter2"}


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "a\u202eb", "\ud800", "x" * 201])
def test_names_of_branches_and_values_are_names(guard: Guard, name: str) -> None:
    with guard.run("r") as run:
        with pytest.raises(ValueError, match="branch must"):
            run.branch(name)
        with pytest.raises(ValueError, match="name must"):
            run.record(name, lambda: 1)
