"""At the limit: when a step is refused at a limit, and when it is not."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from decimal import Decimal
from functools import partial
from unittest.mock import call

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    RunState,
    RunStopped,
    UnknownCostError,
    Usage,
    current_step,
    guarded_step,
)
from agentguard.budget.account import Account, Request


def nothing() -> None:
    pass


def echo(value: str) -> str:
    return value


def refusal(
    budget: Budget, reserve: Usage | None = None, *, postpaid: bool = False, spent=None, reserved=None
):
    """What one level says to a step."""
    account = Account("run", budget)
    account.spent.update((spent or Usage()).amounts())
    account.reserved.update((reserved or Usage()).amounts())
    amounts = (reserve or Usage()).amounts() | {"steps": 1}
    return account.refusal(Request(amounts, "tool", "tool", postpaid))


# --- if and only if --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "reserved", "requested", "refused"),
    [
        ("0", "0", "1", False),
        ("0", "0", "1.000000001", True),
        ("0.5", "0.25", "0.25", False),
        ("0.5", "0.25", "0.250000001", True),
        ("1", "0", "0.000000001", True),
        ("0", "1", "0.000000001", True),
        ("0.7", "0.3", "0", False),
        ("2", "0", "0", False),
    ],
)
def test_spent_and_reserved_and_requested_against_the_limit(spent, reserved, requested, refused):
    found = refusal(Budget(usd=1), Usage(usd=requested), spent=Usage(usd=spent), reserved=Usage(usd=reserved))
    assert (found is not None) is refused


@pytest.mark.parametrize(
    ("spent", "reserved", "refused"),
    [
        ("0", "0", False),
        ("0.999999999", "0", False),
        ("1", "0", True),
        ("0.5", "0.5", True),
        ("2", "0", True),
    ],
)
def test_known_only_afterwards_needs_room(spent, reserved, refused):
    found = refusal(Budget(usd=1), postpaid=True, spent=Usage(usd=spent), reserved=Usage(usd=reserved))
    assert (found is not None) is refused


def test_known_only_afterwards_but_reserved_is_judged_by_the_reservation():
    assert refusal(Budget(usd=1), Usage(usd=1), postpaid=True) is None
    assert refusal(Budget(usd=1), Usage(usd="0.5"), postpaid=True, spent=Usage(usd="0.6")) is not None
    assert refusal(Budget(usd=1, emails=0), Usage(usd=1), postpaid=True).resource == "emails"


@pytest.mark.parametrize("resource", ["usd", "tokens", "input_tokens", "cached_tokens", "emails"])
def test_a_step_known_not_to_use_a_resource_passes_at_zero(guard, resource):
    with guard.run("r", budget=Budget(**{resource: 0})) as run:
        assert run.call("free", lambda: "ran") == "ran"
        assert run.call("other", lambda: "ran", usage=Usage(pages=3)) == "ran"


@pytest.mark.parametrize("resource", ["usd", "tokens", "emails", "steps"])
def test_a_limit_of_zero_stops_what_would_use_it(guard, resource):
    usage = Usage() if resource == "steps" else Usage(**{resource: 1})
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(**{resource: 0})) as run:
        run.call("tool", pytest.fail, "its body ran", usage=usage)
    assert raised.value.resource == resource
    assert raised.value.limit == 0


def test_a_limit_of_zero_seconds_stops_every_step(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(seconds=0)) as run:
        run.call("tool", pytest.fail, "its body ran")
    assert raised.value.resource == "seconds"


def test_every_step_requests_one_step(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(steps=3)) as run:
        for _ in range(10):
            run.call("tool", int)
    assert run.spent.steps == 3


def test_tokens_are_input_and_output(guard):
    call = guarded_step(usage=Usage(input_tokens=60, output_tokens=30))(nothing)
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(tokens=100)) as run:
        call()
        call()
    assert (raised.value.resource, raised.value.spent, raised.value.requested) == ("tokens", 90, 90)
    assert run.spent.input_tokens == 60


# --- the refusal -----------------------------------------------------------------------------------


def test_the_error_shows_spent_and_reserved_apart(guard):
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(60)

    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1)) as run:
        run.call("spend", int, usage=Usage(usd="0.25"))
        thread = threading.Thread(target=run.bind(lambda: run.call("hold", hold, usage=Usage(usd="0.5"))))
        thread.start()
        assert entered.wait(60)
        with pytest.raises(BudgetExceededError) as raised:
            run.call("spend", int, usage=Usage(usd="0.3"))
        go_on.set()
        thread.join(60)
    error = raised.value
    assert (error.spent, error.reserved, error.requested, error.limit) == tuple(
        Decimal(amount) for amount in ("0.25", "0.5", "0.3", "1")
    )
    assert (error.resource, error.scope, error.run_id) == ("usd", "run", run.id)
    for amount in ("0.25 spent", "0.5 reserved", "0.3 more", "1 allowed", run.id):
        assert amount in str(error)


def test_a_refusal_does_not_wait_and_is_final(guard):
    """Room that a step in flight gives back later helps nobody."""
    entered, go_on = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(usd=1), usage=lambda _: Usage(usd="0.1"))
    def cheap_after_all() -> None:
        entered.set()
        assert go_on.wait(60)

    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(usd=1)) as run:
        thread = threading.Thread(target=run.bind(cheap_after_all))
        thread.start()
        assert entered.wait(60)
        with pytest.raises(BudgetExceededError) as first:
            run.call("spend", int, usage=Usage(usd="0.5"))
        go_on.set()
        thread.join(60)
        assert run.spent.usd == Decimal("0.1")
        with pytest.raises(BudgetExceededError) as second:
            run.call("spend", int, usage=Usage(usd="0.5"))
        assert second.value is first.value


def test_a_refusal_reserves_nothing(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1, emails=1)) as run:
        run.call("send", pytest.fail, "ran", usage=Usage(usd="0.5", emails=2))
    assert run.spent == Usage()
    assert run.remaining.usd == 1
    assert run.remaining.emails == 1


def test_usage_is_a_steps_own_never_its_childrens(guard):
    inner = guarded_step(usage=Usage(usd="0.2"))(nothing)

    @guarded_step(usage=Usage(usd="0.1"))
    def outer() -> None:
        inner()
        inner()

    with guard.run("r", budget=Budget(usd="0.5")) as run:
        outer()
    usages = [(e.name, e.usage.usd) for e in guard.history(run.id) if e.type == "step_completed"]
    assert usages == [("nothing", Decimal("0.2")), ("nothing", Decimal("0.2")), ("outer", Decimal("0.1"))]
    assert run.spent.usd == Decimal("0.5")


def test_a_nested_step_does_not_wait_for_the_one_around_it(guard):
    """The outer step holds what the inner one wants: refused, not deadlocked."""
    inner = guarded_step(usage=Usage(usd="0.6"))(nothing)
    outer = guarded_step(usage=Usage(usd="0.6"))(lambda: inner())
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)):
        outer()
    assert (raised.value.spent, raised.value.reserved) == (0, Decimal("0.6"))


# --- excess ----------------------------------------------------------------------------------------


def test_excess_is_charged_and_logged_and_stops_past_a_limit(guard):
    grow = guarded_step(reserve=Usage(usd="0.5"), usage=lambda usd: Usage(usd=usd))(echo)
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        assert grow("0.8") == "0.8"
        assert run.stop is None
        run.call("free", int)
        assert grow("0.1") == "0.1"
        grow("0.1")
    assert raised.value.resource == "usd"
    excess = [e.data["excess"] for e in guard.history(run.id) if "excess" in e.data]
    assert excess == [{"nano_usd": 300_000_000}]


def test_a_result_over_the_limit_is_still_given(guard):
    """The body has run and is paid for: its caller gets the result, and the run is stopped."""
    grow = guarded_step(reserve=Usage(usd="0.5"), usage=lambda usd: Usage(usd=usd))(echo)
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        assert grow("3") == "3"
        assert run.stop is not None
        run.call("free", pytest.fail, "ran after the stop")
    assert (raised.value.spent, raised.value.requested) == (3, 0)
    assert run.spent.usd == 3
    assert guard.verify(run.id)


def test_excess_of_what_is_not_limited_stops_nothing(guard):
    grow = guarded_step(reserve=Usage(usd="0.5"), usage=lambda _: Usage(usd=9, emails=5))(nothing)
    with guard.run("r", budget=Budget(tokens=5)) as run:
        grow()
        grow()
    assert run.spent["emails"] == 10


def test_settling_less_gives_the_rest_back(guard):
    def body() -> None:
        assert current_step().run.remaining.usd == Decimal("0.2")
        current_step().settle(Usage(usd="0.3"))

    with guard.run("r", budget=Budget(usd=1)) as run:
        run.call("s", body, usage=Usage(usd="0.8"))
        assert run.remaining.usd == Decimal("0.7")


# --- calls and repeats -----------------------------------------------------------------------------


def test_calls_of_a_name(guard):
    with (
        pytest.raises(BudgetExceededError) as raised,
        guard.run("r", budget=Budget(calls={"fetch": 2})) as run,
    ):
        for _ in range(5):
            run.call("other", int)
        for _ in range(5):
            run.call("fetch", int)
    assert raised.value.resource == "calls:fetch"
    assert (raised.value.spent, raised.value.requested, raised.value.limit) == (2, 1, 2)
    assert run.spent.steps == 7


def test_calls_of_a_kind(guard):
    ask = guarded_step(kind="llm")(nothing)
    with (
        pytest.raises(BudgetExceededError) as raised,
        guard.run("r", budget=Budget(calls={"kind:llm": 1})) as run,
    ):
        run.call("tool", int)
        ask()
        ask()
    assert raised.value.resource == "calls:kind:llm"
    assert run.remaining["calls:kind:llm"] == 0


def test_calls_count_what_failed_too(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(calls={"fetch": 3})) as run:
        for _ in range(10):
            with suppress(ZeroDivisionError):
                run.call("fetch", lambda: 1 / 0)
    assert run.spent.steps == 3


def test_the_nth_repeat_is_refused(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(repeats=3)) as run:
        for n in range(10):
            run.call("f", str, n)
        for _ in range(2):
            run.call("f", str, "same")
            run.call("g", str, "same")
        run.call("f", str, "same")
    assert raised.value.resource == "repeats"
    assert (raised.value.spent, raised.value.limit) == (2, 3)
    assert run.spent.steps == 14


@pytest.mark.parametrize("capture", ["full", "digest", "none"])
def test_repeats_do_not_depend_on_what_is_captured(guard, capture):
    f = guarded_step(capture=capture)(lambda *args: None)
    with suppress(RunStopped), guard.run("r", budget=Budget(repeats=3)) as run:
        for _ in range(2):
            f("a")
        for _ in range(2):
            f()
        assert run.stop is None
        f()
    assert run.stop.resource == "repeats"
    assert run.spent.steps == 4


def test_repeats_tell_calls_apart_by_what_is_left_out_of_the_log(guard):
    f = guarded_step(ignore=("body",))(lambda body, q: None)
    with suppress(RunStopped), guard.run("r", budget=Budget(repeats=2)) as run:
        for body in ("one", "two", "three"):
            f(body, "q")
        f("two", "q")
    assert run.spent.steps == 3
    assert not any(b"two" in (stored.payload or b"") for stored in guard.components.store.read(run.id))


class Tool:
    @guarded_step
    def look(self, a, b=0, *, c=0):
        """A method: `self` is no argument that counts."""


@guarded_step
def look(a, b=0, *, c=0, **more):
    """Can be called in many ways."""


@guarded_step(ignore=("b",))
def ignores(a, b=0, *, c=0, **more):
    """The same, `b` left out."""


@pytest.mark.parametrize(
    "calls",
    [
        [call(1), call(a=1)],
        [call(1, 2), call(1, b=2), call(a=1, b=2), call(b=2, a=1)],
        [call(1, c=3, b=2), call(b=2, c=3, a=1), call(1, 2, c=3)],
    ],
)
@pytest.mark.parametrize("fn", [look, ignores, Tool().look, partial(look)])
def test_repeats_are_the_same_however_arguments_are_given(guard, calls, fn):
    fn = guarded_step(name="partial")(fn) if isinstance(fn, partial) else fn
    with suppress(RunStopped), guard.run("r", budget=Budget(repeats=len(calls)), run_id="r") as run:
        for each in calls[:-1]:
            fn(*each.args, **each.kwargs)
        assert run.stop is None
        fn(*calls[-1].args, **calls[-1].kwargs)
    assert run.stop.resource == "repeats"
    assert guard.reconstruct("r") == guard.summary("r")


def test_repeats_tell_other_arguments_apart(guard):
    def both(a=0, /, b=0, *rest, c=0, **more):
        """`a` by position, and another `a` by name."""

    f = guarded_step(both)
    with guard.run("r", budget=Budget(repeats=2)):
        for args, kwargs in (
            ((1,), {}),
            ((1, 2), {}),
            ((), {"b": 1}),
            ((), {"c": 1}),
            ((), {"a": 1}),
            ((1, 2, 3), {}),
            ((1, 2), {"c": 3}),
            ((1, 2), {"d": 3}),
        ):
            f(*args, **kwargs)


def test_a_repeat_is_on_record_only_where_it_is_counted_and_given_by_name(guard):
    with guard.run("r", run_id="counted", budget=Budget(repeats=9)):
        look(1)
        look(a=1)
        with guard.run("inside", run_id="inside"):
            look(a=1)
    with guard.run("r", run_id="not"):
        look(a=1)
    counted = [e.data for e in guard.history("counted") if e.type == "step_started"]
    assert counted[1]["repeat"] == counted[0]["args"] != counted[1]["args"]
    assert "repeat" not in counted[0]
    (plain,) = [e.data for e in guard.history("not") if e.type == "step_started"]
    assert "repeat" not in plain
    assert guard.what_if("counted", Budget(repeats=2)).resource == "repeats"
    with guard.replay("counted"):
        look(1)
        look(a=1)
        with guard.run("inside", run_id="inside"):
            look(a=1)


@pytest.mark.parametrize("repeats", [0, 1])
def test_no_repeat_at_all(guard, repeats):
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(repeats=repeats)) as run:
        run.call("f", pytest.fail, "ran")


# --- soft limits -----------------------------------------------------------------------------------


def test_one_warning_for_each_resource_and_level(guard):
    told = []
    spend = guarded_step(usage=Usage(usd="0.1", emails=1))(nothing)
    with guard.run("r", budget=Budget(usd=1, emails=100), on_warning=told.append) as run:
        for _ in range(7):
            spend()
        assert run.warnings == ()
        spend()
        assert [w["resource"] for w in run.warnings] == ["usd"]
        with run.scope("s", Budget(emails=2)):
            spend()
            spend()
    assert [(w["path"], w["resource"]) for w in run.warnings] == [("run", "usd"), ("s", "emails")]
    assert told == list(run.warnings)
    assert run.warnings[0]["used"] == "0.8"
    assert run.warnings[0]["limit"] == "1"
    assert [e.data for e in guard.history(run.id) if e.type == "budget_warning"] == told


def test_a_warning_for_what_was_known_only_afterwards(guard):
    ask = guarded_step(reserve=None, usage=lambda usd: Usage(usd=usd))(echo)
    with guard.run("r", budget=Budget(usd=1)) as run:
        ask("0.9")
        assert [w["resource"] for w in run.warnings] == ["usd"]
        assert run.warnings[0]["used"] == "0.9"


def test_warn_at(guard):
    with guard.run("r", budget=Budget(steps=10, warn_at=0.35)) as run:
        for _ in range(3):
            run.call("f", int)
        assert run.warnings == ()
        run.call("f", int)
        assert len(run.warnings) == 1


def test_on_warning_may_fail(guard, caplog):
    def broken(warning: dict) -> None:
        raise ZeroDivisionError

    with guard.run("r", budget=Budget(steps=2), on_warning=broken) as run:
        run.call("f", int)
        run.call("f", int)
    assert run.state is RunState.COMPLETED
    assert "on_warning" in caplog.text


def test_on_warning_may_call_a_step(guard):
    with guard.run("r", budget=Budget(steps=10), on_warning=lambda _: run.call("report", int)) as run:
        for _ in range(8):
            run.call("f", int)
    assert run.spent.steps == 9


def test_on_warning_from_many_threads(guard):
    """Each warning is told once, and nobody stumbles over another's."""
    told = []
    limits = {f"c{n}": 8 for n in range(8)}
    everything = Usage(**dict.fromkeys(limits, 1))
    errors = []

    def work() -> None:
        try:
            run.call("f", int, usage=everything)
        except Exception as error:
            errors.append(error)

    with guard.run("r", budget=Budget(**limits), on_warning=told.append) as run:
        threads = [threading.Thread(target=run.bind(work)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert sorted(w["resource"] for w in told) == sorted(limits)


# --- shadow mode -----------------------------------------------------------------------------------


def test_shadow_mode_observes_only(guard):
    with guard.run("r", budget=Budget(usd=1, calls={"f": 1}, enforce=False)) as run:
        for _ in range(3):
            assert run.call("f", lambda: "ran", usage=Usage(usd="0.6")) == "ran"
    assert run.state is RunState.COMPLETED
    assert run.spent.usd == Decimal("1.8")
    marks = [
        e.data.get("would_stop", {}).get("resource")
        for e in guard.history(run.id)
        if e.type == "step_started"
    ]
    assert marks == [None, "usd", "usd"]


def test_shadow_mode_still_warns(guard):
    with guard.run("r", budget=Budget(usd=1, enforce=False)) as run:
        run.call("f", int, usage=Usage(usd=2))
    assert [w["resource"] for w in run.warnings] == ["usd"]


def test_shadow_mode_still_kills(guard):
    with pytest.raises(RunStopped), guard.run("r", budget=Budget(usd=1, enforce=False)) as run:
        run.kill("real")
        run.call("f", pytest.fail, "ran")
    assert run.state is RunState.KILLED


def test_shadow_mode_in_a_scope_leaves_the_run_enforced(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=2)) as run:
        with run.scope("s", Budget(usd=1, enforce=False)):
            for _ in range(9):
                run.call("f", int, usage=Usage(usd="0.5"))
    assert raised.value.scope == "run"
    assert run.spent.usd == 2


def test_shadow_mode_excess_and_deadline(guard):
    grow = guarded_step(reserve=Usage(usd="0.5"), usage=lambda _: Usage(usd=5))(nothing)
    with guard.run("r", budget=Budget(usd=1, seconds=0, enforce=False)) as run:
        grow()
        grow()
    assert run.state is RunState.COMPLETED


def test_shadow_mode_asks_for_no_price(guard):
    ask = guarded_step(kind="llm")(lambda: "asked")
    with guard.run("r", budget=Budget(usd=1, enforce=False)):
        assert ask() == "asked"


# --- the price of a call ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["usd", "tokens", "input_tokens", "output_tokens"])
def test_an_llm_step_without_cost_under_a_limit(guard, limit):
    ask = guarded_step(kind="llm")(lambda: pytest.fail("asked"))
    with pytest.raises(UnknownCostError) as raised, guard.run("r", budget=Budget(**{limit: 5})) as run:
        ask()
    assert raised.value.resources == (limit,)
    assert raised.value.name == "<lambda>"
    kinds = [e.type for e in guard.history(run.id)]
    assert kinds[-2:] == ["step_refused", "run_failed"]


def test_an_llm_step_without_cost_where_nothing_is_limited(guard):
    ask = guarded_step(kind="llm")(lambda: "asked")
    with guard.run("r", budget=Budget(steps=5, emails=1, calls={"kind:llm": 5})):
        assert ask() == "asked"


@pytest.mark.parametrize("usd", [0, "0.00", Decimal(0), 0.0])
def test_an_llm_step_may_say_that_it_is_free(guard, usd):
    ways = {
        "usage": {"usage": Usage(usd=usd)},
        "reserve": {"reserve": Usage(usd=usd)},
        "callable": {"reserve": lambda: Usage(usd=usd)},
        "sum": {"usage": Usage(usd=usd) + Usage(images=1)},
    }
    with guard.run("r", run_id="r", budget=Budget(usd=0)) as run:
        for name, options in ways.items():
            assert guarded_step(kind="llm", name=name, **options)(lambda: "asked")() == "asked"
    assert guard.reconstruct("r") == guard.summary("r")
    assert guard.verify("r")
    assert (run.spent.usd, run.spent["images"], run.spent.steps) == (0, 1, 4)
    ask = guarded_step(kind="llm", usage=Usage(images=1))(lambda: pytest.fail("asked"))
    with pytest.raises(UnknownCostError), guard.run("r", budget=Budget(usd=1)):
        ask()


def test_a_scopes_limit_asks_for_a_price_inside_it_alone(guard):
    ask = guarded_step(kind="llm")(lambda: "asked")
    with suppress(RunStopped), guard.run("r") as run:
        with run.scope("s", Budget(usd=1)):
            run.call("tool", int)
        assert ask() == "asked"
        assert not run.limits("usd")
        with run.scope("s", Budget(usd=1)):
            assert run.limits("usd")
            ask()
    assert isinstance(run.stop, UnknownCostError)


@pytest.mark.parametrize(
    "options",
    [
        {"usage": Usage(usd="0.1")},
        {"reserve": lambda: Usage(usd="0.1"), "usage": lambda _: Usage(usd="0.1")},
        {"reserve": None, "usage": lambda _: Usage(usd="0.1")},
    ],
    ids=["usd", "bounded", "overshoot accepted"],
)
def test_an_llm_step_that_names_its_cost(guard, options):
    ask = guarded_step(kind="llm", **options)(lambda: "asked")
    with guard.run("r", budget=Budget(usd=1)):
        assert ask() == "asked"


def test_overshoot_accepted_is_said_in_the_summary(guard):
    ask = guarded_step(kind="llm", reserve=None, usage=lambda usd: Usage(usd=usd))(echo)
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1)) as run:
        ask("0.9")
        assert ask("0.9") == "0.9"
        ask("0.9")
    assert run.spent.usd == Decimal("1.8")
    assert run.summary().bounded is False
    assert "not bounded" in str(guard.summary(run.id))
    with guard.run("r", budget=Budget(usd=1)) as bounded:
        bounded.call("f", int)
    assert bounded.summary().bounded is True


