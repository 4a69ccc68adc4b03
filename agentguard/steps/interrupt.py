"""Interrupting sync bodies: opt-in, since an exception in the middle of any line is a rough stop.

The exception goes to the thread only while a flag says that it is in the body, never in the guard's
own code, be it around the body or called from it; one that arrives as that begins is taken back, and
sent again when the body goes on.  What arrives in a destructor or the callback of a weak reference is
reported there by the interpreter and lost, as is every exception: that body meets the stop at its next check.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentguard.errors import RunStopped
from agentguard.steps.spec import Args, Function, Kwargs

if TYPE_CHECKING:
    from agentguard.steps.model import Step


class _InterruptedError(BaseException):
    """Internal: raised in the thread of a body.  A BaseException, so that the body cannot eat it."""


class _TakenBackError(BaseException):
    """Internal: takes the place of one that has not arrived yet."""


#: The innermost body of each thread.
_threads = threading.local()


def in_a_body() -> bool:
    """Whether this thread is in a body, where it can be interrupted."""
    body: SyncBody | None = getattr(_threads, "body", None)
    return body is not None and body.inside


@contextlib.contextmanager
def uninterruptible() -> Iterator[None]:
    """Code of the guard's own, called in a body: it is not interrupted; the body is when it goes on."""
    body: SyncBody | None = getattr(_threads, "body", None)
    if body is None or not body.inside:
        yield
        return
    body.pause()
    try:
        yield
    finally:
        body.go_on()


class SyncBody:
    """A sync body in flight in a thread."""

    __slots__ = ("_around", "_live_run", "_lock", "_thread", "inside", "interrupted", "scope")

    def __init__(self, step: Step) -> None:
        self.scope = step.scope_key
        self.interrupted: RunStopped | None = None
        self._live_run = step.live_run
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._around: SyncBody | None = None
        self.inside = False

    def stop(self, stop: RunStopped) -> None:
        """Interrupt the thread, if it is still in the body; called from any thread."""
        with self._lock:
            if self.interrupted is None:
                self.interrupted = stop
                if self.inside:
                    _raise_in(self._thread, _InterruptedError)

    def pause(self) -> None:
        """The guard's own code begins."""
        with self._lock:
            self.inside = False
        if self.interrupted is not None:
            self._take_back()

    def go_on(self) -> None:
        """The guard's own code is done."""
        with self._lock:
            self.inside = True
            if self.interrupted is not None:
                _raise_in(self._thread, _InterruptedError)

    def run(self, fn: Function, args: Args, kwargs: Kwargs) -> object:
        """Run the body; raises the stop that interrupted it."""
        finished = False
        result = None
        try:
            try:
                self._enter()
                result = fn(*args, **kwargs)
                finished = True
            finally:
                self._leave()
        except _InterruptedError:
            self._leave()
            if not finished and self.interrupted is not None:
                raise self.interrupted.with_traceback(None) from None
        return result

    def _enter(self) -> None:
        self._around = getattr(_threads, "body", None)
        _threads.body = self
        self._live_run.in_flight.bodies.add(self)
        with self._lock:
            self.inside = True
        if self._live_run.stops.stop is not None:
            raise self._live_run.stops.stop.with_traceback(None)

    def _leave(self) -> None:
        self._live_run.in_flight.bodies.discard(self)
        with self._lock:
            self.inside = False
        _threads.body = self._around
        if self.interrupted is not None:
            self._take_back()

    def _take_back(self) -> None:
        """See to it that nothing arrives later: by another exception, which takes the place of one to come.

        To clear it instead would leave the interpreter looking for it at every turn, and Python 3.11 in an
        endless loop where a debugger or coverage traces the code.
        """
        while True:
            try:
                _raise_in(self._thread, _TakenBackError)
                while True:
                    pass  # it arrives here
            except _TakenBackError:
                return
            except _InterruptedError:  # it was on its way
                continue


def _raise_in(thread: int, exception: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))
