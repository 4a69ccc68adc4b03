"""Random agent programs: recorded, replayed the same, and replayed with one edit, which must show."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import Budget, Guard, ReplayDivergenceError, RunStopped, Usage, guarded_step

BODIES_RUN: list[str] = []


@guarded_step(usage=Usage(usd="0.01"))
async def fetch(arg: int, turns: int) -> int:
    BODIES_RUN.append("fetch")
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns == 3:
        await asyncio.sleep(0.001)
    return arg * 2


@guarded_step
def think(arg: int) -> list[int]:
    BODIES_RUN.append("think")
    return [arg, arg + 1]


@guarded_step
def fail(arg: int) -> None:
    BODIES_RUN.append("fail")
    raise ValueError("no", arg)


@guarded_step
def stream(arg: int):  # type: ignore[no-untyped-def]
    BODIES_RUN.append("stream")
    yield from range(arg % 4)


@guarded_step
async def outer(arg: int) -> int:
    BODIES_RUN.append("outer")
    return await fetch(arg, 1) + think(arg)[0]


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


def numbered(ops: Any, numbers: Any = None) -> Any:
    """A program whose leaves can be told apart."""
    numbers = itertools.count() if numbers is None else numbers
    out = []
    for op in ops:
        if op[0] in LEAVES:
            out.append((*op, next(numbers)))
        elif op[0] in ("gather", "first", "threads"):
            out.append((op[0], [numbered(body, numbers) for body in op[1]]))
        else:
            out.append((op[0], op[1], numbered(op[2], numbers)))
    return out


class Program:
    """An agent that carries a program out; it swallows what a careless agent swallows."""

    def __init__(self, guard: Guard, run: Any) -> None:
        self.guard = guard
        self.run = run
        #: Leaves that were reached, and those behind which the program went on, by number: only an
        #: edit of the former can show, and only a copy of the latter is ever reached.
        self.reached: list[int] = []
        self.passed: list[int] = []
        #: Those that a stop ended: only the first of them is on record, and none behind it is reached.
        self.stopped: list[int] = []

    async def body(self, ops: Any) -> list[Any]:
        out: list[Any] = []
        for op in ops:
            try:
                out.append(await self.op(op))
                self.passed.append(op[-1])
            except ReplayDivergenceError:
                raise
            except ValueError as error:
                out.append(["ValueError", *error.args])
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
        self.reached.append(id(op))
        try:
            return await self.call(op)
        except RunStopped:
            self.stopped.append(id(op))
            raise

    async def call(self, op: Any) -> Any:
        kind, arg, turns = op
        if kind == "fetch":
            return await fetch(arg, turns)
        if kind == "outer":
            return await outer(arg)
        return self.sync_leaf(op)

    def sync_leaf(self, op: Any) -> Any:
        kind, arg, *_ = op
        if kind == "think":
            return think(arg)
        if kind == "fail":
            return fail(arg)
        if kind == "stream":
            return list(stream(arg))
        return self.run.record("value", lambda: arg)

    async def thread(self, ops: Any) -> Any:
        def work() -> list[Any]:
            out = []
            for op in ops:
                if op[0] in ("fetch", "outer"):
                    op = ("think", *op[1:])
                with contextlib.suppress(ValueError):
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


def history_of(guard: Guard, run_id: str) -> list[tuple[Any, ...]]:
    return [(e.type, e.key) for e in guard.history(run_id)]


BUDGETS = st.integers(min_value=2, max_value=30)
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=120)


def check_replay(ops: Any, steps: int) -> None:
    ops = numbered(ops)
    with Guard.in_memory(telemetry=False) as guard:
        run = guard.run("program", budget=Budget(steps=steps, usd="0.2"))
        recorded = asyncio.run(carry_out(guard, run, ops))
        before = history_of(guard, run.id)
        BODIES_RUN.clear()
        replay = guard.replay(run.id, stall_timeout=5)
        replayed = asyncio.run(carry_out(guard, replay, ops))
        assert replayed[:2] == recorded[:2]
        assert BODIES_RUN == []
        assert replay.spent == guard.summary(run.id).usage
        assert replay.state == guard.summary(run.id).state
        assert history_of(guard, run.id) == before


@given(ops=programs, steps=BUDGETS)
@SETTINGS
def test_rule_19_a_replay_equals_its_recording(ops: Any, steps: int) -> None:
    check_replay(ops, steps)


def leaves(ops: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of the leaves of a program."""
    found = []
    for index, op in enumerate(ops):
        if op[0] in LEAVES:
            found.append((*path, index))
        elif op[0] in ("gather", "first"):
            for branch, body in enumerate(op[1]):
                found += leaves(body, (*path, index, branch))
        elif op[0] in ("scope", "run", "loop"):
            found += leaves(op[2], (*path, index))
    return found


def edited(ops: Any, path: tuple[Any, ...], edit: str) -> Any:
    """A copy of a program with one leaf changed, removed, or doubled."""
    head, *rest = path
    ops = list(ops)
    op = ops[head]
    if rest and op[0] in ("gather", "first"):
        bodies = list(op[1])
        bodies[rest[0]] = edited(bodies[rest[0]], tuple(rest[1:]), edit)
        ops[head] = (op[0], bodies)
    elif rest:
        ops[head] = (op[0], op[1], edited(op[2], tuple(rest), edit))
    elif edit == "change":
        ops[head] = ("think" if op[0] == "stream" else op[0], op[1] + 1, *op[2:])
    elif edit == "remove":
        del ops[head]
    else:
        ops.insert(head, op)
    return ops


def at(ops: Any, path: tuple[Any, ...]) -> Any:
    for index in path[:-1]:
        ops = ops[index] if not (isinstance(ops, tuple) and ops[0] in ("gather", "first")) else ops[1][index]
        if isinstance(ops, tuple) and ops[0] in ("scope", "run", "loop"):
            ops = ops[2]
    return ops[path[-1]]


@given(ops=programs, edit=st.sampled_from(["change", "remove", "double"]), data=st.data())
@SETTINGS
def test_rule_19_one_edit_is_always_a_divergence(ops: Any, edit: str, data: Any) -> None:
    ops = numbered(ops)
    paths = leaves(ops)
    if not paths:
        return
    path = data.draw(st.sampled_from(paths))
    with Guard.in_memory(telemetry=False) as guard:
        run = guard.run("program", budget=Budget(steps=500))
        _, end, program = asyncio.run(carry_out(guard, run, ops))
        seen = program.passed if edit == "double" else program.reached
        if end is not None or at(ops, path)[-1] not in seen:
            return  # a stop on record, or the leaf lies behind one: the edit may change nothing
        if id(at(ops, path)) in program.stopped:
            return
        if edit == "change" and at(ops, path)[0] == "value":
            return  # what a recorded value was made from is not looked at
        replay = guard.replay(run.id, stall_timeout=5)
        with pytest.raises(ReplayDivergenceError):
            asyncio.run(carry_out(guard, replay, edited(ops, path, edit)))
