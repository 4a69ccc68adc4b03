"""Which process is which: a pid and a start time, since a pid alone is soon given to another."""

from __future__ import annotations

import os
from typing import NamedTuple

from agentguard._process import start_time


class Process(NamedTuple):
    """A process of this machine and PID namespace; `start` is 0 where it cannot be told."""

    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether it still runs, and no other has taken its pid."""
        try:
            return start_time(self.pid) == self.start
        except (PermissionError, ValueError):
            # It is there, and cannot be told from another.
            return True
        except (ProcessLookupError, OverflowError):
            return False


def current() -> Process:
    """This process."""
    pid = os.getpid()
    return Process(pid, start_time(pid))
