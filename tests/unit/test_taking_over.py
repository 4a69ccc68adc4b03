"""Ownership: a run is taken over from a process that hangs, and what it had begun is settled or asked about."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from agentguard import (
    Budget,
    Guard,
    KillSwitchTriggeredError,
    ReplayDivergenceError,
    Run,
    RunState,
    StepOutcomeUnknownError,
    Usage,
    guarded_step,
)
from agentguard._process import identity, is_alive
from agentguard.errors import RunOwnedError, StoreUnavailableError
from agentguard.events.model import Record

RAN: list[Any] = []
Program = Callable[[Run], Any]


class Hangs:
    """What hangs in the first process, and goes through in those that come after it."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.first = True

    def here(self) -> None:
        if self.first:
            self.first = False
            assert self.released.wait(60)

    async def here_async(self) -> None:
        if self.first:
            self.first = False
            assert await asyncio.to_thread(self.released.wait, 10)


HANGS = Hangs()


@guarded_step(usage=Usage(usd="0.01"), effect="read")
def look(n: int) -> int:
    RAN.append(n)
    return n * 10


@guarded_step(effect="read")
async def look_later(n: int) -> int:
    RAN.append(n)
    await asyncio.sleep(0)
    return n * 10


@pytest.fixture(autouse=True)
def hangs() -> Iterator[Hangs]:
    RAN.clear()
    HANGS.__init__()  # type: ignore[misc]
    yield HANGS
    HANGS.released.set()


Taken = Callable[..., None]


@pytest.fixture
def hung(guard: Guard, eventually: Callable[[Callable[[], object]], None]) -> Iterator[Taken]:
    """Run a program in a thread until the last event that its log has is of this type and key."""
    threads: list[threading.Thread] = []

    def begin(program: Program, *last: str | None, **options: Any) -> None:
        def first() -> None:
            with suppress(Exception), guard.run("program", run_id="r", **options) as run:
                program(run)

        threads.append(threading.Thread(target=first))
        threads[-1].start()

        def hangs_there() -> bool:
            if guard.components.store.row("r") is None:
                return False
            events = guard.history("r")
            return (events[-1].type, events[-1].key) == last

        eventually(hangs_there)
        RAN.clear()

    yield begin
    HANGS.released.set()
    for thread in threads:
        thread.join(60)


def take_over(guard: Guard, program: Program) -> Any:
    with guard.recover("r", take_over=True) as run:
        return program(run)


def holds_together(guard: Guard) -> None:
    assert guard.verify("r")
    assert guard.reconstruct("r") == guard.summary("r")


# --- what was in flight --------------------------------------------------------------------------


def test_the_one_that_hung_is_fenced(
    guard: Guard, hung: Taken, eventually: Callable[[Callable[[], object]], None]
) -> None:
    @guarded_step(effect="read")
    def slow() -> str:
        HANGS.here()
        return "done"

    late: list[BaseException] = []

    def program(run: Run) -> Any:
        try:
            return [look(1), slow(), look(2)]
        except BaseException as error:
            late.append(error)
            raise

    hung(program, "step_started", "main/slow#1")
    assert take_over(guard, program) == [10, "done", 20]
    assert RAN == [2]
    before = guard.history("r")
    HANGS.released.set()
    eventually(lambda: late)
    assert [type(error) for error in late] == [RunOwnedError]
    assert guard.history("r") == before, "a fenced late outcome is reported, not appended"
    holds_together(guard)


def test_an_open_generator_is_made_again(guard: Guard, hung: Taken) -> None:
    @guarded_step(effect="idempotent")
    def pages(n: int) -> Iterator[int]:
        RAN.append("pages")
        yield from range(n)

    def program(run: Run) -> Any:
        items = pages(3)
        first = next(items)
        HANGS.here()
        return [first, *items, *pages(1)]  # the second is past the end of the log

    hung(program, "step_started", "main/pages#1")
    assert take_over(guard, program) == [0, 1, 2, 0]
    assert RAN == ["pages", "pages"]
    assert [e.attempt for e in guard.history("r") if e.key == "main/pages#1"] == [1, 1, 2, 2]
    holds_together(guard)
    with guard.replay("r") as run:
        assert program(run) == [0, 1, 2, 0]
    assert len(RAN) == 2


