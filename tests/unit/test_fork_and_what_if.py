"""Fork and what-if: forks share a pinned prefix and go live after it; what-if folds a log under another budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    Run,
    RunState,
    RunStopped,
    StepOutcomeUnknownError,
    Usage,
    current_step,
    guarded_step,
)
from agentguard.errors import LogIntegrityError
from agentguard.testing.fakes import FakeClock

RAN: list[Any] = []
KEYS: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()
    KEYS.clear()


@guarded_step(usage=Usage(usd="0.01", tokens=100))
def work(n: int) -> int:
    RAN.append(n)
    step = current_step()
    assert step is not None
    KEYS.append(step.idempotency_key)
    return n * 10


def five(run: Run) -> list[int]:
    return [work(n) for n in range(1, 6)]


def recorded(guard: Guard, program: Callable[[Run], Any] = five, **options: Any) -> Run:
    run = guard.run("program", **options)
    with suppress(RunStopped), run:
        program(run)
    RAN.clear()
    KEYS.clear()
    return run


def seq_of(guard: Guard, run_id: str, kind: str, key: str) -> int:
    return next(e.seq for e in guard.history(run_id) if (e.type, e.key) == (kind, key))


# --- fork ----------------------------------------------------------------------------------------


def test_a_fork_is_served_the_prefix_and_goes_live_after_it(guard: Guard) -> None:
    origin = recorded(guard, inputs={"a": 1})
    at = seq_of(guard, origin.id, "step_completed", "main/work#3")
    before = guard.history(origin.id)
    with guard.fork(origin.id, at) as fork:
        assert fork.id != origin.id
        assert fork.inputs == {"a": 1}
        assert five(fork) == [10, 20, 30, 40, 50]
    assert RAN == [4, 5]
    assert guard.history(origin.id) == before
    assert guard.summary(fork.id).usage == guard.summary(origin.id).usage
    assert guard.verify()
    assert guard.reconstruct(fork.id) == guard.summary(fork.id)
    assert not guard.diff(origin.id, fork.id)


def test_a_fork_names_and_pins_its_origin(guard: Guard) -> None:
    origin = recorded(guard)
    at = seq_of(guard, origin.id, "step_completed", "main/work#2")
    with guard.fork(origin.id, at, name="again", new_run_id="again") as fork:
        five(fork)
    forked = next(event for event in guard.history("again") if event.type == "run_forked")
    assert {k: forked.data[k] for k in ("origin", "seq", "hash")} == {
        "origin": origin.id,
        "seq": at,
        "hash": guard.history(origin.id)[at - 1].hash,
    }
    assert forked.seq == 3, "before anything that the fork did"
    assert (fork.name, guard.summary("again").state) == ("again", RunState.COMPLETED)


def test_a_fork_that_differs_in_the_prefix_is_a_divergence_and_after_it_is_not(guard: Guard) -> None:
    origin = recorded(guard)
    at = seq_of(guard, origin.id, "step_completed", "main/work#2")
    with guard.fork(origin.id, at):
        assert [work(1), work(2), work(99)] == [10, 20, 990]
    assert RAN == [99]
    with pytest.raises(Exception, match="arguments"), guard.fork(origin.id, at):
        work(99)
    assert RAN == [99]


def test_a_step_that_began_in_the_prefix_is_served_the_outcome_that_came_later(guard: Guard) -> None:
    origin = recorded(guard)
    at = seq_of(guard, origin.id, "step_started", "main/work#3")
    with guard.fork(origin.id, at) as fork:
        assert five(fork) == [10, 20, 30, 40, 50]
    assert RAN == [4, 5]


@contextmanager
def died_inside(guard: Guard, effect: str) -> Iterator[tuple[Run, Callable[[], int]]]:
    """A run whose process went in the middle of a step."""

    @guarded_step(effect=effect, name="dies")
    def dies() -> int:
        step = current_step()
        assert step is not None
        KEYS.append(step.idempotency_key)
        RAN.append("dies")
        if len(RAN) == 1:
            raise SystemExit
        return 7

    RAN.clear()
    KEYS.clear()
    run = guard.run("program")
    append = guard.components.store.append

    def gone(number: int, events: Any, *rest: Any, **options: Any) -> Any:
        if any(b"step_failed" in event.body or b"run_failed" in event.body for event in events):
            raise SystemExit
        return append(number, events, *rest, **options)

    def life() -> None:
        with suppress(SystemExit):
            run.__enter__()
            guard.components.store.append = gone  # type: ignore[method-assign]
            run.live_run.log._append_one = None
            dies()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(life).result()
    del guard.components.store.append  # type: ignore[misc]
    guard.runtime.live.pop(run.id, None)
    yield run, dies


def test_a_step_without_an_outcome_may_have_happened_under_the_origins_idempotency_key(
    guard: Guard,
) -> None:
    with died_inside(guard, "idempotent") as (origin, dies):
        with guard.fork(origin.id, guard.summary(origin.id).head.seq):
            assert dies() == 7
        first, second = KEYS
        assert first == second
    with died_inside(guard, "once") as (origin, dies):
        with (
            pytest.raises(StepOutcomeUnknownError),
            guard.fork(origin.id, guard.summary(origin.id).head.seq),
        ):
            dies()
        assert RAN == ["dies"]


def test_the_prefix_counts_against_the_budget_of_the_fork(guard: Guard) -> None:
    origin = recorded(guard)
    at = seq_of(guard, origin.id, "step_completed", "main/work#3")
    with pytest.raises(BudgetExceededError) as caught, guard.fork(origin.id, at, budget=Budget(usd="0.04")):
        five(guard.run)  # type: ignore[arg-type]
    assert (caught.value.spent, caught.value.limit) == (Decimal("0.04"), Decimal("0.04"))
    assert RAN == [4]


def test_the_prefix_does_not_count_again_against_the_tenant(guard: Guard) -> None:
    guard.set_tenant_budget("shop", Budget(usd="0.06"))
    origin = recorded(guard, tenant="shop")
    at = seq_of(guard, origin.id, "step_completed", "main/work#4")
    with guard.fork(origin.id, at) as fork:
        five(fork)  # the sixth cent of the tenant's, and the fifth of the fork's
    assert RAN == [5]
    assert str(fork.spent.usd) == "0.05"
    with pytest.raises(BudgetExceededError) as caught, guard.run("more", tenant="shop"):
        work(1)
    assert caught.value.scope == "tenant:shop"


@pytest.mark.parametrize("budget", [None, Budget(usd="1")], ids=["the same budget", "another"])
def test_a_stopped_run_is_carried_on_by_a_fork_of_its_whole_log(guard: Guard, budget: Budget | None) -> None:
    """An ended run never recovers: this is the way on."""
    origin = recorded(guard, budget=Budget(usd="0.03"))
    assert origin.state is RunState.FAILED
    head = guard.summary(origin.id).head.seq
    if budget is None:
        with pytest.raises(BudgetExceededError), guard.fork(origin.id, head) as fork:
            five(fork)
        assert RAN == []
    else:
        with guard.fork(origin.id, head, budget=budget) as fork:
            assert five(fork) == [10, 20, 30, 40, 50]
        assert RAN == [4, 5]
    assert guard.verify()


def test_a_scope_that_was_stopped_in_the_prefix_stays_stopped(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        with suppress(BudgetExceededError), run.scope("part", Budget(steps=1)):
            out.append(work(1))
            out.append(work(2))
        out.append(work(3))
        return out

    origin = recorded(guard, program)
    at = seq_of(guard, origin.id, "scope_closed", "main/part#1")
    with guard.fork(origin.id, at) as fork:
        assert program(fork) == [10, 30]
    assert RAN == [3]


def test_a_fork_of_a_fork(guard: Guard) -> None:
    origin = recorded(guard)
    with guard.fork(origin.id, seq_of(guard, origin.id, "step_completed", "main/work#2")) as child:
        five(child)
    RAN.clear()
    at = seq_of(guard, child.id, "step_completed", "main/work#4")
    with guard.fork(child.id, at) as grandchild:
        assert five(grandchild) == [10, 20, 30, 40, 50]
    assert RAN == [5]
    assert str(guard.summary(grandchild.id).usage.usd) == "0.05"
    assert guard.verify()
    RAN.clear()
    with guard.replay(grandchild.id) as replay:
        assert five(replay) == [10, 20, 30, 40, 50]
    assert RAN == []


def test_a_fork_has_its_origins_seed(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        return [work(1), str(run.uuid()), run.random(), work(2), str(run.uuid())]

    run = guard.run("program")
    with run:
        drawn = program(run)
    with guard.fork(run.id, seq_of(guard, run.id, "step_completed", "main/work#1")) as fork:
        assert program(fork) == drawn


def test_a_fork_goes_live_with_all_kinds_of_calls(guard: Guard) -> None:
    @guarded_step
    def count_to(n: int) -> Iterator[int]:
        RAN.append("count")
        yield from range(n)

    def program(run: Run) -> list[Any]:
        out: list[Any] = [work(1), *count_to(2), run.record("dice", lambda: RAN.append("dice") or 4)]
        with run.step("block"):
            RAN.append("block")
        with run.scope("part"), guard.run("inside"):
            out.append(work(2))
        return out

    origin = recorded(guard, work_once)
    with guard.fork(origin.id, seq_of(guard, origin.id, "step_completed", "main/work#1")) as fork:
        assert program(fork) == [10, 0, 1, 4, 20]
    assert RAN == ["count", "dice", "block", 2]


def work_once(run: Run) -> int:
    return work(1)


def test_what_a_live_origin_does_later_is_not_the_fork_s(guard: Guard) -> None:
    with guard.run("program") as origin:
        work(1)
        forked = guard.fork(origin.id, guard.history(origin.id)[-1].seq)
        work(2)
    with forked:
        assert [work(1), work(3)] == [10, 30]
    RAN.clear()
    with guard.replay(forked.id):
        assert [work(1), work(3)] == [10, 30]
    assert RAN == []
    assert guard.verify(forked.id)


def test_a_fork_whose_origin_is_gone_or_another_cannot_be_replayed() -> None:
    clock = FakeClock()
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        recorded(guard, run_id="origin")
        clock.advance(10)
        with guard.fork("origin", 4, new_run_id="fork") as fork:
            five(fork)
        assert guard.prune("5s") == ["origin"]
        RAN.clear()
        for again in (None, lambda: recorded(guard, run_id="origin", inputs="another")):
            if again is not None:
                again()
            with pytest.raises(LogIntegrityError) as caught, guard.replay("fork") as replay:
                five(replay)
            assert (caught.value.run_id, caught.value.seq) == ("origin", 4)
            assert RAN == []
    assert "it is not the event that the run was forked at" in str(caught.value)


def test_an_event_that_is_not_there_is_refused(guard: Guard) -> None:
    origin = recorded(guard)
    length = guard.summary(origin.id).head.seq
    for at in (0, length + 1, -1):
        with pytest.raises(ValueError, match=f"has events 1 to {length}, not {at}"):
            guard.fork(origin.id, at)
    assert len(guard.runs()) == 1


# --- what if -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "key", "resource", "spent"),
    [
        (Budget(usd="0.03"), "main/work#4", "usd", Decimal("0.03")),
        (Budget(tokens=250), "main/work#3", "tokens", 200),
        (Budget(steps=1), "main/work#2", "steps", 1),
        (Budget(calls={"work": 4}), "main/work#5", "calls:work", 4),
        (Budget(steps=0), "main/work#1", "steps", 0),
    ],
    ids=["usd", "tokens", "steps", "calls", "nothing"],
)
def test_what_if_says_where_and_by_which_limit_and_a_live_run_agrees(
    guard: Guard, budget: Budget, key: str, resource: str, spent: Any
) -> None:
    origin = recorded(guard)
    answer = guard.what_if(origin.id, budget)
    assert answer
    assert (answer.key, answer.resource, answer.spent) == (key, resource, spent)
    assert answer.seq == seq_of(guard, origin.id, "step_started", key)
    assert RAN == []
    live = recorded(guard, budget=budget)
    assert isinstance(live.stop, BudgetExceededError)
    assert (live.stop.resource, live.stop.spent, live.stop.limit) == (resource, spent, answer.limit)
    begun = [e.seq for e in guard.history(origin.id) if e.type == "step_started"]
    assert guard.summary(live.id).steps == begun.index(answer.seq)


def test_what_if_of_a_budget_that_suffices(guard: Guard) -> None:
    origin = recorded(guard)
    answer = guard.what_if(origin.id, Budget(usd="0.05", tokens=500, steps=5))
    assert not answer
    assert str(answer) == "does not stop"
    assert answer.unknown_beyond is None


def test_what_if_knows_nothing_beyond_the_recorded_stop(guard: Guard) -> None:
    origin = recorded(guard, budget=Budget(usd="0.03"))
    refused = seq_of(guard, origin.id, "step_refused", "main/work#4")
    answer = guard.what_if(origin.id, Budget(usd="0.04"))
    assert not answer.would_stop
    assert answer.unknown_beyond == refused
    assert str(answer) == f"does not stop; unknown beyond seq {refused}"
    assert guard.what_if(origin.id, Budget(usd="0.02")).key == "main/work#3"


def test_what_if_folds_reservations_of_steps_in_flight(guard: Guard) -> None:
    """Two that run at the same time need room for both, though each uses little in the end."""

    def used(result: int) -> Usage:
        return Usage(usd="0.01")

    @guarded_step(reserve=Usage(usd="0.05"), usage=used)
    def outer(depth: int) -> int:
        return depth and outer(depth - 1)

    run = guard.run("program")
    with run:
        outer(1)
    assert str(run.spent.usd) == "0.02"
    answer = guard.what_if(run.id, Budget(usd="0.09"))
    assert (answer.key, answer.spent, answer.requested) == (
        "main/outer#1/outer#1",
        Decimal(0),
        Decimal("0.05"),
    )
    assert not guard.what_if(run.id, Budget(usd="0.10"))


def test_what_if_counts_no_body_that_did_not_run_and_all_of_a_run_inside(guard: Guard) -> None:
    with suppress(RunStopped), guard.run("program") as run:
        with guard.run("inside"):
            work(1)
            work(2)
        work(3)

        def kills(n: int) -> Any:
            run.kill("enough")
            return Usage(usd="0.01")

        guarded_step(reserve=kills)(work.__wrapped__)(4)  # killed between its start and its body
    failed = [e for e in guard.history(run.id) if e.type == "step_failed"]
    assert [e.data["body_ran"] for e in failed] == [False] * len(failed)
    assert not guard.what_if(run.id, Budget(usd="0.03", tokens=300)).would_stop
    answer = guard.what_if(run.id, Budget(usd="0.02"))
    assert (answer.key, answer.resource, answer.spent) == ("main/work#1", "usd", Decimal("0.02"))
    answer = guard.what_if(run.id, Budget(usd="0.01"))
    assert (answer.key, answer.spent) == ("main/inside#1", Decimal("0.02"))


def test_what_if_of_a_deadline() -> None:
    clock = FakeClock()
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        with guard.run("program") as run:
            work(1)
            clock.advance(10)
            work(2)
        assert not guard.what_if(run.id, Budget(seconds=11))
        answer = guard.what_if(run.id, Budget(seconds=5))
    assert (answer.key, answer.resource, answer.limit) == ("main/work#2", "seconds", 5)


@pytest.mark.parametrize("result", [object(), [memoryview(b"x")]], ids=["no data", "deep inside"])
def test_what_an_operator_says_must_come_back(
    guard: Guard, result: Any, eventually: Callable[[Callable[[], object]], None]
) -> None:
    """What would not come back is refused, and the run is left as it was."""

    @guarded_step(capture="none", approval=True)
    def secret() -> Any:
        return 7

    with guard.run("program", run_id="r") as run:
        worker = threading.Thread(target=run.bind(secret))
        worker.start()
        eventually(guard.approvals)
        (asked,) = guard.approvals()
        guard.approve("r", asked.key)
        worker.join(60)
    (key,) = {event.key for event in guard.history("r") if event.type == "step_completed"}
    with pytest.raises(ValueError, match="would not come back in a replay"):
        guard.resolve("r", key, "completed", result=result)
    assert guard.history("r")[-1].type == "run_completed"
