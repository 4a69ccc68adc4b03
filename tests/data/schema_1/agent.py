"""The agent whose logs lie beside this file: it does a bit of everything that a log can hold.

Run as a program, it writes `log.sql`, `run.jsonl` and `seen.txt` again, with the agentguard that is installed.  That is
right only while schema 1 is in no release; after that, these files must stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, Run, RunStopped, Usage, guarded_step

FOLDER = Path(__file__).parent
RAN: list[str] = []


class NoSeatError(Exception):
    """There is none left."""

    def __init__(self, train: str, *, wait: int) -> None:
        super().__init__(f"no seat on {train}")
        self.wait = wait


@dataclass
class Seat:
    train: str
    number: int


@guarded_step(kind="llm", usage=Usage(usd="0.01", input_tokens=20, output_tokens=5))
async def plan(question: str) -> list[str]:
    RAN.append("plan")
    await asyncio.sleep(0)
    return question.split()


@guarded_step(effect="idempotent", key=lambda train, number: f"seat-{train}-{number}")
def reserve(train: str, number: int) -> Seat:
    RAN.append("reserve")
    if train == "full":
        raise NoSeatError(train, wait=20)
    return Seat(train, number)


@guarded_step
def stops(train: str) -> Iterator[str]:
    RAN.append("stops")
    yield from (f"{train}-{n}" for n in range(3))


@guarded_step
def trip(train: str) -> str:
    RAN.append("trip")
    return reserve(train, 1).train


@guarded_step(effect="read")
def look(secret: str, password: str) -> str:
    RAN.append("look")
    return secret[::-1]


async def travel(guard: Guard, run: Run) -> list[Any]:
    """A program that ends at the limit of its run."""
    seen: list[Any] = [await asyncio.gather(plan("Oslo Bergen"), asyncio.create_task(plan("Lima")))]
    seen += [reserve("R1", 4), trip("R2"), list(stops("R3")), look("abc", password="hunter2")]
    try:
        reserve("full", 1)
    except NoSeatError as error:
        seen.append((str(error), error.wait))
    seen += [run.now(), str(run.uuid()), run.random(), run.record("weather", lambda: {"rain": True})]
    try:
        with run.scope("tickets", Budget(steps=1)):
            reserve("R4", 1)
            reserve("R5", 1)
    except RunStopped as stop:
        seen.append(stop.facts())
    async with guard.run("hotel", budget=Budget(steps=3)) as hotel:
        seen.append((hotel.id, await plan("a bed")))
    seen.append(str(run.spent.usd))
    with run.branch("side"):
        for n in range(9):
            with contextlib.suppress(RunStopped):
                seen.append(await plan(f"day {n}"))
    return seen


BUDGET = Budget(usd="0.05", steps=40)


async def carried_out(guard: Guard, run: Run) -> tuple[Any, dict[str, Any]]:
    """What it saw, and what stopped it."""
    seen: list[Any] = []
    try:
        async with run:
            seen = await travel(guard, run)
    except RunStopped as stop:
        return seen, stop.facts()
    raise AssertionError("it did not come to its limit")


def as_text(seen: list[Any], stop: dict[str, Any]) -> str:
    """What a program saw, a line for each thing."""
    return "".join(f"{thing!r}\n" for thing in [*seen, stop])


def half_done(guard: Guard) -> None:
    """A run whose process dies in the middle of a step."""
    run = guard.run("half", run_id="half", inputs={"train": "R1"})
    run.__enter__()
    reserve("R1", 1)
    run.call("die", os._exit, 0, effect="idempotent")


def _dump(database: Path) -> str:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        pragmas = [
            f"PRAGMA {name} = {connection.execute(f'PRAGMA {name}').fetchone()[0]};"
            for name in ("user_version", "application_id")
        ]
        return "\n".join([*connection.iterdump(), *pragmas, ""])


def main() -> None:
    """Write the files."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["AGENTGUARD_HOME"] = home
        if os.fork() == 0:
            half_done(Guard.open(telemetry=False))
        os.wait()
        with Guard.open(telemetry=False) as guard:
            run = guard.run("travel", run_id="travel", budget=BUDGET, inputs={"to": "Bergen"})
            seen, stop = asyncio.run(carried_out(guard, run))
            guard.export("travel", FOLDER / "run.jsonl")
        (FOLDER / "log.sql").write_text(_dump(Path(home, "agentguard.db")))
    (FOLDER / "seen.txt").write_text(as_text(seen, stop))


if __name__ == "__main__":
    sys.modules["schema_1_agent"] = sys.modules["__main__"]
    for thing in list(vars(sys.modules["__main__"]).values()):
        if getattr(thing, "__module__", "") == "__main__":
            thing.__module__ = "schema_1_agent"
    main()