def test_a_reserve_may_give_nothing_for_one_call_which_is_then_not_bounded(guard):
    """The summary says so, live and from the log; further calls are refused at the limit."""
    ask = guarded_step(
        reserve=lambda usd, known: Usage(usd=usd) if known else None, usage=lambda usd, *_: Usage(usd=usd)
    )(lambda usd, known: usd)
    with guard.run("r", budget=Budget(usd=1)) as bounded:
        ask("0.5", True)
    assert bounded.summary().bounded is True
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(usd=1)) as run:
        ask("0.9", False)
        assert run.summary().bounded is False
        ask("0.2", False)
    assert guard.reconstruct(run.id) == guard.summary(run.id)
    assert guard.summary(run.id).bounded is False
    assert "not bounded" in str(guard.summary(run.id))


def test_async_steps_tell_of_warnings_that_came_with_their_usage(guard):
    told = []

    @guarded_step(reserve=None, usage=lambda usd: Usage(usd=usd))
    async def ask(usd):
        return usd

    async def main():
        async with guard.run("r", budget=Budget(usd=1), on_warning=told.append):
            await ask("0.9")
            assert [warning["resource"] for warning in told] == ["usd"]

    asyncio.run(main())


def test_options_that_are_made_anew_for_each_call_do_not_pile_up(guard):
    with guard.run("r") as run:
        for n in range(1100):
            run.call(f"step {n}", int)
        assert len(run.live_run.recorders) <= 1000
    assert run.spent.steps == 1100
