"""Random agent programs: recorded, replayed the same, and replayed with one edit, which must show."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import (
    Budget,
    Guard,
    ReplayDivergenceError,
    RunStopped,
    Usage,
    current_run,
    current_step,
    guarded_step,
)
from agentguard.events import codec
from tests.scale import scaled

BODIES_RUN: list[str] = []
#: The calls of the leaves with an argument: their runs and keys, in order.
KEYS: collections.defaultdict[Any, list[tuple[str, str]]] = collections.defaultdict(list)


class OwnError(Exception):
    """What a step of an agent fails with."""


def seen(name: str, arg: Any) -> Any:
    """A body runs."""
    BODIES_RUN.append(name)
    step = current_step()
    if step is not None and not any(step.key.startswith(f"{k}/") for _, k in KEYS[arg]):
        KEYS[arg].append((step.run.id, step.key))
    return arg


@guarded_step(usage=Usage(usd="0.01"))
async def fetch(arg: int, turns: int) -> int:
    seen("fetch", arg)
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns == 3:
        await asyncio.sleep(0.001)
    return arg * 2


@guarded_step
def think(arg: int) -> list[int]:
    seen("think", arg)
    return [arg, arg + 1]


@guarded_step
def fail(arg: int) -> None:
    seen("fail", arg)
    raise OwnError(arg)


@guarded_step
def stream(arg: int):  # type: ignore[no-untyped-def]
    seen("stream", arg)
    yield from range(arg % 4)


@guarded_step
async def outer(arg: int) -> list[int]:
    seen("outer", arg)
    return [await fetch(arg, 1), think(arg)[0]]


LEAVES = ("fetch", "think", "fail", "stream", "outer", "value")
numbers = st.integers(min_value=0, max_value=5)
async_leaf = st.tuples(st.sampled_from(["fetch", "outer"]), numbers, st.integers(0, 3))
leaf = st.tuples(st.sampled_from(LEAVES), numbers, st.integers(0, 3))


def blocks(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(children, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("gather"), st.lists(body, min_size=2, max_size=3)),
        # Who comes first is promised for async steps; sync ones are ordered in the log only.
        st.tuples(
            st.just("first"), st.lists(st.lists(async_leaf, min_size=1, max_size=3), min_size=2, max_size=3)
        ),
        st.tuples(
            st.just("threads"), st.lists(st.lists(leaf, min_size=1, max_size=2), min_size=1, max_size=2)
        ),
        st.tuples(st.just("scope"), st.integers(0, 4), body),
        st.tuples(st.just("run"), st.integers(1, 6), body),
        st.tuples(st.just("loop"), st.integers(1, 2), body),
    )


programs = st.lists(st.recursive(leaf, blocks, max_leaves=6), min_size=1, max_size=5)


def numbered(ops: Any, numbers: Any = None, *, apart: bool = False) -> Any:
    """A program whose leaves have numbers, and on demand arguments that no two of them share."""
    numbers = itertools.count(1) if numbers is None else numbers
    out = []
    for op in ops:
        if op[0] in LEAVES:
            number = next(numbers)
            out.append((op[0], number * 10 if apart else op[1], op[2], number))
        elif op[0] in ("gather", "first", "threads"):
            out.append((op[0], [numbered(body, numbers, apart=apart) for body in op[1]]))
        else:
            out.append((op[0], op[1], numbered(op[2], numbers, apart=apart)))
    return out


class Program:
    """An agent that carries a program out; it swallows what a careless agent swallows."""

    def __init__(self, guard: Guard, run: Any) -> None:
        self.guard = guard
        self.run = run
        #: Leaves that came to an end of their own, by number: an edit of any other may change nothing.
        self.passed: set[int] = set()

    async def body(self, ops: Any) -> list[Any]:
        out: list[Any] = []
        for op in ops:
            try:
                out.append(await self.op(op))
            except OwnError as error:
                out.append(["OwnError", *error.args])
        return out

    async def op(self, op: Any) -> Any:
        kind = op[0]
        if kind in LEAVES:
            return await self.leaf(op)
        if kind == "gather":
            return await all_of(asyncio.create_task(self.body(ops)) for ops in op[1])
        if kind == "first":
            tasks = [asyncio.create_task(self.body(ops)) for ops in op[1]]
            return await as_they_come(tasks)
        if kind == "threads":
            return await all_of(asyncio.create_task(self.thread(ops)) for ops in op[1])
        if kind == "loop":
            return [await self.body(op[2]) for _ in range(op[1])]
        if kind == "run":
            async with self.guard.run("inner", budget=Budget(steps=op[1])):
                return await self.body(op[2])
        try:
            with self.run.scope("part", Budget(steps=op[1])) as scope:
                return await self.body(op[2])
        except RunStopped as stop:
            if scope.stop is not stop:
                raise
            return ["scope stopped", stop.resource]  # type: ignore[attr-defined]

    async def leaf(self, op: Any) -> Any:
        kind, arg, turns, number = op
        try:
            if kind == "fetch":
                result = await fetch(arg, turns)
            elif kind == "outer":
                result = await outer(arg)
            else:
                return self.sync_leaf(op)
        except OwnError:
            self.passed.add(number)
            raise
        self.passed.add(number)
        return result

    def sync_leaf(self, op: Any) -> Any:
        kind, arg, _, number = op
        result: Any
        try:
            if kind == "fail":
                result = fail(arg)
            elif kind == "stream":
                result = list(stream(arg))
            elif kind == "value":
                result = current_run().record(f"value-{arg}", lambda: seen(f"value-{arg}", arg))
            else:
                result = think(arg)
        except OwnError:
            self.passed.add(number)
            raise
        self.passed.add(number)
        return result

    async def thread(self, ops: Any) -> Any:
        def work() -> list[Any]:
            out = []
            for op in ops:
                with contextlib.suppress(OwnError):
                    out.append(self.sync_leaf(op))
            return out

        with ThreadPoolExecutor(1) as pool:
            return await asyncio.get_running_loop().run_in_executor(pool, self.run.bind(work))


async def all_of(tasks: Any) -> list[Any]:
    """Wait for all, then raise the first failure: nothing outlives its block."""
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return list(done)


async def as_they_come(tasks: list[Any]) -> list[Any]:
    out: list[Any] = []
    error: BaseException | None = None
    for done in asyncio.as_completed(tasks):
        try:
            out.append(await done)
        except Exception as failure:
            error = error or failure
    if error is not None:
        raise error
    return out


async def carry_out(guard: Guard, run: Any, ops: Any) -> tuple[Any, Any, Program]:
    """The program's result, its end, and what it reached."""
    result, end, program = None, None, None
    try:
        async with run as entered:
            program = Program(guard, entered)
            result = await program.body(ops)
    except RunStopped as stop:
        end = (type(stop).__name__, stop.facts())
    except ExceptionGroup as group:
        end = repr(group)
    assert program is not None
    return result, end, program


