"""Who calls again into a critical section: the guard's own code, a signal handler, or nobody any more.

A signal handler runs between any two lines of the main thread.  What it raises may leave a lock held by
a block that is no longer there; what it calls may enter a block that is under way.  The frames of the
thread tell these cases apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Literal

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
