"""What a step costs that survives a crash, and what is done again after one.

`engine(folder, body)` is a generator, plain or async, that gives two functions of its kind:
`run(name, steps)` makes so many steps one after another, or takes up the run of that name where it was left;
`replay(name, steps)` runs it again.  `body(number)` is a step's body, and `body.waiting` its async form,
which may be given a function to call while it lasts.
"""

import asyncio
import contextlib
import inspect
import os
import signal
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path

import processes

STEPS, ROUNDS = 50, 5
#: The step in which the process dies, and how many there are.
DIES, OF = 3, 5


def cases(adapter, path):
    return {
        "after each step": lambda: adapter.SAYS["after each step"],
        "µs a step": lambda: in_a_folder(cost, adapter),
        "µs a bare commit with fsync": lambda: in_a_folder(bare_commit),
        "bytes a step": lambda: in_a_folder(size, adapter),
        f"replay of {OF} steps: bodies run": lambda: in_a_folder(replayed, adapter),
        f"kill -9 in step {DIES} of {OF}: bodies run": lambda: in_a_folder(crashed, path),
    }


def in_a_folder(case, *given):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return case(folder, *given)


class Body:
    """Notes the numbers of the steps that it ran in."""

    def __init__(self):
        self.ran = []

    def __call__(self, number):
        self.ran.append(number)
        return number

    async def waiting(self, number, _=None):
        return self(number)


@contextlib.contextmanager
def opened(adapter, folder, body):
    """Give an adapter's engine, with plain functions: an async one has a loop of its own."""
    if not inspect.isasyncgenfunction(getattr(adapter.engine, "func", adapter.engine)):
        with contextlib.contextmanager(adapter.engine)(folder, body) as functions:
            yield functions
        return
    engine = contextlib.asynccontextmanager(adapter.engine)(folder, body)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def done(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    run, replay = done(engine.__aenter__())
    try:
        yield lambda *given: done(run(*given)), lambda *given: done(replay(*given))
    finally:
        done(engine.__aexit__(None, None, None))


def cost(folder, adapter):
    """Return the median of several runs, by the wall clock."""
    with opened(adapter, folder, Body()) as (run, _):
        taken = []
        for number in range(ROUNDS + 1):
            started = time.perf_counter_ns()
            run(f"cost-{number}", STEPS)
            taken.append((time.perf_counter_ns() - started) / STEPS / 1000)
    return round(statistics.median(taken[1:]))


def bare_commit(folder, commits=300):
    """One row of 300 bytes in SQLite, for the disk as it is at this moment."""
    connection = sqlite3.connect(f"{folder}/bare.db", isolation_level=None)
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE row (data BLOB)")
    taken = []
    for _ in range(commits):
        started = time.perf_counter_ns()
        connection.execute("INSERT INTO row VALUES (?)", (b"x" * 300,))
        taken.append((time.perf_counter_ns() - started) / 1000)
    connection.close()
    return round(statistics.median(taken))


def size(folder, adapter, few=20, many=320):
    """Return by how much the files grow, once everything is closed."""
    sizes = []
    for steps in (few, many):
        with opened(adapter, folder, Body()) as (run, _):
            run(f"size-{steps}", steps)
        sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
    return round((sizes[1] - sizes[0]) / many)


def replayed(folder, adapter):
    """Run again what has run, over what is on record of it."""
    body = Body()
    with opened(adapter, folder, body) as (run, replay):
        run("replayed", OF)
        body.ran.clear()
        replay("replayed", OF)
    return len(body.ran)


def crashed(folder, path):
    """Let a process die in a body, after its effect; then take the run up in a process of its own."""
    with processes.started(path, "crash", folder):
        pass
    with processes.started(path, "crash", folder) as process:
        ended = processes.heard(process)
    effects = Path(folder, "effects").read_text().split()
    return f"{', '.join(effects)}; {ended}"


def crash(adapter, folder):
    """Make the steps, die in one of them if nobody has died there yet, and say how it ended."""
    effects = Path(folder, "effects")

    class Deadly(Body):
        def __call__(self, number):
            is_first = not effects.exists() or str(number) not in effects.read_text().split()
            with effects.open("a") as file:
                file.write(f"{number}\n")
            if number == DIES and is_first:
                os.kill(os.getpid(), signal.SIGKILL)
            return number

    with opened(adapter, folder, Deadly()) as (run, _):
        try:
            run("crashed", OF)
        except Exception as error:  # noqa: BLE001 - how it ends is a finding
            processes.say(type(error).__name__)
        else:
            processes.say("completed")