HEALTH = list(HealthCheck)
EDITS = st.sampled_from(["change", "remove", "double"])


def check_replay(ops: Any, steps: int) -> None:
    ops = numbered(ops)
    with Guard.in_memory(telemetry=False) as guard:
        run = guard.run("program", budget=Budget(steps=steps, usd="0.2"))
        recorded = asyncio.run(carry_out(guard, run, ops))
        before = {row.run_id: guard.history(row.run_id) for row in guard.runs()}
        BODIES_RUN.clear()
        replay = guard.replay(run.id)
        replayed = asyncio.run(carry_out(guard, replay, ops))
        assert replayed[:2] == recorded[:2]
        assert replayed[2].passed == recorded[2].passed
        assert BODIES_RUN == []
        assert replay.spent == guard.summary(run.id).usage
        assert replay.state == guard.summary(run.id).state
        assert {row.run_id: guard.history(row.run_id) for row in guard.runs()} == before


def test_the_programs_do_what_they_say() -> None:
    """Or the properties below would hold for nothing."""
    ops = numbered(
        [
            ("fetch", 1, 3),
            ("fail", 2, 0),
            ("gather", [[("outer", 3, 0)], [("stream", 3, 0), ("value", 4, 0)]]),
            ("first", [[("fetch", 4, 2)], [("fetch", 5, 0)]]),
            ("threads", [[("think", 5, 0), ("fail", 5, 0)]]),
            ("loop", 2, [("think", 7, 0)]),
            ("scope", 1, [("think", 8, 0), ("think", 9, 0)]),
            ("run", 2, [("think", 8, 0)]),
        ]
    )
    with Guard.in_memory(telemetry=False) as guard:
        run = guard.run("program")
        result, end, program = asyncio.run(carry_out(guard, run, ops))
    assert result == [
        2,
        ["OwnError", 2],
        [[[6, 3]], [[0, 1, 2], 4]],
        [[10], [8]],
        [[[5, 6]]],
        [[[7, 8]], [[7, 8]]],
        ["scope stopped", "steps"],
        [[8, 9]],
    ]
    assert end is None
    assert program.passed == set(range(1, 12)) | {13}


@pytest.mark.timeout(1200)
@given(ops=programs, steps=st.integers(2, 30))
@settings(deadline=None, suppress_health_check=HEALTH, max_examples=200)
def test_a_replay_equals_its_recording(ops: Any, steps: int) -> None:
    check_replay(ops, steps)


