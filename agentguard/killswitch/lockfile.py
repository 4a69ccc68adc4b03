"""A lock between processes that goes when its holder dies."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentguard.errors import KillSwitchUnavailableError

try:
    import fcntl
except ImportError:  # Windows: importing must work, so that everything else does
    fcntl = None  # type: ignore[assignment]

_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.005


class LockFile:
    """A file that one holder at a time has locked: one thread of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = threading.Lock()
        self._descriptor: int | None = None

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the lock in a block.

        Raises:
            TimeoutError: somebody else has held it for `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        if not self._threads.acquire(timeout=timeout):
            raise self._busy(timeout)
        try:
            pause = _FIRST_PAUSE
            while not self._take():
                if time.monotonic() >= deadline:
                    raise self._busy(timeout)
                time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - it only spreads waiters
                pause = min(pause * 2, _LONGEST_PAUSE)
            yield
        finally:
            self._let_go()
            self._threads.release()

    def after_fork(self) -> None:
        """Forget what another thread of the parent held at the fork; the parent keeps it."""
        self._threads = threading.Lock()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _take(self) -> bool:
        if fcntl is None:
            raise KillSwitchUnavailableError(
                "the kill page needs file locks and FIFOs, which this platform lacks; "
                "use kill_switch='memory' or a redis:// URL"
            )
        # Of a link somebody else would choose the target.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Where the file was deleted meanwhile, others would lock a new one.
            if os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        self._let_go()
        return False

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and fcntl is not None:
            # Closing alone would leave it locked by a child forked meanwhile, which has a copy.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _busy(self, timeout: float) -> TimeoutError:
        return TimeoutError(
            f"{self.path} has been locked by another process or thread for {timeout:g} s; "
            f"`fuser {self.path}` says which"
        )
