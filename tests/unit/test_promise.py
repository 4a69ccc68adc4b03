"""The outcome of a commit: every thread and callback that waits for it is told, whatever comes between."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentguard.stores._promise import Promise

THREADS, TIMES = 8, 300


def test_threads_that_wait_are_told_however_close_the_outcome_is() -> None:
    promises = [Promise[int]() for _ in range(TIMES)]
    start = threading.Barrier(THREADS + 1)

    def wait() -> list[int]:
        start.wait()
        return [promise.result() for promise in promises]

    with ThreadPoolExecutor(THREADS) as threads:
        waiting = [threads.submit(wait) for _ in range(THREADS)]
        start.wait()
        for number, promise in enumerate(promises):
            promise.set_result(number)
        for told in waiting:
            assert told.result(60) == list(range(TIMES))


def test_callbacks_are_called_however_close_the_outcome_is() -> None:
    promises = [Promise[int]() for _ in range(TIMES)]
    start = threading.Barrier(2)
    told: set[int] = set()

    def set_all() -> None:
        start.wait()
        for number, promise in enumerate(promises):
            promise.set_result(number)

    with ThreadPoolExecutor(1) as threads:
        setting = threads.submit(set_all)
        start.wait()
        for number, promise in enumerate(promises):
            promise.add_done_callback(lambda _, number=number: told.add(number))
        setting.result(60)
    assert told == set(range(TIMES))


def test_an_error_is_raised_to_each_that_asks() -> None:
    promise = Promise[int]()
    assert not promise.done()
    promise.set_exception(LookupError("gone"))
    for _ in range(2):
        with pytest.raises(LookupError, match="gone"):
            promise.result()
    assert promise.done()


def test_callbacks_that_a_signal_handler_cut_short_are_called_when_it_is_told_again() -> None:
    promise = Promise[int]()
    called: list[str] = []

    def interrupted(_: object) -> None:
        called.append("first")
        if len(called) == 1:
            raise KeyboardInterrupt

    promise.add_done_callback(interrupted)
    promise.add_done_callback(lambda _: called.append("second"))
    promise.tell()
    assert called == []
    with pytest.raises(KeyboardInterrupt):
        promise.set_result(1)
    promise.tell()
    assert called == ["first", "first", "second"]
    assert promise.result() == 1
