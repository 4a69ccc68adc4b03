"""What is awaited of a commit, by threads and event loops: a result that is set once.

Each step waits for two of them, and a `concurrent.futures.Future` takes longer, for its condition and its
locks, than all else that an append takes in the thread that commits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Promise(Generic[_T]):
    """A result or an error that is to come.

    It has no lock: who adds a callback adds it before they look whether the outcome is there, and who sets
    the outcome does so before they look for callbacks.  So none is missed, and one may be called twice.
    """

    __slots__ = ("_callbacks", "_done", "_error", "_value")

    _value: _T

    def __init__(self) -> None:
        self._done = False
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[object], object]] = []

    def done(self) -> bool:
        """Return whether the outcome is there."""
        return self._done

    def set_result(self, value: _T) -> None:
        """Set a result, and tell it."""
        self._value = value
        self._done = True
        self.tell()

    def set_exception(self, error: BaseException) -> None:
        """Set an error, and tell it."""
        self._error = error
        self._done = True
        self.tell()

    def tell(self) -> None:
        """Call the callbacks, if the outcome is there: again where a signal handler has cut that short."""
        if self._done:
            for callback in self._callbacks:
                callback(self)

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        """Have a function called once the outcome is there: in any thread, and perhaps more than once."""
        self._callbacks.append(callback)
        if self._done:
            callback(self)

    def wait(self) -> None:
        """Return when the outcome is there."""
        if self._done:
            return
        gate = threading.Lock()

        def opened(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # it was called before
                gate.release()

        gate.acquire()
        self.add_done_callback(opened)
        gate.acquire()

    def result(self) -> _T:
        """Return or raise the outcome when it is there."""
        self.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # the traceback of the error holds this frame
        return self._value
