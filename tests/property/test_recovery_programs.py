"""Random agent programs, crashed by kill -9 at a random point and recovered until they are done."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import Budget, Guard, StepOutcomeUnknownError, Usage, current_step, guarded_step


class World:
    """Effects on the outside: bodies that began and ended, in a file that outlives the process."""

    path: Path | None = None
    crash_at: int | None = None
    ticks = 0

    @classmethod
    def tick(cls, what: str) -> None:
        cls.ticks += 1
        step = current_step()
        if cls.path is not None and step is not None:
            line = json.dumps([what, step.key, step.idempotency_key]) + "\n"
            fd = os.open(cls.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, line.encode())
            os.close(fd)
        if cls.ticks == cls.crash_at:
            os.kill(os.getpid(), signal.SIGKILL)


@guarded_step(usage=Usage(usd="0.01"), effect="read")
async def look(arg: int) -> int:
    World.tick("began")
    await asyncio.sleep(0)
    World.tick("ended")
    return arg * 2


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent")
def charge(arg: int) -> list[int]:
    World.tick("began")
    World.tick("ended")
    return [arg]


@guarded_step(usage=Usage(usd="0.01"))
def send(arg: int) -> str:
    World.tick("began")
    World.tick("ended")
    return f"sent {arg}"


@guarded_step(effect="idempotent")
async def outer(arg: int) -> Any:
    World.tick("began")
    found = [await look(arg), send(arg)]
    World.tick("ended")
    return found


LEAVES = {"look": look, "charge": charge, "send": send, "outer": outer}
leaf = st.tuples(st.sampled_from(sorted(LEAVES)), st.integers(0, 5))


def blocks(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(children, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("gather"), st.lists(body, min_size=2, max_size=3)),
        st.tuples(st.just("scope"), body),
        st.tuples(st.just("run"), body),
        st.tuples(st.just("loop"), body),
        st.tuples(st.just("value"), st.integers(0, 5)),
    )


programs = st.lists(st.recursive(leaf, blocks, max_leaves=6), min_size=1, max_size=4)


async def carry_out(guard: Guard, run: Any, ops: Any) -> list[Any]:
    out: list[Any] = []
    for kind, arg in ops:
        if kind in LEAVES:
            result = LEAVES[kind](arg)
            out.append(await result if asyncio.iscoroutine(result) else result)
        elif kind == "gather":
            tasks = [asyncio.create_task(carry_out(guard, run, body)) for body in arg]
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for failure in done:
                if isinstance(failure, BaseException):
                    raise failure
            out.append(done)
        elif kind == "scope":
            with run.scope("part", Budget(usd=5)):
                out.append(await carry_out(guard, run, arg))
        elif kind == "run":
            async with guard.run("inner") as inner:
                out.append(await carry_out(guard, inner, arg))
        elif kind == "loop":
            out.append([await carry_out(guard, run, arg) for _ in range(2)])
        else:
            out.append(run.record("value", lambda value=arg: value))
    return out


async def whole(guard: Guard, run: Any, ops: Any) -> list[Any]:
    async with run as entered:
        return await carry_out(guard, entered, ops)


def in_child(url: str, ops: Any, crash_at: int | None, result: Path, *, recover: bool) -> int:
    """One life of the program, in a process of its own; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    try:
        World.crash_at, World.ticks = crash_at, 0
        with Guard.open(url, telemetry=False, kill_switch="memory") as guard:
            run = guard.recover("r") if recover else guard.run("program", run_id="r")
            try:
                result.write_text(json.dumps(asyncio.run(whole(guard, run, ops))))
                status = 0
            except StepOutcomeUnknownError as unknown:
                result.write_text(json.dumps([unknown.run_id, unknown.key]))
                status = 3
    finally:
        os._exit(status)


def bodies_of(path: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each body began and ended, by idempotency key."""
    began: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for line in path.read_text().splitlines() if path.exists() else ():
        what, _, key = json.loads(line)
        (began if what == "began" else ended)[key] += 1
    return began, ended


def check_recovery(ops: Any, crashes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url, result = f"sqlite:///{folder}/log.db", Path(folder, "result")
        World.path, World.crash_at = None, None
        with Guard.in_memory(telemetry=False) as guard:
            plain_run = guard.run("program")
            expected = asyncio.run(whole(guard, plain_run, ops))
            plain = plain_run.spent
        World.path = Path(folder, "effects")
        lives, resolved = [*crashes, None], 0
        status, life = None, 0
        while status != 0:
            crash_at = lives[life] if life < len(lives) else None
            status = in_child(url, ops, crash_at, result, recover=life > 0)
            life += 1
            assert status in (0, 3, -signal.SIGKILL), f"life {life} ended with {status}"
            with Guard.open(url, telemetry=False, kill_switch="memory") as guard:
                if status == 3:
                    run_id, key = json.loads(result.read_text())
                    guard.resolve(run_id, key, "retry")
                if not guard.runs():
                    life = 0  # it died before the run was on record
                assert guard.verify()
        assert json.loads(result.read_text()) == json.loads(json.dumps(expected))
        with Guard.open(url, telemetry=False, kill_switch="memory") as guard:
            summary = guard.summary("r")
            assert guard.reconstruct("r") == summary
            began, _ = bodies_of(World.path)
            repeats = {key: n - 1 for key, n in began.items() if n > 1}
            assert all(n <= life for n in repeats.values())
            for row in guard.runs():
                resolved += sum(e.type == "step_resolved" for e in guard.history(row.run_id))
            completed = Counter(
                e.key for r in guard.runs() for e in guard.history(r.run_id) if e.type == "step_completed"
            )
            assert sum(began.values()) <= sum(completed.values()) + resolved
            over = summary.usage.usd - plain.usd
            assert 0 <= over <= resolved * Usage(usd="0.01").usd


@given(ops=programs, crashes=st.lists(st.integers(1, 12), min_size=1, max_size=3))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
def test_rule_13_a_crashed_program_carries_on_until_done(ops: Any, crashes: list[int]) -> None:
    check_recovery(ops, crashes)


@pytest.mark.long
@given(ops=programs, crashes=st.lists(st.integers(1, 20), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=2000)
def test_rule_13_two_thousand_crashed_programs(ops: Any, crashes: list[int]) -> None:
    check_recovery(ops, crashes)
