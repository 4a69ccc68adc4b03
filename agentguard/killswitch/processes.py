"""Which process is which: a pid, a start time and a PID namespace, since a pid alone says little."""

from __future__ import annotations

import os
from typing import NamedTuple

from agentguard._process import INITIAL_NAMESPACE, pid_namespace, start_time

_PID_BITS = 32


class Process(NamedTuple):
    """A process of this machine.

    `start` is 0 where it cannot be told; `namespace` is its PID namespace, and 0 for the machine's first.
    """

    pid: int
    start: int
    namespace: int = 0

    @classmethod
    def from_word(cls, word: int, start: int) -> Process:
        """Return the process that a word of the kill page names."""
        return cls(word & (1 << _PID_BITS) - 1, start, word >> _PID_BITS)

    @property
    def word(self) -> int:
        """Pid and namespace as one word of the kill page."""
        return self.namespace << _PID_BITS | self.pid

    @property
    def is_local(self) -> bool:
        """Whether it is of this PID namespace, so that its pid means it here."""
        return self.namespace == _namespace()

    @property
    def alive(self) -> bool:
        """Whether it still runs, and no other has taken its pid; also where nobody here can tell."""
        if not self.is_local:
            return True
        try:
            return start_time(self.pid) in (0, self.start)
        except (PermissionError, ValueError):
            # It is there, and cannot be told from another.
            return True
        except (ProcessLookupError, OverflowError):
            return False


def current() -> Process:
    """Return this process."""
    pid = os.getpid()
    return Process(pid, start_time(pid), _namespace())


def _namespace() -> int:
    namespace = pid_namespace()
    return 0 if namespace == INITIAL_NAMESPACE else namespace & (1 << 64 - _PID_BITS) - 1
