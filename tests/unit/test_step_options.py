"""The options of a step: what is checked at decoration, and what a call is charged."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal

import pytest

from agentguard import Budget, BudgetExceededError, Guard, RunStopped, Usage, current_step, guarded_step
from agentguard.steps.options import OPTION_NAMES


class RateLimitError(Exception):
    pass


class OtherError(RateLimitError):
    pass


def one(usd: str) -> Usage:
    return Usage(usd=usd)


def charged(guard: Guard, run, name: str | None = None) -> list[Usage]:
    """What the steps of a run were charged, without the steps themselves."""
    found = []
    for event in guard.history(run.id):
        if event.type in ("step_completed", "step_failed") and name in (None, event.name):
            amounts = event.usage.amounts()
            assert amounts.pop("steps") == 1
            found.append(Usage.from_amounts(amounts))
    return found


# --- at decoration ---------------------------------------------------------------------------------

WRONG = {
    "kind": [5, "", "a\nb", None],
    "name": [5, "a\x00b", "x" * 201],
    "key": [5, "", "a\nb"],
    "reserve": [5, "0.01", Decimal(1), Budget(usd=1)],
    "usage": [5, "0.01", {"usd": 1}, Budget(usd=1)],
    "free_on": [5, "OSError", OSError("instance"), (OSError, 5), [OSError]],
    "capture": ["some", True, 5],
    "ignore": [("nobody",), ["a", "nobody"]],
    "codec": [5, "json", object()],
    "effect": ["never", "Once", 5],
    "probe": [5, "probe"],
    "durability": ["eternal", 5],
    "approval": ["yes", 5],
    "timeout": [-1, "5", float("nan"), float("inf"), True],
    "outside": ["run", None, True],
    "max_items_bytes": [-1, "5", True, 1.5],
}


@pytest.mark.parametrize(
    ("option", "bad"),
    [(option, bad) for option, values in WRONG.items() for bad in values],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_a_wrong_option_is_refused_at_decoration_naming_it(option, bad):
    async def tool(a: int) -> int:
        return a

    with pytest.raises((TypeError, ValueError), match=option):
        guarded_step(**{option: bad})(tool)


@pytest.mark.parametrize("unknown", ["retries", "Usage", "max_usd", "budget", "reserved"])
def test_an_unknown_option(unknown):
    with pytest.raises(TypeError, match=f"unknown option {unknown!r}"):
        guarded_step(**{unknown: 1})(lambda: None)


def test_the_contracts_options_are_the_options():
    contract = (
        "key, kind, reserve, usage, free_on, capture, redact, ignore, codec, effect, probe, durability, "
        "approval, timeout, outside"
    )
    assert set(contract.split(", ")) <= OPTION_NAMES


def test_a_callable_usage_needs_a_reserve():
    with pytest.raises(TypeError, match=r"needs a reserve=.*reserve=None to accept overshoot"):
        guarded_step(usage=lambda _: Usage())(lambda: None)
    guarded_step(usage=lambda _: Usage(), reserve=None)(lambda: None)


def test_a_timeout_is_for_async_functions():
    with pytest.raises(ValueError, match="timeout works on async functions"):
        guarded_step(timeout=5)(lambda: None)

    async def items():
        yield 1

    with pytest.raises(ValueError, match="not on async generators"):
        guarded_step(timeout=5)(items)

    @guarded_step(timeout=timedelta(milliseconds=10))
    async def slow():
        await asyncio.Event().wait()

    with Guard.in_memory(telemetry=False) as guard, guard.run("r"), pytest.raises(TimeoutError):
        asyncio.run(slow())


def test_ignore_may_name_keywords_that_are_collected():
    guarded_step(ignore=("session",))(lambda **more: None)
    guarded_step(ignore="session")(lambda session: None)


def test_effects_by_kind():
    from agentguard.steps.options import step_spec

    assert step_spec("t", None, {}).effect == "once"
    assert step_spec("t", None, {"kind": "llm"}).effect == "read"
    assert step_spec("t", None, {"kind": "llm", "effect": "idempotent"}).effect == "idempotent"


@pytest.mark.parametrize("option", ["usage", "reserve"])
def test_a_block_takes_plain_usages_only(guard, option):
    with guard.run("r") as run, pytest.raises(TypeError, match="settle"):
        run.step("block", **{option: lambda: Usage()})


def test_a_block_takes_no_timeout(guard):
    with guard.run("r") as run, pytest.raises(TypeError, match="asyncio.timeout"):
        run.step("block", timeout=5)


# --- what a call is charged ------------------------------------------------------------------------


def test_a_usage_known_in_advance_is_reserved_exactly(guard):
    held = []
    step = guarded_step(usage=Usage(usd="0.3", emails=2))(lambda: held.append(run.remaining.usd))
    with guard.run("r", budget=Budget(usd=1)) as run:
        step()
    assert held == [Decimal("0.7")]
    assert charged(guard, run) == [Usage(usd="0.3", emails=2)]


def test_a_reservation_alone_is_what_is_charged(guard):
    with guard.run("r", budget=Budget(usd=1)) as run:
        guarded_step(reserve=Usage(usd="0.3"))(lambda: None)()
    assert charged(guard, run) == [Usage(usd="0.3")]


def test_a_callable_reserve_sees_the_arguments(guard):
    @guarded_step(reserve=lambda a, *, b: Usage(tokens=a + b), usage=lambda result: Usage(tokens=result))
    def ask(a: int, *, b: int) -> int:
        assert run.remaining.tokens == 100 - a - b
        return a

    with guard.run("r", budget=Budget(tokens=100)) as run:
        ask(30, b=20)
    assert charged(guard, run) == [Usage(tokens=30)]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (lambda result: Usage(tokens=len(result)), 3),
        (lambda result, word, *, times: Usage(tokens=10 * times), 30),
        (lambda result, *args, **kwargs: Usage(tokens=len(args) + len(kwargs)), 2),
        (lambda result, **kwargs: Usage(tokens=7), 7),
        (lambda result, scale=5: Usage(tokens=scale), 5),
    ],
    ids=["result", "result and arguments", "star", "keywords", "a default of its own"],
)
def test_the_forms_of_a_callable_usage(guard, usage, expected):
    if expected == 7:
        step = guarded_step(reserve=Usage(tokens=99), usage=usage)(lambda **kwargs: "aaa")
        call = lambda: step(times=3)  # noqa: E731
    else:
        step = guarded_step(reserve=Usage(tokens=99), usage=usage)(lambda word, *, times: word * times)
        call = lambda: step("a", times=3)  # noqa: E731
    with guard.run("r") as run:
        call()
    assert charged(guard, run) == [Usage(tokens=expected)]


def test_async_forms_of_usage(guard):
    @guarded_step(reserve=lambda n: Usage(tokens=n), usage=lambda result, n: Usage(tokens=result))
    async def ask(n):
        return n // 2

    with guard.run("r", budget=Budget(tokens=100)) as run:
        asyncio.run(ask(40))
    assert charged(guard, run) == [Usage(tokens=20)]


@pytest.mark.parametrize("form", ["function", "coroutine", "block", "async block"])
def test_settle_goes_before_usage_and_the_last_call_wins(guard, form):
    options = {"reserve": Usage(usd=1), "usage": Usage(usd="0.9")}

    def settle(step) -> None:
        step.settle(Usage(usd="0.1"))
        step.settle(Usage(usd="0.2"))

    async def asynchronous() -> None:
        settle(current_step())

    async def block() -> None:
        async with run.step("s", **options) as step:
            settle(step)

    with guard.run("r", budget=Budget(usd=1)) as run:
        if form == "function":
            run.call("s", lambda: settle(current_step()), **options)
        elif form == "coroutine":
            asyncio.run(run.call("s", asynchronous, **options))
        elif form == "block":
            with run.step("s", **options) as step:
                settle(step)
        else:
            asyncio.run(block())
        assert run.remaining.usd == Decimal("0.8")
    assert charged(guard, run) == [Usage(usd="0.2")]


@pytest.mark.parametrize(
    "bad", [5, None, "0.1", Budget(usd=1), {"usd": 1}], ids=lambda value: repr(value).split(" at 0x")[0]
)
def test_settle_takes_a_usage(guard, bad):
    with guard.run("r") as run, run.step("s") as step, pytest.raises(TypeError, match="settle"):
        step.settle(bad)


# --- failures --------------------------------------------------------------------------------------


def fail(error: BaseException) -> None:
    raise error


def test_a_body_that_raises_is_charged_its_reservation(guard):
    with guard.run("r", budget=Budget(usd=1)) as run:
        with suppress(OSError):
            run.call("s", fail, OSError(), usage=Usage(usd="0.3"))
        assert run.remaining.usd == Decimal("0.7")
    assert charged(guard, run) == [Usage(usd="0.3")]


def test_a_failing_loop_ends(guard):
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(usd=1)) as run:
        while True:
            with suppress(OSError):
                run.call("s", fail, OSError(), usage=Usage(usd="0.3"))
    assert run.spent.usd == Decimal("0.9")


def test_a_body_that_settled_before_it_raised_is_charged_that(guard):
    def body():
        current_step().settle(Usage(usd="0.1"))
        raise OSError

    with guard.run("r") as run, suppress(OSError):
        run.call("s", body, usage=Usage(usd="0.3"))
    assert charged(guard, run) == [Usage(usd="0.1")]


@pytest.mark.parametrize("free_on", [RateLimitError, (RateLimitError,), (OSError, RateLimitError)])
@pytest.mark.parametrize("error", [RateLimitError, OtherError])
def test_an_error_in_free_on_uses_nothing_but_the_step(guard, free_on, error):
    with guard.run("r", budget=Budget(usd=1, steps=9)) as run:
        with suppress(RateLimitError):
            run.call("s", fail, error(), usage=Usage(usd="0.3"), free_on=free_on)
        assert run.remaining.usd == 1
        assert run.remaining.steps == 8
    assert charged(guard, run) == [Usage()]


def test_what_was_settled_is_charged_even_if_the_error_is_free(guard):
    def body():
        current_step().settle(Usage(usd="0.1"))
        raise RateLimitError

    with guard.run("r") as run, suppress(RateLimitError):
        run.call("s", body, usage=Usage(usd="0.3"), free_on=RateLimitError)
    assert charged(guard, run) == [Usage(usd="0.1")]


BAD_USAGES = {
    "raises": lambda result: 1 / 0,
    "gives None": lambda result: None,
    "gives a number": lambda result: 0.5,
    "gives a dict": lambda result: {"usd": 1},
    "gives NaN": lambda result: Usage(usd=float("nan")),
    "gives a negative": lambda result: Usage(tokens=-1),
    "gives a bool": lambda result: Usage(tokens=True),
    "is misspelt": lambda result: Usage(token=5),
}


@pytest.mark.parametrize("form", ["function", "coroutine", "generator", "async generator"])
@pytest.mark.parametrize("usage", BAD_USAGES.values(), ids=BAD_USAGES)
def test_a_bad_usage_charges_the_reservation_and_fails_the_step(guard, usage, form):
    options = {"reserve": Usage(usd="0.3"), "usage": usage}

    @guarded_step(**options)
    def function():
        return "result"

    @guarded_step(**options)
    async def coroutine():
        return "result"

    @guarded_step(**options)
    def generator():
        yield "result"

    @guarded_step(**options)
    async def async_generator():
        yield "result"

    async def drain():
        return [item async for item in async_generator()]

    calls = {
        "function": function,
        "coroutine": lambda: asyncio.run(coroutine()),
        "generator": lambda: list(generator()),
        "async generator": lambda: asyncio.run(drain()),
    }
    with guard.run("r", budget=Budget(usd=1)) as run:
        with pytest.raises((TypeError, ValueError, ZeroDivisionError)):
            calls[form]()
        assert run.remaining.usd == Decimal("0.7")
    outcomes = [e.type for e in guard.history(run.id) if e.type.startswith("step_")]
    assert outcomes == ["step_started", "step_failed"]
    assert charged(guard, run) == [Usage(usd="0.3")]


@pytest.mark.parametrize(
    "reserve",
    [lambda: 5, lambda: "0.1", lambda: 1 / 0, lambda: Usage(usd=-1), lambda: Usage(token=1)],
    ids=["number", "str", "raises", "negative", "misspelt"],
)
def test_a_bad_reserve_refuses_the_step_before_its_body(guard, reserve):
    step = guarded_step(reserve=reserve)(lambda: pytest.fail("ran"))
    with guard.run("r") as run, pytest.raises((TypeError, ValueError, ZeroDivisionError)):
        step()
    assert run.spent == Usage()
    assert guard.verify(run.id)


def test_a_usage_may_be_zero(guard):
    free = guarded_step(reserve=Usage(usd=1), usage=lambda _: Usage())(lambda: None)
    with guard.run("r", budget=Budget(usd=1)) as run:
        for _ in range(5):
            free()
    assert run.spent.usd == 0


def test_counters_by_name_of_the_callers_choice(guard):
    send = guarded_step(usage=Usage(emails=1))(lambda: None)
    with suppress(RunStopped), guard.run("r", budget=Budget(emails=2)) as run:
        send()
        assert run.remaining.emails == 1
        send()
        send()
    assert run.stop.resource == "emails"
    assert run.spent["emails"] == 2


def test_the_log_carries_usage_and_running_total(guard):
    with guard.run("r") as run:
        for usd in ("0.1", "0.2"):
            run.call("s", lambda: None, usage=one(usd))
    done = [e for e in guard.history(run.id) if e.type == "step_completed"]
    assert [(e.usage.usd, e.spent.usd) for e in done] == [
        (Decimal("0.1"), Decimal("0.1")),
        (Decimal("0.2"), Decimal("0.3")),
    ]
    assert [e.spent.steps for e in done] == [1, 2]
    assert all(e.duration_ns >= 0 for e in done)


@pytest.mark.parametrize("level", ["full", "digest", "none"])
def test_capture(guard, level):
    step = guarded_step(capture=level)(lambda word: word.upper())
    with guard.run("r") as run:
        step("secret")
    stored = [s for s in guard.components.store.read(run.id) if b"step_" in s.body]
    payloads = [s.payload for s in stored]
    assert all(b"secret" not in s.body and b"SECRET" not in s.body for s in stored)
    assert payloads == ([b'[["secret"],{}]', b'"SECRET"'] if level == "full" else [None, None])
    events = [e for e in guard.history(run.id) if e.type.startswith("step_")]
    assert ("args" in events[0].data, "result" in events[1].data) == ((level != "none",) * 2)


def test_equal_arguments_have_equal_digests_within_a_run_and_not_across(guard):
    digests = []
    for _ in range(2):
        with guard.run("r") as run:
            run.call("s", str, "secret")
            run.call("s", str, "secret")
        digests.append([e.data["args"] for e in guard.history(run.id) if e.type == "step_started"])
    assert digests[0][0] == digests[0][1]
    assert digests[0][0] != digests[1][0]


@pytest.mark.parametrize("level", ["full", "digest", "none"])
def test_capture_of_a_runs_inputs(level):
    with (
        Guard.in_memory(telemetry=False, capture=level) as guard,
        guard.run("r", inputs={"q": "private"}) as run,
    ):
        assert run.inputs == {"q": "private"}
        created = next(iter(guard.components.store.read(run.id)))
        assert created.payload == (b'{"q":"private"}' if level == "full" else None)
        assert ("inputs" in guard.history(run.id)[0].data) == (level != "none")
        assert b"private" not in created.body


@pytest.mark.parametrize("how", ["with", "start"])
def test_a_block_is_entered_once(guard, how):
    """Entering it again would put a second outcome under its key."""
    with guard.run("r") as run:
        block = run.step("s")
        with block:
            pass
        with pytest.raises(RuntimeError, match="entered before"):
            block.start() if how == "start" else block.__enter__()
    assert run.spent.steps == 1


def test_a_block_may_be_finished_twice(guard):
    with guard.run("r") as run:
        block = run.step("s", usage=Usage(usd="0.1"))
        block.start()
        assert current_step() is None
        block.finish(OSError())
        block.finish()
    assert [e.type for e in guard.history(run.id)][2:4] == ["step_started", "step_failed"]
    assert run.spent.usd == Decimal("0.1")


def test_usage_that_is_known_is_charged_and_not_what_was_reserved_for_it(guard):
    with guard.run("r", budget=Budget(usd=1)) as run:
        run.call("pay", int, reserve=Usage(usd="0.9"), usage=Usage(usd="0.1"))
        with pytest.raises(ZeroDivisionError):
            run.call("fail", lambda: 1 // 0, reserve=lambda: Usage(usd="0.9"), usage=Usage(usd="0.1"))
    assert run.spent.usd == 1  # nobody knows what the second one cost


def test_known_usage_beyond_what_is_reserved_is_refused():
    with pytest.raises(ValueError, match="pay: usage is more than reserve in emails"):
        guarded_step(name="pay", reserve=Usage(usd=1), usage=Usage(usd=1, emails=1))(lambda: 1)
