"""A process with runs on a host: async bodies that wait until they are cancelled.

It says "ready" when all bodies wait, and at its end when each of them ended, in ns of the machine's clock.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

from agentguard import Guard, RunStopped, guarded_step

_ended: list[int] = []


async def _run(guard: Guard, waiting: asyncio.Semaphore) -> None:
    @guarded_step
    async def wait() -> None:
        waiting.release()
        try:
            await asyncio.Event().wait()
        finally:
            _ended.append(time.monotonic_ns())

    with suppress(RunStopped):
        async with guard.run("agent", tenant="acme"):
            await wait()


async def _main(runs: int) -> None:
    waiting = asyncio.Semaphore(0)
    with Guard.open("memory://", telemetry=False) as guard:
        tasks = [asyncio.create_task(_run(guard, waiting)) for _ in range(runs)]
        for _ in tasks:
            await waiting.acquire()
        _say("ready")
        await asyncio.gather(*tasks)
    _say(" ".join(map(str, _ended)))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
