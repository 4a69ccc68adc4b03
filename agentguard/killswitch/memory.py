"""A kill switch inside one process: what the page promises, without files or other processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard.errors import KillSwitchUnavailableError
from agentguard.events.codec import Stored, chain, encode, genesis
from agentguard.events.model import CONTROL_RUN_ID, Record
from agentguard.killswitch.acks import Count, collect
from agentguard.killswitch.forking import renew_after_fork
from agentguard.killswitch.index import KillIndex
from agentguard.killswitch.kill_requests import check_request
from agentguard.killswitch.model import GENERATION, Acknowledgements, Kill
from agentguard.protocols import HeadMovedError

_logger = logging.getLogger(__name__)


class MemoryKillSwitch:
    """Kills for one process, gone when it ends; a child made by `fork` has a copy of its own.

    `on_change` is called in the thread that records, after the locks are released.

    Example:
        >>> from agentguard.killswitch.kill_requests import kill_data
        >>> switch = MemoryKillSwitch()
        >>> switch.record(*kill_data("bad prompt", run="run-1", actor="ann"))
        1
        >>> switch.find("acme", "run-1", since=1).scope
        'run'
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._words = memoryview(bytearray(16)).cast("Q")
        self._signal = self._words.toreadonly()
        self._log: list[Stored] = []
        self._index = KillIndex()
        self._joined: list[Participant] = []
        self._closed = False
        renew_after_fork(self)

    @property
    def signal(self) -> memoryview:
        """Two words, read-only; index `GENERATION` changes with every control record."""
        self._check_open()
        return self._signal

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run created at generation `since`."""
        self._check_open()
        return self._index.find(tenant, run_id, since)

    def kills(self) -> list[Kill]:
        """All kills, oldest first, the cleared ones too."""
        self._check_open()
        return self._index.kills()

    def record(self, type: str, data: dict[str, Any], after: int | None = None) -> int:
        """Append to the control log, then call everybody who joined; gives the generation.

        With `after`, as the record that follows generation `after`, or not at all.

        Raises:
            HeadMovedError: another record follows `after`.
            ValueError: a kill or revive that names no scope, target or reason.
        """
        self._check_open()
        check_request(type, data)
        with self._lock:
            generation = len(self._log) + 1
            if after not in (None, generation - 1):
                raise HeadMovedError(CONTROL_RUN_ID, after)
            record = Record(seq=generation, type=type, at_ns=self._clock.wall(), data=data)
            body = encode(record)
            prev = self._log[-1].hash if self._log else genesis(CONTROL_RUN_ID)
            self._log.append(Stored(generation, body, chain(prev, body), None, generation))
            self._index.add(record)
            self._words[GENERATION] = generation
            joined = list(self._joined)
        for participant in joined:
            try:
                participant.on_change(generation)
            except BaseException:
                _logger.exception("on_change failed at generation %d", generation)
            else:
                participant.acknowledge(generation)
        return generation

    def read(self, after: int = 0) -> Iterator[Stored]:
        """The control log."""
        self._check_open()
        return iter(self._log[after:])

    def join(self, on_change: Callable[[int], None]) -> Participant:
        """Take part: `on_change(generation)` is called in the thread that records."""
        self._check_open()
        with self._lock:
            participant = Participant(self, on_change, len(self._log))
            self._joined.append(participant)
        return participant

    def acknowledgements(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until this process, if it takes part, has acted on `generation`."""
        self._check_open()

        def count() -> Count:
            joined = list(self._joined)
            acted = all(participant.acknowledged >= generation for participant in joined)
            return Count(int(bool(joined)), int(bool(joined) and acted))

        return collect(count, timeout)

    def close(self) -> None:
        """Refuse from now on.  Closing twice does nothing."""
        self._closed = True
        self._joined = []

    def after_fork(self) -> None:
        """In a forked child: go on with a copy."""
        self._lock = threading.Lock()

    def _check_open(self) -> None:
        if self._closed:
            raise KillSwitchUnavailableError("the kill switch in memory was closed")

    def _leave(self, participant: Participant) -> None:
        with self._lock:
            if participant in self._joined:
                self._joined.remove(participant)


class Participant:
    """A participant: what `join` gives."""

    __slots__ = ("_switch", "acknowledged", "on_change")

    def __init__(self, switch: MemoryKillSwitch, on_change: Callable[[int], None], generation: int) -> None:
        self._switch = switch
        self.on_change = on_change
        self.acknowledged = generation

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""
        self.acknowledged = max(generation, self.acknowledged)

    def leave(self) -> None:
        """Stop taking part.  Leaving twice does nothing."""
        self._switch._leave(self)
