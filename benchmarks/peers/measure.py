"""What one package does: `python measure.py ADAPTER`, in the package's own environment; prints JSON.

Nothing is imported here but Python's own library.  A call costs `COST`, and `LIMIT` has room for a hundred
calls and a half: a limit that is hard lets a hundred pass, and one that is looked at before a call alone
lets a hundred and one pass, even when nothing happens at the same time.
"""

import asyncio
import contextlib
import contextvars
import importlib.util
import json
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COST, LIMIT, FITS = 0.0075, 0.75375, 100
WORKERS, TRIES = 64, 8
BAD = {"NaN": float("nan"), "negative": -1.0, "infinite": float("inf")}
MANY = 300


def main(path):
    spec = importlib.util.spec_from_file_location("adapter", path)
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    print(json.dumps(found(adapter)))


def found(adapter):
    return {
        "version": _version(adapter.REQUIRES.partition("==")[0]),
        "one after another": _tried(lambda: one_after_another(adapter)),
        "64 threads": _tried(lambda: threads(adapter)),
        "64 tasks": _tried(lambda: tasks(adapter)) if hasattr(adapter, "acall") else "no async form used",
        "bad limits taken": [name for name, bad in BAD.items() if takes(adapter, bad, COST)],
        "bad costs taken": [name for name, bad in BAD.items() if takes(adapter, LIMIT, bad)],
        "calls that raise": _tried(lambda: raising(adapter)),
        "stop swallowed": _tried(lambda: swallowed(adapter)),
        "µs a call": _tried(lambda: cost(adapter)),
    }


def _version(package):
    try:
        return version("agentguard" if package == "." else package)
    except PackageNotFoundError:
        return "?"


def _tried(case):
    try:
        return case()
    except BaseException as error:  # noqa: BLE001 - what a package does with this is a finding
        return f"{type(error).__name__}: {error}".splitlines()[0]


def run(adapter, agent, limit=LIMIT, price=COST):
    """Let an agent run in a session; return what says that it was stopped: an error's name, or a word."""
    governed = getattr(adapter, "governed", _alone)
    try:
        with adapter.session(limit, price) as session:
            return governed(session, _given(agent, session))
    except adapter.STOPS as stop:
        return type(stop).__name__


def _alone(_, agent):
    return asyncio.run(agent()) if _is_async(agent) else agent()


def _is_async(agent):
    return asyncio.iscoroutinefunction(agent)


def _given(agent, session):
    if _is_async(agent):

        async def given():
            return await agent(session)
    else:

        def given():
            return agent(session)

    return given


class Body:
    """Counts the calls that were made, and takes a little time, as calls do."""

    def __init__(self):
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self):
        with self._lock:
            self.calls += 1
        time.sleep(0.001)

    async def waiting(self):
        self.calls += 1
        await asyncio.sleep(0.001)


def one_after_another(adapter):
    body = Body()

    def agent(session):
        for _ in range(MANY):
            adapter.call(session, body)

    run(adapter, agent)
    return body.calls


def threads(adapter):
    """64 threads in copies of the agent's context, each tries again and again until it is stopped."""
    body = Body()

    def agent(session):
        start = threading.Barrier(WORKERS)

        def work():
            start.wait()
            with contextlib.suppress(*adapter.STOPS):
                for _ in range(TRIES):
                    adapter.call(session, body)

        contexts = [contextvars.copy_context() for _ in range(WORKERS)]
        workers = [threading.Thread(target=context.run, args=(work,)) for context in contexts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    run(adapter, agent)
    return body.calls


def tasks(adapter):
    body = Body()

    async def agent(session):
        async def work():
            for _ in range(TRIES):
                await adapter.acall(session, body.waiting)

        await asyncio.gather(*(work() for _ in range(WORKERS)), return_exceptions=True)

    run(adapter, agent)
    return body.calls


def takes(adapter, limit, price):
    """Whether a call goes through, without a word, under a limit or at a cost that makes no sense."""

    def agent(session):
        adapter.call(session, int)

    try:
        return run(adapter, agent, limit, price) is None
    except Exception:  # noqa: BLE001 - whatever it is, it was not taken
        return False


def raising(adapter):
    """How often a call that always raises is made by an agent that tries it again for ever."""
    calls = 0

    def body():
        nonlocal calls
        calls += 1
        raise ConnectionError

    def agent(session):
        for _ in range(MANY):
            with contextlib.suppress(ConnectionError):
                adapter.call(session, body)

    run(adapter, agent)
    return calls


def swallowed(adapter):
    """What an agent that catches every exception gets done, and what leaves its block."""
    body = Body()

    def agent(session):
        for _ in range(MANY):
            with contextlib.suppress(Exception):
                adapter.call(session, body)

    stop = run(adapter, agent)
    return {"calls": body.calls, "what says so": stop or "nothing"}


def cost(adapter, calls=300, rounds=7):
    """The least CPU time of a call with a body that does nothing, and a limit that is far away."""
    taken = []

    def agent(session):
        for _ in range(rounds):
            started = time.thread_time_ns()
            for _ in range(calls):
                adapter.call(session, int)
            taken.append((time.thread_time_ns() - started) / calls / 1000)

    run(adapter, agent, limit=1e6)
    return round(min(taken), 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
