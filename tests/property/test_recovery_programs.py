"""Random agent programs, crashed by kill -9 at a random point and recovered until they are done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import threading
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    StepOutcomeUnknownError,
    Usage,
    current_run,
    current_step,
    guarded_step,
)
from agentguard.audit.verify import reconstruct
from tests import postgres
from tests.scale import scaled


class OwnError(Exception):
    """What a step of an agent fails with."""


class SoftTimeLimitError(Exception):
    """What a signal handler raises."""


class World:
    """Effects on the outside: bodies that began and ended, in a file that outlives the process."""

    path: Path | None = None
    crash_at: int | None = None
    ticks = 0
    guard: Guard
    lock = threading.Lock()
    #: Calls that this process has come to, by a token of their own.
    reached: ClassVar[set[str]] = set()

    @classmethod
    def reach(cls, token: str) -> bool:
        cls.reached.add(token)
        return True

    @classmethod
    def tick(cls, what: str, arg: int) -> None:
        step = current_step()
        if cls.path is not None and step is not None:
            line = json.dumps([what, step.run.id, step.key, step.idempotency_key, arg]) + "\n"
            fd = os.open(cls.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, line.encode())
            os.close(fd)
        with cls.lock:
            cls.ticks += 1
            if cls.ticks == cls.crash_at:
                os.kill(os.getpid(), signal.SIGKILL)


@guarded_step(usage=Usage(usd="0.01"), effect="read")
async def look(arg: int) -> int:
    World.tick("began", arg)
    await asyncio.sleep(0)
    World.tick("ended", arg)
    return arg * 2


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent")
def charge(arg: int) -> list[int]:
    World.tick("began", arg)
    World.tick("ended", arg)
    return [arg]


@guarded_step(usage=Usage(usd="0.01"))
def send(arg: int) -> str:
    World.tick("began", arg)
    World.tick("ended", arg)
    return f"sent {arg}"


@guarded_step(effect="idempotent")
async def outer(arg: int) -> Any:
    World.tick("began", arg)
    found = [await look(arg), send(arg)]
    World.tick("ended", arg)
    return found


@guarded_step(effect="read")
def fail(arg: int) -> None:
    World.tick("began", arg)
    World.tick("ended", arg)
    raise OwnError(arg)


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent")
async def hang(token: str) -> None:
    World.tick("began", 0)
    World.reach(token)
    await asyncio.Event().wait()


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent", approval=World.reach)
async def ask_in_vain(token: str) -> None:
    raise AssertionError("nobody has granted it")


@guarded_step(effect="read")
async def until_reached(token: str) -> None:
    World.tick("began", 0)
    while token not in World.reached:
        await asyncio.sleep(0)
    World.tick("ended", 0)


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent", approval=True, key=lambda token: token)
async def ask(token: str) -> str:
    World.tick("began", 0)
    World.tick("ended", 0)
    return "granted"


@guarded_step(effect="idempotent")
async def grant(token: str) -> None:
    """The operator: looks what is asked, and grants it."""
    World.tick("began", 0)
    run = current_run()
    while (asked := run.live_run.fold.approvals.get(f"key:{token}", {}).get("state")) != "approval_granted":
        if asked is not None:
            World.guard.approve(run.id, f"key:{token}", actor="ann")
        await asyncio.sleep(0)
    World.tick("ended", 0)


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent")
def be_interrupted(arg: int) -> None:
    World.tick("began", arg)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt(_signal: int, _frame: Any) -> None:
    raise SoftTimeLimitError


LEAVES = {"look": look, "charge": charge, "send": send, "outer": outer, "fail": fail}
SYNC = ("charge", "send", "fail")
leaf = st.tuples(st.sampled_from(sorted(LEAVES)), st.integers(0, 5))
sync_leaf = st.tuples(st.sampled_from(SYNC), st.integers(0, 5))


def blocks(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(children, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("gather"), st.lists(body, min_size=2, max_size=3)),
        st.tuples(
            st.just("threads"), st.lists(st.lists(sync_leaf, min_size=1, max_size=2), min_size=1, max_size=2)
        ),
        st.tuples(st.just("scope"), body),
        st.tuples(st.just("stopped"), st.lists(sync_leaf, min_size=1, max_size=2)),
        st.tuples(st.just("run"), body),
        st.tuples(st.just("loop"), body),
        st.tuples(st.just("value"), st.integers(0, 5)),
        st.tuples(st.just("cancelled"), st.sampled_from([hang, ask_in_vain])),
        st.tuples(st.just("granted"), st.just(0)),
        st.tuples(st.just("interrupted"), st.integers(0, 5)),
    )


programs = st.lists(st.recursive(leaf, blocks, max_leaves=6), min_size=1, max_size=4)


async def carry_out(guard: Guard, run: Any, ops: Any) -> list[Any]:
    out: list[Any] = []
    for kind, arg in ops:
        if kind in SYNC:
            out.append(carry_out_leaf(kind, arg))
        elif kind in LEAVES:
            out.append(await LEAVES[kind](arg))  # type: ignore[operator]
        elif kind == "gather":
            out.append(await all_of(carry_out(guard, run, body) for body in arg))
        elif kind == "threads":
            out.append(await all_of(in_thread(run, body) for body in arg))
        elif kind == "scope":
            with run.scope("part", Budget(usd=5)):
                out.append(await carry_out(guard, run, arg))
        elif kind == "stopped":
            # No room for a step: a crash, which may spend more, changes nothing about it.
            with contextlib.suppress(BudgetExceededError), run.scope("none", Budget(steps=0)):
                out.append([carry_out_leaf(*op) for op in arg])
        elif kind == "run":
            async with guard.run("inner") as inner:
                out.append(await carry_out(guard, inner, arg))
        elif kind == "loop":
            out.append([await carry_out(guard, run, arg) for _ in range(2)])
        elif kind == "cancelled":
            out.append(await cancelled(arg, str(run.uuid())))
        elif kind == "granted":
            token = str(run.uuid())
            out.append((await all_of([ask(token), grant(token)]))[0])
        elif kind == "interrupted":
            with contextlib.suppress(SoftTimeLimitError):
                out.append(be_interrupted(arg))
        else:
            out.append(run.record("value", lambda value=arg: value))
    return out


async def cancelled(step: Any, token: str) -> str:
    """Cancel a step once it is in its body, or waits for an approval that never comes."""
    task = asyncio.create_task(step(token))
    await until_reached(token)
    task.cancel()
    try:
        return f"came {await task}"
    except asyncio.CancelledError:
        return "cancelled"


def carry_out_leaf(kind: str, arg: int) -> Any:
    try:
        return LEAVES[kind](arg)
    except OwnError as error:
        return ["OwnError", *error.args]


async def in_thread(run: Any, ops: Any) -> Any:
    def work() -> list[Any]:
        return [carry_out_leaf(*op) for op in ops]

    with ThreadPoolExecutor(1) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, run.bind(work))


async def all_of(bodies: Any) -> list[Any]:
    """Wait for all, then raise the first failure: nothing outlives its block."""
    done = await asyncio.gather(*map(asyncio.create_task, bodies), return_exceptions=True)
    for failure in done:
        if isinstance(failure, BaseException):
            raise failure
    return list(done)


async def whole(guard: Guard, run: Any, ops: Any) -> list[Any]:
    World.guard = guard
    async with run as entered:
        return await carry_out(guard, entered, ops)


TENANT = "acme"


@contextlib.contextmanager
def opened(url: str) -> Iterator[Guard]:
    """A guard of this process, with the tenant's budget, which lies in its kill switch."""
    with Guard.open(url, telemetry=False, kill_switch="memory") as guard:
        guard.set_tenant_budget(TENANT, Budget(usd=50, steps=5_000))
        yield guard