@pytest.mark.long
@given(ops=programs, steps=st.integers(2, 30))
@settings(deadline=None, suppress_health_check=HEALTH, max_examples=scaled(2000))
def test_two_thousand_replays_equal_their_recordings(ops: Any, steps: int) -> None:
    check_replay(ops, steps)


# --- one edit ------------------------------------------------------------------------------------


def leaves(ops: Any) -> list[Any]:
    """The leaves of a program."""
    found = []
    for op in ops:
        if op[0] in LEAVES:
            found.append(op)
        elif op[0] in ("gather", "first", "threads"):
            found += [leaf for body in op[1] for leaf in leaves(body)]
        else:
            found += leaves(op[2])
    return found


def edited(ops: Any, number: int, edit: str) -> Any:
    """A copy of a program with one leaf changed, removed, or doubled."""
    out: list[Any] = []
    for op in ops:
        if op[0] in ("gather", "first", "threads"):
            out.append((op[0], [edited(body, number, edit) for body in op[1]]))
        elif op[0] not in LEAVES:
            out.append((op[0], op[1], edited(op[2], number, edit)))
        elif op[3] != number:
            out.append(op)
        elif edit == "change":
            out.append((op[0], op[1] + 1, *op[2:]))
        elif edit == "double":
            out += [op, op]
    return out


def recorded_calls(guard: Guard, run_id: str) -> list[tuple[str, int, str]]:
    """The calls of a run and of those inside it: branch, place in it, and key."""
    calls = []
    for row in guard.runs():
        for stored in guard.components.store.read(row.run_id):
            record = codec.decode(stored.body)
            if record.type in ("step_started", "step_refused", "value", "scope_opened") and record.key:
                calls.append((f"{row.run_id} {record.key.rpartition('/')[0]}", record.pos, record.key))
    return calls


def expected_key(guard: Guard, run_id: str, keys: list[tuple[str, str]], edit: str) -> str:
    """The key of the first difference that an edit of a leaf makes, by the log and the leaf's calls."""
    inside, key = keys[0]
    if edit != "double":
        return key
    branch = f"{inside} {key.rpartition('/')[0]}"
    there = {pos: k for b, pos, k in recorded_calls(guard, run_id) if b == branch}
    place = next(pos for pos, k in there.items() if k == key)
    name, _, number = key.rpartition("#")
    alike = itertools.count(place)  # its calls that follow each other on record serve the copies too
    copies = sum(1 for _ in itertools.takewhile(lambda pos: (inside, there.get(pos)) in keys, alike))
    return f"{name}#{int(number) + copies}"


def stops_in(guard: Guard) -> bool:
    """Whether a scope or a run was stopped: behind that, one call more leaves no event."""
    events = [event for row in guard.runs() for event in guard.history(row.run_id)]
    return any(event.type in ("step_refused", "run_failed") for event in events)


def check_edit(ops: Any, edit: str, data: Any) -> None:
    ops = numbered(ops, apart=True)
    if not leaves(ops):
        return
    with Guard.in_memory(telemetry=False) as guard:
        KEYS.clear()
        run = guard.run("program", budget=Budget(steps=500))
        _, end, program = asyncio.run(carry_out(guard, run, ops))
        leaf = data.draw(st.sampled_from(leaves(ops)))
        kind, arg, _, number = leaf
        if end is not None or number not in program.passed:
            return  # the leaf lies behind a stop: the edit may change nothing
        if edit == "double" and stops_in(guard):
            return
        value = f"value-{arg}"
        keys = KEYS[value] if kind == "value" else KEYS[arg]
        if kind == "value":  # a record's body does not know its key
            keys = [(run_id, k) for run_id, k in calls_named(guard, value)]
        key = expected_key(guard, run.id, keys, edit)
        replay = guard.replay(run.id)
        with pytest.raises(ReplayDivergenceError) as caught:
            asyncio.run(carry_out(guard, replay, edited(ops, number, edit)))
        said = caught.value
        assert said.key == key or f" {key} (event " in str(said.expected), (key, said.facts())


def calls_named(guard: Guard, name: str) -> list[tuple[str, str]]:
    return [(b.split()[0], key) for b, _, key in recorded_calls(guard, "") if f"/{name}#" in key]


@pytest.mark.timeout(1200)
@given(ops=programs, edit=EDITS, data=st.data())
@settings(deadline=None, suppress_health_check=HEALTH, max_examples=200)
def test_one_edit_is_always_a_divergence(ops: Any, edit: str, data: Any) -> None:
    check_edit(ops, edit, data)


@pytest.mark.long
@given(ops=programs, edit=EDITS, data=st.data())
@settings(deadline=None, suppress_health_check=HEALTH, max_examples=scaled(2000))
def test_two_thousand_edits_are_divergences(ops: Any, edit: str, data: Any) -> None:
    check_edit(ops, edit, data)
