"""Telling who takes part in this process of a change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

_logger = logging.getLogger(__name__)

#: A call with a generation.
_Call = Callable[[int], None]

#: Calls at a time, however many kills are set while a store is away.
_MOST = 64


class Telling:
    """Calls participants after a change, and has it acknowledged once all of them have returned.

    Each call has a thread of its own.  What a kill has stopped is written where it is told, and a store that
    is away must keep neither another participant waiting nor a later kill.
    """

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, generation: int) -> None:
        """Begin anew where everybody was told of a generation; no call is under way, as in a forked child."""
        self._lock = threading.Lock()
        #: The generation up to which everybody was told and has returned.
        self.told = generation
        self._begun = generation
        self._under_way: set[threading.Thread] = set()
        self._failed = False

    def tell(self, generation: int, calls: Iterable[_Call], acknowledge: _Call) -> None:
        """Call everybody with a generation, unless that was begun; one that fails is told again later."""
        with self._lock:
            if generation == self._begun or len(self._under_way) >= _MOST:
                return
            self._begun = generation
            threads = [
                threading.Thread(
                    target=self._call,
                    args=(call, generation, acknowledge),
                    name="agentguard-kill-told",
                    daemon=True,
                )
                for call in calls
            ]
            self._under_way.update(threads)
        for thread in threads:
            thread.start()
        if not threads:
            self._over(acknowledge, failed=False)

    def wait(self, seconds: float) -> None:
        """Wait for the calls that are under way, at most so long; not for one of which this is part."""
        deadline = time.monotonic() + seconds
        for thread in tuple(self._under_way):
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _call(self, call: _Call, generation: int, acknowledge: _Call) -> None:
        self._over(acknowledge, failed=not returned(call, generation))

    def _over(self, acknowledge: _Call, *, failed: bool) -> None:
        with self._lock:
            self._under_way.discard(threading.current_thread())
            self._failed |= failed
            if self._under_way:
                return
            if self._failed:
                self._begun, self._failed = self.told, False
                return
            self.told = self._begun
        acknowledge(self.told)


def returned(call: _Call, generation: int) -> bool:
    """Call it with a generation, and say whether it returned."""
    try:
        call(generation)
    except BaseException:
        _logger.exception("on_change failed at generation %d; it is tried again", generation)
        return False
    return True
