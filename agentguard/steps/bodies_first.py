"""The stop of many runs at once: every body is cancelled first, and what happened is written after."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from agentguard._reentry import finish

#: Seconds for which the bodies of a loop have the interpreter for themselves, before writing goes on.
_HEAD_START = 0.02

_Call = Callable[[], None]


class _PutOff:
    """What one block puts off: the cancellations by their loops, and what is to be written."""

    def __init__(self) -> None:
        self.cancellations: dict[asyncio.AbstractEventLoop, list[_Call]] = {}
        self.writing: list[_Call] = []
        #: Loops that were told and may not have come round yet, and how long each is waited for.
        self._told: list[threading.Event] = []
        self._patience = _HEAD_START

    def carry_out(self) -> None:
        """Do what was put off, or what is left of it where a signal handler cut this short."""
        while self.cancellations:
            loop, calls = next(iter(self.cancellations.items()))
            self._told.append(_call_in(loop, calls))
            del self.cancellations[loop]
        while self._told:
            if not self._told.pop().wait(self._patience):
                self._patience = 0.0  # one is blocked: the others have had that time, too
        call_each(self.writing)


class _Thread(threading.local):
    put_off: _PutOff | None = None


_thread = _Thread()


@contextlib.contextmanager
def bodies_first() -> Iterator[None]:
    """Put off what this thread stops in the block to its end, in two parts: bodies, and what is written.

    A loop that is woken for one body would take the interpreter to settle its step and to end its run, while
    the other bodies go on; and so would the writing of the thread that has woken it.
    """
    before, put_off = _thread.put_off, _PutOff()
    try:
        _thread.put_off = put_off
        yield
    finally:
        _thread.put_off = before
        finish(put_off.carry_out)


def cancel(loop: asyncio.AbstractEventLoop, call: _Call) -> None:
    """Have a loop call what cancels a body of it; from any thread."""
    put_off = _thread.put_off
    if put_off is None:
        _call_in(loop, [call])
    else:
        put_off.cancellations.setdefault(loop, []).append(call)


def call_each(calls: list[_Call]) -> None:
    """Call each of them, whatever another raises, and take those that returned off the list.

    Raises:
        Exception: the first that one of them raised.
    """
    raised: Exception | None = None
    for call in list(calls):
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised below
            raised = raised or error
        else:
            calls.remove(call)
    if raised is not None:
        raise raised


def write(call: _Call) -> None:
    """Call what puts a stop on record, once the bodies have been cancelled."""
    put_off = _thread.put_off
    if put_off is None:
        call()
    else:
        put_off.writing.append(call)


def _call_in(loop: asyncio.AbstractEventLoop, calls: list[_Call]) -> threading.Event:
    """Have a loop call something; the event is set once tasks that these calls cancelled had a turn."""
    over = threading.Event()

    def call_all() -> None:
        try:
            call_each(calls)
        finally:
            loop.call_soon(over.set)

    if asyncio._get_running_loop() is loop:  # it goes on when its caller does
        over.set()
    try:
        loop.call_soon_threadsafe(call_all)
    except RuntimeError:  # it is closed, and so are its bodies
        over.set()
    return over
