"""What a kill from another process does: to the next check, and to a body in flight.

A package that can be killed from outside has `killer(place)`, which gives a function of a name, and
`killable(place, name)`, a session that hears it; the runs of an engine have names already.
"""

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import threading
import time

import durable
import limits
import processes

#: How often each is killed.
KINDS = {"check": 15, "body": 5}
#: Seconds that a body in flight lasts.
LASTS = 3


def cases(adapter, path):
    return {f"kill to {kind}": lambda kind=kind: latencies(adapter, path, kind) for kind in KINDS}


def latencies(adapter, path, kind):
    """Return the median and the worst of many kills, from the call of the kill to its effect."""
    if not hasattr(adapter, "killer"):
        return "no kill"
    with tempfile.TemporaryDirectory() as place:
        with processes.started(path, kind, place) as process:
            found = _latencies(adapter, place, process, KINDS[kind])
    if None in found:
        return "runs to its end"
    median, worst = (
        f"{taken:.1f}" if taken < 100 else f"{taken:.0f}" for taken in (statistics.median(found), max(found))
    )
    return f"{median} ms, worst {worst}"


def _latencies(adapter, place, process, kills):
    """In milliseconds; None where the body was not reached."""
    kill, found = None, []
    with asyncio.Runner() as runner:
        for number in range(kills):
            process.stdin.write(f"{number}\n")
            processes.heard(process)
            kill = kill or _killer(adapter, place, runner)
            time.sleep(random.uniform(0.1, 0.2))
            started = time.monotonic_ns()
            kill(str(number))
            ended = processes.heard(process)
            found.append(ended and (ended - started) / 1e6)
    return found


def _killer(adapter, place, runner):
    killer = adapter.killer(place)
    if not asyncio.iscoroutine(killer):
        return killer
    kill = runner.run(killer)
    return lambda name: runner.run(kill(name))


def victim(adapter, kind, place):
    """Run until killed, for each name that is read, and say when that was."""
    body = Victim(kind)
    with runner(adapter, place, body) as run:
        for line in sys.stdin:
            body.is_new = True
            with contextlib.suppress(BaseException):  # a stop, by whatever name
                run(line.strip())
            ended = time.monotonic_ns()
            body.over.wait(2 * LASTS)
            processes.say(ended if kind == "check" else body.reached)


class Victim:
    """A body that does nothing, or one that lasts and knows when it was reached."""

    def __init__(self, kind):
        self.lasts = kind == "body"
        self.is_new = True
        self.reached = None
        self.over = threading.Event()

    def __call__(self, _number=0):
        with self._noted():
            for _ in range(LASTS * 100 if self.lasts else 0):
                time.sleep(0.01)

    async def waiting(self, _number=0, beat=int):
        with self._noted():
            for _ in range(LASTS * 100 if self.lasts else 0):
                beat()
                await asyncio.sleep(0.01)

    @contextlib.contextmanager
    def _noted(self):
        if self.is_new:
            self.is_new, self.reached = False, None
            self.over.clear()
            processes.say("begun")
        try:
            yield
        except BaseException:
            self.reached = time.monotonic_ns()
            raise
        finally:
            self.over.set()


@contextlib.contextmanager
def runner(adapter, place, body):
    """Give a function of a name, which runs until it is killed."""
    if hasattr(adapter, "engine"):
        with durable.opened(adapter, place, body) as (run, _):
            yield lambda name: run(name, 10**6)
        return

    def agent(session):
        while True:
            adapter.call(session, body)

    async def waiting(session):
        while True:
            await adapter.acall(session, body.waiting)

    chosen = waiting if body.lasts and hasattr(adapter, "acall") else agent
    yield lambda name: limits.in_session(adapter, adapter.killable(place, name), chosen)
