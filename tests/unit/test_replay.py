"""Replay: what a replay answers, what it refuses, and that it changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from agentguard import (
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    ReplayDivergenceError,
    Run,
    RunState,
    RunStopped,
    StepOutcomeUnknownError,
    Usage,
    current_run,
    guarded_step,
)
from agentguard.errors import DuplicateKeyError, RunNotFoundError, StoreUnavailableError
from agentguard.testing.fakes import FakeClock

RAN: list[Any] = []
Program = Callable[[Run], Any]


class OwnError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


@guarded_step(usage=Usage(usd="0.01"))
def add(a: int, b: int = 0) -> int:
    RAN.append((a, b))
    return a + b


@guarded_step
def fail(code: int) -> None:
    RAN.append(code)
    raise OwnError(code, hint="try later")


@guarded_step(usage=Usage(usd="0.01"))
async def add_later(a: int) -> int:
    RAN.append(a)
    await asyncio.sleep(0)
    return a


@guarded_step
def count_to(n: int) -> Iterator[int]:
    RAN.append(n)
    yield from range(n)


@guarded_step
def outer(a: int) -> int:
    RAN.append("outer")
    return add(a) + add(a, 1)


@guarded_step(key=lambda name: name)
def once(name: str) -> str:
    RAN.append(name)
    return name


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def carried_out(run: Run, program: Program) -> tuple[Any, BaseException | None]:
    """What a program gives inside a run, and what leaves the run's block."""
    result = None
    try:
        with run:
            result = program(run)
    except Exception as error:  # a test of what it is
        return result, error
    return result, None


def same_again(guard: Guard, program: Program, **options: Any) -> Run:
    """Record a program, replay it, and hold the two against each other; gives the replayed run."""
    run = guard.run("program", **options)
    recorded = carried_out(run, program)
    before = [event.hash for event in guard.history(run.id)]
    assert RAN or not any(event.type == "step_started" for event in guard.history(run.id))
    RAN.clear()
    replay = guard.replay(run.id)
    result, error = carried_out(replay, program)
    assert RAN == []
    assert result == recorded[0]
    assert type(error) is type(recorded[1])
    assert str(error) == str(recorded[1])
    assert replay.spent == guard.summary(run.id).usage
    assert replay.state == guard.summary(run.id).state
    assert [event.hash for event in guard.history(run.id)] == before
    return replay


def differs(guard: Guard, recorded: Program, now: Program, **options: Any) -> ReplayDivergenceError:
    """Record one program, replay another, and give the difference, which sticks."""
    run = guard.run("program", **options)
    carried_out(run, recorded)
    RAN.clear()
    replay = guard.replay(run.id)
    _, error = carried_out(replay, now)
    assert isinstance(error, ReplayDivergenceError), error
    assert RAN == []
    return error


# --- what comes back -----------------------------------------------------------------------------


def everything(run: Run) -> list[Any]:
    """A program that does a bit of everything a sync agent does."""
    out: list[Any] = [add(1, b=2), outer(3), list(count_to(3)), run.call("max", max, 4, 5)]
    try:
        fail(7)
    except OwnError as error:
        out.append((type(error), str(error), error.code, error.hint))
    with run.scope("part", Budget(steps=5)) as scope:
        out += [add(6), scope.spent.usd, scope.remaining.steps]
    out += [run.now(), run.uuid(), run.random(), run.record("dice", lambda: RAN.append("dice") or 4)]
    out += [run.spent, run.remaining.usd]
    with run.branch("side"):
        out.append(add(8))
    return out


def test_everything_a_sync_agent_does_comes_back(guard: Guard) -> None:
    same_again(guard, everything, budget=Budget(usd="1"))


def test_everything_comes_back_from_sqlite(sqlite_guard: Guard) -> None:
    same_again(sqlite_guard, everything, budget=Budget(usd="1"))


def test_what_a_program_reads_of_its_budget_is_what_it_was(guard: Guard) -> None:
    """At every step, and not only at the end: programs act on it."""

    def until_half(run: Run) -> list[Any]:
        seen = []
        while run.remaining.usd > run.spent.usd:
            add(1)
            seen.append((run.spent.usd, run.remaining.usd, run.spent.steps))
        return seen

    same_again(guard, until_half, budget=Budget(usd="0.09"))


