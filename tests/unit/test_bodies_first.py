"""The stop of many runs at once, where loops are blocked or a signal handler raises."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator

import pytest

from agentguard import Guard, KillSwitchTriggeredError
from agentguard.steps import bodies_first
from tests.kit import wait_until


class AlarmError(Exception):
    """What the handler raises."""


@contextlib.contextmanager
def blocked(count: int) -> Iterator[list[asyncio.AbstractEventLoop]]:
    """Loops that carry nothing out."""
    loops = [asyncio.new_event_loop() for _ in range(count)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.close()


def stop_in(loops: list[asyncio.AbstractEventLoop], cancelled: list[int], written: list[int]) -> None:
    """Stop one body in each loop."""
    with bodies_first.bodies_first():
        for n, loop in enumerate(loops):
            bodies_first.cancel(loop, lambda n=n: cancelled.append(n))
            bodies_first.write(lambda n=n: written.append(n))


def test_loops_that_are_blocked_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies_first, "_HEAD_START", 1.0)
    written: list[int] = []
    with blocked(120) as loops:
        threading.Thread(target=stop_in, args=(loops, [], written), daemon=True).start()
        wait_until(lambda: len(written) == 120)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an alarm")
def test_a_handler_that_raises_while_bodies_have_their_turn_keeps_nothing_off_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raise_it(*_: object) -> None:
        raise AlarmError

    monkeypatch.setattr(bodies_first, "_HEAD_START", 3600.0)
    cancelled: list[int] = []
    written: list[int] = []
    with blocked(1) as loops:
        before = signal.signal(signal.SIGALRM, raise_it)
        try:
            with pytest.raises(AlarmError), bodies_first.bodies_first():
                bodies_first.cancel(loops[0], lambda: cancelled.append(0))
                bodies_first.write(lambda: written.append(0))
                signal.setitimer(signal.ITIMER_REAL, 0.05)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        loops[0].run_until_complete(asyncio.sleep(0))
    assert written == cancelled == [0]
    done: list[int] = []
    bodies_first.write(lambda: done.append(1))  # nothing is put off any more
    assert done == [1]


def test_a_kill_is_on_record_when_it_returns_though_another_thread_was_the_first_to_see_it(
    guard: Guard,
) -> None:
    """As the thread is that was woken by the kill."""
    seen, goes_on = threading.Event(), threading.Event()

    def woken() -> None:
        with bodies_first.bodies_first():
            guard.runtime.live[run.id].end(KillSwitchTriggeredError("run", "stop"))
            seen.set()
            goes_on.wait(60)

    with contextlib.suppress(KillSwitchTriggeredError), guard.run("r") as run:
        thread = threading.Thread(target=woken)
        thread.start()
        try:
            assert seen.wait(60)
            guard.kill(reason="stop", run=run.id)
            assert guard.summary(run.id).state == "KILLED"
        finally:
            goes_on.set()
            thread.join()


def test_what_one_run_cannot_write_keeps_no_other_off_the_record() -> None:
    written: list[int] = []
    cancelled: list[int] = []

    def fail() -> None:
        raise OSError("a fault of one run's")

    with blocked(1) as loops:
        with pytest.raises(OSError, match="of one run's"), bodies_first.bodies_first():
            for call in (fail, lambda: cancelled.append(1)):
                bodies_first.cancel(loops[0], call)
            for call in (lambda: written.append(1), fail, fail, lambda: written.append(2)):
                bodies_first.write(call)
        loops[0].set_exception_handler(lambda *_: None)
        loops[0].run_until_complete(asyncio.sleep(0))
    assert (written, cancelled) == ([1, 2], [1])
