"""An exception at any line, where a second process writes to the same store after each one.

As in `unit/test_exception_at_any_line.py`, which has every driver; here also on PostgreSQL.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentguard
from agentguard import Budget, Guard, RunState
from tests.unit.test_exception_at_any_line import (
    agrees,
    books_are_right,
    charges_once,
    exhaust,
    first,
    interrupt,
    nested_block,
    opened,
    others_can_write,
    traced,
    work,
)

# What is raised in a finaliser is reported by the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("what_is_left_is_collected"),
]

NEIGHBOUR = """
import sys
from agentguard import Guard, guarded_step

@guarded_step
def work():
    return 1

with Guard.open(sys.argv[1], kill_switch="memory", telemetry=False) as guard:
    for line in sys.stdin:
        with guard.run("neighbour"):
            work()
        print("written", flush=True)
"""


class Neighbour:
    """Another process, which runs a step of its own when it is asked to."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NEIGHBOUR, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    def writes(self) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("write\n")
        self._process.stdin.flush()
        return self._process.stdout.readline() == "written\n"

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def guard(url: str) -> Iterator[Guard]:
    with opened(url) as guard:
        yield guard


@pytest.fixture
def neighbour(guard: Guard, url: str) -> Iterator[Neighbour]:
    neighbour = Neighbour(url)
    assert neighbour.writes()
    yield neighbour
    neighbour.end()


def interrupt_step(guard: Guard, line: int, neighbour: Neighbour, step: Callable[[], Any]) -> bool:
    with guard.run("r", budget=Budget(coins=100)) as run:
        work()
        more = traced(line, interrupt, step)
        assert neighbour.writes()
        others_can_write(guard, run.id)
        assert agentguard.current_step() is None
        assert work(1) == 1
        charges_once(run, lambda: work(1))
    assert run.state is RunState.COMPLETED
    agrees(guard, run)
    return more


def interrupt_nested_run(guard: Guard, line: int, neighbour: Neighbour) -> bool:
    guard.set_tenant_budget("t", Budget(coins=10**6))
    before = guard.tenants()[0].spent["coins"]
    more = traced(line, interrupt, lambda: nested_block(guard))
    assert neighbour.writes()
    assert agentguard.current_run() is None
    books_are_right(guard, before)
    return more


PROGRAMS: dict[str, Callable[[Guard, int, Neighbour], bool]] = {
    "step": lambda guard, line, neighbour: interrupt_step(guard, line, neighbour, work),
    "generator": lambda guard, line, neighbour: interrupt_step(guard, line, neighbour, exhaust),
    "nested run": interrupt_nested_run,
}


@pytest.mark.parametrize(
    "apart", [pytest.param(97, id="some lines"), pytest.param(11, id="most lines", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_another_process_writes_after_an_interruption_at_any_line(
    guard: Guard, neighbour: Neighbour, program: str, apart: int
) -> None:
    line, more = first(program, apart), True
    while more:
        more = PROGRAMS[program](guard, line, neighbour)
        line += apart
    assert line > 100