def test_generators_item_by_item(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        for number in count_to(5):
            out.append((number, add(number)))
            if number == 2:
                break
        return out

    same_again(guard, program)


def test_another_item_than_was_asked_for_is_a_difference(guard: Guard) -> None:
    def first_two(run: Run) -> list[int]:
        items = count_to(5)
        found = [next(items), next(items)]
        items.close()
        return found

    error = differs(guard, first_two, lambda run: list(count_to(5)))
    assert (error.kind, error.key) == ("missing", "main/count_to#1")


def test_threads(guard: Guard) -> None:
    def program(run: Run) -> list[int]:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(run.bind(lambda n: add(n) + add(n, 1)), n) for n in range(6)]
            return [job.result() for job in jobs]

    same_again(guard, program)


def test_runs_inside_runs(guard: Guard) -> None:
    def program(run: Run) -> Any:
        add(1)
        with guard.run("inner", budget=Budget(steps=2)) as inner:
            add(2)
            with guard.run("innermost"):
                add(3)
        return inner.id, inner.state, run.spent.usd

    same_again(guard, program, budget=Budget(usd="1"))


def test_a_run_inside_that_is_no_longer_the_same_shows(guard: Guard) -> None:
    def with_inner(number: int) -> Program:
        def program(run: Run) -> None:
            with suppress(RunStopped), run.scope("part", Budget(steps=1)):
                add(0)
                with guard.run("inner"):
                    add(number)

        return program

    # The scope's recorded stop must not cover the difference inside it.
    error = differs(guard, with_inner(1), with_inner(2))
    assert (error.kind, error.key) == ("arguments", "main/add#1")


def test_the_run_is_the_current_one(guard: Guard) -> None:
    same_again(guard, lambda run: (add(1), current_run() is run)[1])


@pytest.mark.parametrize("mode", ["gather", "group", "completed", "first"])
def test_tasks(guard: Guard, mode: str) -> None:
    async def work(n: int) -> int:
        for _ in range(n % 3):
            await asyncio.sleep(0)
        return await add_later(n) + await add_later(n + 10)

    async def main() -> list[int]:
        if mode == "gather":
            return await asyncio.gather(*(work(n) for n in range(5)))
        tasks = [asyncio.create_task(work(n)) for n in range(5)]
        if mode == "completed":
            return [await done for done in asyncio.as_completed(tasks)]
        if mode == "group":
            async with asyncio.TaskGroup() as group:
                more = [group.create_task(work(n)) for n in range(5, 8)]
            return [task.result() for task in (*more,)] + await asyncio.gather(*tasks)
        order = []
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            order += sorted(task.result() for task in done)
        return order

    same_again(guard, lambda run: asyncio.run(main()))


def test_inputs(guard: Guard) -> None:
    same_again(guard, lambda run: add(run.inputs["n"]), inputs={"n": 4})


# --- ends ----------------------------------------------------------------------------------------


def test_the_agents_own_error_is_the_end_again(guard: Guard) -> None:
    replay = same_again(guard, lambda run: fail(3))
    assert replay.state is RunState.FAILED


def careless(run: Run) -> int:
    done = 0
    for n in range(6):
        with suppress(Exception):
            add(n)
            done += 1
    return done


def test_a_budget_stop_comes_at_the_same_step_and_cannot_be_swallowed(guard: Guard) -> None:
    replay = same_again(guard, careless, budget=Budget(usd="0.03"))
    assert isinstance(replay.stop, BudgetExceededError)
    assert (replay.stop.resource, str(replay.stop.spent)) == ("usd", "0.03")


def test_a_kill_comes_at_the_same_step(guard: Guard) -> None:
    def program(run: Run) -> None:
        add(1)
        run.kill("enough", actor="ann")  # in the replay, nobody
        add(2)

    replay = same_again(guard, program)
    assert isinstance(replay.stop, KillSwitchTriggeredError)
    assert (replay.stop.reason, replay.stop.actor) == ("enough", "ann")


def test_live_kills_are_ignored_and_a_killed_run_can_be_replayed(guard: Guard) -> None:
    with guard.run("program") as run:
        add(1)
    guard.kill(reason="everything")
    with guard.replay(run.id):
        assert add(1) == 1


