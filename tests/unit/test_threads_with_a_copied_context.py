"""Threads that took the run along with a copy of the context share its branch: LangChain's `batch`, LangGraph's nodes.

Their calls are numbered as they come.  A replay and a recovery tell them apart by their arguments, whoever comes first.
"""

from __future__ import annotations

import contextvars
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from agentguard import Budget, Guard, ReplayDivergenceError, Run, Usage, current_run, guarded_step

ITEMS = (1, 2, 3, 4, 2)  # two of them are asked the same
CALLS = 3

ran: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class Crash(BaseException):
    pass


@guarded_step(effect="read", usage=Usage(coins=1))
def more(number: int) -> int:
    ran.append(("more", number))
    return number + 1


@guarded_step(effect="read")
def listed(number: int) -> Iterator[int]:
    ran.append(("listed", number))
    yield from range(number)


class Turns:
    """Threads whose calls come in an order that the test says."""

    def __init__(self, order: list[int], limit: int = 1_000) -> None:
        self._order = order
        self._limit = limit
        self._next = 0
        self._turn = threading.Condition()

    def take(self, thread: int, call: Callable[[], Any]) -> Any:
        with self._turn:
            assert self._turn.wait_for(lambda: self._over or self._order[self._next] == thread, 60)
            if self._over:
                raise Crash
            try:
                return call()
            finally:
                self._next += 1
                self._turn.notify_all()

    @property
    def _over(self) -> bool:
        return self._next >= min(self._limit, len(self._order))


def shuffled(seed: int) -> list[int]:
    order = list(range(len(ITEMS))) * CALLS
    random.Random(seed).shuffle(order)
    return order


def program(turns: Turns) -> list[Any]:
    results: dict[int, Any] = {}

    def work(thread: int, item: int) -> None:
        first = turns.take(thread, lambda: more(item))
        second = turns.take(thread, lambda: more(first * 10))
        results[thread] = second, turns.take(thread, lambda: list(listed(item)))

    before = more(0)
    threads = []
    for thread, item in enumerate(ITEMS):
        context = contextvars.copy_context()
        threads.append(threading.Thread(target=quietly, args=(context.run, work, thread, item)))
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if len(results) < len(ITEMS):
        raise Crash
    return [before, sorted(results.items()), more(0), list(listed(2))]


def quietly(run: Callable[..., object], *args: object) -> None:
    with suppress(Crash):
        run(*args)


@pytest.mark.parametrize("seed", range(6))
def test_a_replay_serves_each_thread_its_own_calls_whoever_comes_first(guard: Guard, seed: int) -> None:
    with guard.run("r", budget=Budget(coins=99)) as run:
        live = program(Turns(shuffled(seed)))
    ran.clear()
    for other in (seed, seed + 100, seed + 200):
        with guard.replay(run.id) as replayed:
            assert program(Turns(shuffled(other))) == live
        assert replayed.spent == run.spent
    assert ran == []


def crashed(guard: Guard, program: Callable[[], Any]) -> str:
    """Return the id of a run whose process is gone in the middle of `program`."""
    run = guard.run("r", budget=Budget(coins=99))

    def until_the_crash() -> None:
        run.__enter__()
        with pytest.raises(Crash):
            program()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(until_the_crash).result()
    guard.runtime.live.pop(run.id, None)
    return run.id


@pytest.mark.parametrize("crash", [0, 1, 4, 8, 11, 14])
def test_a_recovery_goes_on_whoever_comes_first_and_is_replayed(guard: Guard, crash: int) -> None:
    run_id = crashed(guard, lambda: program(Turns(shuffled(crash), limit=crash)))
    done = list(ran)
    ran.clear()
    with guard.recover(run_id, take_over=True) as run:
        whole = program(Turns(shuffled(crash + 1)))
        assert run.spent["coins"] == 12
    assert sorted(done + ran) == sorted(
        [("more", 0), ("more", 0), ("listed", 2)]
        + [("more", item) for item in ITEMS]
        + [("more", (item + 1) * 10) for item in ITEMS]
        + [("listed", item) for item in ITEMS]
    )
    keys = [event.key or "" for event in guard.history(run_id) if event.type == "step_started"]
    assert sorted(keys) == sorted(
        [f"main/more#{n}" for n in range(1, 13)] + [f"main/listed#{n}" for n in range(1, 7)]
    )
    ran.clear()
    with guard.replay(run_id):
        assert program(Turns(shuffled(crash + 2))) == whole
    assert ran == []
    assert guard.verify(), guard.verify()


def in_thread(call: Callable[..., object], *args: object) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call, *args).result()


def here() -> Run:
    run = current_run()
    assert run is not None
    return run


def test_a_call_that_no_thread_made_is_a_difference(guard: Guard) -> None:
    def program(*items: int) -> None:
        for item in items:
            in_thread(contextvars.copy_context().run, more, item)

    with guard.run("r") as run:
        program(1, 2)
    with pytest.raises(ReplayDivergenceError), guard.replay(run.id):
        program(2, 3)
    with pytest.raises(ReplayDivergenceError, match="left_over"), guard.replay(run.id):
        program(2)