def test_a_probe_may_know_how_an_open_generator_ended(guard: Guard, hung: Taken) -> None:
    @guarded_step(probe=lambda key: ("failed", "the line went dead"))
    def stream() -> Iterator[int]:
        RAN.append("stream")
        yield 1

    def program(run: Run) -> Any:
        try:
            items = stream()
            next(items)
            HANGS.here()
        except Exception as error:
            return str(error)
        return "went on"

    hung(program, "step_started", "main/stream#1")
    assert "the line went dead" in take_over(guard, program)
    assert RAN == []
    holds_together(guard)


def test_a_block_in_flight_runs_again_where_it_may(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> int:
        with run.step("open", effect="read"):
            RAN.append("open")
            HANGS.here()
        with run.step("next"):  # past the end of the log
            RAN.append("next")
        return 1

    hung(program, "step_started", "main/open#1")
    assert take_over(guard, program) == 1
    assert RAN == ["open", "next"]
    holds_together(guard)


def test_a_block_that_has_happened_by_its_probe_is_not_run_again(guard: Guard, hung: Taken) -> None:
    """It cannot be left out either, so the run is given back."""

    def program(run: Run) -> None:
        with run.step("open", probe=lambda key: ("completed", None)):
            RAN.append("open")
            HANGS.here()

    hung(program, "step_started", "main/open#1")
    with pytest.raises(ReplayDivergenceError, match="not_replayable"):
        take_over(guard, program)
    assert RAN == []
    assert guard.summary("r").state is RunState.PAUSED


def test_a_block_that_may_have_happened_is_left_to_an_operator(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> None:
        with run.step("open"):
            RAN.append("open")
            HANGS.here()

    hung(program, "step_started", "main/open#1")
    with pytest.raises(StepOutcomeUnknownError, match="main/open#1"):
        take_over(guard, program)
    assert RAN == []
    assert guard.summary("r").state is RunState.PAUSED


def test_values_past_the_end_of_the_log_are_made_live(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> Any:
        first = run.record("dice", lambda: RAN.append("first") or 4)
        HANGS.here()
        return first, run.record("dice", lambda: RAN.append("second") or 5)

    hung(program, "value", "main/dice#1")
    assert take_over(guard, program) == (4, 5)
    assert RAN == ["second"]


@pytest.mark.parametrize("wraps", [None, RuntimeError, KeyboardInterrupt])
def test_a_doubt_that_the_program_makes_something_else_of_does_not_end_the_run(
    guard: Guard, hung: Taken, wraps: type[BaseException] | None
) -> None:
    """As frameworks do: ended, it could not be carried on whatever an operator says."""

    @guarded_step
    def pay() -> str:
        HANGS.here()
        return "paid"

    def program(run: Run) -> Any:
        try:
            return pay()
        except StepOutcomeUnknownError as doubt:
            if wraps is not None:
                raise wraps("the agent failed") from doubt

    hung(program, "step_started", "main/pay#1")
    leaves = KeyboardInterrupt if wraps is KeyboardInterrupt else StepOutcomeUnknownError
    with pytest.raises(leaves):
        take_over(guard, program)
    assert guard.summary("r").state is RunState.PAUSED
    guard.resolve("r", "main/pay#1", "completed", result="it was")
    with guard.recover("r") as run:
        assert program(run) == "it was"


# --- beside a step in doubt ----------------------------------------------------------------------


def test_what_waits_for_its_turn_is_delivered_though_another_step_is_in_doubt(
    guard: Guard, hung: Taken
) -> None:
    """The program gives up what would have come first; nobody would ever ask for it."""

    @guarded_step
    async def pay() -> None:
        await HANGS.here_async()

    async def turns(n: int) -> None:
        for _ in range(n):
            await asyncio.sleep(0)

    async def main() -> list[int]:
        async def two() -> list[int]:
            return [await look_later(1), await look_later(2)]

        async def last() -> int:
            await turns(30)
            return await look_later(3)

        tasks = [asyncio.ensure_future(each) for each in (pay(), two(), last())]
        try:
            await tasks[0]
        except StepOutcomeUnknownError:
            tasks[1].cancel()
        return [await tasks[2]]

    seen: list[Any] = []
    hung(lambda run: asyncio.run(main()), "step_completed", "main/task#3/look_later#1")
    with pytest.raises(StepOutcomeUnknownError, match="pay"):
        take_over(guard, lambda run: seen.append(asyncio.run(main())))
    assert seen == [[30]]
    assert RAN == []


def test_the_outcome_that_an_operator_gave_is_delivered_in_its_turn(guard: Guard, hung: Taken) -> None:
    @guarded_step
    async def pay(n: int) -> str:
        RAN.append("pay")
        await HANGS.here_async()
        return "paid"

    def program(run: Run) -> list[Any]:
        async def main() -> list[Any]:
            seen: list[Any] = []

            async def one(step: Any) -> None:
                seen.append(await step)

            await asyncio.gather(one(pay(1)), one(look_later(1)), one(look_later(2)))
            return seen

        return asyncio.run(main())

    hung(program, "step_completed", "main/look_later#2")
    with suppress(StepOutcomeUnknownError):
        take_over(guard, program)
    guard.resolve("r", "main/pay#1", "completed", result="paid, says the bank")
    with guard.recover("r") as run:
        recovered = program(run)
    assert recovered == [10, 20, "paid, says the bank"]
    assert RAN == []
    with guard.replay("r") as run:
        assert program(run) == recovered
    holds_together(guard)


def test_a_pause_by_an_operator_is_waited_out(
    guard: Guard, hung: Taken, eventually: Callable[[Callable[[], object]], None]
) -> None:
    """Unlike that for a step in doubt, which only `resolve` ends."""

    def program(run: Run) -> list[int]:
        first = look(1)
        HANGS.here()
        return [first, look(2)]

    hung(program, "step_completed", "main/look#1")
    guard.pause("r", reason="lunch")
    given: list[Any] = []
    second = threading.Thread(target=lambda: given.append(take_over(guard, program)))
    second.start()
    eventually(lambda: guard.history("r")[-1].type == "run_recovered")
    assert RAN == []
    guard.resume("r")
    second.join(60)
    assert given == [[10, 20]]
    assert RAN == [2]


# --- runs inside ---------------------------------------------------------------------------------


def nested(guard: Guard, run_id: str | None = None) -> Program:
    def program(run: Run) -> list[int]:
        with guard.run("inner", run_id=run_id):
            first = look(1)
            HANGS.here()
            return [first, look(2)]

    return program


@pytest.fixture
def hung_inside(
    guard: Guard, hung: Taken, eventually: Callable[[Callable[[], object]], None]
) -> Callable[[Program], str]:
    """Run a program until it hangs behind the first step of the run inside; gives the id of that."""

    def begin(program: Program) -> str:
        hung(program, "scope_opened", "main/inner#1")
        inner: str = guard.history("r")[-1].data["run"]
        eventually(lambda: guard.components.store.row(inner) is not None)
        eventually(lambda: guard.history(inner)[-1].type == "step_completed")
        RAN.clear()
        return inner

    return begin


def test_a_run_inside_is_taken_over_with_the_one_around_it(
    guard: Guard, hung_inside: Callable[[Program], str]
) -> None:
    program = nested(guard)
    inner = hung_inside(program)
    assert take_over(guard, program) == [10, 20]
    assert RAN == [2]
    assert [guard.summary(run_id).state for run_id in ("r", inner)] == [RunState.COMPLETED] * 2
    assert "run_recovered" in [event.type for event in guard.history(inner)]
    holds_together(guard)


def test_a_run_inside_that_was_taken_over_counts_and_stops_with_the_one_around_it(
    guard: Guard, hung_inside: Callable[[Program], str]
) -> None:
    def program(run: Run) -> list[Any]:
        with guard.run("inner") as inner:
            look(1)
            HANGS.here()
            seen = [run.spent == inner.spent, run.spent.steps]
            run.kill("enough")
            run.live_run.apply_kill()
            return [*seen, inner.stop]

    inner_id = hung_inside(program)
    seen: list[Any] = []
    with pytest.raises(KillSwitchTriggeredError):
        take_over(guard, lambda run: seen.extend(program(run)))
    assert [guard.summary(run_id).state for run_id in ("r", inner_id)] == [RunState.KILLED] * 2


def test_a_nested_run_begins_in_both_logs_or_in_none(
    guard: Guard, hung: Taken, eventually: Callable[[Callable[[], object]], None]
) -> None:
    create = guard.components.store.create

    def gone(row: Any, events: Any) -> int:
        if row.run_id == "inner" and HANGS.first:
            raise StoreUnavailableError("its process is gone")
        return create(row, events)

    def program(run: Run) -> Any:
        try:
            return nested(guard, "inner")(run)
        except StoreUnavailableError:
            HANGS.here()
            raise

    guard.components.store.create = gone  # type: ignore[method-assign]
    hung(program, "run_started", None)
    eventually(lambda: not HANGS.first)
    assert guard.components.store.row("inner") is None
    assert take_over(guard, program) == [10, 20]
    assert RAN == [1, 2]
    assert guard.summary("r").usage == guard.summary("inner").usage
    holds_together(guard)


def test_a_nested_run_that_an_earlier_version_announced_and_never_began_is_opened_once(
    guard: Guard, hung: Taken
) -> None:
    """The crash came between the two logs, which were written one after the other."""

    def program(run: Run) -> Any:
        if HANGS.first:
            key, pos = run.here().branch.next_call("inner")
            live_run = run.live_run
            movements = live_run.levels.sharing("", None)
            opened = Record(0, "scope_opened", 1, key, pos, "inner", data={"run": "inner"})
            live_run.log.decide(lambda: live_run.log.act([opened], movements=movements))
            HANGS.here()
        return nested(guard, "inner")(run)

    hung(program, "scope_opened", "main/inner#1")
    assert take_over(guard, program) == [10, 20]
    assert [event.type for event in guard.history("r")].count("scope_opened") == 1
    assert guard.summary("r").usage == guard.summary("inner").usage
    holds_together(guard)


@pytest.mark.parametrize("run_id", [None, "inner"])
def test_a_fork_leaves_an_unended_run_inside_to_its_origin(
    guard: Guard, hung_inside: Callable[[Program], str], run_id: str | None
) -> None:
    """Two runs cannot carry on the same one."""
    program = nested(guard, run_id)
    inner = hung_inside(program)
    at = guard.history("r")[-1].seq
    with pytest.raises(StepOutcomeUnknownError) as caught, guard.fork("r", at) as run:
        program(run)
    assert caught.value.__notes__ == [
        f"it is run {inner}, which has not ended: recover it, and then fork again"
    ]
    assert RAN == []
    assert guard.history(inner)[-1].type == "step_completed"


# --- claiming ------------------------------------------------------------------------------------


def test_who_asked_first_and_enters_last_is_told_who_has_it(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> int:
        first = look(1)
        HANGS.here()
        return first

    hung(program, "step_completed", "main/look#1")
    slow, fast = (guard.recover("r", take_over=True) for _ in range(2))
    with fast as run:
        with pytest.raises(RunOwnedError, match=r"process \d+ on "), slow:
            pass
        assert program(run) == 10


def test_who_asked_first_is_told_that_it_was_carried_on_and_given_back(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> int:
        first = look(1)
        HANGS.here()
        return first

    hung(program, "step_completed", "main/look#1")
    slow = guard.recover("r", take_over=True)
    with pytest.raises(ReplayDivergenceError, match="left_over"), guard.recover("r", take_over=True):
        pass  # another program, which does nothing
    with pytest.raises(RunOwnedError, match="another process, just now"), slow:
        pass
    with guard.recover("r") as run:
        assert program(run) == 10


def test_a_difference_leaves_the_block_though_the_program_swallows_it(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> int:
        first = look(1)
        HANGS.here()
        return first

    hung(program, "step_completed", "main/look#1")
    with pytest.raises(ReplayDivergenceError, match="arguments"), guard.recover("r", take_over=True):
        with suppress(ReplayDivergenceError):
            look(2)
        raise ValueError("something else")
    assert guard.summary("r").state is RunState.RUNNING
    assert take_over(guard, program) == 10


def test_a_run_that_was_killed_before_it_began_can_be_recovered_once_revived(guard: Guard) -> None:
    """Its process went before the kill was on record in its log."""
    guard.kill(tenant="acme", reason="why")
    append = guard.components.store.append

    def gone(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("its process is gone")

    guard.components.store.append = gone  # type: ignore[method-assign]
    with pytest.raises(KillSwitchTriggeredError), guard.run("program", run_id="r", tenant="acme"):
        pass
    guard.components.store.append = append  # type: ignore[method-assign]
    assert guard.summary("r").state is RunState.CREATED
    guard.revive(tenant="acme")
    assert take_over(guard, lambda run: look(1)) == 10
    kinds = [event.type for event in guard.history("r")]
    assert kinds[:3] == ["run_created", "run_recovered", "run_started"]
    holds_together(guard)


def test_the_time_of_the_budget_that_was_used_stays_used(guard: Guard, hung: Taken) -> None:
    def program(run: Run) -> Any:
        first = look(1)
        HANGS.here()
        return first, run.spent.usd, run.remaining.usd

    hung(program, "step_completed", "main/look#1", budget=Budget(usd="0.05"))
    first, spent, left = take_over(guard, program)
    assert (first, str(spent), str(left)) == (10, "0.01", "0.04")


def owned_by(guard: Guard, **owner: Any) -> None:
    """Let the row of the run name another owner."""
    row = guard.components.store.row("r")
    assert row is not None
    heartbeat = owner.pop("heartbeat_ns", row.heartbeat_ns)
    changed = replace(row, owner={**row.owner, **owner}, heartbeat_ns=heartbeat)
    guard.components.store._table.by_id["r"].row = changed  # type: ignore[attr-defined]


def hangs_after_one(run: Run) -> int:
    first = look(1)
    HANGS.here()
    return first


@pytest.mark.parametrize(
    "owner",
    [
        {"boot": "another"},
        {"pid_ns": 1},
        {"pid_ns": 1, "pid": 2**22 + 1},
        {"host": "elsewhere", "pid": 2**22 + 1},
    ],
    ids=["after a restart", "in a container", "in a container, without a process here", "on a host"],
)
def test_of_an_owner_that_cannot_be_seen_from_here_the_heartbeat_decides(
    guard: Guard, hung: Taken, owner: dict[str, object]
) -> None:
    hung(hangs_after_one, "step_completed", "main/look#1")
    owned_by(guard, **owner)
    with pytest.raises(RunOwnedError), guard.recover("r"):
        pass
    owned_by(guard, **owner, heartbeat_ns=time.time_ns() - 60_000_000_000)
    with guard.recover("r") as run:
        assert hangs_after_one(run) == 10


def test_only_a_missing_process_of_the_same_pid_namespace_is_provably_dead() -> None:
    mine = identity()
    assert is_alive(mine) is True
    assert is_alive(mine | {"pid": 2**22 + 1}) is False
    assert is_alive(mine | {"start": mine["start"] + 1}) is False
    for unseen in ({"host": "elsewhere"}, {"boot": "another"}, {"pid_ns": 1}):
        assert is_alive(mine | unseen) is None
        assert is_alive(mine | unseen | {"pid": 2**22 + 1}) is None
    before = {name: value for name, value in mine.items() if name != "pid_ns"}
    assert is_alive(before) is None, "an earlier version did not say in which namespace it was"


def test_an_owner_on_another_host_is_dead_when_it_has_given_no_sign_of_life(
    guard: Guard, hung: Taken
) -> None:
    hung(hangs_after_one, "step_completed", "main/look#1")
    owned_by(guard, host="elsewhere")
    with pytest.raises(RunOwnedError, match="on elsewhere"), guard.recover("r"):
        pass
    owned_by(guard, host="elsewhere", heartbeat_ns=time.time_ns() - 60_000_000_000)
    with guard.recover("r") as run:
        assert hangs_after_one(run) == 10
