"""Telling who takes part in this process of a change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

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

    def tell(self, generation: int, calls: Sequence[_Call], acknowledge: _Call) -> None:
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
        for thread, call in zip(threads, calls, strict=True):
            try:
                thread.start()
            except RuntimeError:  # the process has as many as it may have
                self._over(thread, acknowledge, failed=not returned(call, generation))
        if not threads:
            self._over(None, acknowledge, failed=False)

    def wait(self, seconds: float) -> None:
        """Wait for the calls that are under way, at most so long; not for one of which this is part."""
        deadline = time.monotonic() + seconds
        for thread in tuple(self._under_way):
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _call(self, call: _Call, generation: int, acknowledge: _Call) -> None:
        failed = not returned(call, generation)
        self._over(threading.current_thread(), acknowledge, failed=failed)

    def _over(self, thread: threading.Thread | None, acknowledge: _Call, *, failed: bool) -> None:
        with self._lock:
            if thread is not None:
                self._under_way.discard(thread)
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
