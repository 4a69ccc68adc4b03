"""The heartbeat: a thread that looks after the runs of a process, and writes its signs of life."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

from agentguard._process import ProcessLock
from agentguard._reentry import is_begun

_logger = logging.getLogger(__name__)

#: Seconds between two heartbeats of a process that owns runs.
INTERVAL = 5.0
#: Seconds between two checks of bodies in flight that no step tells of a stop.
CHECK_INTERVAL = 1.0


class Heartbeat:
    """Calls `check` every second and `beat` every five, in a daemon thread, until one returns False.

    On one host an owner is known to be dead without it; other hosts go by the heartbeat.
    """

    def __init__(self, check: Callable[[], bool], beat: Callable[[], bool]) -> None:
        self._check = check
        self._beat = beat
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._starting = ProcessLock()

    def start(self, pid: int) -> None:
        """Begin, unless it has begun in this process."""
        if self._beats(pid):
            return
        with self._starting.here():
            if not self._beats(pid):
                self._pid = pid
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._run, name="agentguard-heartbeat", daemon=True)
                self._thread.start()

    def _beats(self, pid: int) -> bool:
        return is_begun(self._thread) and self._pid == pid

    def stop(self) -> None:
        """Beat no more, until `start` is called again."""
        self._stop.set()
        self._thread = None

    def _run(self) -> None:
        stop = self._stop
        for tick in itertools.count(1):
            if stop.wait(min(CHECK_INTERVAL, INTERVAL)):
                return
            due = tick % max(1, round(INTERVAL / CHECK_INTERVAL)) == 0
            if not _carry_on(self._check) or (due and not _carry_on(self._beat)):
                return


def _carry_on(act: Callable[[], bool]) -> bool:
    """What `act` says; a fault of it, at one run perhaps, must not end the signs of life of all."""
    try:
        return act()
    except Exception:
        _logger.exception("the heartbeat failed; it goes on")
        return True
