"""What it costs to begin: CPU time of whole processes, their modules compiled, as pip leaves them."""

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
_KILL = ("kill", "--reason", "benchmark", "--yes")
#: Recorded, but no process is attached that could act on it.
_NOBODY = 3


def measure(*, quick: bool) -> list[Row]:
    """The rows on starting: a program that imports agentguard, and two commands."""
    times = 3 if quick else 10
    with tempfile.TemporaryDirectory() as home:
        _record_runs(home)
        bare = _least((sys.executable, "-c", ""), home, times)
        imported = _least((sys.executable, *_IMPORT), home, times)
        stepped = _least((sys.executable, "-c", _A_STEP), home, times)
        listed = _least((_PROGRAM, "runs"), home, times)
        killed = _least((_PROGRAM, *_KILL), home, times, code=_NOBODY)
    return [
        Row(
            name="startup-import",
            what="import of Guard, guarded_step and Budget, over a bare interpreter",
            value=imported - bare,
            unit="ms",
            limit=60,
            facts={
                "ms of the bare interpreter": bare,
                "with a guard and a first step": stepped - bare,
            },
        ),
        Row(
            name="startup-runs",
            what="`agentguard runs` of 20 runs in SQLite, as a whole",
            value=listed,
            unit="ms",
            limit=250,
        ),
        Row(
            name="startup-kill",
            what="`agentguard kill` of everything, as a whole",
            value=killed,
            unit="ms",
            limit=120,
        ),
    ]


def _record_runs(home: str) -> None:
    with Guard.open(f"sqlite:///{home}/agentguard.db", kill_switch="memory", telemetry=False) as guard:
        for number in range(20):
            with guard.run(f"run {number}", budget=Budget(usd=1)) as run:
                run.call("step", int, usage=Usage(usd="0.01"))


def _least(command: tuple[str, ...], home: str, times: int, *, code: int = 0) -> float:
    """The least CPU time of a process, in milliseconds; the first run, which compiles, is left out."""
    # A cache of our own, since an environment may forbid to write compiled modules: each run would compile.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"AGENTGUARD_HOME": home, "PYTHONPYCACHEPREFIX": f"{home}/compiled"}
    return min([_cpu(command, environment, code) for _ in range(times + 1)][1:])


def _cpu(command: tuple[str, ...], environment: dict[str, str], code: int) -> float:
    child = subprocess.Popen(  # noqa: S603 - the commands of this module
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000
