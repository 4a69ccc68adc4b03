"""A program whose guarded functions are its own: `dump LIBRARY FILE` pickles them, `load LIBRARY FILE` calls them."""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, guarded_step


def functions() -> dict[str, Any]:
    base = 10

    @guarded_step
    def plain(n: int) -> int:
        return base + n

    @guarded_step
    async def later(n: int) -> int:
        return base + n

    @guarded_step
    def items(n: int) -> Iterator[int]:
        yield base + n

    @guarded_step
    async def later_items(n: int) -> AsyncIterator[int]:
        yield base + n

    return {"plain": plain, "later": later, "items": items, "later items": later_items}


@guarded_step
def of_the_module(n: int) -> int:
    return 10 + n


@guarded_step
async def of_the_module_later(n: int) -> int:
    return 10 + n


def unguarded(n: int) -> int:
    return of_the_module(n)


class Agent:
    @guarded_step
    def method(self, n: int) -> int:
        return 10 + n


async def drained(items: Any) -> list[int]:
    return [item async for item in items]


def call(name: str, function: Any) -> int:
    if name == "later" or name.endswith("later"):
        return asyncio.run(function(1))
    if name == "items":
        return next(iter(list(function(1))))
    if name == "later items":
        return asyncio.run(drained(function(1)))[0]
    return function(1)


def main() -> None:
    how, library, file = sys.argv[1:]
    pickles = importlib.import_module(library)
    if how == "dump":
        own = {"module": of_the_module, "module later": of_the_module_later, "unguarded": unguarded}
        named = functions() | own | {"method": Agent().method}
        Path(file).write_bytes(pickles.dumps(named))
        return
    with Guard.in_memory(telemetry=False) as guard, guard.run("r", budget=Budget(steps=50)) as run:
        for name, function in pickles.loads(Path(file).read_bytes()).items():
            before = run.summary().steps
            sys.stdout.write(f"{name} {call(name, function)} {run.summary().steps - before}\n")


if __name__ == "__main__":
    main()
