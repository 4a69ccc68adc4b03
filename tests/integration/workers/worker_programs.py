"""The random programs of the recovery property as submitted runs, in workers that die at a random effect."""

from __future__ import annotations

import json
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import worker_office

if (root := str(Path(__file__).parents[3])) not in sys.path:  # a worker's folder is this one
    sys.path.append(root)

from agentguard import Run
from tests.property.test_recovery_programs import World, ask_in_vain, carry_out, hang

_CANCELLED = {"hang": hang, "ask_in_vain": ask_in_vain}


def to_data(ops: Any) -> Any:
    """A program as the inputs of a run: functions by their names, and without signals.

    Workers carry runs out in threads, where no signal handler runs.
    """
    if isinstance(ops, list | tuple):
        return [to_data(op) for op in ("value" if op == "interrupted" else op for op in ops)]
    return next((name for name, step in _CANCELLED.items() if step is ops), ops)


def from_data(ops: list[Any]) -> list[Any]:
    """The program of such inputs."""
    return [(kind, _CANCELLED[arg] if kind == "cancelled" else _inside(arg)) for kind, arg in ops]


def _inside(arg: Any) -> Any:
    if not isinstance(arg, list):
        return arg
    many = bool(arg) and all(isinstance(body, list) and isinstance(body[0], list) for body in arg)
    return [from_data(body) for body in arg] if many else from_data(arg)


def _begin() -> None:
    """Let this process die at an effect, if a death is left for it; once in its life."""
    if World.path is not None:
        return
    World.path = worker_office.folder() / "effects"
    for death in sorted(worker_office.folder().glob("death-*")):
        with suppress(FileNotFoundError):  # another worker took it
            at = int(death.read_text())
            death.unlink()
            World.crash_at = at
            return


def deaths(folder: Path, count: int, draw: random.Random) -> None:
    """Have so many workers die, each at an effect of its own."""
    for number in range(count):
        (folder / f"death-{number}").write_text(str(draw.randint(1, 15)))


async def program(run: Run, inputs: list[Any]) -> None:
    _begin()
    World.guard = worker_office.guard
    result = await carry_out(worker_office.guard, run, from_data(inputs))
    (worker_office.folder() / f"result-{run.id}").write_text(json.dumps(result))
