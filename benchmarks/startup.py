"""What it costs to begin: CPU time of whole processes, the interpreter's own apart."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from agentguard import Budget, Guard, Usage
from benchmarks._rows import Row

_IMPORT = ("-c", "from agentguard import Guard, guarded_step, Budget")
_A_STEP = """
from agentguard import Guard
with Guard.in_memory() as guard, guard.run("first") as run:
    run.call("step", int)
"""
_PROGRAM = str(Path(sys.executable).with_name("agentguard"))
_KILL = ("kill", "--all", "--reason", "benchmark", "--yes")


def measure(*, quick: bool) -> list[Row]:
    """The rows on starting: a program that imports agentguard, and two commands."""
    times = 3 if quick else 10
    with tempfile.TemporaryDirectory() as home:
        _record_runs(home)
        bare = _least((sys.executable, "-c", ""), home, times)
        imported = _least((sys.executable, *_IMPORT), home, times)
        stepped = _least((sys.executable, "-c", _A_STEP), home, times)
        listed = _least((_PROGRAM, "runs"), home, times)
        killed = _least((_PROGRAM, *_KILL), home, times)
    facts = {"ms of the bare interpreter": bare}
    return [
        Row(
            name="startup-import",
            what="import of Guard, guarded_step and Budget, over a bare interpreter",
            value=imported - bare,
            unit="ms",
            limit=60,
            facts=facts | {"with a guard and the first step, ms": stepped - bare},
        ),
        Row(
            name="startup-runs",
            what="`agentguard runs` of 20 runs in SQLite, as a whole",
            value=listed,
            unit="ms",
            limit=250,
            facts=facts,
        ),
        Row(
            name="startup-kill",
            what="`agentguard kill`, as a whole",
            value=killed,
            unit="ms",
            limit=120,
            facts=facts,
        ),
    ]


def _record_runs(home: str) -> None:
    with Guard.open(f"sqlite:///{home}/agentguard.db", kill_switch="memory", telemetry=False) as guard:
        for number in range(20):
            with guard.run(f"run {number}", budget=Budget(usd=1)) as run:
                run.call("step", int, usage=Usage(usd="0.01"))


def _least(command: tuple[str, ...], home: str, times: int) -> float:
    """The least CPU time of a process, in milliseconds; the first run, which compiles, is left out."""
    return min([_cpu(command, home) for _ in range(times + 1)][1:])


def _cpu(command: tuple[str, ...], home: str) -> float:
    child = subprocess.Popen(  # noqa: S603 - the commands of this module
        command,
        env=os.environ | {"AGENTGUARD_HOME": home},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return (usage.ru_utime + usage.ru_stime) * 1000
