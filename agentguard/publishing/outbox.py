"""From a store's order over all runs to a publisher: at least once, in order for each run."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from agentguard.errors import StoreUnavailableError
from agentguard.protocols import EventStore, Publisher, PublishingError, abilities_of

_logger = logging.getLogger(__name__)

#: How many events are read, handed over and waited for together.
_PAGE = 5000
#: Seconds between two questions to the store while nothing happens.
_INTERVAL = 0.02
#: Seconds that a publisher is given to take a page.
_TAKING = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Outbox:
    """Reads one store from where it was and hands everything new to a publisher.

    The position is saved in the store after the publisher has taken what lies below it, so a relay that
    dies in between publishes some events again, and never leaves one out.  Several at once do no harm
    but repeats.

    Args:
        store: where the events are.
        open_publisher: makes a publisher; called again after it failed.
        reader: the name that the position is saved under.

    Raises:
        ValueError: the store keeps no positions, as `memory://` does not.
    """

    def __init__(self, store: EventStore, open_publisher: Callable[[], Publisher], reader: str) -> None:
        positions = abilities_of(store).positions
        if positions is None:
            raise ValueError(
                f"{store.url} keeps no position of a reader; publish from sqlite:// or postgresql://"
            )
        self._store = store
        self._positions = positions
        self._open_publisher = open_publisher
        self._publisher: Publisher | None = None
        self._reader = reader
        self._stopping = threading.Event()
        #: How many events were published, repeats included.
        self.published = 0

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stopping.set()

    def run(self) -> None:
        """Publish until `stop`; what goes wrong is tried again, ever more rarely."""
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                while not self._stopping.is_set():
                    if not self.publish_page():
                        self._stopping.wait(_INTERVAL)
                    pause = _FIRST_PAUSE
            except (PublishingError, StoreUnavailableError) as error:
                _logger.warning("%s; trying again in %.1f s", error, pause)
                self._publisher = None
                self._stopping.wait(pause * random.uniform(0.5, 1))  # noqa: S311 - it only spreads relays
                pause = min(2 * pause, _LONGEST_PAUSE)

    def publish_page(self) -> int:
        """Publish what is new, at most a page of it, and save the position; gives how much it was.

        Raises:
            PublishingError: the publisher has not taken all of it; the position stays.
            StoreUnavailableError: the store cannot be read or written.
        """
        if self._publisher is None:
            self._publisher = self._open_publisher()
        page = self._store.tail(self._positions.position(self._reader), limit=_PAGE)
        if not page:
            return 0
        for run_id, stored in page:
            self._publisher.publish(run_id, stored)
        self._publisher.flush(_TAKING)
        self._positions.save_position(self._reader, page[-1][1].position)
        self.published += len(page)
        return len(page)
