"""What a limit lets pass.

A call costs `COST`, and `LIMIT` has room for a hundred calls and a half: a limit that is hard lets a hundred
pass, and one that is looked at before a call alone lets a hundred and one pass, even when nothing happens at
the same time.  Where calls are counted and not money, the limit is a hundred.
"""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import time

COST, LIMIT, FITS = 0.0075, 0.75375, 100
WORKERS, TRIES = 64, 8
BAD = {"NaN": float("nan"), "negative": -1.0, "infinite": float("inf")}
MANY = 300
#: The share of an agent's own time below which a difference says nothing.
NOISE = 0.03


def cases(adapter, _path):
    is_async = hasattr(adapter, "acall") or hasattr(adapter, "drive")
    return {
        "one after another": lambda: counted(adapter),
        "64 threads": lambda: counted(adapter, WORKERS * TRIES, WORKERS),
        "64 tasks": lambda: tasks(adapter) if is_async else "no async form used",
        "bad limits taken": lambda: [name for name, bad in BAD.items() if takes(adapter, limit=bad)],
        "bad costs taken": lambda: bad_costs(adapter),
        "calls that raise": lambda: raising(adapter),
        "stop swallowed": lambda: swallowed(adapter),
        "µs a call": lambda: cost(adapter),
    }


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


def made(adapter, body, calls=MANY, at_once=1, *, limit=None, price=COST, forgives=()):
    """Let an agent make calls; return what says that it was stopped: an error's name, or a word."""
    try:
        limit = limit or (FITS if counts(adapter) else LIMIT)
        if hasattr(adapter, "drive"):
            return adapter.drive(limit, body, calls, at_once)
        session = adapter.session(limit, price)
        return in_session(adapter, session, _agent(adapter, body, calls, at_once, forgives))
    except adapter.STOPS as stop:
        return type(stop).__name__


def counts(adapter):
    """Whether the limit is one on calls; that on money is the usual one."""
    return hasattr(adapter, "drive") or getattr(adapter, "COUNTS", False)


def in_session(adapter, opened, agent):
    """Run an agent, which gets the session, as the package wants it to be run."""
    governed = getattr(adapter, "governed", _alone)
    with opened as session:
        if _is_async(agent):

            async def given():
                return await agent(session)
        else:

            def given():
                return agent(session)

        return governed(session, given)


def _alone(_, agent):
    return asyncio.run(agent()) if _is_async(agent) else agent()


def _is_async(function):
    return inspect.iscoroutinefunction(function)


def _agent(adapter, body, calls, at_once, forgives):
    """Return an agent that makes the calls one after another, or each of its workers a share of them."""
    if _is_async(body):
        return functools.partial(_in_tasks, adapter, body, calls, at_once)
    if at_once > 1:
        return functools.partial(_in_threads, adapter, body, calls, at_once)

    def one_after_another(session):
        for _ in range(calls):
            with contextlib.suppress(*forgives):
                adapter.call(session, body)

    return one_after_another


def _in_threads(adapter, body, calls, at_once, session):
    """In copies of the agent's context; each worker tries again and again until it is stopped."""
    start = threading.Barrier(at_once)

    def work():
        start.wait()
        with contextlib.suppress(*adapter.STOPS):
            for _ in range(calls // at_once):
                adapter.call(session, body)

    contexts = [contextvars.copy_context() for _ in range(at_once)]
    workers = [threading.Thread(target=context.run, args=(work,)) for context in contexts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def _in_tasks(adapter, body, calls, at_once, session):
    async def work():
        for _ in range(calls // at_once):
            await adapter.acall(session, body)

    await asyncio.gather(*(work() for _ in range(at_once)), return_exceptions=True)


def counted(adapter, calls=MANY, at_once=1):
    body = Body()
    made(adapter, body, calls, at_once)
    return body.calls


def tasks(adapter):
    body = Body()
    made(adapter, body.waiting, WORKERS * TRIES, WORKERS)
    return body.calls


def takes(adapter, **bad):
    """Whether a call goes through, without a word, under a limit or at a cost that makes no sense."""
    calls = []
    try:
        return made(adapter, lambda: calls.append(1), 1, **bad) is None and bool(calls)
    except Exception:  # noqa: BLE001 - whatever it is, it was not taken
        return False


def bad_costs(adapter):
    if counts(adapter):
        return "it counts calls"
    return [name for name, bad in BAD.items() if takes(adapter, price=bad)]


def raising(adapter):
    """How often a call that always raises is made by an agent that tries it again for ever."""
    calls = 0

    def body():
        nonlocal calls
        calls += 1
        raise ConnectionError

    with contextlib.suppress(ConnectionError):
        made(adapter, body, forgives=(ConnectionError,))
    return calls


def swallowed(adapter):
    """What an agent that catches every exception gets done, and what leaves its block."""
    body = Body()
    stop = made(adapter, body, forgives=(Exception,))
    return f"{body.calls}; {stop or 'nothing'}"


def cost(adapter, calls=300, rounds=7):
    """The least CPU time of a call with a body that does nothing, and a limit that is far away.

    Of a framework's agent the same without a limit is taken off.
    """
    if hasattr(adapter, "drive"):
        return _added(adapter, calls, rounds)
    taken = []

    def agent(session):
        def some():
            for _ in range(calls):
                adapter.call(session, int)

        taken.extend(_taken(some) / calls for _ in range(rounds))

    in_session(adapter, adapter.session(10**6, COST), agent)
    return round(min(taken), 1)


def _added(adapter, calls, rounds):
    """Of the whole process, in turns: a framework runs tools in threads of its own."""
    limits = (10**6, None)
    taken = {limit: [] for limit in limits}
    for _ in range(rounds):
        for limit in limits:
            started = time.process_time_ns()
            adapter.drive(limit, int, calls, 1)
            taken[limit].append((time.process_time_ns() - started) / calls / 1000)
    with_limit, without = (min(taken[limit]) for limit in limits)
    least = without * NOISE
    return round(with_limit - without, 1) if with_limit - without > least else f"below {least:.0f}"


def _taken(work):
    started = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - started) / 1000
