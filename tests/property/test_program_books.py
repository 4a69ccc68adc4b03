"""Small random programs: log, live state, row, summary and accounts tell one story, and the same twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import Budget, Guard, RunStopped, Usage, current_run, current_step, guarded_step
from agentguard.audit.verify import reconstruct
from agentguard.budget.named import named_account_id
from agentguard.errors import DuplicateKeyError
from tests.scale import scaled

SWALLOWED = (RunStopped, OSError, ZeroDivisionError, TypeError, DuplicateKeyError)


class FreeError(Exception):
    pass


def settling(used: int | None) -> None:
    if used is not None:
        current_step().settle(Usage(coins=used))


@guarded_step(reserve=lambda held, *_: Usage(coins=held), usage=lambda _, held, used: Usage(coins=used))
def bounded(held: int, used: int) -> int:
    return used


@guarded_step(reserve=None, usage=lambda used: Usage(coins=used))
def unbounded(used: int) -> int:
    return used


@guarded_step(reserve=lambda held, *_: Usage(coins=held), free_on=FreeError)
def failing(held: int, used: int | None, free: bool) -> None:
    settling(used)
    raise FreeError if free else OSError


@guarded_step(key=lambda name, fails: name, usage=Usage(coins=1))
def keyed(name: str, fails: bool) -> str:
    if fails:
        raise OSError
    return name


@guarded_step(usage=Usage(coins=1))
def items(n: int) -> Any:
    yield from range(n)


@guarded_step(reserve=lambda held, *_: Usage(coins=held), usage=lambda _, held, used: Usage(coins=used))
async def awaited(held: int, used: int) -> int:
    await asyncio.sleep(0)
    return used


@guarded_step(reserve=Usage(coins=1), usage=lambda _: "no usage at all")
def misjudged() -> None:
    pass


coins = st.integers(0, 5)
few = st.integers(0, 3)


def limits_with(repeats: st.SearchStrategy[int | None]) -> st.SearchStrategy[Budget]:
    return st.builds(
        Budget,
        coins=st.none() | st.integers(0, 15),
        steps=st.none() | st.integers(0, 15),
        calls=st.none() | st.just({"bounded": 2, "kind:tool": 9}),
        repeats=repeats,
        enforce=st.booleans(),
    )


limits = limits_with(st.none() | st.integers(2, 4))
limits_of_a_tenant = limits_with(st.none())  # which cannot limit repeats
leaves = st.one_of(
    st.tuples(st.just("bounded"), coins, coins),
    st.tuples(st.just("unbounded"), coins),
    st.tuples(st.just("failing"), coins, st.none() | coins, st.booleans()),
    st.tuples(st.just("keyed"), st.sampled_from("xy"), st.booleans()),
    st.tuples(st.just("items"), few, st.booleans()),
    st.tuples(st.just("awaited"), coins, coins),
    st.tuples(st.just("misjudged")),
    st.tuples(st.just("value"), few),
    st.tuples(st.just("pause")),
    st.tuples(st.just("kill")),
    st.tuples(st.just("raise")),
)


def blocks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(inner, max_size=4)
    return st.one_of(
        st.tuples(st.just("scope"), limits, body),
        st.tuples(st.just("nested"), limits, body),
        st.tuples(st.just("detached"), limits, body),
        st.tuples(st.just("tasks"), st.lists(st.tuples(coins, coins), max_size=4)),
        st.tuples(st.just("careless"), body),
    )


programs = st.lists(st.recursive(leaves, blocks, max_leaves=8), max_size=6)


def carry_out(guard: Guard, body: list[Any]) -> None:
    """Run a program; what a careless agent swallows is swallowed."""
    run = current_run()
    for op, *args in body:
        if op in ("bounded", "unbounded", "failing", "keyed", "misjudged"):
            with contextlib.suppress(*SWALLOWED, FreeError):
                globals()[op](*args)
        elif op == "items":
            n, close = args
            opened = items(n)
            with contextlib.suppress(*SWALLOWED):
                next(opened, None)
                if close:
                    opened.close()
                else:
                    run.__dict__.setdefault("kept", []).append(opened)
        elif op == "awaited":
            with contextlib.suppress(*SWALLOWED):
                asyncio.run(awaited(*args))
        elif op == "tasks":
            with contextlib.suppress(*SWALLOWED):
                asyncio.run(many(args[0]))
        elif op == "value":
            with contextlib.suppress(*SWALLOWED):
                run.record("value", lambda n=args[0]: n)
        elif op == "pause":
            with contextlib.suppress(Exception):
                run.pause()
                run.resume()
        elif op == "kill":
            run.kill("by the program")
        elif op == "raise":
            raise ZeroDivisionError
        elif op == "careless":
            with contextlib.suppress(*SWALLOWED):
                carry_out(guard, args[0])
        elif op == "scope":
            with contextlib.suppress(RunStopped), run.scope("s", args[0]):
                carry_out(guard, args[1])
        else:
            with (
                contextlib.suppress(*SWALLOWED),
                guard.run("n", budget=args[0], detached=op == "detached", tenant="t"),
            ):
                carry_out(guard, args[1])


async def many(pairs: list[tuple[int, int]]) -> None:
    await asyncio.gather(*(awaited(held, used) for held, used in pairs), return_exceptions=True)


def check_books(guard: Guard, run: Any) -> None:
    store = guard.components.store
    total: Counter[str] = Counter()
    of_account: Counter[str] = Counter()
    for listed in guard.runs(limit=1000):
        row = store.row(listed.run_id)
        fold = reconstruct(store, row)
        summary = guard.summary(row.run_id)
        assert guard.reconstruct(row.run_id) == summary == listed
        assert fold.state.final
        assert not fold.open
        events = guard.history(row.run_id)
        own = [e for e in events if e.type in ("step_completed", "step_failed") and e.usage is not None]
        used = Counter[str]()
        for event in own:
            used.update(event.usage.amounts())
        total.update(used)
        if summary.account == "c":
            of_account.update(used)
        nested = [e for e in events if e.type == "scope_closed" and e.usage is not None]
        for event in nested:
            used.update(event.usage.amounts())
        assert +used == Counter(summary.usage.amounts())
        assert summary.steps == len(own)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        terminal = [e.seq for e in events if e.type in ("run_completed", "run_failed", "run_killed")]
        assert len(terminal) == 1
        late = {e.type for e in events[terminal[0] :]}
        assert late <= {"step_completed", "step_failed", "scope_closed"}
        shared = store.accounts([f"run:{row.run_id}"])
        for account in shared.values():
            assert {k: n for k, n in account.spent.items() if n} == summary.usage.amounts()
            assert not any(account.reserved.values())
    assert run.summary() == guard.summary(run.id)
    for name, expected in (("tenant:t", total), (named_account_id("c", "t"), of_account)):
        for account in store.accounts([name]).values():
            assert +Counter(account.spent) == +expected
            assert not any(account.reserved.values())
    assert guard.verify()


def shape(guard: Guard, run: Any) -> list[Any]:
    """What two runs of one program have in common, branch by branch."""
    return sorted(
        (e.key, e.type, e.name, e.attempt, e.usage is not None and repr(e.usage), e.data.get("outcome"))
        for e in guard.history(run.id)
        if e.key is not None
    )


def carried_out(guard: Guard, budget: Budget, program: list[Any], account: Budget | None = None) -> Any:
    options: Any = {} if not account or account.unlimited else {"account": "c", "account_budget": account}
    run = guard.run("r", budget=budget, tenant="t", **options)
    with contextlib.suppress(*SWALLOWED), run:
        carry_out(guard, program)
    return run


HEALTH = [HealthCheck.too_slow]


@settings(deadline=None, max_examples=120, suppress_health_check=HEALTH)
@given(limits_of_a_tenant, limits, programs, limits_of_a_tenant)
def test_the_books_of_any_program(tenant, budget, program, account):
    with Guard.in_memory(telemetry=False) as guard:
        if not tenant.unlimited:
            guard.set_tenant_budget("t", tenant)
        run = carried_out(guard, budget, program, account)
        check_books(guard, run)


@settings(deadline=None, max_examples=60, suppress_health_check=HEALTH)
@given(limits, programs)
def test_the_same_program_leaves_the_same_keys_and_outcomes(budget, program):
    shapes = []
    for _ in range(2):
        with Guard.in_memory(telemetry=False) as guard:
            shapes.append(shape(guard, carried_out(guard, budget, program)))
    assert shapes[0] == shapes[1]


@settings(deadline=None, max_examples=15, suppress_health_check=HEALTH)
@given(limits, programs)
def test_the_books_of_any_program_on_disk(budget, program):
    """And in a second process's eyes: a guard of its own on the same file."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'a.db'}"
        with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
            guard.set_tenant_budget("t", Budget(coins=40))
            run = carried_out(guard, budget, program, Budget(coins=60))
            check_books(guard, run)
            with Guard.open(url, kill_switch="memory", telemetry=False) as other:
                assert other.summary(run.id) == guard.summary(run.id)
                assert other.reconstruct(run.id) == guard.summary(run.id)
                assert other.history(run.id) == guard.history(run.id)


@pytest.mark.long
@settings(deadline=None, max_examples=scaled(3000), suppress_health_check=HEALTH)
@given(limits_of_a_tenant, limits, programs, limits_of_a_tenant)
def test_the_books_of_very_many_programs(tenant, budget, program, account):
    test_the_books_of_any_program.hypothesis.inner_test(tenant, budget, program, account)