def test_a_scopes_stop_and_the_run_going_on(guard: Guard) -> None:
    """Calls that a stopped scope refused leave no event of their own; a careless agent makes them all the same."""

    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        for name in ("one", "two"):
            try:
                with run.scope(name, Budget(steps=2)) as scope:
                    for n in range(5):
                        try:
                            out.append(add(n))
                        except RunStopped as stop:
                            out.append((stop.scope, scope.stop is stop))
            except BudgetExceededError as stop:
                out.append(stop.scope)
            out.append(add(100))
        return out

    same_again(guard, program)


def test_a_stopped_scope_refuses_all_kinds_of_calls_again(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        calls: list[Callable[[], Any]] = [
            lambda: add(1),
            lambda: list(count_to(2)),
            lambda: asyncio.run(add_later(1)),
            lambda: run.record("value", lambda: 1),
            lambda: run.scope("inner").__enter__(),
            lambda: guard.run("inside").__enter__(),
        ]
        with suppress(BudgetExceededError), run.scope("part", Budget(steps=0)):
            for call in calls:
                try:
                    out.append(call())
                except BudgetExceededError as stop:
                    out.append(stop.scope)
        return [*out, add(2)]

    same_again(guard, program)


def test_a_scopes_deadline(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        with suppress(BudgetExceededError), run.scope("part", Budget(seconds=0)):
            for n in range(3):
                try:
                    out.append(add(n))
                except BudgetExceededError as stop:
                    out.append(stop.resource)
        return [*out, add(9)]

    same_again(guard, program)


def test_a_denied_approval(guard: Guard) -> None:
    def ask(run: Run, n: int) -> Any:
        try:
            return run.call("add", add.__wrapped__, n, approval=True)
        except ApprovalDeniedError as error:
            return error.key, error.reason, error.actor

    with guard.run("program") as run:
        with ThreadPoolExecutor(1) as pool:
            answers = []
            for decide in ("deny", "approve"):
                waiting = pool.submit(run.bind(ask), run, 1)
                while not (asked := guard.approvals()):
                    assert not waiting.done()
                getattr(guard, decide)(run.id, asked[0].key, reason="no", actor="ann")
                answers.append(waiting.result(60))
        after = add(5)
    assert answers[0][1:] == ("no", "ann")
    assert answers[1] == 1
    RAN.clear()
    with guard.replay(run.id) as replay, ThreadPoolExecutor(1) as pool:
        again = [pool.submit(replay.bind(ask), replay, 1).result(60) for _ in range(2)]
        assert (again, add(5)) == (answers, after)
    assert RAN == []


def test_a_pause_is_copied_and_never_waited_for(guard: Guard) -> None:
    def program(run: Run) -> int:
        add(1)
        run.pause("a moment")
        run.resume()
        return add(2)

    same_again(guard, program)


def test_a_key_called_again(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        out: list[Any] = [once("a")]
        try:
            once("a")
        except DuplicateKeyError as error:
            out.append(error.key)
        return [*out, add(1), once("b")]

    same_again(guard, program)


def test_another_attempt_of_a_key(guard: Guard) -> None:
    failures = iter([True, False, True, False])

    @guarded_step(key="flaky")
    def flaky() -> str:
        RAN.append("flaky")
        add(1)
        if next(failures):
            raise ConnectionError("again")
        return "done"

    def program(run: Run) -> str:
        with suppress(ConnectionError):
            flaky()
        return flaky()

    same_again(guard, program)


# --- a replay changes nothing --------------------------------------------------------------------


def test_nothing_is_written_spent_or_opened(guard: Guard) -> None:
    with guard.run("program", tenant="acme") as run:
        add(1)
    guard.set_tenant_budget("acme", Budget(usd="0.001"))
    runs, spent = guard.runs(), guard.tenants()
    kills = guard.kills()
    with guard.replay(run.id) as replay:
        assert add(1) == 1
        assert replay.kill("no") == 0
        replay.pause()
        replay.resume()
    assert (guard.runs(), guard.tenants(), guard.kills()) == (runs, spent, kills)
    assert guard.verify()


def test_the_store_of_a_replay_refuses_to_write(guard: Guard) -> None:
    with guard.run("program") as run:
        pass
    replay = guard.replay(run.id)
    with replay:
        store = replay.live_run.store
        assert store.row(run.id) is not None
        with pytest.raises(StoreUnavailableError, match="a replay writes nothing"):
            store.append(1, [])


def test_two_replays_at_once(guard: Guard) -> None:
    with guard.run("program") as run:
        results = [add(n) for n in range(20)]

    def again() -> list[int]:
        with guard.replay(run.id):
            return [add(n) for n in range(20)]

    RAN.clear()
    with ThreadPoolExecutor(2) as pool:
        assert [f.result() for f in [pool.submit(again) for _ in range(2)]] == [results, results]
    assert RAN == []


def test_a_run_that_is_not_there(guard: Guard) -> None:
    with pytest.raises(RunNotFoundError):
        guard.replay("nobody")


# --- differences ---------------------------------------------------------------------------------


def calls(*numbers: int) -> Program:
    return lambda run: [add(n) for n in numbers]


@pytest.mark.parametrize(
    ("now", "kind", "key", "expected", "found"),
    [
        (calls(1, 9, 3), "arguments", "main/add#2", [[2], {}], [[9], {}]),
        (calls(1), "left_over", "main/add#2", "tool main/add#2 (event 5)", "the program ended"),
        (
            calls(1, 2, 3, 4),
            "missing",
            "main/add#4",
            "no further call of this branch; the log ends",
            "main/add#4 as call 4 of branch main",
        ),
        (
            lambda run: [add(1), fail(1)],
            "name",
            "main/fail#1",
            "tool main/add#2 (event 5)",
            "main/fail#1 as call 2 of branch main",
        ),
        (
            lambda run: [add(1), run.call("add", abs, 2, kind="llm")],
            "name",
            "main/add#2",
            "tool main/add#2 (event 5)",
            "llm add",
        ),
        (
            lambda run: [add(1), run.now()],
            "name",
            "main/run.now#1",
            "tool main/add#2 (event 5)",
            "main/run.now#1 as call 2 of branch main",
        ),
        (
            lambda run: run.scope("s").__enter__(),
            "name",
            "main/s#1",
            "tool main/add#1 (event 3)",
            "main/s#1 as call 1 of branch main",
        ),
    ],
    ids=["arguments", "left over", "missing", "name", "kind", "value", "scope"],
)
def test_the_first_difference(
    guard: Guard, now: Program, kind: str, key: str, expected: Any, found: Any
) -> None:
    error = differs(guard, calls(1, 2, 3), now)
    assert (error.kind, error.key, error.expected, error.found) == (kind, key, expected, found)
    assert str(error).startswith(f"replay differs from the log ({kind}) at {key}\n  recorded: ")


def test_arguments_that_differ_are_shown_line_by_line(guard: Guard) -> None:
    recorded = {"to": "ann", "lines": ["one", "two"]}
    now = {"to": "ann", "lines": ["one", "three"]}
    error = differs(
        guard,
        lambda run: run.call("send", str, recorded),
        lambda run: run.call("send", str, now),
    )
    (note,) = error.__notes__
    assert '-        "two"' in note.splitlines()
    assert '+        "three"' in note.splitlines()


def test_another_end_is_a_difference(guard: Guard) -> None:
    def other_error(run: Run) -> None:
        add(1)
        raise KeyError("no")

    error = differs(guard, calls(1), other_error)
    assert (error.kind, error.key) == ("outcome", None)
    assert (error.expected, error.found) == ("the run ended: completed", "it ended: KeyError")
    error = differs(guard, other_error, calls(1))
    assert (error.expected, error.found) == ("the run ended: KeyError", "it ended: completed")


def test_a_call_that_moved_into_a_scope(guard: Guard) -> None:
    def inside(run: Run) -> None:
        with run.scope("s"):
            add(1)

    def outside(run: Run) -> None:
        with run.scope("s"):
            pass
        add(1)

    error = differs(guard, inside, outside)
    assert (error.kind, error.key) == ("name", "main/add#1")
    assert error.expected == "tool main/add#1 (event 4) in main/s#1"
    assert error.found == "in no scope"


def test_another_budget_of_a_scope(guard: Guard) -> None:
    def with_budget(steps: int) -> Program:
        return lambda run: run.scope("s", Budget(steps=steps)).__enter__()

    error = differs(guard, with_budget(1), with_budget(2))
    assert (error.kind, error.expected, error.found) == ("arguments", {"steps": 1}, {"steps": 2})


def test_another_branch(guard: Guard) -> None:
    def in_branch(name: str) -> Program:
        def program(run: Run) -> None:
            with run.branch(name):
                once("x")

        return program

    error = differs(guard, in_branch("left"), in_branch("right"))
    assert error.kind == "order"
    assert error.found == "key:x as call 1 of branch main/right#1"


def test_the_first_difference_sticks_whatever_the_program_swallows(guard: Guard) -> None:
    with guard.run("program") as run:
        for n in range(3):
            add(n)
    seen = []
    replay = guard.replay(run.id)
    with pytest.raises(ReplayDivergenceError) as raised, replay:
        for n in (0, 5, 2):
            try:
                add(n)
            except Exception as error:  # agents do this
                seen.append(error)
    assert seen == [raised.value, raised.value]
    assert raised.value.key == "main/add#2"


def test_a_difference_is_found_without_reading_on(guard: Guard) -> None:
    """Where another call stands on record at the place, the rest of a long log is not taken into memory."""
    with guard.run("program") as run:
        for n in range(500):
            add(n)
    replay = guard.replay(run.id)
    with pytest.raises(ReplayDivergenceError), replay:
        add(0)
        fail(1)
    assert replay.live_run.player.tape.last.seq < 10  # type: ignore[union-attr]


def test_what_was_served_is_forgotten(guard: Guard) -> None:
    """Bodies number their calls in branches of their own, and those do not stay either."""
    with guard.run("program") as run:
        for n in range(50):
            outer(n)
    replay = guard.replay(run.id)
    with replay:
        for n in range(50):
            outer(n)
            tape = replay.live_run.player.tape  # type: ignore[union-attr]
            assert len(tape._calls) + len(tape._places) + len(tape.deliveries) <= 4


def test_a_block_cannot_be_replayed(guard: Guard) -> None:
    def program(run: Run) -> None:
        with run.step("by hand"):
            RAN.append("inside")

    error = differs(guard, program, program)
    assert (error.kind, error.key) == ("not_replayable", "main/by hand#1")
    assert error.found == "a block, not a function"


def test_a_step_around_a_block_is_served_whole(guard: Guard) -> None:
    @guarded_step
    def around(n: int) -> int:
        RAN.append("around")
        with current_run().step("by hand"):  # type: ignore[union-attr]
            return n

    same_again(guard, lambda run: around(4))


# --- logs without an end -------------------------------------------------------------------------


@contextlib.contextmanager
def abandoned(guard: Guard, program: Program) -> Iterator[str]:
    """A run whose process is gone."""
    run = guard.run("program")

    def lost() -> None:
        with suppress(KeyboardInterrupt):
            run.__enter__()
            program(run)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(lost).result()
    guard.runtime.live.pop(run.id, None)
    yield run.id


def test_a_log_of_a_crashed_run_replays_as_far_as_it_goes(guard: Guard) -> None:
    with abandoned(guard, calls(1, 2)) as run_id:
        RAN.clear()
        with guard.replay(run_id):
            assert [add(1), add(2)] == [1, 2]
        with pytest.raises(ReplayDivergenceError, match="the log ends"), guard.replay(run_id):
            add(1)
            add(2)
            add(3)
    assert RAN == []


def test_a_step_without_an_outcome(guard: Guard) -> None:
    @guarded_step
    def dies() -> None:
        raise KeyboardInterrupt

    def program(run: Run) -> None:
        live_run = run.live_run
        append = live_run.store.append

        def gone(*args: Any, **options: Any) -> Any:
            if any(b"step_failed" in event.body for event in args[1]):
                raise KeyboardInterrupt
            return append(*args, **options)

        live_run.store.append = gone  # type: ignore[method-assign]
        live_run.log._append_one = None
        try:
            dies()
        finally:
            del live_run.store.append

    with abandoned(guard, program) as run_id:
        assert guard.history(run_id)[-1].type == "step_started"
        with pytest.raises(StepOutcomeUnknownError, match="main/dies#1"), guard.replay(run_id):
            dies()
        with pytest.raises(StepOutcomeUnknownError, match="main/dies#1"), guard.replay(run_id):
            with suppress(Exception):
                dies()
            add(1)  # the log does not say what the program did next


# --- what the function of a value calls ----------------------------------------------------------


@guarded_step(usage=Usage(usd="0.01"))
def inner(x: int) -> int:
    RAN.append(x)
    return x


@guarded_step
async def inner_async(x: int) -> int:
    RAN.append(x)
    await asyncio.sleep(0)
    return x


def test_a_value_served_consumes_the_steps_inside_it(guard: Guard) -> None:
    def made(run: Run) -> int:
        with run.scope("inside", Budget(steps=5)):
            deeper = run.record("deeper", lambda: inner(4))
        return inner(3) + int(deeper) + int(run.record("last", lambda: 5))

    def program(run: Run) -> list[Any]:
        out = [run.record("value", lambda: made(run)), inner(6), run.record("value", lambda: inner(7))]
        return [*out, run.uuid(), inner(8)]

    replay = same_again(guard, program)
    keys = [event.key for event in guard.history(replay.id) if event.type == "step_started"]
    assert keys == [
        "main/value#1/deeper#1/inner#1",
        "main/value#1/inner#1",
        "main/inner#1",
        "main/value#2/inner#1",
        "main/inner#2",
    ]


def test_a_value_in_a_body_is_consumed_with_it_and_counted_once(guard: Guard) -> None:
    replay = same_again(guard, lambda run: [with_a_value(run), inner(9)])
    assert replay.spent.steps == 3 + 1


def with_a_value(run: Run) -> Any:
    @guarded_step(name="with_a_value", ignore=("run",))
    def body(run: Run) -> int:
        RAN.append("body")
        return int(run.record("in a body", lambda: inner(1) + inner(2)))

    return body(run)


def test_an_async_value_with_tasks_inside_is_consumed_whole(guard: Guard) -> None:
    def program(run: Run) -> Any:
        async def several() -> int:
            return sum(await asyncio.gather(*(inner_async(n) for n in range(3))))

        async def main() -> list[Any]:
            together = await asyncio.gather(inner_async(10), run.record("sum", several), inner_async(20))
            return [*together, await inner_async(30)]

        return asyncio.run(main())

    same_again(guard, program)


def test_what_a_value_s_function_calls_is_not_asked_of_another_program(guard: Guard) -> None:
    error = differs(
        guard,
        lambda run: run.record("value", lambda: inner(1)),
        lambda run: inner(1),
    )
    assert (error.kind, error.key) == ("name", "main/inner#1")


def test_what_a_value_s_function_raised_is_raised_again(guard: Guard) -> None:
    def fails() -> int:
        raise LookupError("nothing", inner(1))

    async def fails_async() -> int:
        await inner_async(2)
        raise ExceptionGroup("two", [ValueError("a"), KeyError("b")])

    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        try:
            run.record("value", fails)
        except LookupError as error:
            out.append(error.args)
        try:
            asyncio.run(run.record("value", fails_async))
        except* ValueError as group:
            out.append(str(group.exceptions))
        except* KeyError as group:
            out.append(str(group.exceptions))
        return [*out, inner(3), run.record("value", lambda: 4)]

    same_again(guard, program)


def test_a_value_that_failed_live_and_is_asked_otherwise_is_a_difference(guard: Guard) -> None:
    def fails() -> int:
        raise LookupError

    def program(run: Run) -> None:
        with suppress(LookupError):
            run.record("value", fails)
        inner(1)

    error = differs(guard, program, lambda run: inner(1))
    assert (error.kind, error.key) == ("name", "main/inner#1")


def test_a_stop_in_a_value_s_function_is_the_run_s_and_no_value(guard: Guard) -> None:
    def program(run: Run) -> None:
        run.record("value", lambda: [inner(n) for n in range(9)])

    with pytest.raises(BudgetExceededError), guard.run("r", run_id="r", budget=Budget(steps=2)) as run:
        program(run)
    assert "value" not in [event.type for event in guard.history("r")]
    with pytest.raises(BudgetExceededError), guard.replay("r") as replay:
        program(replay)


def test_the_failure_of_a_value_has_no_secrets_and_can_be_seen(guard: Guard) -> None:
    def fails() -> int:
        raise LookupError("key sk-ant-api03-" + "a" * 40)

    runs = ["a", "b"]
    for run_id in runs:
        with suppress(LookupError), guard.run("r", run_id=run_id) as run:
            run.record("value", fails)
    (event,) = [event for event in guard.history("a") if event.type == "value"]
    assert event.data["error"]["type"] == "LookupError"
    assert "aaaaaaaa" not in str(event.data)
    assert guard.verify()
    assert not guard.diff(*runs)
    with suppress(LookupError), guard.run("r", run_id="c") as run:
        run.record("value", lambda: 1)
        raise LookupError("key sk-ant-api03-" + "a" * 40)
    assert [difference.kind for difference in guard.diff("a", "c").differences] == ["outcome"]


# --- what goes on beside the body that called it ----------------------------------------------------


def test_a_task_that_outlives_the_body_it_was_made_in_goes_with_it(guard: Guard) -> None:
    """Its calls are on record when the step around it has ended; nothing makes them in a replay."""
    left: list[asyncio.Task[int]] = []

    @guarded_step
    async def fires_and_forgets() -> str:
        async def beside() -> int:
            before = await add_later(1)
            going_on.set()
            await returned.wait()
            return before + await add_later(2)

        going_on, returned = asyncio.Event(), asyncio.Event()
        left.append(asyncio.ensure_future(beside()))
        left.append(returned)  # type: ignore[arg-type]
        await going_on.wait()
        return "gone"

    async def main() -> str:
        gave = await fires_and_forgets()
        if left:
            left[1].set()  # type: ignore[attr-defined]
            await left[0]
        return gave

    def program(run: Run) -> Any:
        left.clear()
        return asyncio.run(main()), add(7)

    replay = same_again(guard, program)
    assert replay.spent.steps == 4


def test_a_step_in_flight_when_the_body_around_it_ends_goes_with_it(guard: Guard) -> None:
    left: list[Any] = []

    @guarded_step
    async def slow(going_on: Any) -> int:
        RAN.append("slow")
        left[1].set()
        await left[2].wait()
        return 1

    @guarded_step
    async def begins() -> str:
        left[:] = [None, asyncio.Event(), asyncio.Event()]
        left[0] = asyncio.ensure_future(slow(1))
        await left[1].wait()
        return "begun"

    async def main() -> str:
        gave = await begins()
        if left:
            left[2].set()
            await left[0]
        return gave

    def program(run: Run) -> Any:
        left.clear()
        return asyncio.run(main()), add(7)

    same_again(guard, program)


def test_a_step_that_outlived_its_run_has_no_outcome_and_the_end_is_as_recorded(
    guard: Guard,
) -> None:
    going_on, hangs = threading.Event(), threading.Event()

    @guarded_step
    def slow() -> None:
        RAN.append("slow")
        going_on.set()
        hangs.wait(60)

    def program(run: Run) -> int:
        thread = threading.Thread(target=suppressing(StepOutcomeUnknownError, run.bind(slow)))
        thread.start()
        if not threads:
            assert going_on.wait(60)
        else:
            thread.join(60)
        threads.append(thread)
        return add(1)

    threads: list[threading.Thread] = []
    with guard.run("program") as run:
        program(run)
    assert RAN == ["slow", (1, 0)]
    with guard.replay(run.id) as replay:
        assert program(replay) == 1
    assert RAN == ["slow", (1, 0)]
    assert replay.state is RunState.COMPLETED
    hangs.set()
    threads[0].join(60)


def suppressing(error: type[Exception], fn: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        with suppress(error):
            fn()

    return call


# --- stops of other runs, and what comes behind them ------------------------------------------------


def test_the_stop_of_another_run_is_an_error_like_any_other(guard: Guard) -> None:
    """Caught, the run goes on; to tell whose it is, the log is read on, past later attempts of a key."""
    failed: list[str] = []

    @guarded_step
    def delegate() -> None:
        RAN.append("delegate")
        with guard.run("elsewhere", detached=True, budget=Budget(steps=0)):
            add(1)

    @guarded_step(key="the same")
    def flaky() -> str:
        RAN.append("flaky")
        if not failed:
            failed.append("once")
            raise OwnError(1, hint="again")
        return "done"

    def program(run: Run) -> list[Any]:
        out: list[Any] = []
        for step in (delegate, flaky, flaky):
            try:
                out.append(step())
            except (BudgetExceededError, OwnError) as error:
                out.append((type(error), str(error)))
        return out

    same_again(guard, program)
    failed.clear()
    with guard.run("program") as run:
        recorded = program(run)
        RAN.clear()
        with guard.replay(run.id) as replay:  # of a log that has no end yet
            assert program(replay) == recorded
    assert RAN == []


# --- what is gone ------------------------------------------------------------------------------------


def test_a_value_that_was_erased_cannot_be_handed_out(guard: Guard) -> None:
    with guard.run("program") as run:
        run.record("dice", lambda: 4)
    guard.erase(run.id)
    with pytest.raises(ReplayDivergenceError, match="dice: its payload was erased") as caught:
        with guard.replay(run.id) as replay:
            replay.record("dice", lambda: RAN.append("dice"))
    assert (caught.value.kind, RAN) == ("not_replayable", [])


def test_a_run_inside_that_was_pruned_is_missed_where_it_was_opened() -> None:
    clock = FakeClock()
    with Guard.in_memory(telemetry=False, clock=clock) as guard:

        def program(run: Run) -> int:
            with guard.run("inside"):
                add(1)
            clock.advance(10)
            return add(2)

        with guard.run("program") as run:
            program(run)
        assert len(guard.prune("5s")) == 1
        RAN.clear()
        with pytest.raises(ReplayDivergenceError, match="it is not in this store") as caught:
            with guard.replay(run.id) as replay:
                program(replay)
    assert (caught.value.kind, caught.value.key, RAN) == ("not_replayable", "main/inside#1", [])


# --- where a generator is left -------------------------------------------------------------------


@guarded_step(effect="read")
def numbers(upto: int) -> Iterator[int]:
    RAN.append(upto)
    yield from range(upto)


@guarded_step(effect="read")
async def async_numbers(upto: int) -> AsyncIterator[int]:
    RAN.append(upto)
    for n in range(upto):
        yield n


def takes(count: int, how: str) -> Program:
    """Takes so many of three items, and leaves the generator in one of the ways there are."""

    async def take_async() -> list[int]:
        items = async_numbers(3)
        taken = [await anext(items) for _ in range(min(count, 3))]
        if count > 3:
            taken += [n async for n in items]
        await items.aclose()
        return taken

    def program(run: Run) -> list[int]:
        if how == "aclose":
            return [*asyncio.run(take_async()), inner(1)]
        items = numbers(3)
        taken = [next(items) for _ in range(min(count, 3))]
        if count > 3:
            taken += list(items)
        if how == "close":
            items.close()
        if how == "kept":
            KEPT.append(items)
        del items
        gc.collect()
        return [*taken, inner(1)]

    return program


KEPT: list[Any] = []
HOW = ["close", "dropped", "kept", "aclose"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_generator_left_where_it_was_is_the_same(guard: Guard, count: int, how: str) -> None:
    same_again(guard, takes(count, how))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("then", "now", "kind"),
    [(3, 1, "left_over"), (4, 2, "left_over"), (4, 3, "outcome"), (1, 2, "missing"), (3, 4, "missing")],
)
def test_a_generator_left_elsewhere_is_a_difference(
    guard: Guard, then: int, now: int, kind: str, how: str
) -> None:
    error = differs(guard, takes(then, how), takes(now, how))
    name = "async_numbers" if how == "aclose" else "numbers"
    assert (error.kind, error.key) == (kind, f"main/{name}#1")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_replay_that_is_interrupted_says_so(guard: Guard, error: type[BaseException]) -> None:
    def program(*, interrupted: bool) -> None:
        with contextlib.closing(numbers(3)) as items:
            next(items)
            if interrupted:
                raise error
            list(items)

    with guard.run("r", run_id="r"):
        program(interrupted=False)
    with pytest.raises(error), guard.replay("r"):
        program(interrupted=True)


def test_a_recovery_that_leaves_a_generator_elsewhere_does_not_go_on(sqlite_guard: Guard) -> None:
    with suppress(RunStopped), sqlite_guard.run("r", run_id="r") as run:
        takes(3, "close")(run)
        run.drain()
    RAN.clear()
    for how in ("close", "dropped", "kept"):
        with pytest.raises(ReplayDivergenceError) as caught, sqlite_guard.recover("r") as run:
            takes(1, how)(run)
            inner(2)
        assert (caught.value.kind, caught.value.key) == ("left_over", "main/numbers#1")
    with sqlite_guard.recover("r") as run:
        takes(3, "close")(run)
        inner(2)
    assert sqlite_guard.verify()
