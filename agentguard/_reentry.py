"""Signal handlers, which run between any two lines of the main thread.

What one raises may leave a lock held by a block that is no longer there; what it calls may enter a block
that is under way.  The frames of the thread tell these cases apart.  What must be done to its end goes on
in a thread of its own, where no handler runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from types import FrameType
from typing import Literal

from agentguard.errors import AgentGuardError

#: `left`: no frame of this thread is in the block; `own`: the guard calls itself; `handler`: a stranger's
#: function does, which can only have been called between two lines.
Standing = Literal["left", "own", "handler"]

#: Packages through which the guard calls itself.
_OURS = ("agentguard", "contextlib", "threading", "asyncio")


def standing(inside: Callable[[FrameType], bool], depth: int = 0) -> Standing:
    """Return how the code `depth` frames above the caller stands to a block, whose frames `inside` knows."""
    frame: FrameType | None = sys._getframe(depth + 1)
    found: Standing = "own"
    while frame is not None:
        if inside(frame):
            return found
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OURS:
            found = "handler"
        frame = frame.f_back
    return "left"


#: How long, in seconds, is waited for the thread of `finish`: it may need a lock that a caller holds.
_PATIENCE = 10.0


def finish(act: Callable[[], object], owned: Callable[[], bool] = lambda: False) -> None:
    """Call `act`, again where a signal handler cuts it short; then raise what that handler raised.

    `act` finds out by itself what has been done.  `owned` says whether this thread holds a lock that `act`
    needs: then it is called here again, else in a thread of its own.

    Raises:
        AgentGuardError: of `act`.
        BaseException: what a signal handler raised meanwhile.
    """
    try:
        act()
    except AgentGuardError:
        raise
    except BaseException:
        if owned():
            act()
        else:
            _InThread(act).wait()
        raise


def is_begun(thread: threading.Thread | None) -> bool:
    """Return whether there is a thread, and it was started: a signal handler may have come before that."""
    return thread is not None and thread.ident is not None


class _InThread:
    """A call in a thread of its own, awaited whatever signal handlers raise meanwhile."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._context = copy_context()
        self._begun = threading.Lock()
        self._done = threading.Event()

    def wait(self) -> None:
        """Return when the call is done; what it raises says that it cannot be done."""
        raised: BaseException | None = None
        for _ in range(_MOST_ATTEMPTS):
            try:
                if not self._begun.locked():
                    threading.Thread(target=self._call, daemon=True).start()
                self._done.wait(_PATIENCE)
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                raised = error
        if raised is not None:
            raise raised

    def _call(self) -> None:
        if self._begun.acquire(blocking=False):
            try:
                self._context.run(self._act)
            except BaseException:  # noqa: BLE001, S110 - who waits has an error to raise already
                pass
            finally:
                self._done.set()


#: How often signal handlers may cut the wait for it short.
_MOST_ATTEMPTS = 10_000
