"""The drill: 30 runs in 4 processes, one of them wild; five commands until it is stopped, proven, written down.

On SQLite from the same host, and on PostgreSQL from another one: it has a name, processes and a network of its own,
and shares nothing with the agents but the database.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit import wait_until

pytest.importorskip("typer")

from agentguard import Guard, RunState
from tests.consoles import AGENTS, line
from tests.terminal import on_a_terminal, without_styles

#: How many runs each process has beside the wild one, which has a process with others.
TAME = (8, 7, 7, 7)

Command = Callable[..., tuple[int, str]]
#: Runs a command on another host; the tests' PostgreSQL is reached over a socket in the file system.
ANOTHER_HOST = (
    *("unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *("sh", "-c", 'hostname operator && exec "$@"', "sh"),
)


class Drill(NamedTuple):
    """The agents at work, and the terminal of the operator."""

    wild: str
    tame: set[str]
    command: Command
    #: What a command shows on the operator's terminal.
    shown: Callable[..., str]
    guard: Guard


@functools.cache
def another_host() -> tuple[str, ...]:
    """Return what goes before a command to run it on another host; it takes root and unshare(1)."""
    possible = (
        shutil.which("unshare") is not None
        and not subprocess.run([*ANOTHER_HOST, "true"], capture_output=True, check=False).returncode
    )
    return ANOTHER_HOST if possible else ()


@pytest.fixture(params=["sqlite", "postgres"])
def drill(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Iterator[Drill]:
    agents_home = operators_home = home
    host: tuple[str, ...] = ()
    environment = {**os.environ, "AGENTGUARD_STORE": f"sqlite:///{home / 'agentguard.db'}"}
    if request.param == "postgres":
        environment["AGENTGUARD_STORE"] = request.getfixturevalue("postgres_url")
        environment["AGENTGUARD_KILL_SWITCH"] = environment["AGENTGUARD_STORE"]
        operators_home, host = tmp_path / "another host", another_host()
    with _agents(environment | {"AGENTGUARD_HOME": str(agents_home)}) as (wild, tame):
        own = environment | {"AGENTGUARD_HOME": str(operators_home)}
        agentguard = [*host, sys.executable, "-m", "agentguard.cli"]

        def shown(*arguments: str) -> str:
            return without_styles(on_a_terminal([*agentguard, *arguments], own, columns=200))

        def command(*arguments: str) -> tuple[int, str]:
            done = subprocess.run(
                [*agentguard, *arguments],
                env=own,
                check=False,
                capture_output=True,
                text=True,
                timeout=120,
            )
            return done.returncode, done.stdout + done.stderr

        with Guard.open(environment["AGENTGUARD_STORE"], kill_switch="memory", telemetry=False) as guard:
            yield Drill(wild, tame, command, shown, guard)


@contextmanager
def _agents(environment: dict[str, str]) -> Iterator[tuple[str, set[str]]]:
    """Run 29 tame runs and a wild one in 4 processes; give the ids."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(AGENTS), *arguments], env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    try:
        tame = [
            start("spend_in_threads", f"mail-{n}", "acme", str(count)) for n, count in enumerate(TAME[1:])
        ]
        both = start("burn_beside", "crawler", "acme", str(TAME[0]))
        lines = {line(both) for _ in range(TAME[0] + 1)}
        [wild] = [said.removeprefix("wild ") for said in lines if said.startswith("wild ")]
        ids = lines - {f"wild {wild}"}
        ids |= {line(process) for process, count in zip(tame, TAME[1:], strict=True) for _ in range(count)}
        yield wild, ids
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def data(done: tuple[int, str]) -> Any:
    code, said = done
    assert code == 0, said
    return json.loads(said)


def test_five_commands_lead_from_something_burns_to_stopped_proven_and_written_down(drill: Drill) -> None:
    assert len(drill.tame) == 29
    wait_until(lambda: drill.guard.summary(drill.wild).usage.usd > 50, 60)

    # 1. Which one burns?  Its id is shortened on a terminal, and stands for it in every command.
    first = drill.shown("top", "--once", "--sort", "rate").splitlines()[1].split()
    short, name = first[:2]
    assert (name, drill.wild.startswith(short), len(short) < len(drill.wild)) == ("crawler", True, True)
    assert {"fetch_page", "process", "gone"} & set(first) == {"fetch_page"}, "what it does, and that it lives"

    # 2. What does it do?
    code, said = drill.command("tail", short, "--json")
    assert code == 0
    assert "fetch_page" in said

    # 3. Stop it, and see that it has stopped.
    reason = ["--reason", "burns $500 a second", "--actor", "ann"]
    code, said = drill.command("kill", short, "--wait", "--timeout", "60", *reason)
    assert code == 0, said
    assert f"killed run {drill.wild}" in said
    assert drill.guard.summary(drill.wild).state is RunState.KILLED
    spent = drill.guard.summary(drill.wild).usage.usd

    # 4. Prove it.
    code, said = drill.command("verify", short)
    assert code == 0, said

    # 5. Write it down: who, when, why.
    *_, kill = data(drill.command("show", "control", "--json"))["events"]
    facts = (kill["type"], kill["data"]["actor"], kill["data"]["reason"], kill["data"]["target"])
    assert facts == ("kill_set", "ann", "burns $500 a second", drill.wild)

    # It spends no more, though it swallows every stop; and its neighbours have not noticed.
    before = {run_id: drill.guard.summary(run_id).steps for run_id in drill.tame}
    wait_until(lambda: all(drill.guard.summary(run_id).steps > steps for run_id, steps in before.items()), 60)
    assert drill.guard.summary(drill.wild).usage.usd == spent
