"""A kill switch that only says what a control log says: for exports, and to look without touching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from agentguard.errors import KillSwitchUnavailableError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.killswitch.index import KillIndex
from agentguard.killswitch.model import GENERATION, Acknowledgements, Kill
from agentguard.protocols import Participant


class ReadOnlyKillSwitch:
    """Answers from a control log, as it is when it is first asked; `where` is for messages."""

    def __init__(self, where: str, log: Callable[[], Iterator[Stored]], announced: int = 0) -> None:
        #: The newest record that the page beside the log knew of.
        self.announced = announced
        #: Where the control log lies, in words.
        self.where = where
        self._log = log
        self._index: KillIndex | None = None
        self._words = memoryview(bytearray(16)).cast("Q")

    def _learned(self) -> KillIndex:
        if self._index is None:
            index = KillIndex()
            for stored in self._log():
                index.add(codec.decode(stored.body))
                self._words[GENERATION] = stored.seq
            self._index = index
        return self._index

    @property
    def signal(self) -> memoryview:
        """The generation of the control log; it does not change."""
        self._learned()
        return self._words.toreadonly()

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run."""
        return self._learned().find(tenant, run_id, since)

    def kills(self) -> list[Kill]:
        """All kills, oldest first."""
        return self._learned().kills()

    def read(self, after: int = 0) -> Iterator[Stored]:
        """The control log."""
        return (stored for stored in self._log() if stored.seq > after)

    def record(self, type: str, data: dict[str, Any], after: int | None = None) -> int:
        """Refused."""
        return self._refuse()

    def join(self, on_change: Callable[[int], None]) -> Participant:
        """Refused: nothing changes here."""
        return self._refuse()

    def acknowledgements(self, generation: int, timeout: float) -> Acknowledgements:
        """Nobody takes part."""
        return Acknowledgements(0, 0, 0.0)

    def close(self) -> None:
        """Nothing was opened."""

    def _refuse(self) -> NoReturn:
        raise KillSwitchUnavailableError(
            f"{self.where} is read-only here: nothing can be killed or recorded; open the home it came from"
        )