def test_functions_that_are_bound_and_branches_with_a_name_are_held_to_their_order(guard: Guard) -> None:
    def bound(*items: int) -> None:
        in_thread(here().bind(lambda: [more(item) for item in items]))

    with guard.run("r") as run:
        bound(1, 2)
    with guard.replay(run.id):
        bound(1, 2)
    with pytest.raises(ReplayDivergenceError), guard.replay(run.id):
        bound(2, 1)


def test_a_scope_in_such_a_thread_is_part_of_what_tells_calls_apart(guard: Guard) -> None:
    def scoped(*names: str) -> list[str]:
        with here().scope("all"):
            for name in names:
                in_thread(contextvars.copy_context().run, work, name)
        return sorted(seen)

    def work(name: str) -> None:
        seen.append(f"{name} {more(len(name))}")

    seen: list[str] = []
    with guard.run("r") as run:
        live = scoped("a", "bb", "ccc")
    seen.clear()
    ran.clear()
    with guard.replay(run.id):
        assert scoped("ccc", "a", "bb") == live
    assert ran == []


def priced(*items: int) -> list[int]:
    """Each item in a thread and a scope of its own; two of them are of one name."""
    found: list[int] = []

    def work(item: int) -> None:
        with here().scope(f"part {item}", budget=Budget(coins=3)) as part:
            found.append(more(more(item) * 10) + part.spent["coins"])

    for item in items:
        in_thread(contextvars.copy_context().run, work, item)
    with here().scope("all", budget=Budget(coins=9)):
        found.append(more(len(items)))
    return sorted(found)


def test_scopes_in_such_threads_are_replayed_whichever_comes_first(guard: Guard) -> None:
    with guard.run("r") as run:
        live = priced(1, 2, 3, 2)
    ran.clear()
    for order in ((3, 2, 2, 1), (2, 1, 2, 3)):
        with guard.replay(run.id) as replayed:
            assert priced(*order) == live
        assert replayed.spent == run.spent
    assert ran == []


@pytest.mark.parametrize("done", [0, 1, 3])
def test_scopes_in_such_threads_are_recovered_whichever_comes_first(guard: Guard, done: int) -> None:
    def begun() -> None:
        def work(item: int) -> None:
            with here().scope(f"part {item}", budget=Budget(coins=3)):
                more(more(item) * 10)

        for item in (3, 2, 1)[:done]:
            in_thread(contextvars.copy_context().run, work, item)
        raise Crash

    run_id = crashed(guard, begun)
    with guard.recover(run_id, take_over=True) as run:
        whole = priced(1, 2, 3, 2)
        assert run.spent["coins"] == 9
    assert len(ran) == 9
    ran.clear()
    with guard.replay(run_id):
        assert priced(2, 3, 2, 1) == whole
    assert ran == []
    assert guard.verify(), guard.verify()


def recorded(guard: Guard, *items: int) -> list[object]:
    """Each item in a thread, which records a value and opens a run, both named by it."""
    found: list[tuple[object, ...]] = []

    def work(item: int) -> None:
        seen = here().record(f"page {item}", lambda: fetched(item))
        with guard.run(f"part {item}", budget=Budget(coins=3)) as part:
            found.append((seen, more(more(item) * 10), part.spent["coins"]))
        assert here().now().tzinfo is not None

    for item in items:
        in_thread(contextvars.copy_context().run, work, item)
    found.append((here().record("all", lambda: fetched(0)), more(len(items))))
    return sorted(found, key=repr)


def fetched(item: int) -> list[int]:
    ran.append(("fetched", item))
    return [item, item]


def test_values_and_runs_in_such_threads_are_replayed_by_their_names(guard: Guard) -> None:
    with guard.run("r") as run:
        live = recorded(guard, 1, 2, 3)
    ran.clear()
    for order in ((3, 2, 1), (2, 1, 3)):
        with guard.replay(run.id) as replayed:
            assert recorded(guard, *order) == live
        assert replayed.spent == run.spent
    assert ran == []


@pytest.mark.parametrize("done", [0, 1, 2])
def test_values_and_runs_in_such_threads_are_recovered_by_their_names(guard: Guard, done: int) -> None:
    def begun() -> None:
        def work(item: int) -> None:
            here().record(f"page {item}", lambda: fetched(item))
            with guard.run(f"part {item}", budget=Budget(coins=3)):
                more(more(item) * 10)
            here().now()

        for item in (3, 1)[:done]:
            in_thread(contextvars.copy_context().run, work, item)
        raise Crash

    run_id = crashed(guard, begun)
    with guard.recover(run_id, take_over=True) as run:
        whole = recorded(guard, 1, 2, 3)
        assert run.spent["coins"] == 7
    assert len(ran) == 11
    ran.clear()
    with guard.replay(run_id):
        assert recorded(guard, 2, 3, 1) == whole
    assert ran == []
    assert guard.verify(), guard.verify()