def in_child(url: str, ops: Any, crash_at: int | None, result: Path, *, recover: bool) -> int:
    """One life of the program, in a process of its own; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    signal.alarm(120)  # a life that hangs ends, and its status tells
    try:
        World.crash_at, World.ticks = crash_at, 0
        with opened(url) as guard:
            run = guard.recover("r") if recover else guard.run("program", run_id="r", tenant=TENANT)
            try:
                result.write_text(json.dumps(asyncio.run(whole(guard, run, ops))))
                status = 0
            except StepOutcomeUnknownError as unknown:
                result.write_text(json.dumps([unknown.run_id, unknown.key]))
                status = 3
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


Body = tuple[str, str]


class Effects:
    """What the bodies did: how often each began and ended, by its run and key."""

    def __init__(self, path: Path) -> None:
        self.began: Counter[Body] = Counter()
        self.ended: Counter[Body] = Counter()
        self.args: dict[Body, int] = {}
        self.keys: defaultdict[Body, set[str]] = defaultdict(set)
        for line in path.read_text().splitlines() if path.exists() else ():
            what, run_id, key, idempotency_key, arg = json.loads(line)
            body = run_id, key
            (self.began if what == "began" else self.ended)[body] += 1
            self.args[body] = arg
            self.keys[body].add(idempotency_key)


def say_what_became_of(guard: Guard, run_id: str, key: str, effects: Effects) -> None:
    """An operator looks at the world, and says what it shows."""
    body = run_id, key
    if effects.ended[body]:
        guard.resolve(run_id, key, "completed", result=f"sent {effects.args[body]}")
    else:
        guard.resolve(run_id, key, "retry")


def check_recovery(ops: Any, crashes: list[int], url: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url, result = url or f"sqlite:///{folder}/log.db", Path(folder, "result")
        World.path, World.crash_at = None, None
        with Guard.in_memory(telemetry=False) as guard:
            plain_run = guard.run("program")
            expected = asyncio.run(whole(guard, plain_run, ops))
            plain = plain_run.spent
        World.path = Path(folder, "effects")
        lives = [*crashes, None]
        status, life = None, 0
        while status != 0:
            crash_at = lives[life] if life < len(lives) else None
            status = in_child(url, ops, crash_at, result, recover=life > 0)
            life += 1
            assert status in (0, 3, -signal.SIGKILL), f"life {life} ended with {status}"
            with opened(url) as guard:
                if status == 3:
                    run_id, key = json.loads(result.read_text())
                    say_what_became_of(guard, run_id, key, Effects(World.path))
                if not guard.runs():
                    life = 0  # it died before the run was on record
                assert guard.verify()
        assert json.loads(result.read_text()) == json.loads(json.dumps(expected))
        with opened(url) as guard:
            check_books(guard, plain, Effects(World.path))


def check_books(guard: Guard, plain: Usage, effects: Effects, run_id: str = "r") -> None:
    """Once means once, and what was spent is what an uncrashed run spends, and what was in doubt."""
    summary = guard.summary(run_id)
    assert guard.reconstruct(run_id) == summary
    events = [event for row in guard.runs(limit=10_000) for event in guard.history(row.run_id)]
    resolved = Counter((event.run_id, event.key) for event in events if event.type == "step_resolved")
    ran = {(event.run_id, event.key) for event in events if event.type in ("step_completed", "step_failed")}
    for body in ran:
        assert 1 <= effects.began[body] <= 1 + resolved[body], body
        assert len(effects.keys[body]) == 1, body
    once = [body for body in effects.began if "/send#" in f"/{body[1]}"]
    assert [body for body in once if effects.ended[body] != 1] == []
    assert not plain.usd or any(ran) or any(resolved)
    assert 0 <= summary.usage.usd - plain.usd <= resolved.total() * Usage(usd="0.01").usd
    assert 0 <= summary.usage.steps - plain.steps <= resolved.total()
    check_accounts(guard)


_OUTCOMES = ("step_completed", "step_failed", "step_resolved")


def check_accounts(guard: Guard) -> None:
    """The sum of the events is what summary and accounts say, at every level, and nothing is reserved."""
    store = guard.components.store
    of_the_tenant: Counter[str] = Counter()
    for listed in guard.runs(limit=10_000):
        row = store.row(listed.run_id)
        assert row is not None
        fold = reconstruct(store, row)
        assert fold.state.final
        assert not fold.open
        used: Counter[str] = Counter()
        for event in guard.history(row.run_id):
            if event.type in _OUTCOMES and event.usage is not None:
                of_the_tenant.update(event.usage.amounts())
            if event.type in (*_OUTCOMES, "scope_closed") and event.usage is not None:
                used.update(event.usage.amounts())
        assert +used == Counter(listed.usage.amounts())
        for account in store.accounts([f"run:{row.run_id}"]).values():
            assert +Counter(account.spent) == +used
            assert not any(account.reserved.values())
    accounts = store.accounts([f"tenant:{TENANT}"]).values()
    assert accounts or not +of_the_tenant  # the first step makes it
    for account in accounts:
        assert +Counter(account.spent) == +of_the_tenant
        assert not any(account.reserved.values())


@pytest.mark.timeout(1200)
@given(ops=programs, crashes=st.lists(st.integers(1, 12), min_size=1, max_size=3))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=200)
def test_a_crashed_program_carries_on_until_done(ops: Any, crashes: list[int]) -> None:
    check_recovery(ops, crashes)


@pytest.mark.long
@given(ops=programs, crashes=st.lists(st.integers(1, 20), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=scaled(2000))
def test_two_thousand_crashed_programs(ops: Any, crashes: list[int]) -> None:
    check_recovery(ops, crashes)


@pytest.mark.timeout(1200)
@given(ops=programs, crashes=st.lists(st.integers(1, 12), min_size=1, max_size=3))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=10)
def test_a_crashed_program_carries_on_in_postgres(postgres_server: str, ops: Any, crashes: list[int]) -> None:
    with postgres.database(postgres_server, postgres.template(postgres_server)) as url:
        check_recovery(ops, crashes, url)


@pytest.mark.long
@given(ops=programs, crashes=st.lists(st.integers(1, 20), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=scaled(300))
def test_hundreds_of_crashed_programs_in_postgres(postgres_server: str, ops: Any, crashes: list[int]) -> None:
    with postgres.database(postgres_server, postgres.template(postgres_server)) as url:
        check_recovery(ops, crashes, url)
