"""Run a program in one process after another, each killed at another act of its store, and carry it on.

Given a folder and how the crashes are chosen, it prints a line for everything that is not as it should be, and
last the number of acts.  Run by `tests/integration/test_crash_at_every_act.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, RunState, RunStopped, Usage, current_run, guarded_step
from agentguard.budget.account import Account
from agentguard.budget.named import named_account_id
from agentguard.stores.sqlite import SQLiteEventStore

TENANT = "acme"
ACCOUNT = "thread:42"
RUN = "outer-run"


@guarded_step(effect="idempotent", usage=Usage(usd="0.10"))
def pay(n: int) -> int:
    return n


@guarded_step(effect="read", reserve=Usage(usd="0.05"), usage=lambda n: Usage(usd="0.01"))
def ask(n: int) -> int:
    return n


@guarded_step(effect="idempotent")
def around(guard: Guard, n: int) -> int:
    """A step with a nested run in its body."""
    with guard.run("in a body"):
        return pay(n)


def agent(guard: Guard) -> list[Any]:
    run = current_run()
    assert run is not None
    seen: list[Any] = [pay(1)]
    with guard.run("first"):
        seen.append(ask(2))
    with run.scope("part", Budget(usd="1")):
        with guard.run("second", budget=Budget(usd="3")):
            seen.append(pay(3))
            with guard.run("third"), current_run().scope("deep"):  # type: ignore[union-attr]
                seen.append(ask(4))
        seen.append(pay(5))
    with contextlib.suppress(RunStopped), run.scope("tight", Budget(steps=1)):
        seen.append(ask(6))
        seen.append(ask(7))
    with contextlib.suppress(RunStopped), guard.run("small", budget=Budget(steps=1)):
        seen.append(ask(8))
        seen.append(ask(9))
    seen.append(around(guard, 10))
    return seen


EXPECTED = [1, 2, 3, 4, 5, 10]
#: What has no room any more where a crash cost one of the only two steps that are allowed there.
TIGHT = (6, 7, 8, 9)


def as_expected(seen: list[Any]) -> bool:
    """Whether an agent saw what it had to see, wherever it crashed."""
    return [n for n in seen if n not in TIGHT] == EXPECTED


def program(guard: Guard) -> list[Any]:
    """The agent as a run, or carried on."""
    budget = Budget(usd="20")
    account: Any = {"account": ACCOUNT, "account_budget": Budget(usd="100")}
    with guard.run("agent", run_id=RUN, budget=budget, tenant=TENANT, if_exists="recover", **account):
        return agent(guard)


# --- acts ----------------------------------------------------------------------------------------


class Acts:
    """Counts what the store does, and ends the process after the n-th."""

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.count = 0

    def watch(self) -> None:
        for name in ("create", "append", "append_one", "update_row"):
            setattr(SQLiteEventStore, name, self._counted(getattr(SQLiteEventStore, name)))

    def _counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            result = act(*args, **options)
            self.tick()
            return result

        return counted

    def tick(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def in_a_child(work: Callable[[], None]) -> int:
    """Run it in a process of its own; return how that ended."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            say(f"{type(error).__name__}: {error}")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash(after: int | None) -> int:
    """The program, killed after so many acts; -9 if it was."""

    def work() -> None:
        Acts(after).watch()
        with Guard.open(telemetry=False) as guard:
            program(guard)

    return in_a_child(work)


# --- what has to hold ----------------------------------------------------------------------------


def problems(guard: Guard) -> list[str]:
    """What does not add up, once the run has ended."""
    found: list[str] = []
    report = guard.verify()
    if not report:
        found.append(f"verify: {report.faults}")
    used: Counter[str] = Counter()
    of_account: Counter[str] = Counter()
    for summary in guard.runs(limit=1000):
        own = charged(guard, summary.run_id)
        used.update(own)
        if summary.account == ACCOUNT:
            of_account.update(own)
        for child in guard.components.store.children(summary.run_id):
            own.update(whole(guard, child.run_id))
        told = amounts(summary.usage.amounts())
        if told != amounts(own):
            found.append(f"{summary.name}: its summary says {told}, its events {amounts(own)}")
        if not summary.state.final:
            found.append(f"{summary.name} is {summary.state}")
        found += held(f"run:{summary.run_id}", guard, told)
    found += held(f"tenant:{TENANT}", guard, amounts(used))
    found += held(named_account_id(ACCOUNT, TENANT), guard, amounts(of_account))
    return found


def charged(guard: Guard, run_id: str) -> Counter[str]:
    """What the events of a run's own steps charge."""
    used: Counter[str] = Counter()
    for event in guard.history(run_id):
        if event.usage is not None and event.type.startswith("step_"):
            used.update(event.usage.amounts())
    return used


def whole(guard: Guard, run_id: str) -> Counter[str]:
    used = charged(guard, run_id)
    for child in guard.components.store.children(run_id):
        used.update(whole(guard, child.run_id))
    return used


def held(name: str, guard: Guard, expected: dict[str, int]) -> list[str]:
    """What is wrong with a shared account."""
    account: Account | None = guard.components.store.accounts([name]).get(name)
    if account is None:
        return []
    found = []
    if reserved := amounts(account.reserved):
        found.append(f"{name} holds {reserved} for nobody")
    if amounts(account.spent) != expected:
        found.append(f"{name} has {amounts(account.spent)}, the events {expected}")
    return found


def amounts(each: Any) -> dict[str, int]:
    return {name: amount for name, amount in sorted(each.items()) if amount}


def check(label: str) -> None:
    """Carry the run on to its end, and print what is wrong."""
    with Guard.open(telemetry=False) as guard:
        try:
            seen = None
            if guard.components.store.row(RUN) is None or not guard.summary(RUN).state.final:
                seen = program(guard)
                if not as_expected(seen):
                    say(f"{label}: the agent saw {seen}")
            if guard.summary(RUN).state is not RunState.COMPLETED:
                say(f"{label}: {guard.summary(RUN)}")
            for problem in problems(guard):
                say(f"{label}: {problem}")
            with guard.replay(RUN):
                replayed = agent(guard)
            if replayed != (seen or replayed) or not as_expected(replayed):
                say(f"{label}: the replay saw {replayed}")
        except Exception as error:
            say(f"{label}: {type(error).__name__}: {error}")


def at_home(folder: Path) -> None:
    folder.mkdir()
    os.environ["AGENTGUARD_HOME"] = str(folder)

    def prepare() -> None:
        with Guard.open(telemetry=False) as guard:
            guard.set_tenant_budget(TENANT, Budget(usd="100"))

    if in_a_child(prepare):
        raise SystemExit("the home could not be made")


def main(folder: Path, stride: int) -> None:
    """Crash after every act; then again after one of those of the recovery, `stride` apart."""
    folder.mkdir()
    n = 0
    while True:
        n += 1
        at_home(folder / str(n))
        label = f"act {n}"
        code = crash(n)
        if code not in (0, -9):
            say(f"{label}: the program ended with {code}")
        if code == 0:
            break
        if stride:
            again = 1 + n * stride % 23
            label += f", then act {again}"
            code = crash(again)
            if code not in (0, -9):
                say(f"{label}: the recovery ended with {code}")
        if in_a_child(lambda label=label: check(label)):  # type: ignore[misc]
            say(f"{label}: the check failed")
    say(str(n - 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
