"""One delivery of a call by an orchestrator: `joined.py RUN CALL FOLDER`; it says what it got.

Bodies write into FOLDER/told, and die by SIGKILL where FOLDER has a file named after them: once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from agentguard import Budget, Guard, StepOutcomeUnknownError, guarded_step

RUN, CALL, FOLDER = sys.argv[1], sys.argv[2], Path(sys.argv[3])


def tell(what: str) -> str:
    with (FOLDER / "told").open("a") as told:
        told.write(f"{what}\n")
    if (FOLDER / what).exists():
        (FOLDER / what).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return what


@guarded_step
def once(what: str) -> str:
    return tell(what)


@guarded_step(effect="idempotent")
async def again(what: str) -> str:
    return tell(what)


def plain(what: str) -> list[str]:
    return [tell(what)]


def outer(what: str) -> list[str]:
    return [once(f"{what}-first"), once(f"{what}-second"), tell(f"{what}-third")]


async def concurrent(what: str) -> list[str]:
    got = await asyncio.gather(again(f"{what}-a"), again(f"{what}-b"))
    return [*got, await again(f"{what}-c")]


def failing(what: str) -> None:
    tell(what)
    raise OSError("no luck")


def deliver(guard: Guard) -> object:
    with guard.run("orders", run_id=RUN, if_exists="join", budget=Budget(steps=50)) as run:
        if CALL == "once":
            return run.call("once", plain, "once", key="the call")
        if CALL == "read":
            return run.call("read", plain, "read", key="the call", effect="read")
        if CALL == "outer":
            return run.call("outer", outer, "outer", key="the call", effect="idempotent")
        if CALL == "failing":
            return run.call("failing", failing, "failing", key="the call")
        assert CALL == "concurrent"
        return asyncio.run(run.call("concurrent", concurrent, "c", key="the call", effect="idempotent"))


with Guard.open(telemetry=False) as guard:
    try:
        sys.stdout.write(f"{deliver(guard)}")
    except (StepOutcomeUnknownError, OSError) as error:
        sys.stdout.write(type(error).__name__)
