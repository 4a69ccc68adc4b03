"""Interrupting sync bodies: opt-in, since an exception in the middle of any line is a rough stop.

The exception goes to the thread only while a flag says that it is in the body, never in the guard's
own code; one that arrives as the body ends is taken back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from agentguard.errors import RunStopped
from agentguard.steps.model import Step


class _InterruptedError(BaseException):
    """Internal: raised in the thread of a body.  A BaseException, so that the body cannot eat it."""


class SyncBody:
    """A sync body in flight in a thread."""

    __slots__ = ("_inside", "_journal", "_lock", "_thread", "interrupted", "scope")

    def __init__(self, step: Step) -> None:
        self.scope = step.scope_key
        self.interrupted: RunStopped | None = None
        self._journal = step.journal
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._inside = False

    def stop(self, stop: RunStopped) -> None:
        """Interrupt the thread, if it is still in the body; called from any thread."""
        with self._lock:
            if self._inside and self.interrupted is None:
                self.interrupted = stop
                _raise_in(self._thread, _InterruptedError)

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
        self._journal.bodies.add(self)
        with self._lock:
            self._inside = True
        if self._journal.stop is not None:
            raise self._journal.stop.with_traceback(None)

    def _leave(self) -> None:
        self._journal.bodies.discard(self)
        with self._lock:
            self._inside = False
            if self.interrupted is not None:
                _raise_in(self._thread, None)  # takes back what has not arrived yet


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    target = ctypes.py_object(exception) if exception is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
